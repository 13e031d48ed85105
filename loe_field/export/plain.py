"""Networks as plain tensor operations, so that they can be traced and run where this package is not.

They share the network's parameters.
"""

import functools

import torch
from torch import Tensor, nn

from loe_field.baselines.base import Baseline
from loe_field.baselines.wire import ComplexLinear, Wire
from loe_field.network.layers import LoEMLP


class PlainField(nn.Module):
    """A LoEMLP or a baseline without its checks of the input; under torch.export a LoEMLP has no kernels."""

    def __init__(self, field: LoEMLP | Baseline) -> None:
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
    """A LoEMLP or a baseline, in plain tensor operations once traced: coordinates [N, dim] to values [N, channels]."""
    raise TypeError(f"{type(field).__name__} has no plain form")


plain.register(LoEMLP, PlainField)
plain.register(Baseline, PlainField)
plain.register(Wire, PlainWire)
