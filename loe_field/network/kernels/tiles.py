"""Where the vectors of a tile lie, for the kernels that read them or sum their gradients: `tiling.bias_shares`."""

# Inside and at its launch a kernel takes other types than its signature says.
# pyright: reportCallIssue=false, reportArgumentType=false, reportPossiblyUnboundVariable=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

from typing import Any

import triton
import triton.language as tl

from loe_field.network.tiling import BiasTile, num_bias_vectors


@triton.jit
def _along(coords, rows, live, alpha, beta, size, DIM: tl.constexpr, AXIS: tl.constexpr):
    scaled = tl.load(coords + rows * DIM + AXIS, mask=live, other=0.0) * alpha + beta
    below = tl.floor(scaled)
    cell = below.to(tl.int64) % size  # with the sign of the cell
    return tl.where(cell < 0, cell + size, cell).to(tl.int32), scaled - below


@triton.jit
def cells_of(coords, rows, live, alpha, beta, size, DIM: tl.constexpr):
    """The cells of alpha p + beta, modulo the tile's size, and how far p lies in them: of four axes, as many as count.

    To the bit as `tiling.bias_shares` has them, where the launch forbids the compiler to fuse alpha p with + beta.

    Args:
        coords: [N, DIM], fp32.
        rows: numbers of the rows, int64.
        live: which of them are there.
        alpha: scale of the tile.
        beta: its shift.
        size: vectors per axis.
        DIM: coordinates.

    Returns:
        For each axis an int32 and an fp32 of every row.
    """
    cell_0, part_0 = _along(coords, rows, live, alpha, beta, size, DIM, 0)
    cell_1, part_1 = cell_0, part_0
    cell_2, part_2 = cell_0, part_0
    cell_3, part_3 = cell_0, part_0
    if DIM > 1:
        cell_1, part_1 = _along(coords, rows, live, alpha, beta, size, DIM, 1)
    if DIM > 2:
        cell_2, part_2 = _along(coords, rows, live, alpha, beta, size, DIM, 2)
    if DIM > 3:
        cell_3, part_3 = _along(coords, rows, live, alpha, beta, size, DIM, 3)
    return cell_0, part_0, cell_1, part_1, cell_2, part_2, cell_3, part_3


@triton.jit
def corner_of(
    cell_0,
    part_0,
    cell_1,
    part_1,
    cell_2,
    part_2,
    cell_3,
    part_3,
    size,
    table,
    DIM: tl.constexpr,
    CORNER: tl.constexpr,
    LINEAR: tl.constexpr,
    HASHED: tl.constexpr,
):
    """One corner of `cells_of` in a tile of `size` vectors per axis: the number of its vector, int32, and its share.

    The bits of CORNER say at which axes it is the upper one, the first axis the highest bit. Without LINEAR it is the
    cell's own vector with a share of 1. Of HASHED tiles those with a `table` > 0, a power of two, keep as many vectors.
    """
    index = tl.zeros_like(cell_0)
    share = tl.zeros_like(part_0) + 1.0
    hashed = index.to(tl.uint32)
    for axis in tl.static_range(DIM):
        cell, part, prime = cell_0, part_0, 1
        if axis == 1:
            cell, part, prime = cell_1, part_1, 2654435761
        elif axis == 2:
            cell, part, prime = cell_2, part_2, 805459861
        elif axis == 3:
            cell, part, prime = cell_3, part_3, 3674653429
        if LINEAR:
            if CORNER >> (DIM - 1 - axis) & 1:
                cell = tl.where(cell + 1 == size, 0, cell + 1)
                share *= part
            else:
                share *= 1.0 - part
        index = index * size + cell
        if HASHED:
            hashed = hashed ^ (cell.to(tl.uint32) * prime)
    if HASHED:
        index = tl.where(table > 0, hashed.to(tl.int32, bitcast=True) & (table - 1), index)
    return index, share


@triton.jit
def slope_of(part_0, part_1, part_2, part_3, alpha, DIM: tl.constexpr, CORNER: tl.constexpr, AXES: tl.constexpr):
    """The derivative of a corner's share for each coordinate, [rows, AXES]; AXES is DIM, padded."""
    axes = tl.arange(0, AXES)[None, :]
    slope = tl.zeros_like(part_0)[:, None] + tl.zeros([1, AXES], tl.float32) + alpha
    for axis in tl.static_range(DIM):
        part = part_0
        if axis == 1:
            part = part_1
        elif axis == 2:
            part = part_2
        elif axis == 3:
            part = part_3
        if CORNER >> (DIM - 1 - axis) & 1:
            slope *= tl.where(axes == axis, 1.0, part[:, None])
        else:
            slope *= tl.where(axes == axis, -1.0, 1.0 - part[:, None])
    return slope


def constants_of(tile: BiasTile | None, dim: int) -> tuple[tuple[float, float], dict[str, Any]]:
    """Scale and shift of a tile, and its constants; of none, what a kernel that has no coords does not read."""
    if tile is None:
        return (0.0, 0.0), {"DIM": 1, "TILE_SIZE": 1, "TABLE": 0, "LINEAR": False}
    vectors = num_bias_vectors(tile, dim)
    table = 0 if vectors == tile.tile_size**dim else vectors
    constants = {"DIM": dim, "TILE_SIZE": tile.tile_size, "TABLE": table, "LINEAR": tile.blending == "linear"}
    return (tile.level.alpha, tile.level.beta), constants
