"""Vectors of tiles: blended at points, as the feature grid has them, and the gradients of vectors and coords.

The gradient of a vector is the sum over the points that blend it, in 64-bit fixed point by integer atomics, whose order
does not matter: it is the same every time. The largest gradient and the number of points set the unit, so that no sum
overflows: of 2^18 points each counts to 2^-44 of the largest. What it costs is an atomic addition a corner and number:
256 a point for 16 levels of 2 features in 3D, 0.2 ms on paper for 262,144 points on an H100, whose cache has 80 slices
that each add 32 bytes a clock.
"""

# Inside and at its launch a kernel takes other types than its signature says.
# pyright: reportCallIssue=false, reportArgumentType=false, reportPossiblyUnboundVariable=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from loe_field.network.kernels.tiles import cells_of, constants_of, corner_of, slope_of
from loe_field.network.tiling import BiasTile, num_bias_vectors

_jit = functools.partial(
    triton.jit,
    do_not_specialize=["num_rows", "size", "levels", "bits"],
    do_not_specialize_on_alignment=["coords"],
)


@triton.jit
def _block(num_rows, BLOCK_ROWS: tl.constexpr):
    """The row numbers of a program's block, and which of them are there."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    return rows, rows < num_rows


@triton.jit
def _inside(live, features, FEATURES: tl.constexpr, BLOCK_FEATURES: tl.constexpr):
    """Which numbers of a block of rows are there."""
    inside = live[:, None]
    if FEATURES % BLOCK_FEATURES > 0:
        inside = inside & (features < FEATURES)[None, :]
    return inside


@triton.jit
def _tile(scales, numbers, level):
    """Of one level: scale, shift, vectors per axis, those that share by the hash, and the first vector's number."""
    size = tl.load(numbers + 3 * level).to(tl.int32)
    table = tl.load(numbers + 3 * level + 1).to(tl.int32)
    return tl.load(scales + 2 * level), tl.load(scales + 2 * level + 1), size, table, tl.load(numbers + 3 * level + 2)


@triton.jit
def _unit(largest, bits, INVERSE: tl.constexpr):
    """The power of two that turns gradients into whole numbers below 2^bits, or its inverse.

    That of NaN or infinity means nothing; gradients below 2^-126 are lost.
    """
    exponent = tl.minimum(bits + 126 - ((largest.to(tl.int32, bitcast=True) >> 23) & 255), 126)
    if INVERSE:
        exponent = -exponent
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@_jit()
def _features(
    coords,
    table,
    out,
    scales,
    numbers,
    num_rows,
    DIM: tl.constexpr,
    ROW: tl.constexpr,
    FEATURES: tl.constexpr,
    LINEAR: tl.constexpr,
    HASHED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
):
    """The features of a block of points at one level, written into rows of ROW numbers."""
    rows, live = _block(num_rows, BLOCK_ROWS)
    level = tl.program_id(1)
    alpha, beta, size, table_size, first = _tile(scales, numbers, level)
    features = tl.program_id(2) * BLOCK_FEATURES + tl.arange(0, BLOCK_FEATURES)
    inside = _inside(live, features, FEATURES, BLOCK_FEATURES)
    total = tl.zeros([BLOCK_ROWS, BLOCK_FEATURES], tl.float32)
    c0, p0, c1, p1, c2, p2, c3, p3 = cells_of(coords, rows, live, alpha, beta, size, DIM)
    for corner in tl.static_range(1 << DIM if LINEAR else 1):
        index, share = corner_of(c0, p0, c1, p1, c2, p2, c3, p3, size, table_size, DIM, corner, LINEAR, HASHED)
        vector = tl.load(table + (first + index)[:, None] * FEATURES + features[None, :], mask=inside, other=0.0)
        total = tl.fma(vector, tl.broadcast_to(share[:, None], total.shape), total)
    tl.store(out + rows[:, None] * ROW + level * FEATURES + features[None, :], total, mask=inside)


