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

from loe_field.baselines.base import Counts, Peer, Recipe, check_positive, mlp_counts, widths


@dataclasses.dataclass(frozen=True)
class SirenOptions:
    """Options of SIREN."""

    omega_0: float = 30.0
    """Frequency of the sine in the first layer, > 0; higher fits finer detail and more noise."""
    hidden_omega_0: float = 30.0
    """Frequency of the sine in the other layers, > 0; the initialisation makes up for it."""


RECIPE = Recipe(
    source="vsitzmann/siren, experiment_scripts/train_img.py (camera, 512x512)",
    lr=1e-4,
    steps=10_000,
)


def counts(*, dim: int, out_features: int, num_layers: int, layer_width: int, options: SirenOptions) -> Counts:
    """Size of the network."""
    return mlp_counts(dim, layer_width, out_features, num_layers)


def sine_linear(in_features: int, out_features: int, *, omega_0: float, first: bool) -> nn.Linear:
    """A linear layer with SIREN's weights."""
    linear = nn.Linear(in_features, out_features)
    bound = 1 / in_features if first else math.sqrt(6 / in_features) / omega_0
    nn.init.uniform_(linear.weight, -bound, bound)
    return linear


class Siren(Peer):
    """An MLP with sines.

    Args:
        dim: coordinates per point, 1 to 3.
        out_features: width of the result, >= 1.
        num_layers: linear layers in all, >= 2.
        layer_width: channels of the hidden layers, >= 1.
        options: see SirenOptions.

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
        options: SirenOptions | None = None,
    ) -> None:
        super().__init__(dim=dim, out_features=out_features, num_layers=num_layers, layer_width=layer_width)
        self.options = options or SirenOptions()
        check_positive(omega_0=self.options.omega_0, hidden_omega_0=self.options.hidden_omega_0)
        sizes = widths(dim, layer_width, out_features, num_layers)
        self.layers = nn.ModuleList(
            sine_linear(*size, omega_0=self.options.hidden_omega_0, first=i == 0) for i, size in enumerate(sizes)
        )

    def _activate(self, y: Tensor, omega_0: float) -> Tensor:
        return torch.sin(omega_0 * y)

    def _evaluate(self, points: Tensor) -> Tensor:
        x = 2 * points - 1
        for i, layer in enumerate(self.layers[:-1]):
            x = self._activate(layer(x), self.options.omega_0 if i == 0 else self.options.hidden_omega_0)
        return (self.layers[-1](x) + 1) / 2

    @property
    def macs_per_point(self) -> int:
        """Multiply-adds of the matrix products for one point."""
        return mlp_counts(self.dim, self.layer_width, self.out_features, self.num_layers).macs
