"""What a fit leaves in its folder: the reconstruction, the error map, the curve and the figures."""

import json
import math
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import loe_field
from loe_field.files import write_whole
from loe_field.image.picture import Picture
from loe_field.image.pipeline import Fit
from loe_field.training.machine import device_name
from loe_field.training.record import RunRecord


def write_report(
    folder: Path, fit: Fit, target: Picture, record: RunRecord, metrics: dict[str, Any]
) -> dict[str, Path]:
    """Write reconstruction, error.png, curve.csv, curve.png and metrics.json, each whole or not at all.

    Args:
        folder: the run's folder; it must exist.
        fit: the reconstruction and its measures.
        target: the picture.
        record: the run's curve.
        metrics: the content of metrics.json; an infinite number is written as 1e999, which is JSON and reads back as
            infinity.

    Returns:
        what was written, by name.
    """
    paths = {
        "reconstruction": folder / f"reconstruction{fit.reconstruction.suffix}",
        "error": folder / "error.png",
        "curve": folder / "curve.png",
        "table": folder / "curve.csv",
        "metrics": folder / "metrics.json",
    }
    with write_whole(paths["reconstruction"]) as path:
        path.write_bytes(fit.content)
    with write_whole(paths["error"]) as path:
        _error_figure(fit.reconstruction, target, fit.psnr).savefig(path)
    with write_whole(paths["table"]) as path:
        path.write_text(record.to_csv(), "utf8")
    with write_whole(paths["curve"]) as path:
        _curve_figure(record).savefig(path)
    with write_whole(paths["metrics"]) as path:
        path.write_text(_to_json(metrics), "utf8")
    return paths


def environment(device: torch.device | str) -> dict[str, Any]:
    """Where a run was made: {"device": its name, "versions": of what it ran on}."""
    packages = ("torch", "nerfstudio", "numpy")
    return {
        "device": f"{torch.device(device).type}: {device_name(device)}",
        "versions": {
            "loe_field": loe_field.__version__,
            "python": platform.python_version(),
            **{package: version(package) for package in packages},
        },
    }


def _to_json(metrics: dict[str, Any]) -> str:
    """JSON without the words Infinity and NaN, which JSON does not have."""
    infinite = "\0infinite"
    finite = {k: infinite if isinstance(v, float) and math.isinf(v) else v for k, v in metrics.items()}
    return json.dumps(finite, indent=2, allow_nan=False).replace(json.dumps(infinite), "1e999") + "\n"


def _error_figure(reconstruction: Picture, target: Picture, psnr: float) -> Figure:
    """Error of every pixel (the largest over its channels) in steps of 1/255, brightest at the 99.9th percentile."""
    difference = np.abs(target.to_unit(reconstruction.values) - target.unit).max(-1) * 255
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


def _curve_figure(record: RunRecord) -> Figure:
    """PSNR against steps and against seconds."""
    figure = Figure(figsize=(9, 3.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    points = [point for point in record.curve if math.isfinite(point.psnr)]
    for place, (name, label) in enumerate((("step", "steps"), ("seconds", "seconds")), 1):
        axes = figure.add_subplot(1, 2, place)
        axes.plot([getattr(p, name) for p in points], [p.psnr for p in points], marker=".", markersize=4)
        axes.set_xlabel(label)
        axes.set_ylabel("PSNR, dB")
        axes.grid(alpha=0.3)
    return figure
