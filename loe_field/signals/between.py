"""A fit between the pixels: its distance from the spline through them, and its jumps at their borders."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from loe_field.pictures.metrics import decibels
from loe_field.pictures.spline import CubicSpline
from loe_field.signals.signal import grid_coords

_MOST_COORDS = 2**20  # pictures above 512 x 512 are measured at so many random coords, others at all
_STEP = 0.01  # pixels from a border at which its two sides are taken


class BetweenPixels(NamedTuple):
    """Measures of a fit between the pixels."""

    psnr_half_pixel: float
    """dB against the cubic spline through the pixels on the grid of half a pixel (that of the picture at twice its
    size: a quarter of a pixel beside every centre), both clamped to [0, 1]."""
    border_jump: float | None
    """Root mean square jump at the borders between neighbouring pixels, as a part of the neighbours' root mean square
    difference: 1 for a table of pixels, 0 for a continuous function. None if no neighbours differ."""


def between_pixels(field: Callable[[Tensor], Tensor], spline: CubicSpline, *, chunk: int = 65536) -> BetweenPixels:
    """Measure a field, coords [N, 2] in pixels to values [N, channels], against its picture's spline."""
    error, values = 0.0, 0
    for part in _some(4 * spline.width * spline.height, _MOST_COORDS).to(spline.device).split(chunk):
        quarter = torch.stack([part % 2, part // 2 % 2], -1) / 2 - 0.25
        coords = grid_coords(part // 4, (spline.height, spline.width)) + quarter
        difference = field(coords).clamp(0, 1) - spline(coords).clamp(0, 1)
        error += _square(difference)
        values += difference.numel()
    return BetweenPixels(decibels(error, values), _border_jump(field, spline, chunk))


def _border_jump(field: Callable[[Tensor], Tensor], spline: CubicSpline, chunk: int) -> float | None:
    jump = neighbours = 0.0
    for axis, (width, height) in enumerate([(spline.width - 1, spline.height), (spline.width, spline.height - 1)]):
        if width * height == 0:
            continue
        across = torch.eye(2, device=spline.device)[axis]
        for part in _some(width * height, _MOST_COORDS // 4).to(spline.device).split(chunk):
            center = grid_coords(part, (height, width))
            border = center + across / 2
            jump += _square(field(border + _STEP * across) - field(border - _STEP * across))
            neighbours += _square(spline(center + across) - spline(center))
    return math.sqrt(jump / neighbours) if neighbours > 1e-9 else None


def _some(count: int, most: int) -> Tensor:
    """All of 0 .. count - 1, or `most` of them at random, the same ones every time."""
    if count <= most:
        return torch.arange(count)
    return torch.randint(count, (most,), generator=torch.Generator().manual_seed(0))


def _square(x: Tensor) -> float:
    return float(x.square().sum(dtype=torch.float64))
