"""What a fit leaves in its folder: the reconstruction and the error map besides the figures of every run."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from skimage.measure import block_reduce

from loe_field.files import write_whole
from loe_field.image.picture import Picture
from loe_field.image.pipeline import Fit
from loe_field.training.record import RunRecord
from loe_field.training.results import write_results

_MOST_DRAWN = 2048
"""Pixels along a side of the error map at most."""


def write_report(
    folder: Path, fit: Fit, target: Picture, record: RunRecord, metrics: dict[str, Any]
) -> dict[str, Path]:
    """Write reconstruction, error.png, curve.csv, curve.png and metrics.json, each whole or not at all.

    Args:
        folder: the run's folder; it must exist.
        fit: the reconstruction and its measures.
        target: the picture.
        record: the run's curve.
        metrics: the content of metrics.json.

    Returns:
        what was written, by name.
    """
    paths = {
        "reconstruction": folder / f"reconstruction{fit.reconstruction.suffix}",
        "error": folder / "error.png",
    }
    with write_whole(paths["reconstruction"]) as path:
        path.write_bytes(fit.content)
    with write_whole(paths["error"]) as path:
        _error_figure(fit.reconstruction, target, fit.psnr).savefig(path)
    return paths | write_results(folder, record, metrics)


def _error_figure(reconstruction: Picture, target: Picture, psnr: float) -> Figure:
    """Error of every pixel (the largest over its channels) in steps of 1/255, brightest at the 99.9th percentile."""
    difference = np.empty((target.height, target.width), np.float32)
    for row in range(target.height):
        seen, wanted = (target.to_unit(picture.values[row]) for picture in (reconstruction, target))
        np.abs(seen - wanted).max(-1, out=difference[row])
    difference *= 255
    # Of a large picture the largest error of each block: matplotlib would take 100 bytes for every pixel.
    difference = block_reduce(difference, -(-max(difference.shape) // _MOST_DRAWN), np.max)
    top = max(float(np.percentile(difference, 99.9)), 1.0)
    height, width = difference.shape
    scale = min(6 / max(height, width), 1 / 50)
    figure = Figure(
        figsize=(max(4.0, width * scale + 1.6), max(2.0, height * scale + 1.0)), dpi=120, layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    drawn = axes.imshow(difference, cmap="magma", vmin=0, vmax=top, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(f"|error|, PSNR {psnr:.2f} dB", fontsize=10)
    figure.colorbar(drawn, ax=axes, label="steps of 1/255", shrink=0.8)
    return figure
