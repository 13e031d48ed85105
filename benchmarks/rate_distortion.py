"""Bits against PSNR for one picture: fits of several widths exported in int8 and fp16, beside JPEG and WebP.

    python -m benchmarks.rate_distortion --widths 16 24 32 48 64 --steps 2000

Trains with `ns-train loe-image`, exports with `loe-export`, and counts whole files, headers included. Writes
rate_distortion.csv and rate_distortion.png.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.common import provenance, show, write
from loe_field.export.fields import read_details
from loe_field.pictures.metrics import psnr
from loe_field.pictures.picture import Picture
from loe_field.pictures.read import read_picture
from loe_field.runs.child import Children
from loe_field.signals.picture import default_picture

QUALITIES = (5, 10, 20, 30, 40, 50, 60, 70, 80, 85, 90, 95, 98)
COIN = ((0.0368, 22.408), (0.07361, 23.205), (0.1604, 24.641), (0.3074, 26.412), (0.6109, 28.408), (1.209, 30.644))
"""(bits per pixel, PSNR) of Dupont et al., "COIN" (2021), mean over Kodak's 24 colour pictures: results.json of the
authors' repository EmilienDupont/coin."""

COIN_LABEL = "COIN on Kodak's colour pictures, as published"


def codec_points(picture: Picture, name: str) -> list[dict[str, object]]:
    """One row per quality of Pillow's encoder, at its other defaults."""
    values = picture.values[..., 0] if picture.channels == 1 else picture.values
    rows = []
    for quality in QUALITIES:
        content = io.BytesIO()
        Image.fromarray(values).save(content, name, quality=quality)
        decoded = np.asarray(Image.open(content).convert("L" if picture.channels == 1 else "RGB"))
        decibel = psnr(decoded.reshape(picture.values.shape), picture.values, picture.white)
        rows.append(row(name, f"quality {quality}", len(content.getvalue()), picture, decibel))
    return rows


def row(codec: str, setting: str, size: int, picture: Picture, decibel: float) -> dict[str, object]:
    """One line of the table."""
    bits = 8 * size / (picture.height * picture.width)
    return {"codec": codec, "setting": setting, "file_bytes": size, "bits_per_pixel": f"{bits:.4f}",
            "psnr": f"{decibel:.3f}"}  # fmt: skip


def run(command: list[str]) -> None:
    """Run to the end, or end with what it said."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        said = f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
        sys.exit(f"error: {' '.join(command)} ended with {done.returncode}:\n{said}")


def field_points(path: Path, picture: Picture, width: int, steps: int) -> list[dict[str, object]]:
    """Fit, export, and read what the files say of themselves."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = ["loe-image", "--data", str(path), "--max-num-iterations", str(steps)]
        words += ["--pipeline.model.layer-width", str(width), "--precision", "bf16", "--output-dir", str(folder)]
        with Children() as children:
            end = children.run(words, output=folder / "log.txt")
        if end.problem:
            sys.exit(f"error: ns-train {' '.join(words)}: {end.problem}")
        (config,) = folder.rglob("config.yml")
        unrounded = json.loads((config.parent / "metrics.json").read_text())["psnr"]
        for kind in ("int8", "fp16"):
            stored = folder / f"{kind}.safetensors"
            run(
                [
                    *(sys.executable, "-m", "loe_field.cli.export"),
                    *("--load-config", str(config)),
                    *("--format", "safetensors"),
                    *("--quantize", kind),
                    *("--output", str(stored)),
                ]
            )
            metrics = read_details(stored).metrics
            setting = f"width {width}, {steps} steps, {unrounded:.3f} dB in fp32"
            rows.append(row(f"loe_field {kind}", setting, stored.stat().st_size, picture, metrics["psnr"]))
    return rows


def draw(rows: list[dict[str, str]], name: str) -> Figure:
    """PSNR against bits per pixel."""
    figure = Figure(figsize=(7, 4.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for codec in dict.fromkeys(r["codec"] for r in rows):
        points = [(float(r["bits_per_pixel"]), float(r["psnr"])) for r in rows if r["codec"] == codec]
        axes.plot(*zip(*points), marker="o", markersize=4, label=codec)
    axes.plot(*zip(*COIN), color="0.6", linestyle="--", marker=".", label=COIN_LABEL)
    axes.set_xscale("log")
    axes.set_xlabel(f"bits per pixel of {name}, whole files")
    axes.set_ylabel("PSNR, dB")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    return figure


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=default_picture(), help="the picture; left out: camera")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 24, 32, 48, 64])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--output-dir", type=Path, default=Path(__file__).parents[1] / "docs" / "results")
    options = parser.parse_args()
    picture = read_picture(options.data)
    rows = [r for name in ("JPEG", "WEBP") for r in codec_points(picture, name)]
    fits = [r for width in options.widths for r in field_points(options.data, picture, width, options.steps)]
    rows += sorted(fits, key=lambda r: str(r["codec"]))
    made = provenance(torch.device("cpu"))
    show(rows, ["codec", "setting", "file_bytes", "bits_per_pixel", "psnr"])
    options.output_dir.mkdir(parents=True, exist_ok=True)
    table = options.output_dir / "rate_distortion.csv"
    table.unlink(missing_ok=True)
    write([{"picture": options.data.name, **r, **made} for r in rows], table)
    draw([{k: str(v) for k, v in r.items()} for r in rows], options.data.name).savefig(table.with_suffix(".png"))


if __name__ == "__main__":
    main()
