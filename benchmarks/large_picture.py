"""Fit a large picture and say what memory and time it took.

    python -m benchmarks.large_picture --size 8192 --steps 4000

The picture is made here: discs of all sizes before one another, as leaves on the ground (their diameters follow a power
law, so that there are edges at every scale), each with shading of its own. Mumford and Gidas, "Stochastic Models for
Generic Images", 2001, describe why such pictures look like photographs to statistics.
"""

import json
import resource
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tifffile
import tyro

from loe_field.runs.child import Children


def leaves(size: int, seed: int = 0) -> np.ndarray:
    """Uint8 [size, size, 3]: discs of 2 pixels to a quarter of the side in radius, back to front."""
    random = np.random.default_rng(seed)
    picture = np.empty((size, size, 3), np.uint8)
    picture[:] = random.integers(0, 256, 3)
    smallest, largest, count = 2.0, size / 4, 3 * (size // 8) ** 2
    # Radii of density r^-3 between the two, by the inverse of their distribution.
    u = random.random(count)
    radii = 1 / np.sqrt(u / smallest**2 + (1 - u) / largest**2)
    centres = random.integers(0, size, (count, 2))
    colours = random.integers(0, 256, (count, 3))
    for (x, y), radius, colour in zip(centres.tolist(), radii.tolist(), colours.tolist()):
        cv2.circle(picture, (x, y), max(1, round(radius)), colour, -1, cv2.LINE_AA)
        if radius > 24:  # shading, by discs within the disc
            for part in (0.8, 0.55, 0.3):
                lighter = [min(255, round(c + 30 * (1 - part))) for c in colour]
                cv2.circle(picture, (x, y), round(part * radius), lighter, -1, cv2.LINE_AA)
    return picture


@dataclass
class LargePicture:
    """Fit a generated picture with ns-train loe-image."""

    size: int = 8192
    """Pixels along each side."""
    steps: int = 4000
    """Training steps."""
    precision: str = "fp32"
    """Precision of training."""
    output_dir: Path = Path("outputs/large")
    """Folder of picture and run."""
    results: Path | None = None
    """JSON lines that the figures are appended to."""

    def main(self) -> None:
        """Make it, fit it, and print the figures as JSON."""
        self.output_dir.mkdir(parents=True, exist_ok=True)
        path = self.output_dir / f"leaves{self.size}.tif"
        if not path.exists():
            tifffile.imwrite(path, leaves(self.size), photometric="rgb")
        options = ["--max-num-iterations", str(self.steps), "--precision", self.precision, "--timestamp", "run"]
        where = ["--data", str(path), "--output-dir", str(self.output_dir)]
        folder = self.output_dir / path.stem / "loe-image" / "run"
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier call: a run's folder is not used twice
        with Children() as children:
            end = children.run(["loe-image", *options, *where])
        if end.problem:
            sys.exit(f"error: {end.problem}")
        metrics = json.loads((folder / "metrics.json").read_text("utf8"))
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        names = (
            "psnr",
            "psnr_unrounded",
            "ssim",
            "num_parameters",
            "parameters_per_target",
            "num_steps",
            "train_seconds",
        )
        figures = {name: metrics[name] for name in names} | {"peak_gib": round(peak, 2)}
        print(json.dumps(figures, indent=2))
        if self.results is not None:
            with open(self.results, "a") as file:
                file.write(
                    json.dumps({"arguments": f"loe-image, {self.size}x{self.size}", **metrics, **figures}) + "\n"
                )


if __name__ == "__main__":
    tyro.cli(LargePicture).main()
