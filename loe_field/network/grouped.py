"""The fast layer in plain PyTorch: rows grouped by expert, one matrix product per expert.

Under nearest blending a point needs one expert per level, so a level is a permutation of the rows that puts equal
experts side by side, followed by one dense product per expert. Between two levels the "undo" of the first and the "do"
of the second are one permutation, so a network moves its rows once per level instead of twice. Where the experts serve
nearly as many rows each, the shorter groups are padded with zero rows and one batched product serves them all.

The products, `grouped_linear` and the weight gradient, are each other's derivatives, and a permutation's derivative is
its inverse: written as such, all of them can be differentiated any number of times. The number of rows of an expert is
in their arguments; `expert_products` and `expert_outer_products`, each other's derivatives too, are operators of torch
that find it out themselves, for torch.compile, which cannot.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from loe_field.network.bias import blended_bias, numbered_by_field, tile_bias
from loe_field.network.dense import dense_linear, one_hot
from loe_field.network.grid import features_by_torch
from loe_field.network.modes import transformed
from loe_field.network.rows import ExpertRows, RowGroups, group_rows
from loe_field.network.shape import NetworkShape, activate, encode
from loe_field.network.tiling import BiasTile, bias_shares, expert_index


class _PermuteRows(torch.autograd.Function):
    """Rows perm of x [..., slots, features], zero at pads; the gradient is such rows too, and no slow scatter-add."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, perm: Tensor, pads: Tensor | None, inverse: Tensor, pads_before: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(perm, pads, inverse, pads_before)
        out = x.index_select(-2, perm)
        return out if pads is None else out.index_fill_(-2, pads, 0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        perm, pads, inverse, pads_before = ctx.saved_tensors
        return _permute_rows(grad, inverse, pads_before, perm, pads), None, None, None, None


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
            _linear(grad, weight.mT, None, ctx.splits) if need_x else None,
            _outer(grad, x, ctx.splits) if need_weight else None,
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
            _linear(b, grad, None, ctx.splits) if need_a else None,
            _linear(a, grad.mT, None, ctx.splits) if need_b else None,
            None,
        )


# A batch of gradients (is_grads_batched) goes through torch's own operations.


def _permute_rows(x: Tensor, perm: Tensor, pads: Tensor | None, inverse: Tensor, pads_before: Tensor | None) -> Tensor:
    if transformed(x):
        out = x.index_select(-2, perm)
        return out if pads is None else out.index_fill(-2, pads, 0)
    return _PermuteRows.apply(x, perm, pads, inverse, pads_before)  # type: ignore[return-value]


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, splits: list[int]) -> Tensor:
    if transformed(x, weight):
        return torch.cat([torch.nn.functional.linear(xs, w, bias) for xs, w in zip(x.split(splits), weight)])
    return _GroupedLinear.apply(x, weight, bias, splits)  # type: ignore[return-value]


def _outer(a: Tensor, b: Tensor, splits: list[int]) -> Tensor:
    if transformed(a, b):
        return torch.stack([rows_a.t() @ rows_b for rows_a, rows_b in zip(a.split(splits), b.split(splits))])
    return _GroupedOuter.apply(a, b, splits)  # type: ignore[return-value]


def permute_rows(x: Tensor, groups: RowGroups) -> Tensor:
    """Rows of x [..., slots of the level before, features] in the slots of `groups`."""
    return x if groups.perm is None else _permute_rows(x, groups.perm, groups.pads, groups.inverse, groups.pads_before)


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
    return _linear(x, weight, bias, splits)


