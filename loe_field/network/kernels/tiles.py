"""Where the vectors of a tile lie, for the kernels that read them or sum their gradients: `tiling.bias_shares`."""

# Inside and at its launch a kernel takes other types than its signature says.
# pyright: reportCallIssue=false, reportArgumentType=false, reportPossiblyUnboundVariable=false

from typing import Any

import triton
import triton.language as tl

from loe_field.network.tiling import BiasTile, num_bias_vectors


@triton.jit
def corner_of(
    coords,
    rows,
    live,
    alpha,
    beta,
    size,
    table,
    DIM: tl.constexpr,
    CORNER: tl.constexpr,
    LINEAR: tl.constexpr,
    HASHED: tl.constexpr,
):
    """One corner of each row's cell: the number of its vector, int32, and its share.

    To the bit as `tiling.bias_shares` has them, where the launch forbids the compiler to fuse alpha p with + beta. What
    corners have in common it computes once.

    Args:
        coords: [N, DIM], fp32.
        rows: numbers of the rows, int64.
        live: which of them are there.
        alpha: scale of the tile.
        beta: its shift.
        size: vectors per axis.
        table: vectors that share by the hash, a power of two; 0: there is none.
        DIM: coordinates.
        CORNER: its bits say at which axes it is the upper one, the first axis the highest bit.
        LINEAR: False has the cell's own vector with a share of 1, CORNER being 0.
        HASHED: whether table may be more than 0.
    """
    index = tl.zeros_like(live.to(tl.int32))
    share = index.to(tl.float32) + 1.0
    hashed = index.to(tl.uint32)
    for axis in tl.static_range(DIM):
        scaled = tl.load(coords + rows * DIM + axis, mask=live, other=0.0) * alpha + beta
        below = tl.floor(scaled)
        cell = below.to(tl.int64) % size  # with the sign of the cell
        cell = tl.where(cell < 0, cell + size, cell).to(tl.int32)
        if LINEAR:
            if CORNER >> (DIM - 1 - axis) & 1:
                cell = tl.where(cell + 1 == size, 0, cell + 1)
                share *= scaled - below
            else:
                share *= 1.0 - (scaled - below)
        index = index * size + cell
        if HASHED:
            if axis == 0:
                hashed = cell.to(tl.uint32)
            elif axis == 1:
                hashed = hashed ^ (cell.to(tl.uint32) * 2654435761)
            elif axis == 2:
                hashed = hashed ^ (cell.to(tl.uint32) * 805459861)
            else:
                hashed = hashed ^ (cell.to(tl.uint32) * 3674653429)
    if HASHED:
        index = tl.where(table > 0, hashed.to(tl.int32, bitcast=True) & (table - 1), index)
    return index, share


@triton.jit
def slope_of(coords, rows, live, alpha, beta, DIM: tl.constexpr, CORNER: tl.constexpr, AXES: tl.constexpr):
    """The derivative of a corner's share for each coordinate, [rows, AXES]; AXES is DIM, padded."""
    axes = tl.arange(0, AXES)[None, :]
    slope = tl.where(live, alpha, 0.0)[:, None] + tl.zeros([1, AXES], tl.float32)
    for axis in tl.static_range(DIM):
        scaled = tl.load(coords + rows * DIM + axis, mask=live, other=0.0) * alpha + beta
        share = (scaled - tl.floor(scaled))[:, None]
        if CORNER >> (DIM - 1 - axis) & 1:
            slope *= tl.where(axes == axis, 1.0, share)
        else:
            slope *= tl.where(axes == axis, -1.0, 1.0 - share)
    return slope


def constants_of(tile: BiasTile | None, dim: int) -> tuple[tuple[float, float], dict[str, Any]]:
    """Scale and shift of a tile, and its constants; of none, what a kernel that has no coords does not read."""
    if tile is None:
        return (0.0, 0.0), {"DIM": 1, "TILE_SIZE": 1, "TABLE": 0, "LINEAR": False}
    vectors = num_bias_vectors(tile, dim)
    table = 0 if vectors == tile.tile_size**dim else vectors
    constants = {"DIM": dim, "TILE_SIZE": tile.tile_size, "TABLE": table, "LINEAR": tile.blending == "linear"}
    return (tile.level.alpha, tile.level.beta), constants
