"""Which expert serves which point: tiling patterns, expert indices and blending weights.

A *tile* is a block of `tile_size` experts per axis that repeats over space. A *level* says how large the cells of
the tile are at one layer of the network: at scale `alpha` and shift `beta` the cell of a point p is
`floor(alpha * p + beta)`, and the expert that serves it is that cell modulo `tile_size`, axis by axis. Nothing here
is learned.

Sources: Hao et al., "Implicit Neural Representations with Levels-of-Experts" (NeurIPS 2022), and Atikuzzaman and Bae,
"A Dive into Levels-of-Experts and Sine Activation" (Eq. 1 to 3).
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from loe_field.network.checks import check_between, check_choice
from loe_field.network.modes import needs_operators, needs_plain

Pattern = Literal["fine_to_coarse", "quad_tree", "gray_code"]
Blending = Literal["nearest", "linear"]

MAX_DIM = 4
"""Largest number of coordinates per point: a video of volumes."""


class Level(NamedTuple):
    """Scale and shift of one position-dependent layer: the cell of p is floor(alpha * p + beta)."""

    alpha: float
    """Cells per unit of length, > 0. Cells are 1 / alpha wide and the tile repeats every tile_size / alpha."""
    beta: float = 0.0
    """Shift of the grid in cells."""


_SMALLEST, _LARGEST = 2.0**-149, float(torch.finfo(torch.float32).max)
"""Of the positive numbers that kernels have for alpha and beta."""
_PRIMES = (1, 2654435761, 805459861, 3674653429)
"""Of the spatial hash: Mueller et al., "Instant Neural Graphics Primitives" (SIGGRAPH 2022), Eq. 4; the fourth is that
of their program, tiny-cuda-nn."""
_LARGEST_BIAS_TILE = 2**24
"""Vectors per axis: floats of 32 bits number no more cells."""
_MOST_VECTORS = 2**30
"""Vectors of a tile: the kernels number them in 32 bits."""


class BiasTile(NamedTuple):
    """Where the vectors of a level's bias lie: a tile with its own scale, which is blended alone.

    The bias is a column of W in Eq. 3 of the paper, so that `b(p) = sum_j B_j(alpha p + beta) b_j`: the vector j of the
    tile stands at the lower corner of cell j. The tile of one vector is the bias that all points share.
    """

    level: Level
    """Scale and shift of the vectors' grid."""
    tile_size: int
    """Vectors per axis, 1 to 2^24."""
    blending: Blending = "linear"
    """A cyclic multilinear blend of the 2^dim vectors at the corners of the point's cell, or that of its cell alone."""
    table_size: int | None = None
    """A power of two, at most 2^30: a larger tile keeps as many vectors, shared by Instant-NGP's hash. None: all. With
    tile_size N + 1, alpha N and beta 0 it is a level of Instant-NGP's grid of N cells per axis."""


def check_bias_tile(tile: BiasTile, dim: int) -> None:
    """Refuse, with a ValueError, a tile over `dim` coordinates with sizes or choices out of range."""
    for name, value in (("bias_tile_size", tile.tile_size), ("bias_table_size", tile.table_size)):
        if not (type(value) is int or (value is None and name == "bias_table_size")):
            raise ValueError(f"{name} is {value!r}: a whole number is wanted")
    check_between(1, _LARGEST_BIAS_TILE, bias_tile_size=tile.tile_size)
    check_choice("bias_blending", tile.blending, Blending)
    size = tile.table_size
    if size is not None and not (1 <= size <= _MOST_VECTORS and size & (size - 1) == 0):
        raise ValueError(f"bias_table_size is {size}: a power of two, 1 to 2^30, is wanted")
    if (vectors := num_bias_vectors(tile, dim)) > _MOST_VECTORS:
        raise ValueError(
            f"bias_tile_size is {tile.tile_size}, which makes {vectors:,} vectors over {dim} coordinates, and a tile "
            "keeps at most 2^30: make it smaller, or give bias_table_size"
        )


def numbers_of_tiles(tiles: Sequence[BiasTile | None]) -> list[float]:
    """Tiles as torch's operators take them, five numbers each; None is five zeros."""
    return [
        float(number)
        for tile in tiles
        for number in (
            [0] * 5 if tile is None
            else (*tile.level, tile.tile_size, tile.blending == "linear", tile.table_size or 0)
        )
    ]  # fmt: skip


