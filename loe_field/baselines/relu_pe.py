"""ReLU MLP on positional encoding: Mildenhall et al., "NeRF" (ECCV 2020), Eq. 4.

Encoding: p itself and sin(2^j pi (2 p - 1)), cos(2^j pi (2 p - 1)) for j = 0 .. num_frequencies - 1, ten octaves as for
positions in NeRF (section 5.1). NeRF's authors fit no pictures: depth, width and training are those with which
liuzhen0212/FINER (run_pemlp.sh) runs this network on pictures, 5 linear layers of 256 with torch's initialisation and
targets in [0, 1]; their octaves lack the factor pi.
"""

import dataclasses

import torch
from torch import Tensor, nn

from loe_field.baselines.base import Counts, Peer, Recipe, mlp_counts
from loe_field.layers import PositionalEncoding


@dataclasses.dataclass(frozen=True)
class ReluPeOptions:
    """Options of the ReLU MLP on positional encoding."""

    num_frequencies: int = 10
    """Octaves, >= 0; the finest has 2^num_frequencies / 2 periods over the picture."""


class ReluPe(Peer):
    """A ReLU MLP on octaves of sines and cosines of the coordinates.

    Raises:
        ValueError: a size or option is out of range.
    """

    options: ReluPeOptions
    options_type = ReluPeOptions
    default_size = (5, 256)
    recipe = Recipe(
        source="liuzhen0212/FINER, run_pemlp.sh and train_image.py (16 photographs, 512x512 RGB)",
        lr=1e-3,
        steps=5_000,
        schedule="exponential",
        final_factor=0.1,
    )

    @staticmethod
    def counts(*, dim: int, out_features: int, num_layers: int, layer_width: int, options: ReluPeOptions) -> Counts:
        """Size of the network; the encoding is not counted as arithmetic."""
        encoded = PositionalEncoding(dim, options.num_frequencies).out_features
        return mlp_counts(encoded, layer_width, out_features, num_layers)

    def _build(self) -> None:
        self.encoding = PositionalEncoding(self.dim, self.options.num_frequencies)
        sizes = self._widths(self.encoding.out_features)
        self.layers = nn.ModuleList(nn.Linear(*size) for size in sizes)

    def _evaluate(self, points: Tensor) -> Tensor:
        x = self.encoding(points)
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return self.layers[-1](x)
