"""The position-dependent linear layer, written to be read: the definition that every implementation is held to."""

import torch
from torch import Tensor

from loe_field.network.tiling import BiasTile, Blending, Level, bias_shares, blending_weights, expert_index


def position_dependent_linear_ref(
    x: Tensor,
    coords: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    level: Level,
    *,
    tile_size: int,
    blending: Blending = "nearest",
    bias_tile: BiasTile | None = None,
) -> Tensor:
    """`h(x, p) = W(p) x + b(p)` with `W(p) = sum_j B_j(alpha p + beta) W_j` (Eq. 1 to 3 of the paper).

    The bias is a column of W there. Here it is blended alone, at its own scale: `b(p) = sum_j B_j(alpha_b p + beta_b)
    b_j` over the vectors of a tile (`BiasTile`), of which the bias that all experts share has one. Linear blending of
    the bias alone is continuous in p and costs 2^dim reads of a vector, and no product.

    It builds W(p) for every point: memory grows with points * out_features * in_features. Any dtype, any device.

    F fields are F layers side by side, each with its own experts and biases: all tensors and the result then have a
    first axis of F, that of coords being 1 where all fields have the same points.

    Args:
        x: features [N, in_features].
        coords: points [N, dim], dim 1 to 4, any real values.
        weight: experts [tile_size ** dim, out_features, in_features].
        bias: [out_features], shared by the experts; with bias_tile its vectors, [num_bias_vectors, out_features]; or
            None.
        level: scale alpha and shift beta of this layer.
        tile_size: experts per axis, >= 1.
        blending: "nearest" (one expert per point) or "linear" (cyclic multilinear blend of 2^dim experts).
        bias_tile: where the vectors of the bias lie; None: there is one, for all points.

    Returns:
        [N, out_features].
    """
    if weight.dim() == 4:
        biases = [None] * len(weight) if bias is None else bias
        how = {"tile_size": tile_size, "blending": blending, "bias_tile": bias_tile}
        fields = zip(x, coords.expand(len(weight), -1, -1), weight, biases)
        return torch.stack([position_dependent_linear_ref(*tensors, level, **how) for tensors in fields])
    if blending == "nearest":
        matrices = weight[expert_index(coords, [level], tile_size)[0]]
    else:
        index, share = blending_weights(coords, level, tile_size)
        matrices = (share.to(weight.dtype)[..., None, None] * weight[index]).sum(1)
    out = torch.einsum("noi,ni->no", matrices, x)
    if bias is not None and bias_tile is not None:
        index, share = bias_shares(coords, bias_tile)
        bias = (share.to(bias.dtype)[..., None] * bias[index]).sum(1)
    return out if bias is None else out + bias
