"""The bias of a level as a tile of vectors, in torch operations: their rows gathered and blended point by point."""

import torch
from torch import Tensor

from loe_field.network.tiling import BiasTile, bias_shares


def tile_bias(coords: Tensor, bias: Tensor, tile: BiasTile) -> Tensor:
    """`b(p)` of `position_dependent_linear_ref` at coords [N, dim]: bias [num_bias_vectors, out] to [N, out]."""
    return blended_bias(bias, *bias_shares(coords, tile))


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
