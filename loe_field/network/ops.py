"""The position-dependent linear layer as one function: validates once, then runs the chosen implementation."""

import torch
from torch import Tensor

from loe_field.network.bias import numbered_by_field, tile_bias
from loe_field.network.dense import dense_linear, expert_shares
from loe_field.network.grouped import expert_products, grouped_linear, permute_rows
from loe_field.network.implementation import Implementation, check_implementation, resolve_implementation
from loe_field.network.modes import needs_operators, needs_plain
from loe_field.network.reference import position_dependent_linear_ref
from loe_field.network.rows import expert_rows, group_rows
from loe_field.network.tiling import (
    MAX_DIM,
    BiasTile,
    Blending,
    Level,
    blending_weights,
    check_bias_tile,
    expert_index,
    num_bias_vectors,
    num_experts,
)


def position_dependent_linear(
    x: Tensor,
    coords: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    level: Level,
    *,
    tile_size: int,
    blending: Blending = "nearest",
    bias_tile: BiasTile | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """`h(x, p) = W(p) x + b(p)` as `position_dependent_linear_ref` defines it, without W(p) for every point.

    Differentiable any number of times in x, weight and bias, and in coords under linear blending of the experts or of
    the bias (under nearest the gradient for coords is zero almost everywhere and none is returned). Arguments are those
    of the definition, but x [..., in_features] and coords [..., dim] may have any batch shape, which the result
    [..., out_features] shares; implementation is "auto", "torch", "triton" (nearest only) or "reference". Of F fields,
    with weight [F, experts, out, in], x is [F, N, in_features] and coords [N, dim], [1, N, dim] or [F, N, dim].

    Raises:
        ValueError: shapes do not fit together, or a size or choice is none of the above.
    """
    check_implementation(implementation, blending)
    if implementation == "cpu":
        raise ValueError(
            "implementation 'cpu' computes whole networks (LoEMLP): choose 'auto' or 'torch' for one layer"
        )
    if tile_size < 1:
        raise ValueError(f"tile_size is {tile_size}: it counts experts per axis and must be at least 1")
    dim = coords.shape[-1]
    if not 1 <= dim <= MAX_DIM:
        raise ValueError(f"coords has {dim} coordinates per point: 1 to {MAX_DIM} are supported")
    fields = weight.shape[:1] if weight.dim() == 4 else ()
    if fields and coords.dim() == 2:
        coords = coords[None]
    points = (1, *x.shape[1:-1]) if fields and coords.shape[0] == 1 else x.shape[:-1]
    if coords.shape[:-1] != points or (fields and (x.dim() != 3 or x.shape[:1] != fields)):
        many = f", and x have a first axis of the {fields[0]} fields" if fields else ""
        raise ValueError(
            f"x {tuple(x.shape)} and coords {tuple(coords.shape)} must agree in all but the last axis{many}"
        )
    experts = num_experts(tile_size, dim)
    if weight.dim() not in (3, 4) or weight.shape[-3] != experts or weight.shape[-1] != x.shape[-1]:
        raise ValueError(
            f"weight is {tuple(weight.shape)}: with tile_size {tile_size}, {dim} coordinates and {x.shape[-1]} input "
            f"features it must be [{experts}, out_features, {x.shape[-1]}], for many fields with one more axis in front"
        )
    if bias_tile is not None:
        check_bias_tile(bias_tile, dim)
        vectors = num_bias_vectors(bias_tile, dim)
        wanted = [*fields, vectors, weight.shape[-2]]
        if bias is None or list(bias.shape) != wanted:
            found = None if bias is None else tuple(bias.shape)
            raise ValueError(f"bias is {found}: it must be {wanted}, the vectors of bias_tile")
    elif bias is not None and bias.shape != (*fields, weight.shape[-2]):
        wanted = [*fields, weight.shape[-2]]
        raise ValueError(f"bias is {tuple(bias.shape)}: it must be {wanted}, shared by the experts")

    batch = x.shape[:-1]
    where = {"device": x.device, "dtype": weight.dtype, "blending": blending, "experts": experts}
    if not fields:
        x, coords = x.reshape(-1, x.shape[-1]), coords.reshape(-1, dim)
    plain = needs_plain(x, coords, weight, *([] if bias is None else [bias]))
    if implementation == "reference":
        choices = {"tile_size": tile_size, "blending": blending, "bias_tile": bias_tile}
        return position_dependent_linear_ref(x, coords, weight, bias, level, **choices).view(*batch, weight.shape[-2])
    shared = bias if bias_tile is None else None
    if fields:
        choices = {"tile_size": tile_size, "blending": blending, "implementation": implementation}
        out = _linear_of_fields(x, coords, weight, level, plain=plain, **choices)
        out = out if shared is None else out + shared[:, None].to(out.dtype)
    elif experts == 1 and (plain or implementation != "triton"):
        out = torch.nn.functional.linear(x, weight[0], shared)
    elif plain:
        out = dense_linear(x, expert_shares(coords, level, tile_size, blending), weight, shared)
    elif blending == "linear":
        out = blended_linear(x, coords, weight, shared, level, tile_size)
    else:
        kernels = resolve_implementation(implementation, **where) == "triton"
        out = _chosen_products(x, weight, shared, expert_index(coords, [level], tile_size)[0], kernels)
    if bias is not None and bias_tile is not None:
        out = (out + tile_bias(coords, bias, bias_tile)).to(out.dtype)
    return out.view(*batch, weight.shape[-2])


def _linear_of_fields(
    x: Tensor,
    coords: Tensor,
    weight: Tensor,
    level: Level,
    *,
    tile_size: int,
    blending: Blending,
    implementation: Implementation,
    plain: bool,
) -> Tensor:
    """The product of x [F, N, in] at coords [1 or F, N, dim] with weight [F, experts, out, in]: [F, N, out].

    Where rows are grouped it is one layer of F * experts experts.
    """
    fields, experts, corners = len(weight), weight.shape[1], 2 ** coords.shape[-1]
    if experts == 1:
        return torch.matmul(x, weight[:, 0].mT)
    if plain or (blending == "linear" and corners >= experts):
        return dense_linear(x, expert_shares(coords, level, tile_size, blending), weight, None)
    if blending == "linear":
        index, share = blending_weights(coords, level, tile_size)
        index = numbered_by_field(index, fields, experts).flatten(0, 1)
        out = _blended_products(
            x.flatten(0, 1), weight.flatten(0, 1), index, share.expand(fields, -1, -1).flatten(0, 1)
        )
    else:
        index = numbered_by_field(expert_index(coords, [level], tile_size)[0], fields, experts).flatten()
        where = {"device": x.device, "dtype": weight.dtype, "blending": blending, "experts": fields * experts}
        kernels = resolve_implementation(implementation, **where) == "triton"
        out = _chosen_products(x.flatten(0, 1), weight.flatten(0, 1), None, index, kernels)
    return out.view(*x.shape[:2], weight.shape[2])


def _chosen_products(x: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor, kernels: bool) -> Tensor:
    """`W_e x + b` with each row's own expert, index [N]; by the Triton kernels or in torch operations."""
    if kernels:
        from loe_field.network.fused_triton import expert_linear, hidden_precision

        dtype, precision = hidden_precision(x.device, x.dtype)
        rows = expert_rows(index[None], len(weight))
        return expert_linear(x.to(dtype), weight, bias, rows.order[0], rows.starts[0], precision=precision)
    if needs_operators():
        out = _products(x, weight, index)
        return out if bias is None else out + bias
    (groups,), back = group_rows(index[None], [len(weight)])
    return permute_rows(grouped_linear(permute_rows(x, groups), weight, bias, groups.splits), back)


def blended_linear(
    x: Tensor, coords: Tensor, weight: Tensor, bias: Tensor | None, level: Level, tile_size: int
) -> Tensor:
    """Linear blending of x [N, in_features] at coords [N, dim]: every row visits the 2^dim experts at its corners."""
    corners = 2 ** coords.shape[-1]
    if corners >= len(weight):
        # Every expert of a 2-tile is a corner of every cell: one dense product with all of them, no row moves.
        return dense_linear(x, expert_shares(coords, level, tile_size, "linear"), weight, bias)
    out = _blended_products(x, weight, *blending_weights(coords, level, tile_size))
    return out if bias is None else out + bias


def _blended_products(x: Tensor, weight: Tensor, index: Tensor, share: Tensor) -> Tensor:
    """`sum_c share_c W_index_c x`: x [N, in_features], index and share [N, corners] to [N, out_features]."""
    rows = x[:, None].expand(-1, index.shape[1], -1).reshape(-1, x.shape[-1])
    products = _chosen_products(rows, weight, None, index.flatten(), False)
    out = products.view(*index.shape, weight.shape[1])
    return (out * share.to(x.dtype)[..., None]).sum(1)


def _products(x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    """`expert_products`, which under autocast multiplies in its dtype."""
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    return expert_products(x, weight, index)