@_jit()
def _add_up(
    coords,
    grad,
    largest,
    sums,
    scales,
    numbers,
    num_rows,
    bits,
    DIM: tl.constexpr,
    ROW: tl.constexpr,
    FEATURES: tl.constexpr,
    LINEAR: tl.constexpr,
    HASHED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
):
    """Add a block's gradients to those of the vectors [vectors, FEATURES] at one level, int64 in fixed point."""
    rows, live = _block(num_rows, BLOCK_ROWS)
    level = tl.program_id(1)
    alpha, beta, size, table_size, first = _tile(scales, numbers, level)
    features = tl.program_id(2) * BLOCK_FEATURES + tl.arange(0, BLOCK_FEATURES)
    inside = _inside(live, features, FEATURES, BLOCK_FEATURES)
    grads = tl.load(grad + rows[:, None] * ROW + level * FEATURES + features[None, :], mask=inside, other=0.0)
    grads = grads.to(tl.float32) * _unit(tl.load(largest).to(tl.float32), bits, False)
    c0, p0, c1, p1, c2, p2, c3, p3 = cells_of(coords, rows, live, alpha, beta, size, DIM)
    for corner in tl.static_range(1 << DIM if LINEAR else 1):
        index, share = corner_of(c0, p0, c1, p1, c2, p2, c3, p3, size, table_size, DIM, corner, LINEAR, HASHED)
        value = grads * share[:, None]
        value = tl.where(value == value, value, 0.0)  # of coords that are no numbers
        place = sums + (first + index)[:, None] * FEATURES + features[None, :]
        tl.atomic_add(place, value.to(tl.int64), mask=inside, sem="relaxed")


@_jit()
def _as_floats(sums, largest, out, size, bits, BLOCK: tl.constexpr):
    """Sums in fixed point as fp32; NaN where a gradient was not finite."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    most = tl.load(largest).to(tl.float32)
    total = tl.load(sums + place, mask=place < size, other=0).to(tl.float32) * _unit(most, bits, True)
    tl.store(out + place, tl.where(most < float("inf"), total, float("nan")), mask=place < size)


@_jit()
def _slopes(
    coords,
    table,
    grad,
    out,
    scales,
    numbers,
    num_rows,
    levels,
    DIM: tl.constexpr,
    ROW: tl.constexpr,
    FEATURES: tl.constexpr,
    AXES: tl.constexpr,
    HASHED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_FEATURES: tl.constexpr,
):
    """The gradient of a block's coords [N, DIM] through all levels, which are blended linearly."""
    rows, live = _block(num_rows, BLOCK_ROWS)
    total = tl.zeros([BLOCK_ROWS, AXES], tl.float32)
    for level in range(levels):
        alpha, beta, size, table_size, first = _tile(scales, numbers, level)
        c0, p0, c1, p1, c2, p2, c3, p3 = cells_of(coords, rows, live, alpha, beta, size, DIM)
        for begin in range(0, FEATURES, BLOCK_FEATURES):
            features = begin + tl.arange(0, BLOCK_FEATURES)
            inside = _inside(live, features, FEATURES, BLOCK_FEATURES)
            place = rows[:, None] * ROW + level * FEATURES + features[None, :]
            grads = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
            for corner in tl.static_range(1 << DIM):
                index, _ = corner_of(c0, p0, c1, p1, c2, p2, c3, p3, size, table_size, DIM, corner, True, HASHED)
                place = (first + index)[:, None] * FEATURES + features[None, :]
                dot = tl.sum(grads * tl.load(table + place, mask=inside, other=0.0).to(tl.float32), 1)
                total += dot[:, None] * slope_of(p0, p1, p2, p3, alpha, DIM, corner, AXES)
    axes = tl.arange(0, AXES)
    tl.store(out + rows[:, None] * DIM + axes[None, :], total, mask=live[:, None] & (axes < DIM)[None, :])


