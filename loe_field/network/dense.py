"""The layer with every expert's product for every point, and the share of each: no value decides what is computed.

That is tile_size ** dim times the arithmetic of the others, in torch operations alone. It serves whatever looks at the
operations instead of the numbers: torch.func, forward-mode derivatives, traces and exports, tensors without content.
"""

import torch
from torch import Tensor

from loe_field.network.tiling import Blending, Level, blending_weights, expert_index, num_experts


def expert_shares(coords: Tensor, level: Level, tile_size: int, blending: Blending) -> Tensor:
    """The share of every expert at coords [..., dim]: [..., tile_size ** dim], fp32 or wider."""
    experts = num_experts(tile_size, coords.shape[-1])
    if blending == "nearest":
        share = one_hot(expert_index(coords, [level], tile_size)[0], experts)
        return share.to(torch.promote_types(coords.dtype, torch.float32))
    index, share = blending_weights(coords, level, tile_size)
    return share.new_zeros(*coords.shape[:-1], experts).scatter_add(-1, index, share)


def one_hot(index: Tensor, experts: int) -> Tensor:
    """Which expert serves: int64 [...] to bool [..., experts]."""
    return index[..., None] == torch.arange(experts, device=index.device)


def dense_linear(x: Tensor, share: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`sum_e share_e W_e x + b`: x [N, in_features] and share [N, experts] to [N, out_features].

    Of F fields: x [F, N, in_features], share [1 or F, N, experts], and weight and bias with a first axis of F.
    """
    products = torch.matmul(x, weight.flatten(-3, -2).mT).unflatten(-1, weight.shape[-3:-1])
    out = (products * share.to(x.dtype)[..., None]).sum(-2)
    return out if bias is None else out + (bias if weight.dim() == 3 else bias[:, None])
