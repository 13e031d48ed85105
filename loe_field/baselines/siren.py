"""SIREN: Sitzmann et al., "Implicit Neural Representations with Periodic Activation Functions" (NeurIPS 2020).

`h <- sin(omega_0 (W h + b))`. The first layer's weights are uniform within 1 / in, all others, the final layer's
included, within sqrt(6 / in) / omega_0 (section 3.2 and supplement 1.5); biases are those of torch's linear layer,
uniform within 1 / sqrt(in) (repository vsitzmann/siren). omega_0 is 30 in every layer, 5 linear layers of 256.

The authors fit targets in [-1, 1] over coordinates in [-1, 1]: the network sees 2 p - 1 and returns (y + 1) / 2.
"""

import dataclasses
import math

import torch
from torch import Tensor, nn

from loe_field.baselines.base import Baseline
from loe_field.network.checks import check_positive
from loe_field.network.protocol import Recipe


@dataclasses.dataclass(frozen=True)
class SirenOptions:
    """SIREN: a sine after every layer (Sitzmann et al., NeurIPS 2020)."""

    omega_0: float = 30.0
    """Frequency of the sine in the first layer, > 0; higher fits finer detail and more noise."""
    hidden_omega_0: float = 30.0
    """Frequency of the sine in the other layers, > 0; the initialisation makes up for it."""


def sine_linear(in_features: int, out_features: int, *, omega_0: float, first: bool) -> nn.Linear:
    """A linear layer with SIREN's weights."""
    linear = nn.Linear(in_features, out_features)
    bound = 1 / in_features if first else math.sqrt(6 / in_features) / omega_0
    nn.init.uniform_(linear.weight, -bound, bound)
    return linear


class Siren(Baseline):
    """An MLP with sines.

    Its recipe is that of vsitzmann/siren, experiment_scripts/train_img.py: 10,000 steps on camera, 512x512.
    """

    own_options: SirenOptions
    options_type = SirenOptions
    default_size = (5, 256)
    recipe = Recipe(lr=1e-4)

    def _build(self) -> None:
        check_positive(omega_0=self.own_options.omega_0, hidden_omega_0=self.own_options.hidden_omega_0)
        self.layers = nn.ModuleList(
            sine_linear(*size, omega_0=self.own_options.hidden_omega_0, first=i == 0)
            for i, size in enumerate(self._widths(self.dim))
        )

    def _activate(self, y: Tensor, omega_0: float) -> Tensor:
        return torch.sin(omega_0 * y)

    def _evaluate(self, coords: Tensor) -> Tensor:
        x = 2 * coords - 1
        for i, layer in enumerate(self.layers[:-1]):
            x = self._activate(layer(x), self.own_options.omega_0 if i == 0 else self.own_options.hidden_omega_0)
        return (self.layers[-1](x) + 1) / 2