@functools.cache
def _numbers(tiles: tuple[BiasTile, ...], dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """What a kernel knows of tiles whose vectors follow each other: alpha and beta; size, table and first vector.

    Kept for good: a copy to a GPU makes the host wait, and a CUDA graph may read them whenever it is replayed.
    """
    scales, numbers, first = [], [], 0
    for tile in tiles:
        place, constants = constants_of(tile, dim)
        scales.append(place)
        numbers.append((constants["TILE_SIZE"], constants["TABLE"], first))
        first += num_bias_vectors(tile, dim)
    with torch.inference_mode(False), torch.no_grad():
        return torch.tensor(scales, dtype=torch.float32, device=device), torch.tensor(numbers, device=device)


def _constants(tiles: Sequence[BiasTile], dim: int, features: int, row: int, most: int = 1024) -> dict[str, Any]:
    """What the launches for tiles with the same blending have in common; blocks of 128 rows or `most` numbers."""
    block_features = min(triton.next_power_of_2(features), 64)
    return {
        "DIM": dim,
        "ROW": row,
        "FEATURES": features,
        "HASHED": any(constants_of(tile, dim)[1]["TABLE"] for tile in tiles),
        "BLOCK_ROWS": min(128, most // block_features),
        "BLOCK_FEATURES": block_features,
        "num_warps": 4,
        "enable_fp_fusion": False,  # a point's cell is to be the same everywhere
    }


def features(coords: Tensor, table: Tensor, tiles: Sequence[BiasTile], out: Tensor) -> None:
    """Blend the vectors of every tile at coords: `grid.grid_features`, unchecked.

    Args:
        coords: points [N, dim], fp32.
        table: vectors of all tiles, one tile after the other [vectors, features], fp32.
        tiles: the tiles, all with the same blending.
        out: [N, len(tiles) * features], fp32, which is written; its rows may lie apart.
    """
    (rows, dim), count = coords.shape, table.shape[1]
    if rows == 0:
        return
    constants = _constants(tiles, dim, count, out.stride(0)) | {"LINEAR": tiles[0].blending == "linear"}
    grid = (triton.cdiv(rows, constants["BLOCK_ROWS"]), len(tiles), triton.cdiv(count, constants["BLOCK_FEATURES"]))
    numbers = _numbers(tuple(tiles), dim, coords.device)
    _features[grid](coords.contiguous(), table.contiguous(), out, *numbers, rows, **constants)


def table_gradient(grad: Tensor, coords: Tensor, tiles: Sequence[BiasTile], vectors: int) -> Tensor:
    """The gradient of `features` for its table [vectors, features], fp32, in fixed point.

    Args:
        grad: the cotangent [N, len(tiles) * features], fp32 or 16 bits; its rows may lie apart.
        coords: points [N, dim], fp32. One that is no number adds nothing.
        tiles: the tiles.
        vectors: of all tiles.

    Returns:
        The gradient; all of it is NaN if a number of grad is not finite.
    """
    (rows, dim), count = coords.shape, grad.shape[1] // len(tiles)
    out = torch.empty(vectors, count, dtype=torch.float32, device=coords.device)
    if rows == 0:
        return out.zero_()
    largest = torch.linalg.vector_norm(grad, math.inf)
    sums = torch.zeros(vectors, count, dtype=torch.int64, device=coords.device)
    bits = 62 - (rows - 1).bit_length()  # the shares of a point are 1 in all
    # One number a thread: several would go through shared memory for every corner.
    constants = _constants(tiles, dim, count, grad.stride(0), 128) | {"LINEAR": tiles[0].blending == "linear"}
    grid = (triton.cdiv(rows, constants["BLOCK_ROWS"]), len(tiles), triton.cdiv(count, constants["BLOCK_FEATURES"]))
    numbers = _numbers(tuple(tiles), dim, coords.device)
    _add_up[grid](coords.contiguous(), grad, largest, sums, *numbers, rows, bits, **constants)
    _as_floats[(triton.cdiv(out.numel(), 1024),)](sums, largest, out, out.numel(), bits, BLOCK=1024, num_warps=4)
    return out


def coords_gradient(grad: Tensor, coords: Tensor, table: Tensor, tiles: Sequence[BiasTile]) -> Tensor:
    """The gradient of `features` for coords [N, dim], fp32; arguments are those of `features`, linearly blended."""
    rows, dim = coords.shape
    out = torch.empty(rows, dim, dtype=torch.float32, device=coords.device)
    if rows == 0:
        return out
    constants = _constants(tiles, dim, table.shape[1], grad.stride(0)) | {"AXES": triton.next_power_of_2(dim)}
    grid, numbers = (triton.cdiv(rows, constants["BLOCK_ROWS"]),), _numbers(tuple(tiles), dim, coords.device)
    _slopes[grid](coords.contiguous(), table.contiguous(), grad, out, *numbers, rows, len(tiles), **constants)
    return out


def grid_forward(coords: Tensor, beside: Tensor, table: Tensor, tiles: Sequence[BiasTile]) -> Tensor:
    """`grid.grid_features` in rows that end in zeros, up to a multiple of 4 numbers, as a level reads them."""
    columns, width = beside.shape[1], beside.shape[1] + len(tiles) * table.shape[1]
    out = coords.new_empty(len(coords), padded(width))
    out[:, :columns] = beside
    out[:, width:] = 0
    with torch.cuda.device_of(coords):
        features(coords, table, tiles, out[:, columns:width])
    return out


def padded(width: int) -> int:
    """Numbers of a row that holds `width` of them."""
    return 4 * triton.cdiv(width, 4)


def grid_backward(
    coords: Tensor, table: Tensor, tiles: Sequence[BiasTile], grad: Tensor, *, need_coords: bool, need_table: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of the features for coords and table, fp32, None where not needed; grad [N, levels * F]."""
    grad = grad if grad.stride(1) == 1 else grad.contiguous()
    with torch.cuda.device_of(coords):
        grad_coords = coords_gradient(grad, coords, table, tiles) if need_coords else None
        grad_table = table_gradient(grad, coords, tiles, len(table)) if need_table else None
    return grad_coords, grad_table
