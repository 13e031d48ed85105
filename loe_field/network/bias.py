"""The bias of a level as a tile of vectors, in torch operations: their rows gathered and blended point by point."""

import torch
from torch import Tensor

from loe_field.network.tiling import BiasTile, bias_shares


def tile_bias(coords: Tensor, bias: Tensor, tile: BiasTile) -> Tensor:
    """`b(p)` of `position_dependent_linear_ref` at coords [N, dim]: bias [num_bias_vectors, out] to [N, out].

    Of F fields: bias [F, num_bias_vectors, out] at coords [1 or F, N, dim] to [F, N, out].
    """
    index, share = bias_shares(coords, tile)
    if bias.dim() == 2:
        return blended_bias(bias, index, share)
    index = numbered_by_field(index, *bias.shape[:2])
    blended = blended_bias(bias.flatten(0, 1), index.flatten(0, 1), share.expand_as(index).flatten(0, 1))
    return blended.view(*index.shape[:2], bias.shape[2])


def numbered_by_field(index: Tensor, fields: int, count: int) -> Tensor:
    """Numbers 0 .. count - 1 within a field, [1 or F, ...], to field * count + number, [F, ...]."""
    return index + count * torch.arange(fields, device=index.device).view(-1, *[1] * (index.dim() - 1))


def blended_bias(bias: Tensor, index: Tensor, share: Tensor) -> Tensor:
    """`sum_c share_c bias[index_c]`: bias [vectors, out], index and share [N, corners] to [N, out].

    One corner after the other: all corners' rows at once would be 2^dim times the result. The gradient of an embedding
    is a sum in a fixed order, on CPUs and GPUs alike.
    """
    share = share.to(bias.dtype)
    total = None
    for vectors, part in zip(index.unbind(1), share.unbind(1)):
        rows = torch.nn.functional.embedding(vectors, bias) * part.unsqueeze(1)
        total = rows if total is None else total + rows
    assert total is not None
    return total
