"""One level of the network as Triton kernels: y = act(omega_0 * (W_e x + b)) and its gradients.

Rows never move. A list of row numbers grouped by expert (`rows.expert_rows`) says which rows one expert serves; a
program gathers them, a block at a time, and scatters the results to the same rows. A *chunk* is the work of one
program: up to `chunk_rows` entries of that list, all of one expert, so that its matrix is loaded once and its gradient
stays in registers. The list's borders are known to the device alone: the grid is their upper bound, cdiv(N, chunk_rows)
+ experts - 1, and a program without a chunk ends at once. Nothing here waits for the device, and nothing is tuned at
run time, so every launch can be captured in a CUDA graph.

A row of x may be longer than the matrix is wide, up to a multiple of 16 bytes, so that it is read in such pieces; what
it holds there meets zeros.

Bytes that must move per row of width W, operands of s bytes: forward 2 W s (x, y), backward 3 W s (x, grad_y, grad_x).

A bias tile is read where a shared bias is added: 2^dim vectors a row, from a table that the caches hold (8 x 8 vectors
of 64 are 16 KiB). Its gradient is another kernel's (`bias`), for which the backward pass writes that of the
pre-activation.
"""

# Inside and at its launch a kernel takes other types than its signature says.
# pyright: reportCallIssue=false, reportArgumentType=false, reportPossiblyUnboundVariable=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from loe_field.network.kernels.tiles import cells_of, constants_of, corner_of
from loe_field.network.shape import Arithmetic, Precision

# In tf32 the tensor cores drop the 13 low bits of fp32 operands; rounded ones would have half that error. To round is
# one integer addition a number, but in registers: what the tensor cores of an H100 read from shared memory themselves
# would go there a second time. A field of 47.50 dB evaluated with operands cut off is at 47.50 dB.
_OPERANDS = {
    "ieee": (tl.float32, "ieee"),
    "tf32": (tl.float32, "tf32"),
    "tf32x3": (tl.float32, "tf32x3"),
    "bf16": (tl.bfloat16, "ieee"),
    "fp16": (tl.float16, "ieee"),
}


# One compilation serves all batches and levels: not another for a number of rows that 16 divides, nor for a level whose
# lists happen to begin at a multiple of 16 bytes.
_jit = functools.partial(
    triton.jit,
    do_not_specialize=["num_rows", "chunk_rows"],
    do_not_specialize_on_alignment=["order", "starts", "coords"],
)


@triton.jit
def sine_near_zero(r):
    """sin(r) for |r| <= pi / 2, to 5e-9 and fp32's rounding: the minimax odd polynomial of degree 9."""
    square = r * r
    p = tl.fma(square, 2.6000348e-06, -1.9806606e-04)
    p = tl.fma(square, p, 8.3330171e-03)
    p = tl.fma(square, p, -1.6666657e-01)
    return tl.fma(r * square, p, r)


@triton.jit
def _sine(phase, COSINE: tl.constexpr):
    """Sin or cos of an fp32 phase, to 2e-7 for |phase| <= 1e6; NaN where it is not finite.

    The nearest multiple n pi (for cos: odd multiple of pi / 2) is taken off in two steps, pi = 3217 / 1024 - 8.9e-6,
    the first of them exact; n comes from adding 1.5 * 2^23, which leaves its parity in the lowest bit. An order of
    magnitude less work than the library's sine, which branches for large phases.
    """
    if COSINE:
        shifted = tl.fma(phase, 0.31830988618, -0.5) + 12582912.0
        n = (shifted - 12582912.0) + 0.5
    else:
        shifted = phase * 0.31830988618 + 12582912.0
        n = shifted - 12582912.0
    r = tl.fma(n, -3.1416015625, phase)
    r = tl.fma(n, 8.908910206884002e-06, r)
    # Beyond 1e7 a phase has no fraction left in fp32: any value will do, but one of a sine.
    r = tl.clamp(r, -1.5708, 1.5708, propagate_nan=tl.PropagateNan.ALL)
    odd = shifted.to(tl.int32, bitcast=True) << 31
    if COSINE:
        odd = odd ^ -2147483648  # cos(r + (n + 1/2) pi) = -(-1)^n sin(r)
    return (sine_near_zero(r).to(tl.int32, bitcast=True) ^ odd).to(tl.float32, bitcast=True)


