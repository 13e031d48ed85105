"""The pixels of one picture on the device, and batches of them."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from loe_field.image.picture import Picture
from loe_field.image.spline import CubicSpline
from loe_field.training.machine import seeded_generator

HoldOut = Literal["none", "checkerboard"]


def as_seen(colours: Tensor) -> Tensor:
    """Colours as a screen shows them: grey repeated, alpha over black.

    Args:
        colours: [..., channels], 1 to 4 of them; clamped to [0, 1].

    Returns:
        [..., 3].
    """
    colours = colours.clamp(0, 1)
    channels = colours.shape[-1]
    rgb = colours[..., :3] if channels >= 3 else colours[..., :1].expand(*colours.shape[:-1], 3)
    return rgb * colours[..., -1:] if channels in (2, 4) else rgb


def pixel_centers(index: Tensor, width: int) -> Tensor:
    """Centres (x + 0.5, y + 0.5) in pixels, float32 [N, 2], of pixels numbered row by row, int64 [N]."""
    return torch.stack([index % width, index // width], -1).to(torch.float32) + 0.5


def checkerboard(height: int, width: int, first_row: int = 0) -> np.ndarray:
    """Every second pixel, the one in the picture's upper left corner among them: bool [height, width] from a row on."""
    return np.add.outer(np.arange(first_row, first_row + height), np.arange(width)) % 2 == 0


def fill_checkerboard(colours: np.ndarray) -> np.ndarray:
    """Colours [height, width, channels] with the pixels off the checkerboard replaced by the mean of their neighbours.

    The four beside, above and below, all of them on the checkerboard; fewer at the picture's edges.
    """
    height, width, _ = colours.shape
    total = np.zeros(colours.shape)
    count = np.zeros((height, width, 1))
    for axis in (0, 1):
        before, after = ([slice(None)] * 2 for _ in range(2))
        before[axis], after[axis] = slice(None, -1), slice(1, None)
        for here, there in ((tuple(before), tuple(after)), (tuple(after), tuple(before))):
            total[here] += colours[there]
            count[here] += 1
    kept = checkerboard(height, width)[..., None]
    return np.where(kept, colours, total / np.maximum(count, 1))


class PixelBatches:
    """Batches of places in the picture and their colours, all made on the device.

    One pass visits every pixel once, in an order that only the seed and the number of the pass decide: the batch of a
    step is the same whether the run got there in one go or was resumed. Off the grid, the visit to a pixel goes to a
    random place in the part of the plane that is nearest to it, where the colour is that of the cubic spline through
    the pixels.

    Args:
        picture: the picture.
        device: where pixels and coordinates live.
        pixels_per_batch: the largest batch, >= 1; None (or at least all pixels) is the whole picture at every step.
        seed: of the order and the places.
        off_grid: the part of every batch that is off the grid, 0 to 1.
        hold_out: "checkerboard" visits every second pixel only, and the spline knows nothing of the others.

    Attributes:
        num_pixels: pixels of one pass.
    """

    def __init__(
        self,
        picture: Picture,
        device: torch.device | str,
        *,
        pixels_per_batch: int | None,
        seed: int,
        off_grid: float = 0.0,
        hold_out: HoldOut = "none",
    ) -> None:
        self.width = picture.width
        values = picture.values if picture.peak is None else picture.unit
        flat = values.reshape(-1, picture.channels)
        # As they are, also in a mapped file; of uint16, for which torch has no arithmetic, the bits as int16.
        flat = flat.view(np.int16) if flat.dtype == np.uint16 else flat
        self._values = torch.from_numpy(flat).to(device)
        self._white = picture.white if picture.peak is None else 1.0
        self._kept: Tensor | None = None
        if hold_out == "checkerboard":
            kept = checkerboard(picture.height, picture.width).ravel().nonzero()[0]
            self._kept = torch.from_numpy(kept).to(device)
        self.num_pixels = len(flat) if self._kept is None else len(self._kept)
        self._spline: CubicSpline | None = None
        if off_grid > 0:
            colours = picture.unit
            self._spline = CubicSpline(colours if self._kept is None else fill_checkerboard(colours), device)
        size = min(pixels_per_batch or self.num_pixels, self.num_pixels)
        self.batches_per_pass = -(-self.num_pixels // size)
        self.pixels_per_batch = -(-self.num_pixels // self.batches_per_pass)
        self._off_grid = off_grid
        self._seed = seed
        self._pass, self._order = -1, torch.empty(0, dtype=torch.int64)
        self._whole: tuple[Tensor, Tensor] | None = None

    @property
    def always_the_same(self) -> bool:
        """Whether every step gets the same batch: the whole picture, on the grid."""
        return self.batches_per_pass == 1 and self._spline is None

    def colours(self, index: Tensor) -> Tensor:
        """Colours in [0, 1], float32 [N, channels], of pixels numbered row by row."""
        values = self._values.index_select(0, index)
        if values.dtype == torch.int16:
            values = values.to(torch.int32) & 0xFFFF
        return values.to(torch.float32) / self._white

    def at(self, index: Tensor, offset: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Places [N, 2] in pixels and colours [N, channels].

        Args:
            index: pixels numbered row by row, int64 [N].
            offset: how far from their centres the first M of them are visited, in pixels, [M, 2].
        """
        places = pixel_centers(index, self.width)
        if offset is None:
            return places, self.colours(index)
        assert self._spline is not None
        off_grid = places[: len(offset)] + offset
        colours = torch.cat([self._spline(off_grid), self.colours(index[len(offset) :])])
        return torch.cat([off_grid, places[len(offset) :]]), colours

    def draw(self, step: int) -> tuple[Tensor, ...]:
        """What `at` takes for a step >= 0: the pixels, and off the grid the offsets; sizes differ by one at most."""
        number, k = divmod(step, self.batches_per_pass)
        if number != self._pass:
            order = torch.randperm(self.num_pixels, generator=self._generator(number), device=self._device)
            self._order = order if self._kept is None else self._kept[order]
            self._pass = number
        first, last = (i * self.num_pixels // self.batches_per_pass for i in (k, k + 1))
        index = self._order[first:last]
        if self._spline is None:
            return (index,)
        size = (round(self._off_grid * len(index)), 2)
        offset = torch.rand(size, generator=self._generator(number, k), device=self._device) - 0.5
        if self._kept is not None:  # the squares become the diamonds that fill the plane around every second pixel
            offset = offset @ offset.new_tensor([[1.0, 1.0], [1.0, -1.0]])
        return index, offset

    def _generator(self, *numbers: int) -> torch.Generator:
        return seeded_generator(self._device, self._seed, *numbers)

    @property
    def _device(self) -> torch.device:
        return self._values.device

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Places [N, 2] and colours [N, channels] for a step >= 0."""
        if not self.always_the_same:
            return self.at(*self.draw(step))
        if self._whole is None:
            everything = torch.arange(self.num_pixels, device=self._device) if self._kept is None else self._kept
            self._whole = self.at(everything)
        return self._whole
