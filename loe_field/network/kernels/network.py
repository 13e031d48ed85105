"""A whole network, encoding to head, as one Triton kernel: a program takes a block of neighbouring points through it.

Activations stay in registers from level to level. At each level the block meets some of the experts; for each one met a
product is made with the rows of the others set to zero, and all add to one sum, which changes no bit of it. Pixels in
the order of a picture's rows meet at most half of the experts (they share a row of cells), points in any order meet
all. The bytes that must move are those of coords and the result, the arithmetic is that of the experts met.

On paper, for camera: 262,144 points through nine levels of 64 in bf16 on an H100 (3 TB/s, 5.5 TB/s from its cache,
790 TFLOP/s).

- Level by level the forward moves 0.6 GB, 0.2 ms. Here every block reads its matrices from the cache, 8 kB each: 0.3 GB
  and 0.05 ms for 128 pixels of a row, twice that for points in any order, whose products, of all four experts, take
  0.09 ms. The sines take 0.08 ms of the ordinary units beside them.
- With `keep` every level's result is written once, 0.3 GB and 0.1 ms, for a backward pass level by level.
- A backward pass of this kind does not pay. The gradients of all matrices, 36 of 16 kB, do not fit on chip, and kept in
  memory by every program they would be read and written for every block: 1.2 MB, where a block of 128 rows moves 0.4 MB
  level by level. If a second kernel sums them, a level moves four activations per row: x and the gradient of the
  pre-activation, written here and read there. With `keep` it moves as many: one written forward, two read and one
  written backward.
"""

# Inside and at its launch a kernel takes other types than its signature says.
# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from loe_field.network.kernels import level
from loe_field.network.kernels.encoding import sinusoid
from loe_field.network.kernels.level import _OPERANDS, _activate, _pad, _store
from loe_field.network.shape import NetworkShape, Precision
from loe_field.network.tiling import scales

MAX_EXPERTS = 32
"""Experts of a level that the kernel can number: the bits of an int32."""
MAX_WIDTH = 128
"""Largest width whose activations fit in registers."""


@triton.jit
def _either(a, b):
    return a | b


@triton.jit
def _experts(coords, rows, live, alpha, beta, level, DIM: tl.constexpr, TILE_SIZE: tl.constexpr):
    """`tiling.expert_index` of a block's rows at one level to the bit, and the experts met, one bit each.

    The product with alpha is rounded before beta is added: the launch forbids the compiler to fuse them.
    """
    index = tl.zeros_like(rows)
    met = 1
    if TILE_SIZE > 1:
        scale = tl.load(alpha + level)
        for axis in tl.static_range(DIM):
            scaled = tl.load(coords + rows * DIM + axis, mask=live, other=0.0) * scale
            if beta is not None:
                scaled += tl.load(beta + level)
            cell = tl.floor(scaled).to(tl.int64)
            if TILE_SIZE & (TILE_SIZE - 1) == 0:
                cell = cell & (TILE_SIZE - 1)
            else:
                cell = cell % TILE_SIZE  # with the sign of the cell
                cell = tl.where(cell < 0, cell + TILE_SIZE, cell)
            index = index * TILE_SIZE + cell.to(tl.int32)
        met = tl.reduce(tl.where(live, 1 << index, 0), 0, _either)
    return index, met


