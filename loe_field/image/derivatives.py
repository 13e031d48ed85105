"""The field's gradient and Laplacian over the picture, by automatic differentiation."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from loe_field.baselines.finer import Finer
from loe_field.errors import InputError
from loe_field.image.model import LoEImageModel
from loe_field.layers import LoEMLP

Derivative = Literal["gradient", "laplacian"]
_RECTIFIED = ("relu-pe", "fourier", "hash-grid")
"""Peers with ReLU."""


def derivative_of(model: LoEImageModel, derivative: Derivative) -> Callable[[Tensor], Tensor]:
    """A derivative of a field in its picture's pixels.

    Inside a cell it is that of the cell's own network; the jumps at the borders of cells are not in it.

    Args:
        model: the field, whose parameters need no gradients.
        derivative: "gradient" or "laplacian".

    Returns:
        A function of places [N, 2] in pixels. The gradient is [N, 2 x channels], d/dx and d/dy of the first channel,
        then of the next, in values (0 to 1) per pixel; the Laplacian is [N, channels], per square pixel.

    Raises:
        InputError: the Laplacian of a network of rectified linear units, which lies in the kinks between its pieces,
            where no derivative sees it.
    """
    field = model.field
    activation = field.activation if isinstance(field, LoEMLP) else None
    if derivative == "laplacian" and (activation in ("relu", "leaky_relu") or model.config.network in _RECTIFIED):
        raise InputError(
            f"{activation or model.config.network} is made of straight pieces: what there is of a Laplacian lies in "
            "the kinks between them, where it is not a number. Fit with the sine, or give --derivative gradient"
        )
    if isinstance(field, Finer):  # trained as if its frequency did not depend on the place, which it does
        field.options = replace(field.options, scale_gradient=True)

    def colours(places: Tensor) -> Tensor:
        return model.get_outputs(places)["rgb"].float()

    return lambda places: (gradient if derivative == "gradient" else laplacian)(colours, places)


def gradient(colours: Callable[[Tensor], Tensor], places: Tensor) -> Tensor:
    """[N, 2 x channels]: d/dx and d/dy of the first channel, then of the next."""
    return _gradients(colours, places)[1].flatten(1)


def laplacian(colours: Callable[[Tensor], Tensor], places: Tensor) -> Tensor:
    """[N, channels]: d2/dx2 + d2/dy2."""
    places, first = _gradients(colours, places, differentiable=True)
    sums = []
    for channel in range(first.shape[1]):
        total = places.new_zeros(len(places))
        for axis in range(2):
            slope = first[:, channel, axis]
            if slope.requires_grad:  # a slope that is the same everywhere has no graph
                (second,) = torch.autograd.grad(slope.sum(), places, retain_graph=True, allow_unused=True)
                total = total if second is None else total + second[:, axis]
        sums.append(total)
    return torch.stack(sums, -1)


def _gradients(
    colours: Callable[[Tensor], Tensor], places: Tensor, *, differentiable: bool = False
) -> tuple[Tensor, Tensor]:
    """The places as leaves of a graph, and the gradients [N, channels, 2] there."""
    with torch.enable_grad():
        places = places.detach().requires_grad_()
        values = colours(places)
        slopes = [
            torch.autograd.grad(channel.sum(), places, retain_graph=True, create_graph=differentiable)[0]
            for channel in values.unbind(-1)
        ]
        return places, torch.stack(slopes, 1)
