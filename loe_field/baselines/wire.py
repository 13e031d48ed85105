"""WIRE: Saragadam et al., "Wavelet Implicit Neural Representations" (CVPR 2023).

`h <- exp(i omega_0 z - |sigma_0 z|^2)` with z = W h + b, a complex Gabor wavelet. The first layer is real, the
others complex, the result is the real part. omega_0 20 and sigma_0 30 are what the authors suggest for pictures, 4
linear layers, and 256 / sqrt 2 = 181 channels, because a complex number is two real ones (repository vishwa91/wire,
wire_image_denoise.py and modules/wire.py). Weights and biases, real and imaginary part each, are uniform within
1 / sqrt(in), which is what torch's linear layer does for complex numbers.

Complex weights are stored as pairs of real numbers [..., 2], so that a change of dtype keeps both. The final bias has
no imaginary part, which would never reach the result. Coordinates are stretched to [-1, 1]; targets are in [0, 1] as
with the authors.
"""

import dataclasses
import math

import torch
from torch import Tensor, nn

from loe_field.baselines.base import Counts, Peer, Recipe, check_positive


@dataclasses.dataclass(frozen=True)
class WireOptions:
    """Options of WIRE."""

    omega_0: float = 20.0
    """Frequency of the wavelet, > 0."""
    sigma_0: float = 30.0
    """Inverse width of the wavelet, > 0; other authors' comparisons take 10."""


def gabor(z: Tensor, omega_0: float, sigma_0: float) -> Tensor:
    """`exp(i omega_0 z - |sigma_0 z|^2)` of real or complex z, complex.

    Its absolute value is exp(-omega_0 Im z - sigma_0^2 |z|^2), at most exp((omega_0 / (2 sigma_0))^2).
    """
    if z.is_complex():
        envelope = -omega_0 * z.imag - sigma_0**2 * (z.real.square() + z.imag.square())
        return torch.complex(envelope, omega_0 * z.real).exp()
    return torch.complex(-((sigma_0 * z).square()), omega_0 * z).exp()


class ComplexLinear(nn.Module):
    """A linear layer over complex numbers.

    Args:
        in_features: width of the input.
        out_features: width of the result.
        real: compute the real part of the result only; the bias is then real.

    Attributes:
        weight: [out_features, in_features, 2], real and imaginary part.
        bias: [out_features, 2], or [out_features] if real.
    """

    def __init__(self, in_features: int, out_features: int, *, real: bool = False) -> None:
        super().__init__()
        self.real = real
        self.weight = nn.Parameter(torch.empty(out_features, in_features, 2))
        self.bias = nn.Parameter(torch.empty(out_features) if real else torch.empty(out_features, 2))
        bound = 1 / math.sqrt(in_features)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Complex x [n, in_features] to [n, out_features], complex, or real if so constructed."""
        if self.real:
            real, imaginary = self.weight.unbind(-1)
            return nn.functional.linear(x.real, real, self.bias) - nn.functional.linear(x.imag, imaginary)
        return nn.functional.linear(x, torch.view_as_complex(self.weight)) + torch.view_as_complex(self.bias)


class Wire(Peer):
    """An MLP over complex numbers with Gabor wavelets.

    Raises:
        ValueError: a size or option is out of range.
    """

    options: WireOptions
    options_type = WireOptions
    default_size = (4, 181)
    recipe = Recipe(
        source="vishwa91/wire, wire_image_denoise.py (its learning rate for WIRE is 5e-3 to 2e-2)",
        lr=5e-3,
        steps=2_000,
        schedule="exponential",
        final_factor=0.1,
    )

    @staticmethod
    def counts(*, dim: int, out_features: int, num_layers: int, layer_width: int, options: WireOptions) -> Counts:
        """Size of the network: a complex number is two parameters, a complex product four multiply-adds.

        The final layer's costs two, since only the real part is computed.
        """
        first, hidden, last = dim * layer_width, (num_layers - 2) * layer_width**2, layer_width * out_features
        biases = layer_width + 2 * (num_layers - 2) * layer_width + out_features
        return Counts(first + 2 * hidden + 2 * last + biases, first + 4 * hidden + 2 * last)

    def _build(self) -> None:
        check_positive(omega_0=self.options.omega_0, sigma_0=self.options.sigma_0)
        hidden = [ComplexLinear(self.layer_width, self.layer_width) for _ in range(self.num_layers - 2)]
        last = ComplexLinear(self.layer_width, self.out_features, real=True)
        self.layers = nn.ModuleList([nn.Linear(self.dim, self.layer_width), *hidden, last])

    def _evaluate(self, points: Tensor) -> Tensor:
        x = 2 * points - 1
        for layer in self.layers[:-1]:
            x = gabor(layer(x), self.options.omega_0, self.options.sigma_0)
        return self.layers[-1](x)
