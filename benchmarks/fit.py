"""Whole fits through ns-train, from nothing to a PSNR: seconds, steps and what came out, per implementation and seed.

    python -m benchmarks.fit --target-psnr 39.05 --seeds 42 43 --output benchmarks/results/fit.csv
    python -m benchmarks.fit --implementations auto torch --max-num-iterations 1200

Runs the real command, one run after the other, implementations in turns. Options after `--` go to ns-train.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.common import provenance, show, write
from loe_field.runs.child import Children

COLUMNS = (
    *("implementation", "precision", "seed", "num_steps", "num_parameters", "parameters_per_target", "psnr"),
    *("psnr_best", "psnr_unrounded", "train_seconds", "target_psnr", "seconds_to_target"),
)


def fit(implementation: str, seed: int, options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """One run's metrics.json."""
    words = [
        "loe-image",
        *("--pipeline.model.implementation", implementation),
        *("--machine.seed", str(seed)),
        *("--max-num-iterations", str(options.max_num_iterations)),
        *("--output-dir", str(folder)),
        *(["--data", str(options.data)] if options.data else []),
        *(["--target-psnr", str(options.target_psnr)] if options.target_psnr else []),
        *options.rest,
    ]
    with Children() as children:
        end = children.run(words, output=folder / "log.txt")
    if end.problem:
        sys.exit(f"error: ns-train {' '.join(words)}: {end.problem}")
    (path,) = folder.rglob("metrics.json")
    return json.loads(path.read_text())


def main() -> None:
    """Fit, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--implementations", nargs="+", default=["auto"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--max-num-iterations", type=int, default=6000)
    parser.add_argument("--target-psnr", type=float, help="stop there; left out, run to the end")
    parser.add_argument("--data", type=Path, help="the picture; left out: camera")
    parser.add_argument("--output", type=Path, help="CSV to append to")
    parser.add_argument("rest", nargs="*", help="options for ns-train, after --")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for seed in options.seeds:
        for implementation in options.implementations:
            with tempfile.TemporaryDirectory() as folder:
                metrics = fit(implementation, seed, options, Path(folder))
            row = {name: metrics[name] for name in COLUMNS}
            rows.append(row | {"options": " ".join(options.rest), **provenance(device)})
    show(rows, ["implementation", "precision", "seed", "num_steps", "psnr", "psnr_unrounded", "train_seconds",
                "seconds_to_target"])  # fmt: skip
    write(rows, options.output)


if __name__ == "__main__":
    main()
