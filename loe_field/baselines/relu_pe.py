"""ReLU MLP on positional encoding: Mildenhall et al., "NeRF" (ECCV 2020), Eq. 4.

Encoding: p itself and sin(2^j pi (2 p - 1)), cos(2^j pi (2 p - 1)) for j = 0 .. num_frequencies - 1, ten octaves as for
positions in NeRF (section 5.1). NeRF's authors fit no pictures: depth, width and training are those with which
liuzhen0212/FINER (run_pemlp.sh) runs this network on pictures, 5 linear layers of 256 with torch's initialisation and
targets in [0, 1]; their octaves lack the factor pi.
"""

import dataclasses

import torch
from torch import Tensor, nn

from loe_field.baselines.base import Baseline
from loe_field.network.layers import PositionalEncoding
from loe_field.network.protocol import Recipe


@dataclasses.dataclass(frozen=True)
class ReluPeOptions:
    """A ReLU MLP on octaves of sines and cosines (Mildenhall et al., NeRF, ECCV 2020)."""

    num_frequencies: int = 10
    """Octaves, >= 0; the finest has 2^num_frequencies / 2 periods over the picture."""


class ReluPe(Baseline):
    """A ReLU MLP on octaves of sines and cosines of the coordinates.

    Its recipe is that of liuzhen0212/FINER, run_pemlp.sh and train_image.py: 5,000 steps on RGB of 512x512.
    """

    own_options: ReluPeOptions
    options_type = ReluPeOptions
    default_size = (5, 256)
    recipe = Recipe(lr=1e-3, schedule="exponential", final_factor=0.1)
    piecewise_linear = True

    def _build(self) -> None:
        self.encoding = PositionalEncoding(self.dim, self.own_options.num_frequencies)
        self.layers = nn.ModuleList(nn.Linear(*size) for size in self._widths(self.encoding.out_features))

    def _evaluate(self, coords: Tensor) -> Tensor:
        return self._mlp(self.encoding(coords), torch.relu)
