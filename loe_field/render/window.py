"""A fit at any resolution, through any window, as bands of rows; what is in memory is a few rows."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from loe_field.errors import InputError
from loe_field.pictures.picture import Picture
from loe_field.pictures.spline import CubicSpline

Upscaling = Literal["field", "spline"]
Size = tuple[int, int]  # width and height
OnGrid = Callable[[np.ndarray, np.ndarray], Tensor]
"""x [columns] and y [rows], float64 in the picture's pixels, to values float32 [rows, columns, channels] on the CPU."""

_SPLINE_MARGIN = 32  # pixels around a window that its spline knows of; those beyond weigh less than 1e-18
_SPLINE_ROWS = 64  # rows of pixels whose coefficients are computed at once, at least
_LARGEST_SIDE = 2**24
"""Floats of 32 bits number no more pixels."""
_BLOCK = 64  # points are evaluated in multiples of it: torch's products differ in their last bit in odd rows


class View(NamedTuple):
    """A window, half-open, in the picture's pixels, and width and height of the result in its own."""

    left: float
    top: float
    right: float
    bottom: float
    width: int
    height: int

    @property
    def steps(self) -> tuple[float, float]:
        """Pixels of the picture in one of the result, along x and y; below 1 it is enlarged."""
        return (self.right - self.left) / self.width, (self.bottom - self.top) / self.height

    @property
    def is_of_own_pixels(self) -> bool:
        """Whether every pixel of the result is one of the picture's."""
        return self.steps == (1, 1) and self.left % 1 == 0 and self.top % 1 == 0

    @property
    def samples(self) -> tuple[int, int]:
        """Samples in one pixel of the result, along x and y: no fewer than the picture has pixels there."""
        x, y = (max(1, math.ceil(step - 1e-9)) for step in self.steps)
        return x, y

    @property
    def leaves_centres(self) -> bool:
        """Whether samples lie beside the centres of the picture's pixels, where a field may have learned nothing.

        They do where the picture is enlarged, or made smaller by a factor, or from a window, not of whole pixels.
        """
        return self.steps != self.samples or self.left % 1 != 0 or self.top % 1 != 0


def view_of(
    picture: Size, *, scale: float | None = None, size: Size | None = None, crop: Sequence[float] | None = None
) -> View:
    """The view of a picture that the options of loe-render ask for.

    Args:
        picture: its size.
        scale: pixels of the result to one of the picture; 1 if there is no size either.
        size: of the result.
        crop: left, top, right and bottom of the window; the whole picture by default.

    Raises:
        InputError: both scale and size, one of them is not positive, or the window is empty or not in the picture.
    """
    width, height = picture
    left, top, right, bottom = crop or (0, 0, width, height)
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise InputError(
            f"--crop is {left:g} {top:g} {right:g} {bottom:g}: give X0 Y0 X1 Y1 with 0 <= X0 < X1 <= {width} and "
            f"0 <= Y0 < Y1 <= {height}, the picture's pixels"
        )
    if scale is not None and size is not None:
        raise InputError("--scale and --size are two ways to say the same: give one of them")
    if scale is not None and not (math.isfinite(scale) and scale > 0):
        raise InputError(f"--scale is {scale:g}: it must be positive")
    if size is not None and min(size) < 1:
        raise InputError(f"--size is {size[0]} {size[1]}: both must be at least 1")
    factor = 1 if scale is None else scale
    most = max(size or (factor * (right - left), factor * (bottom - top)))
    if most > _LARGEST_SIDE:
        raise InputError(f"the result would be {most:.3g} pixels long: {_LARGEST_SIDE:,} are the most along a side")
    scaled = max(1, round(factor * (right - left))), max(1, round(factor * (bottom - top)))
    return View(left, top, right, bottom, *(size or scaled))


def evaluated(function: Callable[[Tensor], Tensor], device: torch.device, chunk: int) -> Callable[[Tensor], Tensor]:
    """A function of coords [N, 2] on a device, taken in chunks of at most so many; coords and values on the CPU."""
    chunk = max(_BLOCK, chunk - chunk % _BLOCK)

    @torch.no_grad()
    def evaluate(coords: Tensor) -> Tensor:
        parts = []
        for part in coords.to(torch.float32).split(chunk):
            whole = torch.cat([part, part[-1:].expand(-len(part) % _BLOCK, 2)])
            parts.append(function(whole.to(device))[: len(part)].float().cpu())
        return torch.cat(parts)

    return evaluate


def on_grid(function: Callable[[Tensor], Tensor]) -> OnGrid:
    """A function of coords [N, 2] at the points (x, y) of a grid."""

    def grid(x: np.ndarray, y: np.ndarray) -> Tensor:
        coords = torch.from_numpy(np.stack(np.broadcast_arrays(x[None], y[:, None]), -1))
        return function(coords.flatten(0, 1)).view(len(y), len(x), -1)

    return grid