def tiles_of_numbers(numbers: Sequence[float]) -> list[BiasTile | None]:
    """The tiles that `numbers_of_tiles` told."""
    return [
        BiasTile(Level(alpha, beta), int(size), "linear" if linear else "nearest", int(table) or None) if size else None
        for alpha, beta, size, linear, table in zip(*(numbers[i::5] for i in range(5)))
    ]


def num_bias_vectors(tile: BiasTile, dim: int) -> int:
    """Vectors that a tile keeps: tile_size ** dim, and no more than table_size."""
    vectors = tile.tile_size**dim
    return vectors if tile.table_size is None else min(vectors, tile.table_size)


@dataclass(frozen=True)
class FeatureGrid:
    """Features that stand on grids of several scales, beside the encoding of a point at the entry of a network.

    Of the levels l = 0 .. num_levels - 1, coarsest first, each has a bias tile, `tiles(dim)[l]`: vectors of
    features_per_level numbers, `1 / N_l` apart, blended linearly. `N_l = floor(min_resolution b^l)` with `b` such that
    the last is max_resolution. Through the first layer's matrix they are an interpolated bias of that layer, of lower
    rank than its width. As the tiles are, by default, it is Instant-NGP's grid (Mueller et al., SIGGRAPH 2022); with a
    tile_size the vectors repeat over space as experts do, and none is shared by a hash.

    Raises:
        ValueError: a size is out of range.
    """

    num_levels: int = 16
    """Grids, 1 to 64."""
    features_per_level: int = 2
    """Numbers per vector, 1 to 64."""
    min_resolution: int = 16
    """Cells per unit of length of the coarsest level, >= 1."""
    max_resolution: int = 512
    """Cells per unit of length of the finest level, below 2^24; of one level alone min_resolution is it."""
    table_size: int | None = 2**15
    """A power of two, at most 2^30: levels of more vectors keep as many, shared by a hash. None: all."""
    tile_size: int | None = None
    """Vectors per axis, after which they repeat; None: N_l + 1, so that nothing repeats in [0, 1]."""

    def __post_init__(self) -> None:
        wanted = {name: value for name, value in vars(self).items() if value is not None}
        for name in vars(self):
            if type(wanted.get(name, 1)) is not int or (name not in wanted and name not in ("table_size", "tile_size")):
                raise ValueError(f"{name} is {getattr(self, name)!r}: a whole number is wanted")
        check_between(1, 64, num_levels=self.num_levels, features_per_level=self.features_per_level)
        most = _LARGEST_BIAS_TILE
        check_between(1, most - 1, min_resolution=self.min_resolution, max_resolution=self.max_resolution)
        check_between(1, most, tile_size=wanted.get("tile_size", 1))
        if self.max_resolution < self.min_resolution:
            raise ValueError(
                f"max_resolution is {self.max_resolution}: it must be at least min_resolution, {self.min_resolution}"
            )
        size = wanted.get("table_size", 1)
        if not (1 <= size <= _MOST_VECTORS and size & (size - 1) == 0):
            raise ValueError(f"table_size is {size}: a power of two, 1 to 2^30, is wanted")

    @property
    def resolutions(self) -> tuple[int, ...]:
        """N_l, coarsest first."""
        if self.num_levels == 1:
            return (self.min_resolution,)
        growth = (self.max_resolution / self.min_resolution) ** (1 / (self.num_levels - 1))
        # The slack keeps whole numbers whole whichever way the power rounds; of large ones it would not be enough.
        coarser = [math.floor(self.min_resolution * growth**level + 1e-9) for level in range(self.num_levels - 1)]
        return (*coarser, self.max_resolution)

    @property
    def out_features(self) -> int:
        """Features of a point."""
        return self.num_levels * self.features_per_level

    def tiles(self, dim: int) -> tuple[BiasTile, ...]:
        """The tile of each level over `dim` coordinates, coarsest first.

        Raises:
            ValueError: a level has more vectors than the kernels number.
        """
        tiles = tuple(
            BiasTile(Level(float(n)), self.tile_size or n + 1, "linear", self.table_size) for n in self.resolutions
        )
        for tile in tiles:
            if (vectors := num_bias_vectors(tile, dim)) > _MOST_VECTORS:
                raise ValueError(
                    f"a level of the grid has {vectors:,} vectors and keeps at most 2^30: give a table_size, or make "
                    "max_resolution or tile_size smaller"
                )
        return tiles


