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

from loe_field.baselines.base import Baseline
from loe_field.network.checks import check_positive
from loe_field.network.protocol import Recipe


@dataclasses.dataclass(frozen=True)
class GaussOptions:
    """An MLP with Gaussian activations (Ramasinghe and Lucey, ECCV 2022)."""

    sigma: float = 1 / (30 * math.sqrt(2))
    """Width of the Gaussian in units of the pre-activation, > 0; narrower fits finer detail."""


def gaussian(z: Tensor, sigma: float) -> Tensor:
    """`exp(-z^2 / (2 sigma^2))`, any shape."""
    return torch.exp(-0.5 * (z / sigma).square())


class Gauss(Baseline):
    """An MLP with Gaussian activations.

    Its recipe is that of liuzhen0212/FINER, run_gauss.sh and train_image.py: 5,000 steps on RGB of 512x512.
    """

    own_options: GaussOptions
    options_type = GaussOptions
    default_size = (5, 256)
    recipe = Recipe(lr=5e-3, schedule="exponential", final_factor=0.1)

    def _build(self) -> None:
        check_positive(sigma=self.own_options.sigma)
        self.layers = nn.ModuleList(nn.Linear(*size) for size in self._widths(self.dim))

    def _evaluate(self, coords: Tensor) -> Tensor:
        return (self._mlp(2 * coords - 1, lambda z: gaussian(z, self.own_options.sigma)) + 1) / 2
