"""Several ns-train runs in one process, which imports the host once; each line of standard input is a run's arguments.

    python -m benchmarks.fits --output fits.jsonl <<< 'loe-image --target-psnr 39.05 --precision bf16'

A run's metrics.json becomes a line of the output as soon as it ends; one that fails has a line that says why, and the
next one goes on. The first run pays for what is compiled and loaded at first use: what is not on the training clock is
in `wall_seconds`. Methods of `runs/baseline_methods.py` are there too. `--pictures` keeps a run's first view or its
reconstruction as METHOD.png there.
"""

import argparse
import gc
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from loe_field.errors import InputError
from loe_field.runs.suite import COMPARED

SHOWN = ("psnr", "num_steps", "train_seconds", "seconds_to_target", "rays_per_second", "wall_seconds", "problem")


def fit(words: list[str], pictures: Path | None) -> list[dict[str, Any]]:
    """Its arguments, wall-clock seconds and metrics, or its problem; a row for each picture of a series."""
    from nerfstudio.scripts import train

    metrics: list[dict[str, Any]] = []
    row: dict[str, Any] = {"arguments": shlex.join(words)}
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = ["ns-train", *words, "--output-dir", folder]
        try:
            train.entrypoint()
        except SystemExit as end:
            if end.code:
                row |= {"problem": f"exit status {end.code}", "status": end.code}
        except Exception as error:  # the next run may still work
            if not isinstance(error, InputError):
                traceback.print_exc()
            row["problem"] = f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]
        row["wall_seconds"] = time.perf_counter() - began
        for path in Path(folder).rglob("metrics.json"):
            metrics.append(json.loads(path.read_text("utf8")))
            views = [*path.parent.glob("views/000.png"), *path.parent.glob("reconstruction.*")]
            if pictures is not None and views:
                shutil.copyfile(views[0], pictures / f"{words[0]}{views[0].suffix}")
    return [row | of_one for of_one in metrics or [{}]]


def main() -> None:
    """Run them one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON lines to append to")
    parser.add_argument("--pictures", type=Path, help="folder for one picture a method")
    options = parser.parse_args()
    shown = (f"{name}=loe_field.runs.baseline_methods:{name.replace('-', '_')}" for name in COMPARED)
    os.environ.setdefault("NERFSTUDIO_METHOD_CONFIGS", ",".join(shown))
    lines = [words for line in sys.stdin.read().splitlines() if (words := shlex.split(line, comments=True))]
    failed = 0
    for words in lines:
        *others, row = fit(words, options.pictures)
        failed += "problem" in row
        with open(options.output, "a") as file:
            file.writelines(json.dumps(one) + "\n" for one in (*others, row))
        figures = " ".join(f"{name}={row[name]:.5g}" if isinstance(row[name], float) else f"{name}={row[name]}"
                           for name in SHOWN if row.get(name) is not None)  # fmt: skip
        print(f"RUN {shlex.join(words)}: {figures}", flush=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if isinstance(status := row.get("status"), int) and status > 128:  # a signal told it to end
            sys.exit(status)
    if failed:
        sys.exit(f"error: {failed} of {len(lines)} runs failed")


if __name__ == "__main__":
    main()
