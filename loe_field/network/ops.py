"""The position-dependent linear layer as one function: validates once, then runs the chosen implementation."""

import torch
from torch import Tensor

from loe_field.network.bias import tile_bias
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
    [..., out_features] shares; implementation is "auto", "torch", "triton" (nearest only) or "reference".

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
    if x.shape[:-1] != coords.shape[:-1]:
        raise ValueError(f"x {tuple(x.shape)} and coords {tuple(coords.shape)} must agree in all but the last axis")
    experts = num_experts(tile_size, dim)
    if weight.dim() != 3 or weight.shape[0] != experts or weight.shape[2] != x.shape[-1]:
        raise ValueError(
            f"weight is {tuple(weight.shape)}: with tile_size {tile_size}, {dim} coordinates and {x.shape[-1]} input "
            f"features it must be [{experts}, out_features, {x.shape[-1]}]"
        )
    if bias_tile is not None:
        check_bias_tile(bias_tile, dim)
        vectors = num_bias_vectors(bias_tile, dim)
        if bias is None or bias.shape != (vectors, weight.shape[1]):
            found = None if bias is None else tuple(bias.shape)
            raise ValueError(f"bias is {found}: it must be [{vectors}, {weight.shape[1]}], the vectors of bias_tile")
    elif bias is not None and bias.shape != weight.shape[1:2]:
        raise ValueError(f"bias is {tuple(bias.shape)}: it must be [{weight.shape[1]}], shared by the experts")

    batch = x.shape[:-1]
    where = {"device": x.device, "dtype": weight.dtype, "blending": blending, "experts": experts}
    x, coords = x.reshape(-1, x.shape[-1]), coords.reshape(-1, dim)
    plain = needs_plain(x, coords, weight, *([] if bias is None else [bias]))
    if implementation == "reference":
        choices = {"tile_size": tile_size, "blending": blending, "bias_tile": bias_tile}
        return position_dependent_linear_ref(x, coords, weight, bias, level, **choices).view(*batch, weight.shape[1])
    shared = bias if bias_tile is None else None
    if experts == 1 and (plain or implementation != "triton"):
        out = torch.nn.functional.linear(x, weight[0], shared)
    elif plain:
        out = dense_linear(x, expert_shares(coords, level, tile_size, blending), weight, shared)
    elif blending == "linear":
        out = blended_linear(x, coords, weight, shared, level, tile_size)
    elif resolve_implementation(implementation, **where) == "triton":
        from loe_field.network.fused_triton import expert_linear, hidden_precision

        dtype, precision = hidden_precision(x.device, x.dtype)
        rows = expert_rows(expert_index(coords, [level], tile_size), experts)
        out = expert_linear(x.to(dtype), weight, shared, rows.order[0], rows.starts[0], precision=precision)
    elif needs_operators():
        out = _products(x, weight, expert_index(coords, [level], tile_size)[0])
        out = out if shared is None else out + shared
    else:
        (groups,), back = group_rows(expert_index(coords, [level], tile_size), [experts])
        out = permute_rows(grouped_linear(permute_rows(x, groups), weight, shared, groups.splits), back)
    if bias is not None and bias_tile is not None:
        out = (out + tile_bias(coords, bias, bias_tile)).to(out.dtype)
    return out.view(*batch, weight.shape[1])


def blended_linear(
    x: Tensor, coords: Tensor, weight: Tensor, bias: Tensor | None, level: Level, tile_size: int
) -> Tensor:
    """Linear blending of x [N, in_features] at coords [N, dim]: every row visits the 2^dim experts at its corners."""
    corners = 2 ** coords.shape[-1]
    if corners >= len(weight):
        # Every expert of a 2-tile is a corner of every cell: one dense product with all of them, no row moves.
        return dense_linear(x, expert_shares(coords, level, tile_size, "linear"), weight, bias)
    index, share = blending_weights(coords, level, tile_size)
    rows = x[:, None].expand(-1, corners, -1).reshape(-1, x.shape[-1])
    if needs_operators():
        products = _products(rows, weight, index.flatten())
    else:
        (groups,), back = group_rows(index.view(1, -1), [len(weight)])
        products = permute_rows(grouped_linear(permute_rows(rows, groups), weight, None, groups.splits), back)
    out = (products.view(x.shape[0], corners, weight.shape[1]) * share.to(x.dtype)[..., None]).sum(1)
    return out if bias is None else out + bias


def _products(x: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    """`expert_products`, which under autocast multiplies in its dtype."""
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    return expert_products(x, weight, index)