@triton.jit
def _encoded(coords, rows, live, columns, DIM: tl.constexpr, FREQUENCIES: tl.constexpr):
    """Some columns of `layers.PositionalEncoding` for a block's rows, zero beyond its width."""
    wave = columns - DIM
    cosine = wave >= DIM * FREQUENCIES
    wave = tl.where(cosine, wave - DIM * FREQUENCIES, wave)
    plain = columns < DIM
    axes = columns
    if FREQUENCIES > 0:
        axes = tl.where(plain, columns, wave // FREQUENCIES)
    p = tl.zeros([rows.shape[0], columns.shape[0]], tl.float32)
    for axis in tl.static_range(DIM):
        along = tl.load(coords + rows * DIM + axis, mask=live, other=0.0)
        p = tl.where((axes == axis)[None, :], along[:, None], p)
    if FREQUENCIES > 0:
        octave = tl.where(plain, 0, wave % FREQUENCIES)
        value = sinusoid(p, octave[None, :], cosine[None, :])
        p = tl.where(plain[None, :], p, tl.where((columns < DIM * (1 + 2 * FREQUENCIES))[None, :], value, 0.0))
    return p


@triton.jit
def _high(x):
    """The number x rounded to the 11 significant bits of TF32 (Veltkamp's splitting); NaN beyond 1e34.

    Tensor cores drop the others. The launch forbids the compiler to fuse the difference with the product.
    """
    scaled = 8193.0 * x
    return scaled - (scaled - x)


@triton.jit
def _products(
    z,
    x,
    weight,
    index,
    met,
    inner,
    columns,
    IN: tl.constexpr,
    WIDTH: tl.constexpr,
    EXPERTS: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
):
    """Z + W_e x for every row of x with its own expert; `weight` [EXPERTS, WIDTH, IN], whose columns `inner` x holds.

    A matrix that is not finite spoils the rows of the block's other experts too.
    """
    mask = (inner < IN)[:, None] & (columns < WIDTH)[None, :]
    for expert in range(EXPERTS):
        if (met >> expert) & 1:
            w = tl.load(weight + expert * (WIDTH * IN) + columns[None, :] * IN + inner[:, None], mask=mask, other=0.0)
            mine = x
            if EXPERTS > 1:
                mine = tl.where((index == expert)[:, None], x, 0.0).to(x.dtype)
            if INPUT_PRECISION == "tf32x3":
                high, w_high = _high(mine), _high(w)
                z = tl.dot(mine - high, w_high, z, input_precision="tf32")
                z = tl.dot(high, w - w_high, z, input_precision="tf32")
                z = tl.dot(high, w_high, z, input_precision="tf32")
            else:
                z = tl.dot(mine, w, z, input_precision=INPUT_PRECISION)
    return z


@triton.jit
def _activated(z, bias, kept, rows, live, columns, omega_0, WIDTH: tl.constexpr, ACTIVATION: tl.constexpr):
    """The result of a level whose product is z, fp32; written to `kept` where that is wanted."""
    x = _activate(z + tl.load(bias + columns, mask=columns < WIDTH, other=0.0)[None, :], omega_0, ACTIVATION)
    if kept is not None:
        _store(kept, x, rows, live, columns, WIDTH)
    return x


@triton.jit(do_not_specialize=["num_rows", "levels"], do_not_specialize_on_alignment=["coords"])
def _network(
    coords,
    alpha,
    beta,
    first,
    hidden,
    biases,
    head,
    head_bias,
    kept,
    out,
    num_rows,
    levels,
    omega_0,
    DIM: tl.constexpr,
    FREQUENCIES: tl.constexpr,
    TILE_SIZE: tl.constexpr,
    EXPERTS: tl.constexpr,
    WIDTH: tl.constexpr,
    OUT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    DTYPE: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    """One block of rows: levels [levels - 1, EXPERTS, WIDTH, WIDTH] in `hidden`, biases [levels, WIDTH]."""
    IN: tl.constexpr = DIM * (1 + 2 * FREQUENCIES)
    start = tl.program_id(0).to(tl.int64) * BLOCK_ROWS
    coords += start * DIM
    out += start * OUT
    if kept is not None:
        kept += start * WIDTH
    rows, columns = tl.arange(0, BLOCK_ROWS), tl.arange(0, BLOCK_WIDTH)
    live = rows < num_rows - start
    z = tl.zeros([BLOCK_ROWS, BLOCK_WIDTH], tl.float32)
    index, met = _experts(coords, rows, live, alpha, beta, 0, DIM, TILE_SIZE)
    for k in range(0, IN, BLOCK_IN):
        inner = k + tl.arange(0, BLOCK_IN)
        x = _encoded(coords, rows, live, inner, DIM, FREQUENCIES)
        z = _products(z, x, first, index, met, inner, columns, IN, WIDTH, EXPERTS, "tf32x3")
    for i in range(1, levels):
        x = _activated(z, biases, kept, rows, live, columns, omega_0, WIDTH, ACTIVATION)
        biases += WIDTH
        if kept is not None:
            kept += num_rows.to(tl.int64) * WIDTH
        index, met = _experts(coords, rows, live, alpha, beta, i, DIM, TILE_SIZE)
        if INPUT_PRECISION == "tf32":
            x = _high(x)
        z = tl.zeros([BLOCK_ROWS, BLOCK_WIDTH], tl.float32)
        x = x.to(DTYPE)
        z = _products(z, x, hidden, index, met, columns, columns, WIDTH, WIDTH, EXPERTS, INPUT_PRECISION)
        hidden += EXPERTS * WIDTH * WIDTH
    x = _activated(z, biases, kept, rows, live, columns, omega_0, WIDTH, ACTIVATION)
    for o in range(OUT):
        w = tl.load(head + o * WIDTH + columns, mask=columns < WIDTH, other=0.0)
        tl.store(out + rows * OUT + o, tl.sum(x * w[None, :], 1) + tl.load(head_bias + o), mask=live)


class Blocks(NamedTuple):
    """How the kernel is cut."""

    rows: int
    warps: int
    registers: int | None = None
    """Most that a thread may take; None: as many as it likes."""


def network_blocks(width: int, precision: Precision, card: tuple[int, int]) -> Blocks:
    """How the kernel is cut for a compute capability.

    By registers, of which a multiprocessor has 65,536, as compiled for ten layers of 64 and four experts
    (`benchmarks.compile_table`). On sm_90, where products take their left operand and their sum from registers, 16 bits
    need 124 of them with 128 rows in 8 warps: two programs side by side, and a matrix is loaded once for twice as many
    rows. All else needs up to 168 with 64 rows in 4 warps, which is three programs.
    """
    wide = _pad(width) > 64
    if precision == "ieee":
        return Blocks(16, 4) if wide else Blocks(32, 8)
    if wide:
        return Blocks(64, 8)
    if precision in ("bf16", "fp16") and card[0] == 9:
        return Blocks(128, 8, 128)
    return Blocks(64, 4)


def network_forward(
    coords: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    shape: NetworkShape,
    precision: Precision,
    keep: torch.dtype | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`fused_triton.evaluate`, unchecked, with the operands of hidden products in `precision`.

    Args:
        coords: points [N, dim], fp32; neighbours one after the other meet fewer experts.
        weights: fp32, of the levels [experts, width, in_features] and of the head [out_features, width].
        biases: fp32, of the levels [width] and of the head [out_features].
        shape: the network's; up to `MAX_EXPERTS` experts and `MAX_WIDTH` wide.
        precision: "ieee", "tf32", "bf16" or "fp16". The first level's products are split TF32, the head's fp32.
        keep: dtype of what is kept; None: nothing.

    Returns:
        The result [N, out_features], fp32, and every level's [levels, N, width] where kept.
    """
    rows, levels, width, out_features = len(coords), len(shape.levels), weights[0].shape[1], len(weights[-1])
    out = coords.new_empty(rows, out_features)
    kept = None if keep is None else coords.new_empty(levels, rows, width, dtype=keep)
    if rows == 0:
        return out, kept
    operand = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    hidden = torch.stack([w.to(operand) for w in weights[1:-1]] or [weights[0]])
    alpha, beta = scales(shape.levels, torch.float32, coords.device)
    tensors = (coords.contiguous(), alpha, beta, weights[0].contiguous(), hidden, torch.stack(list(biases[:-1])))
    tensors += (weights[-1].contiguous(), biases[-1].contiguous(), kept, out)
    blocks = network_blocks(width, precision, level.capability(coords.device))
    dtype, input_precision = _OPERANDS[precision]
    _network[(triton.cdiv(rows, blocks.rows),)](
        *tensors,
        rows,
        levels,
        float(shape.omega_0),
        DIM=shape.dim,
        FREQUENCIES=shape.num_frequencies,
        TILE_SIZE=shape.tile_size,
        EXPERTS=shape.experts,
        WIDTH=width,
        OUT=out_features,
        ACTIVATION=shape.activation,
        DTYPE=dtype,
        INPUT_PRECISION=input_precision,
        BLOCK_ROWS=blocks.rows,
        BLOCK_WIDTH=_pad(width),
        BLOCK_IN=16,
        num_warps=blocks.warps,
        num_stages=1,
        maxnreg=blocks.registers,
        enable_fp_fusion=False,
    )
    return out, kept
