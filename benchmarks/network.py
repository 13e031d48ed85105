"""Forward and backward of a whole network: experts against the dense network of the same shape and a masked loop.

    python benchmarks/network.py --points 8192 --output benchmarks/results/network.csv

Needs torch and this package only. Every implementation gets the same points, cotangent and numbers; their turns
interleave, so that a slow minute of the machine hits all. The masked loop is how public code computes the layer:
for every expert a mask, the rows under it, a product, and the rows written back. An implementation whose output or
gradient is off against fp64 is not timed.
"""

import argparse
import csv
import datetime
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from loe_field import LoEMLP, __version__, expert_index
from loe_field.training.allocator import keep_freed_memory

OPTIONS = {"num_layers": 10, "layer_width": 64, "num_frequencies": 7}


def masked_loop(field: LoEMLP, coords: Tensor) -> Tensor:
    """The network by masks, one expert after the other."""
    x = field.encoding(coords)
    for layer, index in zip(field.layers, expert_index(coords, field.levels, field.tile_size)):
        y = x.new_zeros(len(x), layer.weight.shape[1])
        for expert, weight in enumerate(layer.weight):
            mask = index == expert
            y[mask] = x[mask] @ weight.t() + layer.bias
        x = torch.sin(y)
    return field.head(x)


def error_against_fp64(run: Callable[[Tensor], Tensor], field: LoEMLP, points: Tensor) -> float:
    """Largest relative error of output and first expert gradient against the reference in fp64."""
    exact = LoEMLP(**OPTIONS | {"tile_size": field.tile_size, "implementation": "reference"}).double().to(points.device)
    exact.load_state_dict(field.state_dict())
    worst = 0.0
    results = []
    for net, function, p in ((exact, exact, points.double()), (field, run, points)):
        out = function(p)
        (grad,) = torch.autograd.grad(out.square().sum(), net.layers[1].weight)
        results.append((out.detach().double(), grad.double()))
    for true, got in zip(*results):
        worst = max(worst, ((got - true).abs().max() / true.abs().max()).item())
    return worst


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


def processor(device: torch.device) -> str:
    """What it runs on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "CPU")
    return f"{name}, {torch.get_num_threads()} threads"


def main() -> None:
    """Check, time, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--points", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="CSV to append to")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as a training run does
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    experts = LoEMLP(**OPTIONS).to(device)
    dense = LoEMLP(**OPTIONS, tile_size=1).to(device)
    cases: dict[str, tuple[Callable[[Tensor], Tensor], LoEMLP]] = {
        "dense": (dense, dense),
        "grouped": (experts, experts),
        "masked_loop": (lambda p: masked_loop(experts, p), experts),
    }
    points = torch.rand(arguments.points, 2, device=device)
    cotangent = torch.randn(arguments.points, 1, device=device)
    for name, (run, field) in cases.items():
        error = error_against_fp64(run, field, points[:512])
        if not error < 1e-4:
            sys.exit(f"error: {name} is off by {error:.1e} against fp64: nothing is timed")

    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for repeat in range(-3, arguments.repeats):
        for name, (run, field) in cases.items():
            field.zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            run(points).backward(cotangent)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - start)

    rows = []
    for name, (_, field) in cases.items():
        p20, median, p80 = (statistics.quantiles(seconds[name], n=10)[k] for k in (1, 4, 7))
        flop = 6 * field.macs_per_point * arguments.points
        rows.append(
            {
                "implementation": name,
                "points": arguments.points,
                "p20_ms": f"{1e3 * p20:.2f}",
                "median_ms": f"{1e3 * median:.2f}",
                "p80_ms": f"{1e3 * p80:.2f}",
                "times_dense": f"{median / statistics.median(seconds['dense']):.2f}",
                "gflop_per_s": f"{flop / median / 1e9:.0f}",
                "dtype": "fp32",
                "device": processor(device),
                "torch": torch.__version__,
                "loe_field": __version__,
                "commit": commit(),
                "date": datetime.date.today().isoformat(),
            }
        )
        print("  ".join(f"{key} {rows[-1][key]}" for key in list(rows[-1])[:7]))
    if arguments.output is not None:
        new = not arguments.output.exists()
        with open(arguments.output, "a", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
