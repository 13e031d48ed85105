"""What a fit does between the pixels: how near it stays to the spline through them, how it jumps at their borders."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from loe_field.image.pixels import pixel_centers
from loe_field.image.spline import CubicSpline

_MOST_PLACES = 2**20
"""Of larger pictures so many places are drawn at random; it is all of them up to 512 x 512."""
_STEP = 0.01
"""Distance from a border at which its two sides are taken, in pixels."""

Render = Callable[[Tensor], Tensor]
"""Places [N, 2] in pixels to colours [N, channels]."""


class BetweenPixels(NamedTuple):
    """A fit between the pixels."""

    psnr_half_pixel: float
    """dB against the cubic spline through the pixels on the grid of half a pixel (that of the picture at twice its
    size: a quarter of a pixel beside every centre), both clamped to [0, 1]."""
    border_jump: float | None
    """Root mean square jump at the borders between neighbouring pixels, as a part of the neighbours' root mean square
    difference: 1 for a table of pixels, 0 for a continuous function. None if no neighbours differ."""


def between_pixels(render: Render, spline: CubicSpline, *, chunk: int = 65536) -> BetweenPixels:
    """Measure it.

    Args:
        render: the fit.
        spline: of the picture.
        chunk: places rendered at once.
    """
    error, values = 0.0, 0
    for part in _some(4 * spline.width * spline.height, _MOST_PLACES).to(spline.device).split(chunk):
        quarter = torch.stack([part % 2, part // 2 % 2], -1) / 2 - 0.25
        place = pixel_centers(part // 4, spline.width) + quarter
        difference = render(place).clamp(0, 1) - spline(place).clamp(0, 1)
        error += float(difference.square().sum(dtype=torch.float64))
        values += difference.numel()
    psnr = math.inf if error == 0 else -10 * math.log10(error / values)
    return BetweenPixels(psnr, _border_jump(render, spline, chunk))


def _border_jump(render: Render, spline: CubicSpline, chunk: int) -> float | None:
    jump = neighbours = 0.0
    for axis, (width, height) in enumerate([(spline.width - 1, spline.height), (spline.width, spline.height - 1)]):
        if width * height == 0:
            continue
        across = torch.eye(2, device=spline.device)[axis]
        for part in _some(width * height, _MOST_PLACES // 4).to(spline.device).split(chunk):
            center = pixel_centers(part, width)
            border = center + across / 2
            jump += _square(render(border + _STEP * across) - render(border - _STEP * across))
            neighbours += _square(spline(center + across) - spline(center))
    return math.sqrt(jump / neighbours) if neighbours > 1e-9 else None


def _some(count: int, most: int) -> Tensor:
    """All of 0 .. count - 1, or `most` of them at random, the same ones every time."""
    if count <= most:
        return torch.arange(count)
    return torch.randint(count, (most,), generator=torch.Generator().manual_seed(0))


def _square(x: Tensor) -> float:
    return float(x.square().sum(dtype=torch.float64))
