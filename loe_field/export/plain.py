"""Networks as plain tensor operations, so that they can be traced and run where this package is not.

They share the network's parameters.
"""

import functools

import torch
from torch import Tensor, nn

from loe_field.baselines.base import Baseline
from loe_field.baselines.wire import ComplexLinear, Wire
from loe_field.network.layers import LoEMLP
from loe_field.network.shape import activate


class PlainLoE(nn.Module):
    """A LoEMLP without kernels or permutations: every expert's product for every point, then the share of each.

    That is tile_size ** dim times the arithmetic and the activations of a point; choosing a matrix for every point
    instead would move layer_width times as many numbers.
    """

    alpha: Tensor
    beta: Tensor

    def __init__(self, field: LoEMLP) -> None:
        super().__init__()
        self.dim, self.tile_size = field.dim, field.tile_size
        self.linear = field.blending == "linear"
        self.activation, self.omega_0 = field.activation, field.omega_0
        self.encoding, self.head = field.encoding, field.head
        self.weights = nn.ParameterList([layer.weight for layer in field.layers])
        self.biases = nn.ParameterList([layer.bias for layer in field.layers])
        like = field.head.weight
        self.register_buffer("alpha", like.new_tensor([level.alpha for level in field.levels]))
        self.register_buffer("beta", like.new_tensor([level.beta for level in field.levels]))

    def forward(self, coordinates: Tensor) -> Tensor:
        """Coordinates [N, dim] to values [N, out_features]."""
        x = self.encoding(coordinates)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            products = (x @ weight.flatten(0, 1).t()).unflatten(1, weight.shape[:2])
            shares = self._shares(coordinates * self.alpha[i] + self.beta[i]).to(x.dtype)
            x = activate((products * shares[..., None]).sum(1) + bias, self.activation, self.omega_0)
        return self.head(x)

    def _shares(self, scaled: Tensor) -> Tensor:
        """The share of every expert at scaled coordinates [N, dim]: [N, tile_size ** dim], the last axis fastest."""
        cell = scaled.floor()
        expert = torch.arange(self.tile_size, device=scaled.device)
        shares = None
        for axis in range(self.dim):
            here = cell[:, axis, None].to(torch.int64)
            share = (here.remainder(self.tile_size) == expert).to(scaled.dtype)
            if self.linear:
                fraction = (scaled - cell)[:, axis, None]
                after = ((here + 1).remainder(self.tile_size) == expert).to(scaled.dtype)
                share = share * (1 - fraction) + after * fraction
            shares = share if shares is None else (shares[:, :, None] * share[:, None]).flatten(1)
        assert shares is not None
        return shares


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
