"""The figure of docs/guide/biases.md: one row of pixels by two networks, where they are smooth and where they jump.

    python -m benchmarks.bias_figure      # some 10 s on one thread

Writes docs/guide/biases/row.png: the field over some pixels of scikit-image's camera, with the networks' parameters and
their jumps at the borders of pixels.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.interpolate import CubicSpline
from skimage import data

from loe_field import LoEMLP
from loe_field.network.optim import Muon

FOLDER = Path(__file__).parents[1] / "docs" / "guide" / "biases"
PIXELS, FIRST, LAST = 256, 88, 112
"""Pixels of the row, and those that are shown."""
DETAIL = 200
"""Places that are drawn for each pixel."""
NETWORKS = {
    "nearest experts on all levels": {"tile_size": 2},
    "experts where alpha <= 8, bias tiles of 8 vectors": {"tile_size": [1] * 5 + [2] * 3, "bias_tile_size": 8},
}


def fitted(options: dict, row: np.ndarray, steps: int) -> LoEMLP:
    """A network fitted to the pixels alone: what lies between them is its own."""
    torch.manual_seed(42)
    network = LoEMLP(dim=1, num_layers=9, layer_width=32, num_frequencies=4, **options)
    groups = network.param_groups()
    optimizers = [Muon(groups["experts"], lr=0.015), torch.optim.Adam(groups["fields"], lr=1e-2)]
    falling = [torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, steps) for o in optimizers]
    centres = (torch.arange(PIXELS) + 0.5) / PIXELS
    target = torch.from_numpy(row).float()
    for _ in range(steps):
        (network(centres[:, None])[:, 0] - target).square().mean().backward()
        for part in [*optimizers, *falling]:
            part.step()
        for optimizer in optimizers:
            optimizer.zero_grad()
    return network


@torch.no_grad()
def values(network: LoEMLP, coords: np.ndarray) -> np.ndarray:
    """The field at coords [N]."""
    return network(torch.from_numpy(coords).float()[:, None])[:, 0].numpy()


def main(steps: int = 1000) -> None:
    """Fit and draw."""
    torch.set_num_threads(1)
    row = data.camera()[::2, ::2][100, :PIXELS] / 255.0
    centres = (np.arange(PIXELS) + 0.5) / PIXELS
    spline = CubicSpline(centres, row)
    borders, beside = np.arange(1, PIXELS) / PIXELS, 2e-7
    shown = np.linspace(FIRST / PIXELS, LAST / PIXELS, (LAST - FIRST) * DETAIL + 1)
    figure = Figure(figsize=(9, 5), layout="constrained")
    for axes, (name, options) in zip(figure.subplots(len(NETWORKS), 1, sharex=True), NETWORKS.items()):
        network = fitted(options, row, steps)
        field, jump = values(network, shown), values(network, borders + beside) - values(network, borders - beside)
        broken = borders[(np.abs(jump) > 5e-3) & (borders > shown[0]) & (borders < shown[-1])]
        at = np.searchsorted(shown, broken)  # a line ends here
        axes.plot(shown * PIXELS, spline(shown), color="#bbbbbb", linewidth=3, label="cubic spline through the pixels")
        line = np.insert(shown, at, np.nan) * PIXELS, np.insert(field, at, np.nan)
        axes.plot(*line, color="#3f51b5", linewidth=1.2, label="field")
        axes.plot(np.arange(FIRST, LAST) + 0.5, row[FIRST:LAST], "o", color="black", markersize=4, label="pixels")
        error = np.sqrt(np.mean((values(network, centres) - row) ** 2))
        told = f"jumps {np.sqrt(np.mean(jump**2)):.3f} (rms), error on the pixels {error:.4f}"
        axes.set_title(f"{name}: {network.num_parameters:,} parameters, {told}", fontsize=9, loc="left")
        print(f"{name}: {network.num_parameters:,} parameters, {told}")
    axes.legend(loc="best", fontsize=8)
    axes.set_xlabel("pixel")
    FOLDER.mkdir(parents=True, exist_ok=True)
    figure.savefig(FOLDER / "row.png", dpi=110)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