@torch.library.custom_op("loe_field::expert_products", mutates_args=())
def expert_products(x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    """`W_e x` for every row of x [N, in_features] with its expert index [N]: [N, out_features]."""
    (groups,), back = group_rows(index[None], [len(weight)])
    with torch.autocast(x.device.type, enabled=False):
        return permute_rows(grouped_linear(permute_rows(x, groups), weight, None, groups.splits), back)


@torch.library.custom_op("loe_field::expert_outer_products", mutates_args=())
def expert_outer_products(a: Tensor, b: Tensor, index: Tensor, experts: int) -> Tensor:
    """The sum of `a b^T` over the rows of each expert: a [N, out] and b [N, in] to [experts, out, in]."""
    order = index.argsort(stable=True)
    splits = index.bincount(minlength=experts).tolist()
    return _outer(a.index_select(0, order), b.index_select(0, order), splits)


@expert_products.register_fake
def _(x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@expert_outer_products.register_fake
def _(a: Tensor, b: Tensor, index: Tensor, experts: int) -> Tensor:
    return a.new_empty(experts, a.shape[1], b.shape[1])


def _products_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, index = ctx.saved_tensors
    return (
        expert_products(grad, weight.mT, index) if ctx.needs_input_grad[0] else None,
        expert_outer_products(grad, x, index, len(weight)) if ctx.needs_input_grad[1] else None,
        None,
    )


def _outer_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    a, b, index = ctx.saved_tensors
    return (
        expert_products(b, grad, index) if ctx.needs_input_grad[0] else None,
        expert_products(a, grad.mT, index) if ctx.needs_input_grad[1] else None,
        None,
        None,
    )


def _keep_tensors(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])


expert_products.register_autograd(_products_backward, setup_context=_keep_tensors)
expert_outer_products.register_autograd(_outer_backward, setup_context=_keep_tensors)


def evaluate(
    coords: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    shape: NetworkShape,
    *,
    rows: ExpertRows | None = None,
    table: Tensor | None = None,
) -> Tensor:
    """A whole network under nearest blending: encoding and grid, levels with an activation after each, head.

    Under autocast the levels between the first and the head run in autocast's dtype.

    Args:
        coords: points [N, dim] in the parameters' dtype.
        weights: per level [experts, out, in], the head's last, [out, in].
        biases: per layer [out], or the vectors of its bias tile, [num_bias_vectors, out].
        shape: levels, activation and the like.
        rows: not used here.
        table: the vectors of shape.grid; None where there is none.

    Returns:
        [N, out_features]. Of F fields, all parameters with a first axis of F, at coords [1 or F, N, dim]: [F, N,
        out_features].
    """
    index = expert_index(coords, shape.levels, shape.tile_size)
    x = encode(coords, shape.num_frequencies)
    x = x if table is None else features_of_fields(coords, table, shape.grid, x, features_by_torch)
    return evaluate_encoded(coords, x, index, weights, biases, shape)


def evaluate_encoded(
    coords: Tensor, x: Tensor, index: Tensor, weights: list[Tensor], biases: list[Tensor], shape: NetworkShape
) -> Tensor:
    """`evaluate` behind the encoding: x [N, in_features], and int64 [levels, N] the expert of every row.

    Of fields x is [1 or F, N, in_features] and index [levels, 1 or F, N].
    """
    if coords.dim() == 3:
        return _evaluate_fields(coords, x, index, weights, biases, shape)
    device, dtype = x.device.type, weights[-1].dtype
    tiles = shape.bias_tiles or (None,) * len(shape.levels)
    if transformed():  # fp32 throughout
        for i, (experts, tile) in enumerate(zip(index, tiles)):
            bias = biases[i] if tile is None else tile_bias(coords, biases[i], tile)
            x = dense_linear(x, one_hot(experts, len(weights[i])), weights[i], bias)
            x = activate(x, shape.activation, shape.omega_0)
        return torch.nn.functional.linear(x, weights[-1], biases[-1])
    groups, back = group_rows(index, [len(weight) for weight in weights[:-1]])
    for i, (level, tile) in enumerate(zip(groups, tiles)):
        x = permute_rows(x, level)
        with torch.autocast(device, enabled=i > 0 and torch.is_autocast_enabled(device)):
            x = grouped_linear(x, weights[i], biases[i] if tile is None else None, level.splits)
        if tile is not None:
            which, share = (part if level.rows is None else part[level.rows] for part in bias_shares(coords, tile))
            x = x + blended_bias(biases[i], which, share)
        x = activate(x, shape.activation, shape.omega_0, phase_dtype=dtype)
    with torch.autocast(device, enabled=False):
        x = torch.nn.functional.linear(x.to(dtype), weights[-1], biases[-1])
    return permute_rows(x, back)


def features_of_fields(
    coords: Tensor, table: Tensor, tiles: Sequence[BiasTile], beside: Tensor, features: Callable[..., Tensor]
) -> Tensor:
    """`features` of one field's arguments, or, of coords [1 or F, N, dim], those of every field: [F, N, ...]."""
    if coords.dim() == 2:
        return features(coords, table, tiles, beside)
    each = zip(coords.expand(len(table), -1, -1), table, beside.expand(len(table), -1, -1))
    return torch.stack([features(points, vectors, tiles, columns) for points, vectors, columns in each])


def experts_of_fields(index: Tensor, fields: int, experts: Sequence[int]) -> Tensor:
    """Where all rows of F fields are one batch: a field's experts [levels, 1 or F, N] to those of all, [levels, F N].

    Args:
        index: int64, `tiling.expert_index`.
        fields: F.
        experts: of a field, at each level.
    """
    return torch.stack([numbered_by_field(level, fields, count).flatten() for level, count in zip(index, experts)])


def _evaluate_fields(
    coords: Tensor, x: Tensor, index: Tensor, weights: list[Tensor], biases: list[Tensor], shape: NetworkShape
) -> Tensor:
    """`evaluate_encoded` of F fields. Their rows are moved alike; where each has its own points, all are one batch.

    A batch has `experts` experts, those of a field or of all fields, and its rows x [batches, slots, features].
    """
    fields, device, dtype = len(weights[-1]), x.device.type, weights[-1].dtype
    tiles, shared = shape.bias_tiles or (None,) * len(shape.levels), len(coords) == 1
    x = x.expand(fields, -1, -1)
    if transformed():  # fp32 throughout
        for i, (experts, tile) in enumerate(zip(index, tiles)):
            y = dense_linear(x, one_hot(experts, weights[i].shape[1]), weights[i], biases[i] if tile is None else None)
            x = activate(y if tile is None else y + tile_bias(coords, biases[i], tile), shape.activation, shape.omega_0)
        return torch.matmul(x, weights[-1].mT) + biases[-1][:, None]
    counts = [weight.shape[1] for weight in weights[:-1]]
    if shared:
        rows = index[:, 0]
    else:
        rows = experts_of_fields(index, fields, counts)
        x, counts = x.reshape(1, x.shape[0] * x.shape[1], x.shape[2]), [fields * count for count in counts]
    groups, back = group_rows(rows, counts)
    for i, (level, tile, count) in enumerate(zip(groups, tiles, counts)):
        x = permute_rows(x, level)
        bias = None
        if tile is None:  # of every expert
            each = biases[i][:, None].expand(-1, weights[i].shape[1], -1)
            bias = each.reshape(len(x), count, -1)
        with torch.autocast(device, enabled=i > 0 and torch.is_autocast_enabled(device)):
            x = _batched_linear(x, weights[i].reshape(len(x), count, *weights[i].shape[2:]), bias, level.splits)
        if tile is not None:
            which, share = bias_shares(coords, tile)
            if shared:
                slots = slice(None) if level.rows is None else level.rows
                which, share = numbered_by_field(which[:, slots], *biases[i].shape[:2]), share[:, slots]
            else:
                which, share = numbered_by_field(which, *biases[i].shape[:2]).flatten(0, 1), share.flatten(0, 1)
                which, share = (part if level.rows is None else part[level.rows] for part in (which, share))
            share = share.expand(*which.shape).reshape(x.shape[0] * x.shape[1], which.shape[-1])
            x = x + blended_bias(biases[i].flatten(0, 1), which.reshape(share.shape), share).view_as(x)
        x = activate(x, shape.activation, shape.omega_0, phase_dtype=dtype)
    x = permute_rows(x, back).to(dtype).view(fields, coords.shape[1], x.shape[2])
    with torch.autocast(device, enabled=False):
        return torch.baddbmm(biases[-1][:, None], x, weights[-1].mT)


def _batched_linear(x: Tensor, weight: Tensor, bias: Tensor | None, splits: list[int]) -> Tensor:
    """`grouped_linear` of batches: x [B, slots, in], weight [B, experts, out, in], bias [B, experts, out] or None."""
    if splits == splits[:1] * len(splits):
        groups = x.reshape(len(x) * len(splits), splits[0], x.shape[2])
        bias = None if bias is None else bias.reshape(len(groups), 1, bias.shape[2])
        matrices = weight.flatten(0, 1).mT
        out = torch.bmm(groups, matrices) if bias is None else torch.baddbmm(bias, groups, matrices)
        return out.view(*x.shape[:2], weight.shape[2])
    parts = [
        torch.bmm(xs, weight[:, e].mT) if bias is None else torch.baddbmm(bias[:, e, None], xs, weight[:, e].mT)
        for e, xs in enumerate(x.split(splits, 1))
    ]
    return torch.cat(parts, 1)
