"""The gradients of a level whose bias is a tile of vectors, in Triton.

A tile of few vectors has its gradient as a product S^T g: the shares S [points, vectors] of a block of points are made
in registers and multiply the gradients g of the pre-activation on the tensor cores, like a weight gradient; the sums of
all chunks are added in a fixed order. A tile of many has it by the atomics of `grid`. On paper, for 262,144 points in
2D and 64 columns on an H100 (3 TB/s): products take 15 us in bf16 for every 64 vectors, 18 in TF32, 35 in split TF32
and 110 in fp32; atomics take 150 us for any number of vectors.
"""

# Inside and at its launch a kernel takes other types than its signature says.
# pyright: reportCallIssue=false, reportArgumentType=false, reportPossiblyUnboundVariable=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from loe_field.network.kernels.grid import coords_gradient, table_gradient
from loe_field.network.kernels.level import _OPERANDS, _load, _pad, level_backward, processors, sum_partials
from loe_field.network.kernels.tiles import cells_of, constants_of, corner_of
from loe_field.network.shape import Arithmetic, Precision
from loe_field.network.tiling import BiasTile

_MOST_BY_PRODUCTS: dict[Precision, int] = {"bf16": 512, "fp16": 512, "tf32": 256, "tf32x3": 256, "ieee": 64}
"""Vectors of a tile up to which their gradient is a product, by the estimates above."""


@triton.jit(do_not_specialize=["num_rows", "chunk_rows"], do_not_specialize_on_alignment=["coords"])
def _products(
    coords,
    grad,
    partials,
    num_rows,
    chunk_rows,
    alpha,
    beta,
    VECTORS: tl.constexpr,
    OUT: tl.constexpr,
    DIM: tl.constexpr,
    TILE_SIZE: tl.constexpr,
    TABLE: tl.constexpr,
    LINEAR: tl.constexpr,
    DTYPE: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_VECTORS: tl.constexpr,
):
    """One block of S^T g [VECTORS, OUT] over one chunk of rows."""
    chunk = tl.program_id(0)
    vectors = tl.program_id(1) * BLOCK_VECTORS + tl.arange(0, BLOCK_VECTORS)
    columns = tl.program_id(2) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    first = chunk * chunk_rows
    stop = tl.minimum(first + chunk_rows, num_rows)
    total = tl.zeros([BLOCK_VECTORS, BLOCK_OUT], tl.float32)
    for start in range(first, stop, BLOCK_ROWS):
        entries = start + tl.arange(0, BLOCK_ROWS)
        rows, live = entries.to(tl.int64), entries < stop
        grads = _load(grad, rows, live, columns, OUT).to(DTYPE)
        shares = tl.zeros([BLOCK_VECTORS, BLOCK_ROWS], tl.float32)
        c0, p0, c1, p1, c2, p2, c3, p3 = cells_of(coords, rows, live, alpha, beta, TILE_SIZE, DIM)
        for corner in tl.static_range(1 << DIM if LINEAR else 1):
            index, share = corner_of(c0, p0, c1, p1, c2, p2, c3, p3, TILE_SIZE, TABLE, DIM, corner, LINEAR, TABLE > 0)
            shares += tl.where(vectors[:, None] == index[None, :], share[None, :], 0.0)
        total = tl.dot(shares.to(DTYPE), grads, total, input_precision=INPUT_PRECISION)
    place = vectors[:, None] * OUT + columns[None, :]
    inside = (vectors < VECTORS)[:, None] & (columns < OUT)[None, :]
    tl.store(partials + chunk.to(tl.int64) * (VECTORS * OUT) + place, total, mask=inside)


def _tile_gradient(grad: Tensor, coords: Tensor, tile: BiasTile, vectors: int, precision: Precision) -> Tensor:
    """The gradient of a level's bias tile [vectors, out_features], fp32; products take operands in `precision`.

    Args:
        grad: that of the level's pre-activation [N, out_features], contiguous.
        coords: points [N, dim], fp32.
        tile: the tile, of one vector or more.
        vectors: how many it keeps.
        precision: of the level's products.
    """
    if len(coords) == 0 or vectors > _MOST_BY_PRODUCTS[precision]:
        return table_gradient(grad, coords, [tile], vectors)
    rows, out_features = grad.shape
    short = precision in ("bf16", "fp16")
    block_rows, block_out, block_vectors = 64 if short else 32, min(_pad(out_features), 64), min(_pad(vectors), 64)
    grid = (triton.cdiv(vectors, block_vectors), triton.cdiv(out_features, block_out))
    programs = max(1, 3 * processors(grad.device) // math.prod(grid))
    chunk_rows = block_rows * triton.cdiv(triton.cdiv(rows, block_rows), programs)
    chunks = triton.cdiv(rows, chunk_rows)
    partials = torch.empty(chunks, vectors, out_features, dtype=torch.float32, device=grad.device)
    place, constants = constants_of(tile, coords.shape[1])
    operand, input_precision = _OPERANDS[precision]
    _products[(chunks, *grid)](
        coords.contiguous(), grad, partials, rows, chunk_rows, *place, VECTORS=vectors, OUT=out_features, **constants,
        DTYPE=operand, INPUT_PRECISION=input_precision, BLOCK_ROWS=block_rows, BLOCK_OUT=block_out,
        BLOCK_VECTORS=block_vectors, num_warps=8 if precision in ("tf32x3", "ieee") else 4, num_stages=2,
        enable_fp_fusion=False,
    )  # fmt: skip
    return sum_partials(partials, rows, chunk_rows)


def level_gradients(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    coords: Tensor | None,
    order: Tensor | None,
    starts: Tensor | None,
    how: Arithmetic,
    need: Sequence[bool] = (True, True, True, True),
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """`level.level_backward` for x, weight, any bias, and coords where a bias tile is blended linearly.

    The gradient of the pre-activation is written once and read once for the vectors, and once more for coords.

    Returns:
        The gradients, that of x like it, the others in fp32; None where not needed.
    """
    need_x, need_weight, need_bias, need_coords = need
    need_coords = need_coords and how.tile is not None and how.tile.blending == "linear"
    need_z = how.tile is not None and (need_bias or need_coords)
    needs = need_x, need_weight, need_bias, need_z
    grad_x, grad_weight, grad_bias, grad_z = level_backward(grad_y, x, weight, bias, coords, order, starts, how, needs)
    if how.tile is None or bias is None or coords is None or grad_z is None:
        return grad_x, grad_weight, grad_bias, None
    if need_bias:
        grad_bias = _tile_gradient(grad_z, coords, how.tile, len(bias), how.precision)
    return grad_x, grad_weight, grad_bias, coords_gradient(grad_z, coords, bias, [how.tile]) if need_coords else None
