"""One level in Triton, cut in different ways: which entries `kernels.level` should have in its tables.

    python -m benchmarks.kernel_blocks --precision bf16 --output benchmarks/results/blocks.csv

Each cut is held against the table's own before it is timed. Times are medians with the cache emptied in between, GB/s
the bytes that must move (x and y; x, grad_y and grad_x) by them. Rows are written as they come, those of cuts that do
not fit or are wrong too; the table's own cut is first, then what is expected to be good, then all others until the
time is up. Takes a CUDA GPU, or `--device cpu` in Triton's interpreter (TRITON_INTERPRET=1), whose times mean nothing.
"""

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from triton.testing import do_bench

from benchmarks import interpreter
from benchmarks.common import provenance, show, write
from loe_field.network.kernels import level
from loe_field.network.rows import expert_rows
from loe_field.network.shape import Arithmetic

KERNELS = {"forward": ("level_blocks", 2), "backward": ("backward_blocks", 3)}
"""The table of each, and how many numbers of a row's width it must move."""
CUT = ("rows", "warps", "stages", "programs")
EXPECTED = {
    "forward": [(64, 4, 2, 6), (64, 4, 3, 4), (128, 4, 2, 3), (128, 8, 3, 2), (32, 4, 2, 8)],
    "backward": [(32, 4, 2, 4), (32, 4, 3, 4), (32, 4, 2, 3), (64, 4, 3, 2), (64, 8, 2, 2)],
}
"""Values of CUT: by the registers and the shared memory that a cut takes on an H100."""


def cuts(kernel: str) -> Iterator[tuple[int, int, int, int]]:
    """Rows, warps, stages and programs, the most promising first."""
    every = itertools.product((32, 64, 128, 16), (4, 8), (2, 3, 4), (1, 2, 3, 4, 6, 8))
    yield from dict.fromkeys([*EXPECTED[kernel], *every])


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Median time of a call; on a CPU, where it means nothing, of one."""
    if device.type == "cuda":
        return 1e-3 * do_bench(call, warmup=5, rep=20, return_mode="median")  # type: ignore[operator]
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def sweep(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each cut of both kernels, turn about, until the time is up."""
    device, width, precision = torch.device(options.device), options.width, options.precision
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    torch.manual_seed(0)
    x, grad_y = (torch.randn(options.rows, width, device=device).to(dtype) for _ in range(2))
    weight = torch.randn(options.experts, width, width, device=device) / width**0.5
    bias = torch.randn(width, device=device)
    rows = expert_rows(torch.randint(options.experts, (1, options.rows), device=device), options.experts)
    arguments = (x, weight, bias, None, rows.order[0], rows.starts[0], Arithmetic("sine", 1.0, precision, dtype))
    calls: dict[str, Callable[[], tuple[Tensor | None, ...]]] = {
        "forward": lambda: (level.level_forward(*arguments),),
        "backward": lambda: level.level_backward(grad_y, *arguments),
    }
    sizes = {"precision": precision, "rows": options.rows, "width": width, "experts": options.experts}
    started, expected = time.perf_counter(), {}
    for cut_of in itertools.zip_longest(*([None, *cuts(kernel)] for kernel in KERNELS)):
        for (kernel, (table, passes)), cut in zip(KERNELS.items(), cut_of):
            if time.perf_counter() - started > options.seconds:
                return
            own, call, used = getattr(level, table), calls[kernel], []

            def as_cut(*sizes: Any, own: Any = own, cut: Any = cut, used: list = used) -> Any:
                used.append(own(*sizes))
                if cut is not None and used[-1] is not None:  # None: the matrix is too wide for this kernel
                    used.append(used[-1]._replace(**dict(zip(CUT, cut))))
                return used[-1]

            row = {"kernel": kernel, "cut": "own" if cut is None else "tried", **sizes}
            setattr(level, table, as_cut)
            try:
                got = call()
                for mine, wanted in zip(got, expected.setdefault(kernel, got)):
                    torch.testing.assert_close(mine, wanted, rtol=2e-2, atol=2e-2 * wanted.abs().max().item())
                seconds = seconds_of(call, device)
                rate = passes * x.numel() * x.element_size() / seconds / 1e9
                result = {"microseconds": f"{1e6 * seconds:.1f}", "gb_per_s": f"{rate:.0f}", "note": ""}
            except Exception as error:  # a cut that does not fit is no result
                words = str(error).split("\n")[0][:100]
                result = {"microseconds": "", "gb_per_s": "", "note": f"{type(error).__name__}: {words}".rstrip(": ")}
            finally:
                setattr(level, table, own)
            if used and used[-1] is None:
                continue
            shown = {"rows": "block_rows"}  # beside the rows of x
            row |= {shown.get(name, name): getattr(used[-1], name) if used else "" for name in CUT}
            row |= result
            yield row


def main() -> None:
    """Time cuts, write them all, print the fastest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=512 * 512)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp16", "tf32", "tf32x3", "ieee"])
    parser.add_argument("--seconds", type=float, default=600, help="begin no other cut after so long")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, help="CSV to append to")
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        interpreter.mend()
    machine, results = provenance(torch.device(options.device)), []
    for row in sweep(options):
        results.append(row)
        write([row | machine], options.output)
    timed = sorted((row for row in results if row["microseconds"]), key=lambda row: float(row["microseconds"]))
    for kernel in KERNELS:
        best = [row for row in timed if row["kernel"] == kernel]
        own = [row for row in results if row["kernel"] == kernel and row["cut"] == "own"]
        shown = [*best[:5], *(row for row in own if row not in best[:5])]
        if shown:
            show(shown, [name for name in shown[0] if name not in ("rows", "width", "experts")])
    print(f"{len(results)} cuts, {len(results) - len(timed)} without a time")
    if failed := [row["kernel"] for row in results if row["cut"] == "own" and row not in timed]:
        sys.exit(f"error: the tables' own cut fails: {', '.join(failed)}")


if __name__ == "__main__":
    main()
