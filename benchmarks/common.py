"""Common parts of the benchmarks: the baselines, the check against fp64, interleaved timing, provenance."""

import argparse
import csv
import ctypes
import datetime
import functools
import itertools
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.summary import aligned
from loe_field import PositionalEncoding, __version__
from loe_field.training.machine import device_name, keep_freed_memory

TOLERANCE = {"fp32": 1e-4, "tf32": 2e-2, "bf16": 1e-1}
"""Largest error against fp64, relative to the largest value, with which a case is timed."""


# ---- baselines ----


def masked_linear(x: Tensor, weight: Tensor, bias: Tensor, index: Tensor) -> Tensor:
    """One expert after the other: its elements by a mask, a product, and back by the mask. What public code does."""
    out = x.new_zeros(len(x), weight.shape[1])
    for expert, matrix in enumerate(weight):
        mask = (index == expert)[:, None]
        rows = torch.masked_select(x, mask).view(-1, x.shape[1])
        out = out.masked_scatter(mask, nn.functional.linear(rows, matrix, bias).to(out.dtype))
    return out


def grouped_mm_linear(x: Tensor, weight: Tensor, bias: Tensor, index: Tensor) -> Tensor:
    """Rows sorted by expert, torch's own grouped product, rows back."""
    order = index.argsort(stable=True)
    ends = torch.searchsorted(index[order], torch.arange(len(weight), device=x.device), right=True, out_int32=True)
    rows = nn.functional.grouped_mm(x[order], weight.mT.to(x.dtype), offs=ends)
    return torch.empty_like(rows).index_copy(0, order, rows) + bias.to(x.dtype)


class DenseSine(nn.Module):
    """The ordinary sine MLP of the same shape, as anybody would write it."""

    def __init__(self, dim: int, num_layers: int, width: int, num_frequencies: int, out_features: int = 1) -> None:
        super().__init__()
        self.encoding = PositionalEncoding(dim, num_frequencies)
        sizes = [self.encoding.out_features, *[width] * (num_layers - 1)]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.head = nn.Linear(width, out_features)

    def forward(self, points: Tensor) -> Tensor:
        """Points [N, dim] to [N, out_features]."""
        x = self.encoding(points)
        for layer in self.layers:
            x = torch.sin(layer(x))
        return self.head(x)


# ---- cases ----


@dataclass
class Case:
    """One implementation: `run` is what is timed, `error` what it is off by against fp64."""

    name: str
    run: Callable[[], object]
    error: Callable[[], float]
    flop: float
    """Operations of the matrix products in one run."""
    bytes: float
    """That the run must move at least: activations level by level."""
    note: str = ""
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    failure: str = ""
    """Why it is not timed."""


def relative_error(got: Sequence[Tensor], true: Sequence[Tensor]) -> float:
    """Largest error of any of the tensors, each relative to its largest true value; NaN counts as infinite."""
    worst = 0.0
    for a, b in zip(got, true):
        error = ((a.double() - b).abs().max() / b.abs().max()).item()
        worst = max(worst, math.inf if math.isnan(error) else error)
    return worst


def select(cases: list[Case], names: Sequence[str] | None) -> list[Case]:
    """The cases of these names; all for None."""
    for name in names or ():
        if name not in [case.name for case in cases]:
            sys.exit(f"error: no implementation {name!r}: there are {', '.join(case.name for case in cases)}")
    return [case for case in cases if names is None or case.name in names]


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


WRONG = "wrong by"
"""First words of the failure of a case whose result is none."""


def measure(cases: list[Case], precision: str, device: torch.device, repeats: int) -> list[Case]:
    """Check every case, measure its peak memory, then time them in turns.

    One that fails or is wrong is not timed, and says why; the others go on. No figure stands beside a wrong result.
    """
    for case in cases:
        with failure_told(case):
            error = case.error()
            if not error <= TOLERANCE[precision]:
                case.failure = f"{WRONG} {error:.1e} against fp64"
                continue
            case.note = f"{case.note} error {error:.1e}".strip()
            case.run()
            case.peak_bytes = peak_memory(case.run, device)
    keep_freed_memory()  # as a training run does; not before memory has been measured
    for repeat in range(-5, repeats):
        for case in cases:
            if case.failure:
                continue
            with failure_told(case):
                synchronize(device)
                start = time.perf_counter()
                case.run()
                synchronize(device)
                if repeat >= 0:
                    case.seconds.append(time.perf_counter() - start)
    return cases


@contextmanager
def failure_told(case: Case) -> Iterator[None]:
    """Note an exception as the case's failure, and print it."""
    try:
        yield
    except Exception as problem:  # a baseline that this machine cannot run, or too little memory: whatever
        lines = str(problem).strip().splitlines()
        case.failure = f"{type(problem).__name__}: {lines[0] if lines else ''}"[:150].rstrip(": ")
    if case.failure:
        print(f"{case.name} is not timed: {case.failure}", flush=True)


