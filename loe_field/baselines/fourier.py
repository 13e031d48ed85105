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

from loe_field.baselines.base import Baseline
from loe_field.network.checks import check_at_least, check_positive
from loe_field.network.protocol import Recipe


@dataclasses.dataclass(frozen=True)
class FourierOptions:
    """A ReLU MLP on random Fourier features (Tancik et al., NeurIPS 2020)."""

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


class Fourier(Baseline):
    """A ReLU MLP on random Fourier features.

    Its recipe is that of the notebook: 2,000 steps on every other pixel of RGB of 512x512.

    Attributes:
        frequencies: B [num_features, dim] in periods per unit of length, not trained.
    """

    frequencies: Tensor
    own_options: FourierOptions
    options_type = FourierOptions
    default_size = (4, 256)
    recipe = Recipe(lr=1e-3)
    piecewise_linear = True

    @property
    def macs_per_point(self) -> int:
        """Real multiply-adds for one point, the fixed product with the frequencies included."""
        return super().macs_per_point + self.frequencies.numel()

    def _build(self) -> None:
        sigma, num_features = self.own_options.sigma, self.own_options.num_features
        check_positive(sigma=sigma)
        check_at_least(1, num_features=num_features)
        self.register_buffer("frequencies", sigma * torch.randn(num_features, self.dim))
        self.layers = nn.ModuleList(_jax_linear(*size) for size in self._widths(2 * num_features))

    def features(self, coords: Tensor) -> Tensor:
        """Encode coords [..., dim] as [..., 2 num_features]: cosines, then sines."""
        phase = 2 * math.pi * (coords @ self.frequencies.mT)
        return torch.cat([phase.cos(), phase.sin()], -1)

    def _evaluate(self, coords: Tensor) -> Tensor:
        return torch.sigmoid(self._mlp(self.features(coords), torch.relu))
