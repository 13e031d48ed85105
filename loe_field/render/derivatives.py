"""The field's gradient and Laplacian over the picture, by automatic differentiation."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from loe_field.errors import InputError
from loe_field.network.protocol import Network

Derivative = Literal["gradient", "laplacian"]
PixelField = Callable[[Tensor], Tensor]
"""Coords [N, 2] in the picture's pixels to values [N, channels]."""


def derivative_of(field: PixelField, network: Network, derivative: Derivative) -> PixelField:
    """A derivative of a field, whose network's parameters need no gradients.

    Inside a cell it is that of the cell's own network; the jumps at the borders of cells are not in it.

    Returns:
        `gradient` or `laplacian` as a function of coords [N, 2] in pixels, per pixel or per square pixel.

    Raises:
        InputError: the Laplacian of a network of rectified linear units, which lies in the kinks between its pieces,
            where no derivative sees it.
    """
    if derivative == "laplacian" and network.piecewise_linear:
        raise InputError(
            f"{getattr(network, 'activation', type(network).__name__)} is made of straight pieces: its Laplacian "
            "lies in the kinks between them, where it is not a number. Fit with the sine, or give --derivative gradient"
        )
    network.with_exact_derivatives()
    return partial(gradient if derivative == "gradient" else laplacian, field)


@torch.enable_grad()
def gradient(field: PixelField, coords: Tensor) -> Tensor:
    """[N, 2 x channels]: d/dx and d/dy of the first channel, then of the next."""
    return _gradients(field, coords.detach().requires_grad_()).flatten(1)


@torch.enable_grad()
def laplacian(field: PixelField, coords: Tensor) -> Tensor:
    """[N, channels]: d2/dx2 + d2/dy2."""
    coords = coords.detach().requires_grad_()
    first = _gradients(field, coords, differentiable=True)
    sums = []
    for channel in range(first.shape[1]):
        total = coords.new_zeros(len(coords))
        for axis in range(2):
            slope = first[:, channel, axis]
            if slope.requires_grad:  # a slope that is the same everywhere has no graph
                (second,) = torch.autograd.grad(slope.sum(), coords, retain_graph=True, allow_unused=True)
                total = total if second is None else total + second[:, axis]
        sums.append(total)
    return torch.stack(sums, -1)


def _gradients(field: PixelField, coords: Tensor, *, differentiable: bool = False) -> Tensor:
    """The gradients [N, channels, 2] at leaves of a graph."""
    values = field(coords).float().unbind(-1)
    grad = torch.autograd.grad
    slopes = [grad(value.sum(), coords, retain_graph=True, create_graph=differentiable)[0] for value in values]
    return torch.stack(slopes, 1)