def fine_to_coarse(num_levels: int) -> tuple[Level, ...]:
    """The first layer has the finest cells: alpha_i = 2^(L + 1 - i) for i = 1..L; 2^(10 - i) in the paper's L = 9."""
    return tuple(Level(2.0 ** (num_levels + 1 - i)) for i in range(1, num_levels + 1))


def quad_tree(num_levels: int) -> tuple[Level, ...]:
    """The first layer has the coarsest cells: alpha_i = 2^i for i = 1..L."""
    return tuple(Level(2.0**i) for i in range(1, num_levels + 1))


def gray_code(num_levels: int) -> tuple[Level, ...]:
    """Cells shifted by half: alpha_1 = 2, then alpha_i = 2^(i - 1), and beta_i = 0.5 throughout."""
    return tuple(Level(2.0 ** max(1, i - 1), 0.5) for i in range(1, num_levels + 1))


_PATTERNS = {"fine_to_coarse": fine_to_coarse, "quad_tree": quad_tree, "gray_code": gray_code}


def make_levels(pattern: Pattern | Sequence[tuple[float, float]], num_levels: int) -> tuple[Level, ...]:
    """The levels of a network, first layer first.

    Args:
        pattern: a named pattern, or one (alpha, beta) per level.
        num_levels: how many position-dependent layers the network has, >= 0.

    Raises:
        ValueError: the name is unknown, the list has another length, or a value is not finite or alpha not positive.
    """
    if isinstance(pattern, str):
        if pattern not in _PATTERNS:
            raise ValueError(
                f"unknown pattern {pattern!r}: choose {', '.join(get_args(Pattern))}, or list (alpha, beta) pairs"
            )
        return _PATTERNS[pattern](num_levels)
    try:
        levels = tuple(Level(float(alpha), float(beta)) for alpha, beta in pattern)
    except (TypeError, ValueError):
        raise ValueError(f"the levels are {pattern!r}: one pair of numbers (alpha, beta) per level is wanted") from None
    if len(levels) != num_levels:
        raise ValueError(
            f"the pattern lists {len(levels)} (alpha, beta) pairs but the network has {num_levels} position-dependent "
            "layers: give one pair per layer (num_layers counts one more, the final linear layer)"
        )
    for i, (alpha, beta) in enumerate(levels, 1):
        if not (_SMALLEST <= alpha <= _LARGEST and abs(beta) <= _LARGEST):
            raise ValueError(
                f"level {i} has alpha {alpha} and beta {beta}: alpha must be positive and both finite in 32 bits"
            )
    return levels


def num_experts(tile_size: int, dim: int) -> int:
    """Experts in a tile: tile_size ** dim."""
    return tile_size**dim


