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

from loe_field.baselines.base import Counts, Peer, Recipe, check_positive, mlp_counts, widths


@dataclasses.dataclass(frozen=True)
class GaussOptions:
    """Options of the MLP with Gaussian activations."""

    sigma: float = 1 / (30 * math.sqrt(2))
    """Width of the Gaussian in units of the pre-activation, > 0; narrower fits finer detail."""


RECIPE = Recipe(
    source="liuzhen0212/FINER, run_gauss.sh and train_image.py (16 photographs, 512x512 RGB)",
    lr=5e-3,
    steps=5_000,
    schedule="exponential",
    final_factor=0.1,
)


def counts(*, dim: int, out_features: int, num_layers: int, layer_width: int, options: GaussOptions) -> Counts:
    """Size of the network."""
    return mlp_counts(dim, layer_width, out_features, num_layers)


def gaussian(z: Tensor, sigma: float) -> Tensor:
    """`exp(-z^2 / (2 sigma^2))`, any shape."""
    return torch.exp(-0.5 * (z / sigma).square())


class Gauss(Peer):
    """An MLP with Gaussian activations.

    Args:
        dim: coordinates per point, 1 to 3.
        out_features: width of the result, >= 1.
        num_layers: linear layers in all, >= 2.
        layer_width: channels of the hidden layers, >= 1.
        options: see GaussOptions.

    Raises:
        ValueError: a size or option is out of range.
    """

    def __init__(
        self,
        *,
        dim: int = 2,
        out_features: int = 1,
        num_layers: int = 5,
        layer_width: int = 256,
        options: GaussOptions | None = None,
    ) -> None:
        super().__init__(dim=dim, out_features=out_features, num_layers=num_layers, layer_width=layer_width)
        self.options = options or GaussOptions()
        check_positive(sigma=self.options.sigma)
        self.layers = nn.ModuleList(nn.Linear(*size) for size in widths(dim, layer_width, out_features, num_layers))

    def _evaluate(self, points: Tensor) -> Tensor:
        x = 2 * points - 1
        for layer in self.layers[:-1]:
            x = gaussian(layer(x), self.options.sigma)
        return (self.layers[-1](x) + 1) / 2

    @property
    def macs_per_point(self) -> int:
        """Multiply-adds of the matrix products for one point."""
        return mlp_counts(self.dim, self.layer_width, self.out_features, self.num_layers).macs
