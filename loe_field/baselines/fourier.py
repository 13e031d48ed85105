"""Random Fourier features: Tancik et al., "Fourier Features Let Networks Learn High Frequency ..." (NeurIPS 2020).

`p -> (cos(2 pi B p), sin(2 pi B p))` with B [num_features, dim] drawn once from a Gaussian of standard deviation sigma
periods over the picture, then a ReLU MLP and a sigmoid: 256 features, sigma 10 and 4 linear layers of 256 for
photographs of 512x512, sigma 14 for text (repository tancik/fourier-feature-networks,
Experiments/2d_image_regression.ipynb). Layers start as the jax layers used there do: Glorot's truncated normal for
weights, a normal of 0.01 for biases.
"""

import dataclasses
import math

import torch
from torch import Tensor, nn

from loe_field.baselines.base import Counts, Peer, Recipe, check_positive, mlp_counts


@dataclasses.dataclass(frozen=True)
class FourierOptions:
    """Options of the MLP on random Fourier features."""

    sigma: float = 10.0
    """Standard deviation of the frequencies, in periods over the picture, > 0; higher fits finer detail and noise."""
    num_features: int = 256
    """Random frequencies, >= 1; each gives a sine and a cosine."""


def _jax_linear(in_features: int, out_features: int) -> nn.Linear:
    """A linear layer that starts as jax's Dense did."""
    linear = nn.Linear(in_features, out_features)
    # 0.8796 is the standard deviation of a unit normal cut off at 2: undone, so that the variance is Glorot's.
    std = math.sqrt(2 / (in_features + out_features)) / 0.87962566103423978
    nn.init.trunc_normal_(linear.weight, std=std, a=-2 * std, b=2 * std)
    nn.init.normal_(linear.bias, std=1e-2)
    return linear


class Fourier(Peer):
    """A ReLU MLP on random Fourier features.

    Attributes:
        frequencies: B [num_features, dim] in periods per unit of length, not trained.

    Raises:
        ValueError: a size or option is out of range.
    """

    frequencies: Tensor

    options: FourierOptions
    options_type = FourierOptions
    default_size = (4, 256)
    recipe = Recipe(
        source="tancik/fourier-feature-networks, Experiments/2d_image_regression.ipynb "
        "(512x512 RGB, every other pixel)",
        lr=1e-3,
        steps=2_000,
    )

    @staticmethod
    def counts(*, dim: int, out_features: int, num_layers: int, layer_width: int, options: FourierOptions) -> Counts:
        """Size of the network; the fixed product with the frequencies is arithmetic but has no parameters."""
        mlp = mlp_counts(2 * options.num_features, layer_width, out_features, num_layers)
        return Counts(mlp.parameters, mlp.macs + dim * options.num_features)

    def _build(self) -> None:
        check_positive(sigma=self.options.sigma)
        if self.options.num_features < 1:
            raise ValueError(f"num_features is {self.options.num_features}: it must be at least 1")
        self.register_buffer("frequencies", self.options.sigma * torch.randn(self.options.num_features, self.dim))
        sizes = self._widths(2 * self.options.num_features)
        self.layers = nn.ModuleList(_jax_linear(*size) for size in sizes)

    def features(self, coords: Tensor) -> Tensor:
        """Encode coords [..., dim] as [..., 2 num_features]: cosines, then sines."""
        phase = 2 * math.pi * (coords @ self.frequencies.mT)
        return torch.cat([phase.cos(), phase.sin()], -1)

    def _evaluate(self, points: Tensor) -> Tensor:
        x = self.features(points)
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return torch.sigmoid(self.layers[-1](x))
