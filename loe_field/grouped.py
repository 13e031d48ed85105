"""The fast layer in plain PyTorch: rows grouped by expert, one matrix product per expert.

Under nearest blending a point needs one expert per level, so a level is a permutation of the rows that puts equal
experts side by side, followed by one dense product per expert. Between two levels the "undo" of the first and the "do"
of the second are one permutation, so a network moves its rows once per level instead of twice.

The two products here, `grouped_linear` and the weight gradient, are each other's derivatives, and a permutation's
derivative is its inverse: written as such, all of them can be differentiated any number of times.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class RowGroups(NamedTuple):
    """How the rows reach one level: from the order of the level before into groups of equal expert."""

    perm: Tensor
    """int64 [N]: row k of this level is row perm[k] of the level before (of the input, for the first level)."""
    inverse: Tensor
    """int64 [N]: the permutation that undoes perm."""
    splits: list[int]
    """Rows per expert, [experts]; sums to N."""


def group_rows(index: Tensor, num_experts: int) -> tuple[list[RowGroups], RowGroups]:
    """Plan the permutations of a whole network.

    Args:
        index: int64 [levels, N], the expert of every row at every level, 0 .. num_experts - 1.
        num_experts: experts per level.

    Returns:
        One RowGroups per level, and one that brings the rows of the last level back into the input's order (its
        splits are those of a single group).
    """
    levels, rows = index.shape
    # One stable sort for all levels, of level * num_experts + expert; of bytes where they suffice, 4 times as fast.
    keys = index + num_experts * torch.arange(levels, device=index.device)[:, None]
    keys = keys.to(torch.uint8 if levels * num_experts <= 256 else torch.int32)
    order = keys.flatten().argsort(stable=True).view(levels, rows).remainder(max(rows, 1))
    inverse = torch.empty_like(order).scatter_(1, order, torch.arange(rows, device=index.device).expand(levels, rows))
    counts = keys.flatten().bincount(minlength=levels * num_experts).view(levels, num_experts).tolist()
    groups = [RowGroups(order[0], inverse[0], counts[0])]
    for i in range(1, levels):
        perm = inverse[i - 1].index_select(0, order[i])
        undo = inverse[i].index_select(0, order[i - 1])
        groups.append(RowGroups(perm, undo, counts[i]))
    return groups, RowGroups(inverse[-1], order[-1], [rows])


class _PermuteRows(torch.autograd.Function):
    """x[perm]; the gradient is a gather too, where index_select's own is a slower scatter-add."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, perm: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(perm, inverse)
        return x.index_select(0, perm)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        perm, inverse = ctx.saved_tensors
        return _PermuteRows.apply(grad, inverse, perm), None, None  # type: ignore[return-value]


class _GroupedLinear(torch.autograd.Function):
    """Rows x [N, in], in groups of `splits`, times weight [experts, out, in], plus bias [out]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, splits: list[int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.splits, ctx.has_bias = splits, bias is not None
        out = x.new_empty(x.shape[0], weight.shape[1])
        for xs, ws, os in zip(x.split(splits), weight, out.split(splits)):
            if bias is None:
                torch.mm(xs, ws.t(), out=os)
            else:
                torch.addmm(bias, xs, ws.t(), out=os)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias, _ = ctx.needs_input_grad
        return (
            _GroupedLinear.apply(grad, weight.mT, None, ctx.splits) if need_x else None,
            _GroupedOuter.apply(grad, x, ctx.splits) if need_weight else None,
            grad.sum(0) if need_bias else None,
            None,
        )


class _GroupedOuter(torch.autograd.Function):
    """Per group a^T b: rows a [N, out] and b [N, in] to [experts, out, in]; the weight gradient of a grouped linear."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, splits: list[int]) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.splits = splits
        out = a.new_empty(len(splits), a.shape[1], b.shape[1])
        for rows_a, rows_b, os in zip(a.split(splits), b.split(splits), out):
            torch.mm(rows_a.t(), rows_b, out=os)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        a, b = ctx.saved_tensors
        need_a, need_b, _ = ctx.needs_input_grad
        return (
            _GroupedLinear.apply(b, grad, None, ctx.splits) if need_a else None,
            _GroupedLinear.apply(a, grad.mT, None, ctx.splits) if need_b else None,
            None,
        )


def permute_rows(x: Tensor, groups: RowGroups) -> Tensor:
    """Rows of x [N, features] in the order of `groups`."""
    return _PermuteRows.apply(x, groups.perm, groups.inverse)  # type: ignore[return-value]


def grouped_linear(x: Tensor, weight: Tensor, bias: Tensor | None, splits: list[int]) -> Tensor:
    """`x W_e^T + b` for rows that lie grouped by expert.

    Args:
        x: [N, in_features], the rows of expert 0 first.
        weight: [experts, out_features, in_features].
        bias: [out_features] or None.
        splits: rows per expert, [experts]; an expert may have none.

    Returns:
        [N, out_features], in the order of x; under autocast in autocast's dtype, like torch's own linear layer.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    return _GroupedLinear.apply(x, weight, bias, splits)  # type: ignore[return-value]