@functools.cache
def scales(levels: tuple[Level, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Alpha and beta as tensors [levels], beta None if all are 0.

    Kept for good: a copy to a GPU makes the host wait, and a CUDA graph may read them whenever it is replayed.
    """
    with torch.inference_mode(False), torch.no_grad():
        alpha = torch.tensor([level.alpha for level in levels], dtype=dtype, device=device)
        beta = torch.tensor([level.beta for level in levels], dtype=dtype, device=device)
    return alpha, beta if any(level.beta for level in levels) else None


def _scaled(coords: Tensor, levels: Sequence[Level]) -> Tensor:
    """Alpha * p + beta for every level, [levels, ..., dim]; fp32 at least, 16 bits cannot tell pixels apart."""
    dtype = torch.promote_types(coords.dtype, torch.float32)
    coords = coords.to(dtype)
    if needs_plain(coords) or needs_operators():  # what is made then belongs to a trace or a mode and may not be kept
        products = torch.stack([coords * level.alpha for level in levels])
        if not any(level.beta for level in levels):
            return products
        return torch.stack([product + level.beta for product, level in zip(products, levels)])
    shape = (len(levels),) + (1,) * coords.dim()
    alpha, beta = scales(tuple(levels), dtype, coords.device)
    scaled = coords * alpha.view(shape)
    return scaled if beta is None else scaled + beta.view(shape)


def _flat_index(cell: Tensor, tile_size: int) -> Tensor:
    """Cells [..., dim] (any integers) to expert numbers [...]; the last axis runs fastest."""
    # Two's complement: the lowest bits are the remainder, and an eighth of its time.
    cell = cell & (tile_size - 1) if tile_size & (tile_size - 1) == 0 else cell.remainder(tile_size)
    index = cell[..., 0]
    for axis in range(1, cell.shape[-1]):
        index = index * tile_size + cell[..., axis]
    return index


def expert_index(coords: Tensor, levels: Sequence[Level], tile_size: int | Sequence[int]) -> Tensor:
    """The one expert that serves each point at each level under nearest blending.

    `floor(alpha p + beta) mod tile_size` per axis, numbered with the last axis running fastest.

    Args:
        coords: points [..., dim], dim 1 to 4, any real values.
        levels: the levels, at least one.
        tile_size: experts per axis, >= 1: of all levels, or of each.

    Returns:
        int64 [levels, ...], values 0 .. tile_size ** dim - 1.
    """
    cells = _scaled(coords.detach(), levels).floor().to(torch.int64)
    if not isinstance(tile_size, int):
        return torch.stack([_flat_index(cell, size) for cell, size in zip(cells, tile_size)])
    return _flat_index(cells, tile_size)  # type: ignore[arg-type]


def blending_weights(coords: Tensor, level: Level, tile_size: int) -> tuple[Tensor, Tensor]:
    """The experts that a point blends at one level under linear blending, and their weights (Eq. 3).

    Per axis the weight of expert j is the cyclic hat function `max(0, 1 - d)`, where d is the distance from
    `alpha p + beta` to j on a circle of circumference tile_size; several axes multiply. A point therefore blends the
    2^dim experts at the corners of its cell, and the weights sum to 1. Differentiable in coords (almost everywhere).

    Args:
        coords: points [..., dim], dim 1 to 4.
        level: scale and shift.
        tile_size: experts per axis, >= 1.

    Returns:
        index: int64 [..., 2^dim], expert numbers (the last axis runs fastest).
        weight: [..., 2^dim] in fp32 or the dtype of coords, whichever is wider; each >= 0, summing to 1.
    """
    cells, weights = _corners(coords, level)
    return torch.stack([_flat_index(cell, tile_size) for cell in cells], -1), torch.stack(weights, -1)


def _corners(coords: Tensor, level: Level) -> tuple[list[Tensor], list[Tensor]]:
    """The 2^dim corners of each point's cell: their numbers [..., dim], unbounded, and their weights [...]."""
    scaled = _scaled(coords, [level])[0]
    cell = scaled.detach().floor()
    fraction = scaled - cell
    cell = cell.to(torch.int64)
    cells, weights = [], []
    dim = coords.shape[-1]
    for corner in range(2**dim):  # its bits; torch.compile of torch 2.7 cannot see into itertools.product
        steps = [(axis, corner >> (dim - 1 - axis) & 1) for axis in range(dim)]
        cells.append(torch.stack([cell[..., axis] + step for axis, step in steps], -1))
        shares = [fraction[..., axis] if step else 1 - fraction[..., axis] for axis, step in steps]
        weights.append(functools.reduce(torch.mul, shares))
    return cells, weights


def bias_shares(coords: Tensor, tile: BiasTile) -> tuple[Tensor, Tensor]:
    """The vectors of a bias tile that each point blends, and their shares.

    Vector j of the tile has the number of expert j in a tile of as many, the last axis running fastest. Where the tile
    keeps fewer vectors than it has, that number is `(j_0 * 1 xor j_1 * 2654435761 xor j_2 * 805459861 xor ...) mod
    table_size`.

    Args:
        coords: points [..., dim], dim 1 to 4.
        tile: the tile.

    Returns:
        index: int64 [..., corners], 0 .. num_bias_vectors - 1; corners is 2^dim under linear blending, and 1.
        share: [..., corners] in fp32 or the dtype of coords, whichever is wider; differentiable in coords.
    """
    if tile.blending == "linear":
        cells, shares = _corners(coords, tile.level)
    else:
        scaled = _scaled(coords.detach(), [tile.level])[0]
        cells, shares = [scaled.floor().to(torch.int64)], [torch.ones_like(scaled[..., 0])]
    return torch.stack([_bias_index(cell, tile) for cell in cells], -1), torch.stack(shares, -1)


def _bias_index(cell: Tensor, tile: BiasTile) -> Tensor:
    dim = cell.shape[-1]
    vectors = num_bias_vectors(tile, dim)
    if vectors == tile.tile_size**dim:
        return _flat_index(cell, tile.tile_size)
    cell = cell.remainder(tile.tile_size)
    index = cell[..., 0] * _PRIMES[0]
    for axis in range(1, dim):
        index = index ^ (cell[..., axis] * _PRIMES[axis])
    return index & (vectors - 1)
