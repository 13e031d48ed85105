"""Results of every run: metrics.json, curve.csv and curve.png."""

import json
import math
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from loe_field.files import write_each
from loe_field.training.machine import device_name
from loe_field.training.record import RunRecord
from loe_field.version import __version__


def write_results(folder: Path, record: RunRecord, metrics: dict[str, Any]) -> dict[str, Path]:
    """Write curve.csv, curve.png and metrics.json into a run's folder, each whole or not at all; returns them by name.

    An infinite number is written as 1e999, which is JSON and reads back as infinity.

    Raises:
        InputError: some cannot be written; the others are.
    """
    paths = {"curve": folder / "curve.png", "table": folder / "curve.csv", "metrics": folder / "metrics.json"}
    write_each(
        {
            paths["metrics"]: lambda path: path.write_text(_to_json(metrics), "utf8"),
            paths["table"]: lambda path: path.write_text(record.to_csv(), "utf8"),
            paths["curve"]: lambda path: _curve_figure(record).savefig(path),
        }
    )
    return paths


def environment(device: torch.device | str) -> dict[str, Any]:
    """The machine of a run: {"device": its name, "versions": of the packages}."""
    versions = {"loe_field": __version__, "python": platform.python_version()}
    versions |= {package: version(package) for package in ("torch", "nerfstudio", "numpy")}
    return {"device": f"{torch.device(device).type}: {device_name(device)}", "versions": versions}


def _to_json(metrics: dict[str, Any]) -> str:
    """JSON without the words Infinity and NaN, which JSON does not have."""
    infinite = "\0infinite"
    finite = {k: infinite if isinstance(v, float) and math.isinf(v) else v for k, v in metrics.items()}
    return json.dumps(finite, indent=2, allow_nan=False).replace(json.dumps(infinite), "1e999") + "\n"


def _curve_figure(record: RunRecord) -> Figure:
    """PSNR against steps and against seconds."""
    figure = Figure(figsize=(9, 3.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    points = [point for point in record.curve if math.isfinite(point.psnr)]
    for axes, name, label in zip(figure.subplots(1, 2), ("step", "seconds"), ("steps", "seconds")):
        axes.plot([getattr(p, name) for p in points], [p.psnr for p in points], marker=".", markersize=4)
        axes.set(xlabel=label, ylabel="PSNR, dB")
        axes.grid(alpha=0.3)
    return figure