@triton.jit
def _activate(z, omega_0, ACTIVATION: tl.constexpr):
    """The activation of the pre-activation z, fp32."""
    if ACTIVATION == "sine":
        z = _sine(omega_0 * z, False)
    elif ACTIVATION == "leaky_relu":
        z = tl.where(z > 0, z, 0.2 * z)
    elif ACTIVATION == "relu":
        z = tl.where(z < 0, 0.0, z)
    return z


@triton.jit
def _pull_back(grad, z, omega_0, ACTIVATION: tl.constexpr):
    """Grad times the activation's derivative at z, fp32."""
    if ACTIVATION == "sine":
        grad = grad * (omega_0 * _sine(omega_0 * z, True))
    elif ACTIVATION == "leaky_relu":
        grad = tl.where(z > 0, grad, 0.2 * grad)
    elif ACTIVATION == "relu":
        grad = tl.where(z > 0, grad, 0.0)
    return grad


@triton.jit
def _chunk(starts, chunk, chunk_rows, num_rows, EXPERTS: tl.constexpr, EXPERTS_PADDED: tl.constexpr):
    """The expert of a chunk, and its first and last + 1 entry in `order`; empty beyond the last chunk."""
    if EXPERTS == 1:
        expert = chunk * 0
        first = chunk * chunk_rows
        stop = tl.minimum(first + chunk_rows, num_rows)
    else:
        experts = tl.arange(0, EXPERTS_PADDED)
        begin = tl.load(starts + experts, mask=experts < EXPERTS, other=0)
        end = tl.load(starts + experts + 1, mask=experts < EXPERTS, other=0)
        chunks = tl.cdiv(end - begin, chunk_rows)
        chunks_end = tl.cumsum(chunks, 0)
        expert = tl.sum((chunks_end <= chunk).to(tl.int32), 0)
        mine = experts == expert
        first = tl.sum(tl.where(mine, begin + (chunk - (chunks_end - chunks)) * chunk_rows, 0), 0)
        stop = tl.minimum(first + chunk_rows, tl.sum(tl.where(mine, end, 0), 0))
    return expert, first, stop


@triton.jit
def _rows(order, start, stop, EXPERTS: tl.constexpr, BLOCK_ROWS: tl.constexpr):
    """The row numbers of a block, and which of them are there."""
    entries = start + tl.arange(0, BLOCK_ROWS)
    live = entries < stop
    rows = entries if EXPERTS == 1 else tl.load(order + entries, mask=live, other=0)
    return rows.to(tl.int64), live


@triton.jit
def _load(x, rows, live, columns, WIDTH: tl.constexpr):
    """Rows of a contiguous [N, WIDTH] matrix; zero where there are none."""
    return tl.load(
        x + rows[:, None] * WIDTH + columns[None, :], mask=live[:, None] & (columns < WIDTH)[None, :], other=0.0
    )


@triton.jit
def _store(x, values, rows, live, columns, WIDTH: tl.constexpr):
    """Write rows of a contiguous [N, WIDTH] matrix."""
    mask = live[:, None] & (columns < WIDTH)[None, :]
    tl.store(x + rows[:, None] * WIDTH + columns[None, :], values.to(x.dtype.element_ty), mask=mask)


@triton.jit
def _load_transposed(weight, inner, columns, stride_o, stride_k, OUT: tl.constexpr, IN: tl.constexpr):
    """W^T [inner, columns] of one expert's matrix [OUT, IN]; zero outside."""
    mask = (inner < IN)[:, None] & (columns < OUT)[None, :]
    return tl.load(weight + inner[:, None] * stride_k + columns[None, :] * stride_o, mask=mask, other=0.0)


