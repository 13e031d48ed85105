"""The fast layer in plain PyTorch: rows grouped by expert, one matrix product per expert.

Under nearest blending a point needs one expert per level, so a level is a permutation of the rows that puts equal
experts side by side, followed by one dense product per expert. Between two levels the "undo" of the first and the "do"
of the second are one permutation, so a network moves its rows once per level instead of twice. Where the experts serve
nearly as many rows each, the shorter groups are padded with zero rows and one batched product serves them all.

The products, `grouped_linear` and the weight gradient, are each other's derivatives, and a permutation's derivative is
its inverse: written as such, all of them can be differentiated any number of times.
"""

from typing import Any

import torch
from torch import Tensor

from loe_field.network.rows import ExpertRows, RowGroups, group_rows
from loe_field.network.shape import NetworkShape, activate, encode
from loe_field.network.tiling import expert_index


class _PermuteRows(torch.autograd.Function):
    """x[perm], zero at pads; the gradient is of the same kind, where index_select's own is a slower scatter-add."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, perm: Tensor, pads: Tensor | None, inverse: Tensor, pads_before: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(perm, pads, inverse, pads_before)
        out = x.index_select(0, perm)
        return out if pads is None else out.index_fill_(0, pads, 0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        perm, pads, inverse, pads_before = ctx.saved_tensors
        return _PermuteRows.apply(grad, inverse, pads_before, perm, pads), None, None, None, None  # type: ignore[return-value]


class _GroupedLinear(torch.autograd.Function):
    """Rows x [N, in], in groups of `splits`, times weight [experts, out, in], plus bias [out]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, splits: list[int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.splits = splits
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
    """Rows of x [slots of the level before, features] in the slots of `groups`."""
    return _PermuteRows.apply(x, groups.perm, groups.pads, groups.inverse, groups.pads_before)  # type: ignore[return-value]


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
    if splits[0] > 0 and splits == splits[:1] * len(splits):
        groups = x.reshape(len(splits), splits[0], x.shape[1])
        out = torch.bmm(groups, weight.mT) if bias is None else torch.baddbmm(bias, groups, weight.mT)
        return out.view(len(x), weight.shape[1])
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    return _GroupedLinear.apply(x, weight, bias, splits)  # type: ignore[return-value]


def evaluate(
    coords: Tensor, weights: list[Tensor], biases: list[Tensor], shape: NetworkShape, *, rows: ExpertRows | None = None
) -> Tensor:
    """A whole network under nearest blending: encoding, levels with an activation after each, head.

    Under autocast the levels between the first and the head run in autocast's dtype.

    Args:
        coords: points [N, dim] in the parameters' dtype.
        weights: per level [experts, out, in], the head's last, [out, in].
        biases: per layer [out].
        shape: levels, activation and the like.
        rows: not used here.

    Returns:
        [N, out_features].
    """
    index = expert_index(coords, shape.levels, shape.tile_size)
    return evaluate_encoded(encode(coords, shape.num_frequencies), index, weights, biases, shape)


def evaluate_encoded(
    x: Tensor, index: Tensor, weights: list[Tensor], biases: list[Tensor], shape: NetworkShape
) -> Tensor:
    """`evaluate` behind the encoding: x [N, in_features], and int64 [levels, N] the expert of every row."""
    groups, back = group_rows(index, len(weights[0]))
    device, dtype = x.device.type, weights[-1].dtype
    for i, level in enumerate(groups):
        x = permute_rows(x, level)
        with torch.autocast(device, enabled=i > 0 and torch.is_autocast_enabled(device)):
            x = grouped_linear(x, weights[i], biases[i], level.splits)
        x = activate(x, shape.activation, shape.omega_0, phase_dtype=dtype)
    with torch.autocast(device, enabled=False):
        x = torch.nn.functional.linear(x.to(dtype), weights[-1], biases[-1])
    return permute_rows(x, back)
