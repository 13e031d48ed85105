"""The fast layer in plain PyTorch: rows grouped by expert, one matrix product per expert.

Under nearest blending a point needs one expert per level, so a level is a permutation of the rows that puts equal
experts side by side, followed by one dense product per expert. Between two levels the "undo" of the first and the "do"
of the second are one permutation, so a network moves its rows once per level instead of twice. Where the experts serve
nearly as many rows each, the shorter groups are padded with zero rows and one batched product serves them all.

The products, `grouped_linear` and the weight gradient, are each other's derivatives, and a permutation's derivative is
its inverse: written as such, all of them can be differentiated any number of times.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

_LARGEST_PADDING = 0.25
"""Zero rows per row up to which padding pays: with batched products instead of one per expert a network's forward and
backward took 0.8 of the time (8,192 rows, two threads of an EPYC)."""


class RowGroups(NamedTuple):
    """How the rows reach one level: from the slots of the level before into slots grouped by expert."""

    perm: Tensor
    """int64 [slots]: slot k takes what is in slot perm[k] of the level before (row perm[k] of the input at first)."""
    pads: Tensor | None
    """int64: the slots that hold no row and are zero; None if there are none."""
    inverse: Tensor
    """int64 [slots of the level before]: where each of them goes."""
    pads_before: Tensor | None
    """int64: the slots of the level before that hold no row."""
    splits: list[int]
    """Slots per expert, [experts]."""


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
    everyone = torch.arange(rows, device=index.device)
    slot = torch.empty_like(order).scatter_(1, order, everyone.expand(levels, rows))
    counts = keys.flatten().bincount(minlength=levels * num_experts).view(levels, num_experts).tolist()

    groups: list[RowGroups] = []
    # Slots of the level before: the slot of every row, the row in every slot, and the slots without one.
    slot_before, row_before, pads_before = everyone, everyone, None
    for i, splits in enumerate(counts):
        slot_here, row_here, pads = slot[i], order[i], None
        longest = max(splits)
        if rows < num_experts * longest <= (1 + _LARGEST_PADDING) * rows:
            starts = [sum(splits[:e]) for e in range(num_experts)]
            shift = torch.tensor([e * longest - start for e, start in enumerate(starts)], device=index.device)
            empty = [k for e, n in enumerate(splits) for k in range(e * longest + n, (e + 1) * longest)]
            pads = torch.tensor(empty, device=index.device)
            slot_here = slot_here + shift[index[i]]
            row_here = order.new_zeros(num_experts * longest).scatter_(0, slot_here, everyone)
            splits = [longest] * num_experts
        perm, inverse = slot_before.index_select(0, row_here), slot_here.index_select(0, row_before)
        groups.append(RowGroups(perm, pads, inverse, pads_before, splits))
        slot_before, row_before, pads_before = slot_here, row_here, pads
    return groups, RowGroups(slot_before, None, row_before, pads_before, [rows])


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


def activate(y: Tensor, activation: str, omega_0: float) -> Tensor:
    """Of "sine" sin(omega_0 y), of "leaky_relu" with slope 0.2, of "relu"; y itself for anything else."""
    if activation == "sine":
        return torch.sin(y if omega_0 == 1 else omega_0 * y)
    if activation == "leaky_relu":
        return torch.nn.functional.leaky_relu(y, 0.2)
    return torch.relu(y) if activation == "relu" else y


def grouped_network(
    x: Tensor,
    index: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    activation: Callable[[Tensor], Tensor],
) -> Tensor:
    """Position-dependent layers with an activation after each, then the head, one row permutation between each two.

    Under autocast the layers between the first and the head run in autocast's dtype.

    Args:
        x: what the first layer gets, [N, in_features].
        index: int64 [levels, N], the expert of every row at every level.
        weights: per level [experts, out, in], the head's last, [out, in].
        biases: per layer [out].
        activation: what it returns goes into the next product.

    Returns:
        [N, out_features], in the order of x.
    """
    groups, back = group_rows(index, len(weights[0]))
    device = x.device.type
    for i, level in enumerate(groups):
        x = permute_rows(x, level)
        with torch.autocast(device, enabled=i > 0 and torch.is_autocast_enabled(device)):
            x = grouped_linear(x, weights[i], biases[i], level.splits)
        x = activation(x)
    with torch.autocast(device, enabled=False):
        x = torch.nn.functional.linear(x.to(weights[-1].dtype), weights[-1], biases[-1])
    return permute_rows(x, back)