@triton.jit
def _tile_bias(
    bias,
    coords,
    rows,
    live,
    columns,
    alpha,
    beta,
    OUT: tl.constexpr,
    DIM: tl.constexpr,
    TILE_SIZE: tl.constexpr,
    TABLE: tl.constexpr,
    LINEAR: tl.constexpr,
):
    """A block's blend of the vectors of a bias tile [vectors, OUT], fp32: `bias.tile_bias`."""
    total = tl.zeros([rows.shape[0], columns.shape[0]], tl.float32)
    c0, p0, c1, p1, c2, p2, c3, p3 = cells_of(coords, rows, live, alpha, beta, TILE_SIZE, DIM)
    for corner in tl.static_range(1 << DIM if LINEAR else 1):
        index, share = corner_of(c0, p0, c1, p1, c2, p2, c3, p3, TILE_SIZE, TABLE, DIM, corner, LINEAR, TABLE > 0)
        vector = _load(bias, index.to(tl.int64), live, columns, OUT).to(tl.float32)
        total = tl.fma(vector, tl.broadcast_to(share[:, None], total.shape), total)
    return total


@_jit()
def _level(
    x,
    weight,
    bias,
    coords,
    grad_y,
    order,
    starts,
    out,
    num_rows,
    chunk_rows,
    stride_e,
    stride_o,
    stride_k,
    omega_0,
    alpha,
    beta,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    IN_ROW: tl.constexpr,
    OUT_ROW: tl.constexpr,
    EXPERTS: tl.constexpr,
    EXPERTS_PADDED: tl.constexpr,
    DIM: tl.constexpr,
    TILE_SIZE: tl.constexpr,
    TABLE: tl.constexpr,
    LINEAR: tl.constexpr,
    ACTIVATION: tl.constexpr,
    DTYPE: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    """act(omega_0 (W x + b)) of one chunk and one block of columns; with grad_y its product with act' instead."""
    expert, first, stop = _chunk(starts, tl.program_id(0), chunk_rows, num_rows, EXPERTS, EXPERTS_PADDED)
    if first >= stop:
        return
    columns = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    inner = tl.arange(0, BLOCK_IN)
    weight += expert.to(tl.int64) * stride_e
    if IN <= BLOCK_IN:
        w = _load_transposed(weight, inner, columns, stride_o, stride_k, OUT, IN).to(DTYPE)
    if bias is not None and coords is None:
        b = tl.load(bias + columns, mask=columns < OUT, other=0.0).to(tl.float32)
    for start in range(first, stop, BLOCK_ROWS):
        rows, live = _rows(order, start, stop, EXPERTS, BLOCK_ROWS)
        if IN <= BLOCK_IN:
            xs = _load(x, rows, live, inner, IN_ROW).to(DTYPE)
            z = tl.dot(xs, w, input_precision=INPUT_PRECISION)
        else:
            z = tl.zeros([BLOCK_ROWS, BLOCK_OUT], tl.float32)
            for k in range(0, IN, BLOCK_IN):
                xs = _load(x, rows, live, k + inner, IN_ROW).to(DTYPE)
                ws = _load_transposed(weight, k + inner, columns, stride_o, stride_k, OUT, IN).to(DTYPE)
                z = tl.dot(xs, ws, z, input_precision=INPUT_PRECISION)
        if coords is not None:
            z += _tile_bias(bias, coords, rows, live, columns, alpha, beta, OUT, DIM, TILE_SIZE, TABLE, LINEAR)
        elif bias is not None:
            z += b[None, :]
        if grad_y is not None:
            value = _pull_back(_load(grad_y, rows, live, columns, OUT).to(tl.float32), z, omega_0, ACTIVATION)
        else:
            value = _activate(z, omega_0, ACTIVATION)
        _store(out, value, rows, live, columns, OUT_ROW)


@_jit()
def _fused_backward(
    x,
    weight,
    bias,
    coords,
    grad_y,
    order,
    starts,
    grad_x,
    grad_z,
    weight_partials,
    bias_partials,
    num_rows,
    chunk_rows,
    omega_0,
    alpha,
    beta,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    IN_ROW: tl.constexpr,
    EXPERTS: tl.constexpr,
    EXPERTS_PADDED: tl.constexpr,
    DIM: tl.constexpr,
    TILE_SIZE: tl.constexpr,
    TABLE: tl.constexpr,
    LINEAR: tl.constexpr,
    ACTIVATION: tl.constexpr,
    DTYPE: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    """All gradients of one chunk in one pass over x and grad_y: the matrix fits on chip whole."""
    chunk = tl.program_id(0)
    expert, first, stop = _chunk(starts, chunk, chunk_rows, num_rows, EXPERTS, EXPERTS_PADDED)
    if first >= stop:
        return
    columns, inner = tl.arange(0, BLOCK_OUT), tl.arange(0, BLOCK_IN)
    matrix = columns[:, None] * IN + inner[None, :]
    inside = (columns < OUT)[:, None] & (inner < IN)[None, :]
    w = tl.load(weight + expert.to(tl.int64) * (OUT * IN) + matrix, mask=inside, other=0.0).to(DTYPE)
    if bias is not None and coords is None:
        b = tl.load(bias + columns, mask=columns < OUT, other=0.0).to(tl.float32)
    grad_w = tl.zeros([BLOCK_OUT, BLOCK_IN], tl.float32)
    # Summed over its rows once at the end: a sum over rows crosses lanes and warps.
    grad_z_sum = tl.zeros([BLOCK_ROWS, BLOCK_OUT], tl.float32)
    for start in range(first, stop, BLOCK_ROWS):
        rows, live = _rows(order, start, stop, EXPERTS, BLOCK_ROWS)
        xs = _load(x, rows, live, inner, IN_ROW).to(DTYPE)
        grad = _load(grad_y, rows, live, columns, OUT).to(tl.float32)
        z = tl.dot(xs, tl.trans(w), input_precision=INPUT_PRECISION)
        if coords is not None:
            z += _tile_bias(bias, coords, rows, live, columns, alpha, beta, OUT, DIM, TILE_SIZE, TABLE, LINEAR)
        elif bias is not None:
            z += b[None, :]
        grad = _pull_back(grad, z, omega_0, ACTIVATION)
        if bias_partials is not None:
            grad_z_sum += grad
        if grad_z is not None:
            _store(grad_z, grad, rows, live, columns, OUT)
        grad = grad.to(DTYPE)
        if weight_partials is not None:
            grad_w = tl.dot(tl.trans(grad), xs, grad_w, input_precision=INPUT_PRECISION)
        if grad_x is not None:
            _store(grad_x, tl.dot(grad, w, input_precision=INPUT_PRECISION), rows, live, inner, IN_ROW)
    if weight_partials is not None:
        tl.store(weight_partials + chunk.to(tl.int64) * (OUT * IN) + matrix, grad_w, mask=inside)
    if bias_partials is not None:
        tl.store(bias_partials + chunk.to(tl.int64) * OUT + columns, tl.sum(grad_z_sum, 0), mask=columns < OUT)


@_jit()
def _weight_gradient(
    x,
    grad_z,
    order,
    starts,
    weight_partials,
    bias_partials,
    num_rows,
    chunk_rows,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    IN_ROW: tl.constexpr,
    EXPERTS: tl.constexpr,
    EXPERTS_PADDED: tl.constexpr,
    DTYPE: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    """One block of grad_z^T x over one chunk, and the sum of grad_z over it."""
    chunk = tl.program_id(0)
    _, first, stop = _chunk(starts, chunk, chunk_rows, num_rows, EXPERTS, EXPERTS_PADDED)
    if first >= stop:
        return
    columns = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    inner = tl.program_id(2) * BLOCK_IN + tl.arange(0, BLOCK_IN)
    grad_w = tl.zeros([BLOCK_OUT, BLOCK_IN], tl.float32)
    grad_b = tl.zeros([BLOCK_OUT], tl.float32)
    for start in range(first, stop, BLOCK_ROWS):
        rows, live = _rows(order, start, stop, EXPERTS, BLOCK_ROWS)
        xs = _load(x, rows, live, inner, IN_ROW).to(DTYPE)
        grad = _load(grad_z, rows, live, columns, OUT)
        grad_w = tl.dot(tl.trans(grad.to(DTYPE)), xs, grad_w, input_precision=INPUT_PRECISION)
        if bias_partials is not None:
            grad_b += tl.sum(grad.to(tl.float32), 0)
    if weight_partials is not None:
        inside = (columns < OUT)[:, None] & (inner < IN)[None, :]
        matrix = columns[:, None] * IN + inner[None, :]
        tl.store(weight_partials + chunk.to(tl.int64) * (OUT * IN) + matrix, grad_w, mask=inside)
    if bias_partials is not None:
        # The programs of all blocks of `inner` have the same sum; one writes it.
        tl.store(
            bias_partials + chunk.to(tl.int64) * OUT + columns,
            grad_b,
            mask=columns < tl.where(tl.program_id(2) == 0, OUT, 0),
        )


@triton.jit
def _sum_chunks(partials, out, first, stop, block, SIZE: tl.constexpr, BLOCK_CHUNKS: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of rows first .. stop - 1 of partials [chunks, SIZE], one block of columns, always in the same order."""
    columns = block * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK_CHUNKS, BLOCK], tl.float32)
    for start in range(first, stop, BLOCK_CHUNKS):
        chunks = start + tl.arange(0, BLOCK_CHUNKS)
        total += _load(partials, chunks.to(tl.int64), chunks < stop, columns, SIZE)
    tl.store(out + columns, tl.sum(total, 0), mask=columns < SIZE)


@_jit()
def _sum_partials(
    weight_partials,
    bias_partials,
    starts,
    grad_weight,
    grad_bias,
    num_rows,
    chunk_rows,
    SIZE: tl.constexpr,
    OUT: tl.constexpr,
    EXPERTS: tl.constexpr,
    EXPERTS_PADDED: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum a block of the partial gradients of an expert, or where that is EXPERTS, of the bias."""
    # On one axis, which has 2^31 programs; the others have 65,535.
    expert = tl.program_id(0) // tl.cdiv(SIZE, BLOCK)
    block = tl.program_id(0) % tl.cdiv(SIZE, BLOCK)
    if EXPERTS == 1:
        first = 0
        stop = tl.cdiv(num_rows, chunk_rows)
    else:
        experts = tl.arange(0, EXPERTS_PADDED)
        begin = tl.load(starts + experts, mask=experts < EXPERTS, other=0)
        end = tl.load(starts + experts + 1, mask=experts < EXPERTS, other=0)
        chunks = tl.cdiv(end - begin, chunk_rows)
        first = tl.sum(tl.where(experts < expert, chunks, 0), 0)
        stop = tl.sum(tl.where(experts <= expert, chunks, 0), 0)
    if expert < EXPERTS:
        if weight_partials is not None:
            out = grad_weight + expert.to(tl.int64) * SIZE
            _sum_chunks(weight_partials, out, first, stop, block, SIZE, BLOCK_CHUNKS, BLOCK)
    elif bias_partials is not None:
        stop = tl.where(block * BLOCK < OUT, stop, 0)  # there are as many blocks as a matrix has
        _sum_chunks(bias_partials, grad_bias, 0, stop, block, OUT, BLOCK_CHUNKS, BLOCK)


class Blocks(NamedTuple):
    """How a kernel is cut."""

    rows: int
    """Rows that a program holds at a time."""
    out: int
    """Columns of the result that a program computes (rows of the matrix); a power of two, at least 16."""
    inner: int
    """Input features of one product; a power of two, at least 16."""
    warps: int
    stages: int
    """Buffers of the software pipeline that gathers the rows ahead."""
    programs: int
    """Chunks per multiprocessor: about as many as run side by side, given their registers and buffers, so that all
    chunks start together and end together."""

    @property
    def constants(self) -> dict[str, int]:
        """The cut as a kernel's launch takes it."""
        blocks = {"BLOCK_ROWS": self.rows, "BLOCK_OUT": self.out, "BLOCK_IN": self.inner}
        return blocks | {"num_warps": self.warps, "num_stages": self.stages}


def _pad(size: int) -> int:
    return max(16, triton.next_power_of_2(size))


def _little_shared(card: tuple[int, int]) -> bool:
    """Whether a multiprocessor shares 100 KiB (sm_86, 89, 120), not 164 (sm_80) or 228 (sm_90, 100)."""
    return card not in ((0, 0), (8, 0), (9, 0)) and card[0] not in (10, 11)


def level_blocks(in_features: int, out_features: int, precision: Precision, card: tuple[int, int] = (9, 0)) -> Blocks:
    """How `_level` is cut; the whole matrix of an expert up to 128 x 128 (16 bits) or 64 x 64 (fp32).

    The figures of `benchmarks/results/compile.csv` are behind all three tables: 65,536 registers and the shared memory
    of a multiprocessor hold 16 warps or more, or 8 where a wide matrix or split TF32 takes the room. An H100 has
    products of 64 rows that read shared memory themselves (wgmma), and in 16 bits these take the fewest registers.
    """
    short = precision in ("bf16", "fp16")
    whole = 128 if short else 64
    out, inner = min(_pad(out_features), whole), _pad(in_features)
    if inner > whole:
        inner = 64 if short else 32
    if precision == "ieee":
        return Blocks(32, out, inner, 4, 2, 3)
    if precision == "tf32x3":
        if out * inner > 2048:
            return Blocks(32, out, inner, 8, 3, 2)
        return Blocks(16 if _little_shared(card) else 32, out, inner, 4, 3, 4)
    if max(out, inner) > 64:
        return Blocks(32, out, inner, 8, 3, 2 if _little_shared(card) else 3)
    if short:
        if card[0] == 9:
            return Blocks(64, out, inner, 4, 2, 6)
        return Blocks(32, out, inner, 4, 3, 5 if _little_shared(card) else 7)
    if _little_shared(card):
        return Blocks(32, out, inner, 8, 3, 3)
    programs = 4 if in_features > whole else 5 if card == (8, 0) else 7
    return Blocks(32, out, inner, 4, 3, programs)


def backward_blocks(
    in_features: int, out_features: int, precision: Precision, card: tuple[int, int] = (9, 0)
) -> Blocks | None:
    """How `_fused_backward` is cut, or None if the matrix is too wide for it.

    It holds the gradient of a matrix, and in fp32 the matrix twice in shared memory (64 x 64: 32 KiB), since only
    16 bits are transposed on the way from there.
    """
    short = precision in ("bf16", "fp16")
    out, inner = _pad(out_features), _pad(in_features)
    if max(out, inner) > (128 if short else 64):
        return None
    if short:
        if max(out, inner) > 64:
            return Blocks(32, out, inner, 8, 3, 1)
        return Blocks(32, out, inner, 4, 3, 4) if card[0] == 9 else Blocks(32, out, inner, 8, 3, 2)
    if precision == "tf32":
        return Blocks(16 if _little_shared(card) else 32, out, inner, 8, 3, 2)
    if precision == "tf32x3":
        # With more warps a thread's share of 32 columns is less than 16 bytes.
        return Blocks(16, out, inner, 8, 3, 1) if out * inner > 2048 else Blocks(16, out, inner, 4, 3, 3)
    return Blocks(32, out, inner, 8, 2, 2)


def weight_gradient_blocks(
    in_features: int, out_features: int, precision: Precision, card: tuple[int, int] = (9, 0)
) -> Blocks:
    """How `_weight_gradient` is cut."""
    short = precision in ("bf16", "fp16")
    largest = 128 if short else 64
    out, inner = min(_pad(out_features), largest), min(_pad(in_features), largest)
    return Blocks(64 if short else 32, out, inner, 8, 3 if short else 2, 2)


@functools.cache
def capability(device: torch.device) -> tuple[int, int]:
    """The compute capability of a GPU, (9, 0) for an H100; (0, 0) in the interpreter."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; few in the interpreter, so that chunks there have several blocks."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _chunks(num_rows: int, experts: int, block_rows: int, programs: int) -> tuple[int, int]:
    """Rows per chunk, a multiple of the block, and an upper bound for the number of chunks."""
    chunk_rows = block_rows * triton.cdiv(triton.cdiv(num_rows, block_rows), programs)
    return chunk_rows, triton.cdiv(num_rows, chunk_rows) + experts - 1


def _constants(x: Tensor, weight: Tensor, precision: Precision) -> dict[str, Any]:
    """The constants that `_level` and both kernels of the backward pass share, for weight [experts, out, in]."""
    experts, out_features, in_features = weight.shape
    sizes = {"IN": in_features, "OUT": out_features, "IN_ROW": x.shape[1], "EXPERTS": experts}
    operand, input_precision = _OPERANDS[precision]
    padded = triton.next_power_of_2(experts)
    return sizes | {"EXPERTS_PADDED": padded, "DTYPE": operand, "INPUT_PRECISION": input_precision}


def _tile_constants(coords: Tensor | None, how: Arithmetic) -> tuple[tuple[float, float], dict[str, Any]]:
    """Scale and shift of a level's bias tile, and its constants for a launch, which finds a point's cell to the bit."""
    numbers, constants = constants_of(how.tile, 0 if coords is None else coords.shape[1])
    return numbers, constants | ({} if how.tile is None else {"enable_fp_fusion": False})


def _launch_level(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    coords: Tensor | None,
    grad_y: Tensor | None,
    order: Tensor | None,
    starts: Tensor | None,
    how: Arithmetic,
    out_row: int | None = None,
) -> Tensor:
    """Launch `_level`; x, bias, coords and grad_y are contiguous, weight [experts, out, in] has any strides.

    A row of the result has out_row numbers, zeros beyond out_features; None: out_features.
    """
    experts, out_features, in_features = weight.shape
    rows, out_row = x.shape[0], out_row or out_features
    out = torch.empty(rows, out_row, dtype=how.dtype, device=x.device)
    blocks = level_blocks(in_features, out_features, how.precision, capability(x.device))
    if how.tile is not None and how.precision == "ieee":  # with 4 warps it spills
        blocks = blocks._replace(warps=8, programs=2)
    constants = _constants(x, weight, how.precision) | blocks.constants
    constants |= {"ACTIVATION": how.activation, "OUT_ROW": out_row}
    chunk_rows, chunks = _chunks(rows, experts, blocks.rows, blocks.programs * processors(x.device))
    place, tile = _tile_constants(coords, how)
    constants |= tile
    tensors = (x, weight, bias, coords, grad_y, order, starts, out)
    numbers = (rows, chunk_rows, *weight.stride(), how.omega_0, *place)
    _level[(chunks, triton.cdiv(out_features, blocks.out))](*tensors, *numbers, **constants)
    return out


def level_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    coords: Tensor | None,
    order: Tensor | None,
    starts: Tensor | None,
    how: Arithmetic,
) -> Tensor:
    """`fused_triton.expert_linear`, unchecked; x is rounded to the precision on the way into the products."""
    if x.shape[0] == 0:
        return x.new_empty(0, weight.shape[1], dtype=how.dtype)
    x, bias, coords = x.contiguous(), _contiguous(bias), _contiguous(coords)
    return _launch_level(x, _operand(weight, how.precision), bias, coords, None, order, starts, how)


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _operand(weight: Tensor, precision: Precision) -> Tensor:
    """A wide matrix is read by many programs, piece by piece: better rounded once. A narrow one by each once."""
    if precision in ("bf16", "fp16") and max(weight.shape[1:]) > 128:
        return weight.to(torch.bfloat16 if precision == "bf16" else torch.float16)
    return weight


def level_backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    coords: Tensor | None,
    order: Tensor | None,
    starts: Tensor | None,
    how: Arithmetic,
    need: Sequence[bool] = (True, True, True, False),
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of `level_forward` for the cotangent grad_y [N, out_features]; the other arguments are its own.

    The pre-activation is computed again from x, which the weight gradient reads anyway. Matrices up to 128 x 128 (fp32:
    64 x 64) take one pass over x and grad_y; wider ones write the gradient of the pre-activation once and read it
    twice. Sums over rows are made in a fixed order, so results are the same every time.

    Returns:
        The gradients of x, like it, of weight and of a bias that all rows share in fp32, and of the pre-activation [N,
        out_features], in 16 bits where operands are; None where not needed.
    """
    experts, out_features, in_features = weight.shape
    rows, precision = x.shape[0], how.precision
    need_x, need_weight, need_bias, need_z = need
    need_bias = need_bias and bias is not None and how.tile is None
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    if rows == 0:
        return (
            torch.zeros_like(x) if need_x else None,
            torch.zeros_like(weight, dtype=torch.float32) if need_weight else None,
            x.new_zeros(out_features, dtype=torch.float32) if need_bias else None,
            torch.zeros_like(grad_y, dtype=dtype) if need_z else None,
        )
    x, grad_y, bias, coords = x.contiguous(), grad_y.contiguous(), _contiguous(bias), _contiguous(coords)
    grad_x = grad_weight = grad_bias = None
    card = capability(x.device)

    fused = backward_blocks(in_features, out_features, precision, card)
    blocks = fused or weight_gradient_blocks(in_features, out_features, precision, card)
    tiles = triton.cdiv(out_features, blocks.out) * triton.cdiv(in_features, blocks.inner)
    programs = max(1, blocks.programs * processors(x.device) // tiles)
    chunk_rows, chunks = _chunks(rows, experts, blocks.rows, programs)
    constants = _constants(x, weight, precision)

    def workspace(needed: bool, *shape: int) -> Tensor | None:
        return torch.empty(shape, dtype=torch.float32, device=x.device) if needed else None

    weight_partials = workspace(need_weight, chunks, out_features, in_features)
    bias_partials = workspace(need_bias, chunks, out_features)
    grad_z = grad_y
    if fused:
        grad_x = torch.empty_like(x) if need_x else None
        grad_z = torch.empty_like(grad_y, dtype=dtype) if need_z else None
        tensors = (x, weight.contiguous(), bias, coords, grad_y, order, starts, grad_x, grad_z)
        place, tile = _tile_constants(coords, how)
        constants |= blocks.constants | tile | {"ACTIVATION": how.activation}
        _fused_backward[(chunks,)](
            *tensors, weight_partials, bias_partials, rows, chunk_rows, how.omega_0, *place, **constants
        )
    else:
        weight = _operand(weight, precision)
        if how.activation != "none":
            grad_z = _launch_level(x, weight, bias, coords, grad_y, order, starts, how._replace(dtype=dtype))
        if need_x:
            linear = Arithmetic("none", 1.0, precision, x.dtype)
            grad_x = _launch_level(grad_z, weight.mT, None, None, None, order, starts, linear, x.shape[1])
        if need_weight or need_bias:
            grid = (chunks, triton.cdiv(out_features, blocks.out), triton.cdiv(in_features, blocks.inner))
            tensors = (x, grad_z, order, starts, weight_partials, bias_partials)
            _weight_gradient[grid](*tensors, rows, chunk_rows, **constants, **blocks.constants)
    if need_weight or need_bias:
        grad_weight = workspace(need_weight, experts, out_features, in_features)
        grad_bias = workspace(need_bias, out_features)
        size = out_features * in_features
        tensors = (weight_partials, bias_partials, starts, grad_weight, grad_bias)
        shared = {name: constants[name] for name in ("OUT", "EXPERTS", "EXPERTS_PADDED")}
        _sum_partials[((experts + int(need_bias)) * triton.cdiv(size, 128),)](
            *tensors, rows, chunk_rows, SIZE=size, **shared, BLOCK_CHUNKS=32, BLOCK=128, num_warps=4
        )
    return grad_x, grad_weight, grad_bias, grad_z if need_z else None


def sum_partials(partials: Tensor, num_rows: int, chunk_rows: int) -> Tensor:
    """The sum of partials [chunks, ...] over the chunks of num_rows rows, in a fixed order."""
    out = torch.empty_like(partials[0])
    size = out.numel()
    _sum_partials[(triton.cdiv(size, 128),)](
        partials, None, None, out, None, num_rows, chunk_rows, SIZE=size, OUT=1, EXPERTS=1, EXPERTS_PADDED=1,
        BLOCK_CHUNKS=32, BLOCK=128, num_warps=4,
    )  # fmt: skip
    return out
