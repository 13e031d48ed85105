"""Networks as plain tensor operations, so that they can be traced and run where this package is not.

They share the network's parameters.
"""

import functools

import torch
from torch import Tensor, nn

from loe_field.baselines.base import Baseline
from loe_field.baselines.wire import ComplexLinear, Wire
from loe_field.network.dense import dense_linear, expert_shares
from loe_field.network.layers import LoEMLP
from loe_field.network.shape import activate
from loe_field.network.tiling import Blending


class PlainLoE(nn.Module):
    """A LoEMLP without kernels or permutations: every expert's product for every point, then the share of each.

    That is tile_size ** dim times the arithmetic and the activations of a point; choosing a matrix for every point
    instead would move layer_width times as many numbers.
    """

    def __init__(self, field: LoEMLP) -> None:
        super().__init__()
        self.levels, self.tile_size = field.levels, field.tile_size
        self.blending: Blending = field.blending
        self.activation, self.omega_0 = field.activation, field.omega_0
        self.encoding, self.head = field.encoding, field.head
        self.weights = nn.ParameterList([layer.weight for layer in field.layers])
        self.biases = nn.ParameterList([layer.bias for layer in field.layers])

    def forward(self, coordinates: Tensor) -> Tensor:
        """Coordinates [N, dim] to values [N, out_features]."""
        x = self.encoding(coordinates)
        for level, weight, bias in zip(self.levels, self.weights, self.biases):
            share = expert_shares(coordinates, level, self.tile_size, self.blending)
            x = activate(dense_linear(x, share, weight, bias), self.activation, self.omega_0)
        return self.head(x)


class PlainBaseline(nn.Module):
    """A baseline without its checks of the input and of autocast."""

    def __init__(self, field: Baseline) -> None:
        super().__init__()
        self.field = field

    def forward(self, coordinates: Tensor) -> Tensor:
        """Coordinates [N, dim] to values [N, out_features]."""
        return self.field._evaluate(coordinates)


class PlainWire(nn.Module):
    """WIRE with real and imaginary part side by side, because ONNX has no complex numbers (see baselines/wire.py)."""

    def __init__(self, field: Wire) -> None:
        super().__init__()
        self.layers = field.layers
        self.omega_0, self.sigma_0 = field.own_options.omega_0, field.own_options.sigma_0

    def forward(self, coordinates: Tensor) -> Tensor:
        """Coordinates [N, dim] to values [N, out_features]."""
        real = self.layers[0](2 * coordinates - 1)
        imaginary = torch.zeros_like(real)
        for layer in list(self.layers)[1:]:
            envelope = (-self.omega_0 * imaginary - self.sigma_0**2 * (real.square() + imaginary.square())).exp()
            phase = self.omega_0 * real
            real, imaginary = _complex_linear(layer, envelope * phase.cos(), envelope * phase.sin())  # type: ignore[arg-type]
        return real


def _complex_linear(layer: ComplexLinear, real: Tensor, imaginary: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of the layer's result; where the layer gives only the real part, so is its bias."""
    weight_real, weight_imaginary = layer.weight.unbind(-1)
    bias_real, bias_imaginary = (layer.bias, 0.0) if layer.real else layer.bias.unbind(-1)
    return (
        real @ weight_real.t() - imaginary @ weight_imaginary.t() + bias_real,
        real @ weight_imaginary.t() + imaginary @ weight_real.t() + bias_imaginary,
    )


@functools.singledispatch
def plain(field: nn.Module) -> nn.Module:
    """A LoEMLP or a baseline in plain tensor operations: coordinates [N, dim] to values [N, out_features]."""
    raise TypeError(f"{type(field).__name__} has no plain form")


plain.register(LoEMLP, PlainLoE)
plain.register(Baseline, PlainBaseline)
plain.register(Wire, PlainWire)
