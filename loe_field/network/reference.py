"""The position-dependent linear layer, written to be read: the definition that every implementation is held to."""

import torch
from torch import Tensor

from loe_field.network.tiling import Blending, Level, blending_weights, expert_index


def position_dependent_linear_ref(
    x: Tensor,
    coords: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    level: Level,
    *,
    tile_size: int,
    blending: Blending = "nearest",
) -> Tensor:
    """`h(x, p) = W(p) x + b` with `W(p) = sum_j B_j(alpha p + beta) W_j` (Eq. 1 to 3 of the paper).

    It builds W(p) for every point: memory grows with points * out_features * in_features. Any dtype, any device.

    Args:
        x: features [N, in_features].
        coords: points [N, dim], dim 1 to 4, any real values.
        weight: experts [tile_size ** dim, out_features, in_features].
        bias: [out_features], shared by the experts, or None.
        level: scale alpha and shift beta of this layer.
        tile_size: experts per axis, >= 1.
        blending: "nearest" (one expert per point) or "linear" (cyclic multilinear blend of 2^dim experts).

    Returns:
        [N, out_features].
    """
    if blending == "nearest":
        matrices = weight[expert_index(coords, [level], tile_size)[0]]
    else:
        index, share = blending_weights(coords, level, tile_size)
        matrices = (share.to(weight.dtype)[..., None, None] * weight[index]).sum(1)
    out = torch.einsum("noi,ni->no", matrices, x)
    return out if bias is None else out + bias
