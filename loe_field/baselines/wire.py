"""WIRE: Saragadam et al., "Wavelet Implicit Neural Representations" (CVPR 2023).

`h <- exp(i omega_0 z - |sigma_0 z|^2)` with z = W h + b, a complex Gabor wavelet. The first layer is real, the others
complex, the result is the real part. The authors suggest omega_0 20 and sigma_0 30 for pictures, 4 linear layers, and
256 / sqrt 2 = 181 channels, because a complex number is two real ones (repository vishwa91/wire, wire_image_denoise.py
and modules/wire.py). Weights and biases, real and imaginary part each, are uniform within 1 / sqrt(in), as in torch's
linear layer for complex numbers.

Complex weights are stored as pairs of real numbers [..., 2], so that a change of dtype keeps both. The final bias has
no imaginary part, which would never reach the result. Coordinates are stretched to [-1, 1]; targets are in [0, 1] as
with the authors.
"""

import dataclasses
import math

import torch
from torch import Tensor, nn

from loe_field.baselines.base import Baseline
from loe_field.network.checks import check_positive
from loe_field.network.protocol import Recipe


@dataclasses.dataclass(frozen=True)
class WireOptions:
    """WIRE: complex Gabor wavelets (Saragadam et al., CVPR 2023)."""

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


class Wire(Baseline):
    """An MLP over complex numbers with Gabor wavelets.

    Its recipe is that of vishwa91/wire, wire_image_denoise.py: 2,000 passes, the rate within its 5e-3 to 2e-2 for WIRE.
    """

    own_options: WireOptions
    options_type = WireOptions
    default_size = (4, 181)
    recipe = Recipe(lr=5e-3, batch=2**16, schedule="exponential", final_factor=0.1)

    @property
    def macs_per_point(self) -> int:
        """Real multiply-adds for one point: four for a complex product, two in the final layer, which is real."""
        first, *hidden, last = (i * o for i, o in self._widths(self.dim))
        return first + 4 * sum(hidden) + 2 * last

    def _build(self) -> None:
        check_positive(omega_0=self.own_options.omega_0, sigma_0=self.own_options.sigma_0)
        hidden = [ComplexLinear(self.layer_width, self.layer_width) for _ in range(self.num_layers - 2)]
        last = ComplexLinear(self.layer_width, self.out_features, real=True)
        self.layers = nn.ModuleList([nn.Linear(self.dim, self.layer_width), *hidden, last])

    def _evaluate(self, coords: Tensor) -> Tensor:
        omega_0, sigma_0 = self.own_options.omega_0, self.own_options.sigma_0
        return self._mlp(2 * coords - 1, lambda z: gabor(z, omega_0, sigma_0))