def pictured(function: OnGrid, picture: Picture, view: View, upscaling: Upscaling) -> OnGrid:
    """The field of a picture as `rendered_rows` takes it, for a view; HDR as light, whose means are wanted.

    Only the picture's kind matters. `upscaling` fills the gaps between the centres of its pixels, where the view leaves
    them.
    """
    if view.leaves_centres and upscaling == "spline":
        function = SplineOfPixels(function, (picture.width, picture.height), view, alpha=picture.has_alpha)
    if picture.peak is None:
        return function
    return lambda x, y: torch.from_numpy(picture.from_unit(function(x, y).numpy()))


class SplineOfPixels:
    """The cubic spline through the values that a function has at the centres of the picture's pixels.

    Its coefficients are computed for some rows at a time, wherever the function is asked for next; which rows these are
    depends on nothing but the picture, so that a window has the values that the whole has there.

    Args:
        function: usually the field, evaluated.
        picture: its size.
        view: the window; the spline knows of a margin around it.
        alpha: whether the last channel is alpha, by which colours are then multiplied.
    """

    def __init__(self, function: OnGrid, picture: Size, view: View, *, alpha: bool) -> None:
        self._function, self._alpha = function, alpha
        width, self._height = picture
        self._left = max(0, math.floor(view.left) - _SPLINE_MARGIN)
        self._right = min(width, math.ceil(view.right) + _SPLINE_MARGIN)
        self._rows = max(_SPLINE_ROWS, 2**16 // width)
        self._block, self._spline = -1, CubicSpline(np.zeros((1, 1, 1)))

    def __call__(self, x: np.ndarray, y: np.ndarray) -> Tensor:
        """The spline's values on a grid; y ascends."""
        blocks = np.floor(y / self._rows).astype(int)
        values = torch.cat([self._in_block(int(block), x, y[blocks == block]) for block in np.unique(blocks)])
        return straight(values) if self._alpha else values

    def _in_block(self, block: int, x: np.ndarray, y: np.ndarray) -> Tensor:
        top = max(0, block * self._rows - _SPLINE_MARGIN)
        if block != self._block:
            bottom = min(self._height, (block + 1) * self._rows + _SPLINE_MARGIN)
            values = self._function(np.arange(self._left, self._right) + 0.5, np.arange(top, bottom) + 0.5)
            self._block = block
            self._spline = CubicSpline((premultiplied(values) if self._alpha else values).numpy())
        return self._spline.on_grid(torch.from_numpy(x - self._left), torch.from_numpy(y - top))


def rendered_rows(function: OnGrid, view: View, *, chunk: int, alpha: bool = False) -> Iterator[np.ndarray]:
    """A function over a view: float32 [rows, width, channels], a band of rows at a time, top to bottom.

    Where a pixel of the result covers several of the picture it is the mean of a grid of samples, as many along each
    side as the picture has pixels there, rounded up: the mean of just those pixels where they are a whole number.

    Args:
        function: the field, its spline, or a derivative.
        view: the window and the size.
        chunk: points in a band, about; a band has one row at least.
        alpha: whether the last channel is alpha: colours count for as much as they are seen then.
    """
    across, down = view.samples
    x = _centres(view.left, view.right, view.width * across)
    y = _centres(view.top, view.bottom, view.height * down)
    rows = max(1, chunk // len(x) // down)
    for first in range(0, view.height, rows):
        band = y[first * down : (first + rows) * down]
        values = function(x, band)
        if across * down > 1:
            values = premultiplied(values) if alpha else values
            values = values.view(len(band) // down, down, view.width, across, -1).mean((1, 3))
            values = straight(values) if alpha else values
        yield values.numpy()


def premultiplied(values: Tensor) -> Tensor:
    """Colours [..., channels], at least 0, times the alpha in the last channel, clamped to [0, 1]."""
    alpha = values[..., -1:].clamp(0, 1)
    return torch.cat([values[..., :-1].clamp(min=0) * alpha, alpha], -1)


def straight(values: Tensor) -> Tensor:
    """The inverse of `premultiplied`; black where there is nothing to be seen."""
    alpha = values[..., -1:].clamp(0, 1)
    return torch.cat([(values[..., :-1] / alpha.clamp(min=1e-6)).clamp(min=0) * (alpha > 0), alpha], -1)


def _centres(first: float, last: float, count: int) -> np.ndarray:
    """The centres of `count` equal parts of an interval, float64."""
    return first + (np.arange(count) + 0.5) * ((last - first) / count)
