"""Gaussian activations: Ramasinghe and Lucey, "Beyond Periodicity" (ECCV 2022).

`h <- exp(-z^2 / (2 sigma^2))` with z = W h + b, torch's initialisation throughout. The same group's repository
sfchng/Gaussian-Activated-Radiance-Fields has sigma 0.1, for radiance fields. For pictures of 512x512 the default here
is 1 / (30 sqrt 2), the exp(-(30 z)^2) with which liuzhen0212/FINER (run_gauss.sh) reports this network, on 5 linear
layers of 256.

Those fits have targets in [-1, 1] and coordinates in [-1, 1]: the network sees 2 p - 1 and returns (y + 1) / 2.
"""

import dataclasses
import math

import torch
from torch import Tensor, nn

from loe_field.baselines.base import Counts, Peer, Recipe, check_positive, mlp_counts


@dataclasses.dataclass(frozen=True)
class GaussOptions:
    """Options of the MLP with Gaussian activations."""

    sigma: float = 1 / (30 * math.sqrt(2))
    """Width of the Gaussian in units of the pre-activation, > 0; narrower fits finer detail."""


def gaussian(z: Tensor, sigma: float) -> Tensor:
    """`exp(-z^2 / (2 sigma^2))`, any shape."""
    return torch.exp(-0.5 * (z / sigma).square())


class Gauss(Peer):
    """An MLP with Gaussian activations.

    Raises:
        ValueError: a size or option is out of range.
    """

    options: GaussOptions
    options_type = GaussOptions
    default_size = (5, 256)
    recipe = Recipe(
        source="liuzhen0212/FINER, run_gauss.sh and train_image.py (16 photographs, 512x512 RGB)",
        lr=5e-3,
        steps=5_000,
        schedule="exponential",
        final_factor=0.1,
    )

    @staticmethod
    def counts(*, dim: int, out_features: int, num_layers: int, layer_width: int, options: GaussOptions) -> Counts:
        """Size of the network."""
        return mlp_counts(dim, layer_width, out_features, num_layers)

    def _build(self) -> None:
        check_positive(sigma=self.options.sigma)
        self.layers = nn.ModuleList(nn.Linear(*size) for size in self._widths(self.dim))

    def _evaluate(self, points: Tensor) -> Tensor:
        x = 2 * points - 1
        for layer in self.layers[:-1]:
            x = gaussian(layer(x), self.options.sigma)
        return (self.layers[-1](x) + 1) / 2
