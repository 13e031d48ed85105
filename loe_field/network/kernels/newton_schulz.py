"""The Newton-Schulz iteration of Muon as one kernel: one program per matrix, which never leaves the chip."""

# Inside and at its launch a kernel takes other types than its signature says.
# pyright: reportCallIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

LARGEST = 64
"""Rows and columns of the largest matrix that stays in the registers of one program."""


@triton.jit
def _newton_schulz(
    matrices,
    out,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ITERATIONS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """X <- a X + (b A + c A^2) X with A = X X^T, from X / |X|; ROWS <= COLUMNS, the zero padding stays zero."""
    rows, columns = tl.arange(0, BLOCK_ROWS)[:, None], tl.arange(0, BLOCK_COLUMNS)[None, :]
    begin = tl.program_id(0).to(tl.int64) * (ROWS * COLUMNS)
    place = columns * ROWS + rows if TRANSPOSED else rows * COLUMNS + columns  # 32 bits: it stays in registers
    inside = (rows < ROWS) & (columns < COLUMNS)
    x = tl.load(matrices + begin + place, mask=inside, other=0.0).to(tl.float32)
    x = x / (tl.sqrt(tl.sum(tl.sum(x * x, 1), 0)) + 1e-7)
    for _ in range(ITERATIONS):
        gram = tl.dot(x, tl.trans(x), input_precision="tf32x3")
        polynomial = 2.0315 * tl.dot(gram, gram, input_precision="tf32x3") - 4.7750 * gram
        x = tl.dot(polynomial, x, 3.4445 * x, input_precision="tf32x3")
    tl.store(out + begin + place, x.to(out.dtype.element_ty), mask=inside)


def newton_schulz(matrices: Tensor, num_iterations: int = 5) -> Tensor:
    """`optim.orthogonalize` of a stack of matrices with at most 64 rows and columns.

    Args:
        matrices: [B, rows, columns], fp32, bf16 or fp16; computed in fp32, its products in split TF32. A zero matrix
            stays zero.
        num_iterations: >= 1.

    Returns:
        The same shape and dtype.

    Raises:
        ValueError: the matrices are too large.
    """
    count, rows, columns = matrices.shape
    if max(rows, columns) > LARGEST:
        raise ValueError(f"matrices are {rows} x {columns}: one program holds at most {LARGEST} x {LARGEST}")
    matrices = matrices.contiguous()
    out = torch.empty_like(matrices)
    if count:
        small, large = min(rows, columns), max(rows, columns)
        with torch.cuda.device_of(matrices):
            _newton_schulz[(count,)](
                matrices,
                out,
                ROWS=small,
                COLUMNS=large,
                ITERATIONS=num_iterations,
                TRANSPOSED=rows > columns,
                BLOCK_ROWS=max(16, triton.next_power_of_2(small)),
                BLOCK_COLUMNS=max(16, triton.next_power_of_2(large)),
                num_warps=4,  # more of them spill more registers
                num_stages=1,
            )
    return out
