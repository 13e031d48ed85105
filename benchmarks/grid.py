"""The features of a grid, forward and backward, by kernels and in plain PyTorch.

    python -m benchmarks.grid --points 262144 --dim 3 --output benchmarks/results/grid.csv

Needs torch and this package only. The gradient is that of the table; the columns "forward" and "both" are nanoseconds a
point.
"""

import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.common import Case, measure, options, provenance, refuse_wrong, relative_error, set_up, show, write
from loe_field import FeatureGrid
from loe_field.network.grid import features_by_torch, grid_features
from loe_field.network.tiling import num_bias_vectors


def cases(points: int, dim: int, grid: FeatureGrid, device: torch.device) -> dict[str, tuple[Case, Case]]:
    """Forward, and forward and backward, of each implementation."""
    tiles = grid.tiles(dim)
    vectors = sum(num_bias_vectors(tile, dim) for tile in tiles)
    table = torch.randn(vectors, grid.features_per_level, device=device)
    coords = torch.rand(points, dim, device=device)
    cotangent = torch.randn(points, grid.out_features, device=device)

    def by_torch(coords: Tensor, table: Tensor) -> Tensor:
        return features_by_torch(coords, table, tiles, coords[:, :0])

    def by_kernels(coords: Tensor, table: Tensor) -> Tensor:
        return grid_features(coords, table, tiles)

    def both(function: Callable[[Tensor, Tensor], Tensor], coords: Tensor, table: Tensor) -> list[Tensor]:
        table = table.detach().requires_grad_()
        out = function(coords, table)
        return [out.detach(), *torch.autograd.grad(out, table, cotangent.to(out.dtype))]

    def forward(function: Callable[[Tensor, Tensor], Tensor]) -> None:
        with torch.no_grad():
            function(coords, table)

    def error(function: Callable[[Tensor, Tensor], Tensor]) -> float:
        return relative_error(both(function, coords, table), both(by_torch, coords.double(), table.double()))

    found = {}
    for name, function in (("kernels", by_kernels), ("torch", by_torch)):
        case = Case(name, partial(forward, function), partial(error, function), 1.0, 1.0)
        found[name] = case, replace(case, run=partial(both, function, coords, table), seconds=[])
    return found


def rows_of(points: int, dim: int, table_size: int, repeats: int, device: torch.device) -> list[dict[str, object]]:
    """Check and time; a row for each implementation."""
    rows = []
    for name, pair in cases(points, dim, FeatureGrid(table_size=table_size), device).items():
        done = measure(list(pair), "fp32", device, repeats)
        row: dict[str, object] = {"implementation": name, "points": points, "dim": dim, "table_size": table_size}
        for column, case in zip(("forward", "both"), done):
            row[column] = "" if case.failure else f"{1e9 * statistics.median(case.seconds) / points:.2f}"
        note = next((f"not timed, {case.failure}" for case in done if case.failure), done[1].note)
        rows.append({**row, "note": note, **provenance(device)})
    return rows


def main() -> None:
    """Check, time, print, write."""
    parser = options(__doc__ or "")
    parser.add_argument("--table-size", type=int, nargs="+", default=[2**15])
    arguments = parser.parse_args()
    device = set_up(arguments.device, arguments.threads, arguments.precision)
    rows = []
    for points in arguments.points:
        for table_size in arguments.table_size:
            rows += (new := rows_of(points, arguments.dim, table_size, arguments.repeats, device))
            write(new, arguments.output)
    show(rows, ["implementation", "points", "dim", "table_size", "forward", "both", "note"])
    refuse_wrong(rows)


if __name__ == "__main__":
    main()
