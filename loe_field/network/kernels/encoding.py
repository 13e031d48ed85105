"""The positional encoding as one elementwise kernel: every number of the result is computed and written once."""

# Inside and at its launch a kernel takes other types than its signature says.
# pyright: reportCallIssue=false

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from loe_field.network.kernels.level import sine_near_zero

_BLOCK = 1024


@triton.jit
def sinusoid(p, octave, cosine):
    """Sin(2^octave pi (2p - 1)), or its cosine, fp32, exact up to the sine itself.

    2^j pi (2p - 1) is pi t - 2^j pi with t = 2^(j + 1) p, which scaling by a power of two makes exact; 2^j pi is a
    whole number of turns but for j = 0, where it is half a turn and changes the sign. Then t is split exactly into its
    floor (half turns: the sign again) and its fraction.
    """
    t = p * (2 << octave).to(tl.float32)
    whole = tl.floor(t)
    fraction = t - whole
    argument = tl.where(cosine, 0.5 - fraction, tl.minimum(fraction, 1 - fraction))
    value = sine_near_zero(3.14159265359 * argument)
    odd = (0.5 * whole != tl.floor(0.5 * whole)) != (octave == 0)
    return tl.where(odd, -value, value)


# Where a batch of coords begins decides nothing: no other compilation for it.
@triton.jit(do_not_specialize=["size"], do_not_specialize_on_alignment=["coords"])
def _encode(coords, out, size, DIM: tl.constexpr, FREQUENCIES: tl.constexpr, ROW: tl.constexpr, BLOCK: tl.constexpr):
    """`layers.PositionalEncoding`, fp32, exact up to the sine itself, in rows of ROW numbers that end in zeros."""
    begin = tl.program_id(0).to(tl.int64) * BLOCK
    row = begin // ROW
    # Counted from the start of the first row, the positions of a block fit 32 bits.
    position = (begin - row * ROW).to(tl.int32) + tl.arange(0, BLOCK)
    live = row * ROW + position < size
    row += position // ROW
    column = position % ROW
    wave = column - DIM
    cosine = wave >= DIM * FREQUENCIES
    wave = tl.where(cosine, wave - DIM * FREQUENCIES, wave)
    axis = tl.where(column < DIM, column, wave // FREQUENCIES)
    octave = tl.where(column < DIM, 0, wave % FREQUENCIES)

    there = column < DIM * (1 + 2 * FREQUENCIES)
    p = tl.load(coords + row * DIM + axis, mask=live & there, other=0.0)
    value = tl.where(there, sinusoid(p, octave, cosine), 0.0)
    tl.store(out + begin + tl.arange(0, BLOCK), tl.where(column < DIM, p, value), mask=live)


class _Encode(torch.autograd.Function):
    """The gradient is written with torch operations on the result itself and can be differentiated again."""

    @staticmethod
    def forward(ctx: Any, coords: Tensor, num_frequencies: int) -> Tensor:
        rows, dim = coords.shape
        row = 4 * triton.cdiv(dim * (1 + 2 * num_frequencies), 4)
        out = coords.new_empty(rows, row)
        if rows:
            grid = (triton.cdiv(out.numel(), _BLOCK),)
            with torch.cuda.device_of(coords):
                _encode[grid](coords.contiguous(), out, out.numel(), dim, num_frequencies, row, _BLOCK, num_warps=4)
        ctx.save_for_backward(out)
        ctx.dim, ctx.num_frequencies = dim, num_frequencies
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (out,) = ctx.saved_tensors
        shape = (-1, 2, ctx.dim, ctx.num_frequencies)
        waves = slice(ctx.dim, ctx.dim * (1 + 2 * ctx.num_frequencies))
        (sine, cosine), (grad_sine, grad_cosine) = (t[:, waves].view(shape).unbind(1) for t in (out, grad))
        rate = 2 * math.pi * 2.0 ** torch.arange(ctx.num_frequencies, dtype=out.dtype, device=out.device)
        return grad[:, : ctx.dim] + ((grad_sine * cosine - grad_cosine * sine) * rate).sum(-1), None


def encode(coords: Tensor, num_frequencies: int) -> Tensor:
    """`layers.PositionalEncoding` of coords, in longer rows.

    Args:
        coords: points [N, dim], fp32.
        num_frequencies: octaves, 0 to 22; 0 passes coords through.

    Returns:
        fp32 [N, dim * (1 + 2 * num_frequencies)], each sine within 2e-7 of its value for these coords; its rows end in
        zeros, up to a multiple of 4 numbers, so that a level reads them in pieces of 16 bytes.
    """
    return _Encode.apply(coords, num_frequencies) if num_frequencies else coords  # type: ignore[return-value]