def peak_memory(run: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that a run takes at its peak, beyond what was taken before; None where that cannot be told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = _status("VmRSS")
        run()
        return _status("VmHWM") - before
    except (OSError, AttributeError):
        return None


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


@functools.cache
def peaks(device: torch.device, precision: str) -> tuple[float, float]:
    """FLOP/s of a large product and bytes/s (read and written) of a large copy, measured here and now."""
    size, length = (8192, 2**28) if device.type == "cuda" else (2048, 2**25)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    source = torch.empty(length, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    best = []
    for run in (lambda: a @ b, lambda: target.copy_(source)):
        times = []
        for _ in range(8):
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
            times.append(time.perf_counter() - start)
        best.append(min(times[2:]))
    return 2 * size**3 / best[0], 8 * length / best[1]


# ---- provenance and output ----


def commit() -> str:
    """The commit this runs at, with a + if the tree has changed since."""
    try:
        done = [
            subprocess.run(
                ["git", *words], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
            ).stdout
            for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        ]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done[0].strip() + ("+" if done[1].strip() else "")


def driver(device: torch.device) -> str:
    """The GPU's driver."""
    if device.type != "cuda":
        return ""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def provenance(device: torch.device) -> dict[str, str]:
    """Device, versions, commit and date: the last columns of every row."""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = ""
    return {
        "device": device_name(device),
        "driver": driver(device),
        "torch": torch.__version__,
        "triton": triton_version,
        "loe_field": __version__,
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
    }


def rows_of(
    cases: list[Case], settings: dict[str, Any], *, against: str, precision: str, device: torch.device
) -> list[dict[str, Any]]:
    """One row a case, without times if it failed; `against` names the case whose time is 1."""
    flops, bandwidth = peaks(device, precision)
    base = next((statistics.median(c.seconds) for c in cases if c.name == against and not c.failure), None)
    rows = []
    for case in cases:
        times = f"times_{against.replace(' ', '_')}"
        figures = dict.fromkeys(("p20_ms", "median_ms", "p80_ms", times, "gflop_per_s", "gb_per_s", "times_floor"), "")
        if not case.failure:
            p20, median, p80 = (statistics.quantiles(case.seconds, n=10)[k] for k in (1, 4, 7))
            floor = max(case.flop / flops, case.bytes / bandwidth)
            figures = {
                "p20_ms": f"{1e3 * p20:.3f}",
                "median_ms": f"{1e3 * median:.3f}",
                "p80_ms": f"{1e3 * p80:.3f}",
                times: "" if base is None else f"{median / base:.3f}",
                "gflop_per_s": f"{case.flop / median / 1e9:.0f}",
                "gb_per_s": f"{case.bytes / median / 1e9:.1f}",
                "times_floor": f"{median / floor:.1f}",
            }
        peak = "" if case.peak_bytes is None else f"{case.peak_bytes / 2**20:.0f}"
        figures |= {"peak_mib": peak, "note": f"not timed, {case.failure}" if case.failure else case.note}
        rows.append({"implementation": case.name, **settings, **figures, **provenance(device)})
    return rows


def show(rows: list[dict[str, Any]], columns: Sequence[str]) -> None:
    """Print some columns, aligned."""
    print(aligned(rows, columns))


def write(rows: list[dict[str, Any]], path: Path | None) -> None:
    """Append rows to a CSV whose columns are theirs."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.read_text().splitlines()[0] != ",".join(rows[0]):
        sys.exit(f"error: {path} has other columns: give --output another file")
    new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def refuse_wrong(rows: list[dict[str, Any]]) -> None:
    """End the program with status 1 if a case was wrong."""
    wrong = [f"{row['implementation']}: {row['note']}" for row in rows if WRONG in row["note"]]
    if wrong:
        sys.exit(f"error: {'; '.join(wrong)}")


def options(description: str) -> argparse.ArgumentParser:
    """Options that layer and step have in common."""
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--points", type=int, nargs="+", default=[16384])
    parser.add_argument("--dim", type=int, default=2)
    parser.add_argument("--tile-size", type=int, nargs="+", default=[2])
    parser.add_argument("--precision", choices=list(TOLERANCE), default="fp32")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--implementations", nargs="+", help="only these")
    parser.add_argument("--output", type=Path, help="CSV to append to")
    return parser


def set_up(device: str, threads: int | None, precision: str) -> torch.device:
    """Threads and precision as a training run has them."""
    if threads is not None:
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.set_autocast_dtype(device.split(":")[0], torch.bfloat16)  # a GPU's own default is fp16
    torch.manual_seed(0)
    return torch.device(device)
