"""A picture as a signal: its pixels, the plane between them, the measures of a fit, and its file."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from loe_field.errors import InputError
from loe_field.files import write_each
from loe_field.pictures.memory import check_picture_memory
from loe_field.pictures.metrics import decibels, picture_psnr, picture_ssim, squared_error
from loe_field.pictures.picture import Picture, codes
from loe_field.pictures.read import decode_picture, read_picture
from loe_field.pictures.spline import CubicSpline
from loe_field.pictures.write import encode
from loe_field.signals.between import between_pixels
from loe_field.signals.seeds import seeded_generator
from loe_field.signals.signal import Field, GridSignal, Reconstruction, grid_coords
from loe_field.signals.sizes import samples_per_batch_for

HoldOut = Literal["none", "checkerboard"]
_WINDOW = 4096  # pixels along a side of the middle of a larger picture that is measured between the pixels


@dataclass
class PictureOptions:
    """The picture, and the batches of its pixels."""

    data: Path | None = None
    """The picture: PNG, JPEG, TIFF, BMP, WebP or EXR. A folder or a quoted pattern ("photos/*.png"): one run for
    each picture in it. Left out: scikit-image's `camera`, 512x512 grey."""
    pixels_per_batch: int | Literal["auto"] | None = "auto"
    """Pixels per step, drawn at random without replacement. "auto": 4,096 for every expert along an axis (8,192, and
    16,384 or 32,768 for large pictures), 1,024 from 4 megapixels on where a CPU computes; for a baseline its authors'
    number. None: the whole picture at every step. Several processes share them: of 8,192 pixels each of two takes
    4,096."""
    off_grid: float = 0.0
    """Part of the pixels of every step, 0 to 1, that are visited at a random place in their square instead of its
    centre; the colour there is that of the cubic spline through the pixels. 0 fits the pixels and nothing between them;
    0.5 makes a field that can be enlarged."""
    hold_out: HoldOut = "none"
    """Pixels that the fit never sees: "checkerboard" keeps every second one back and measures it (psnr_held_out)."""

    def open(self, device: torch.device | str, seed: int, picture: Picture | None = None) -> "PictureSignal":
        """The signal of `data`, or of a picture in memory; "auto" becomes a number here.

        Raises:
            InputError: the picture cannot be used, pixels_per_batch is below 1, or off_grid is not a part.
        """
        size = self.pixels_per_batch
        if isinstance(size, int) and size < 1:
            raise InputError(f"pixels_per_batch is {size}: give 1 or more, or None for the whole picture")
        if not 0 <= self.off_grid <= 1:
            raise InputError(f"off_grid is {self.off_grid}: it is a part of the pixels, give 0 to 1")
        in_file = picture is None
        picture = picture or read_picture(self.data or default_picture())
        if self.pixels_per_batch == "auto":
            by_clock = torch.device(device).type == "cpu"
            sizes = (picture.width, picture.height), picture.channels
            self.pixels_per_batch = samples_per_batch_for(*sizes, by_clock=by_clock)
        options = {"off_grid": self.off_grid, "hold_out": self.hold_out, "in_file": in_file}
        return PictureSignal(picture, device, samples_per_batch=self.pixels_per_batch, seed=seed, **options)


def default_picture() -> Path:
    """scikit-image's `camera`, which lies inside its package."""
    import skimage

    return Path(skimage.__file__).parent / "data" / "camera.png"


def checkerboard(height: int, width: int, first_row: int = 0) -> np.ndarray:
    """Every second pixel, the one in the picture's upper left corner among them: bool [height, width] from a row on."""
    return np.add.outer(np.arange(first_row, first_row + height), np.arange(width)) % 2 == 0


def fill_checkerboard(colours: np.ndarray) -> np.ndarray:
    """Colours [height, width, channels] with the pixels off the checkerboard replaced by the mean of their neighbours.

    The four beside, above and below, all of them on the checkerboard; fewer at the picture's edges.
    """
    height, width, _ = colours.shape
    total, count = np.zeros(colours.shape), np.zeros((height, width, 1))
    before, after, every = slice(None, -1), slice(1, None), slice(None)
    for first, second in (((before, every), (after, every)), ((every, before), (every, after))):
        for here, there in ((first, second), (second, first)):
            total[here] += colours[there]
            count[here] += 1
    return np.where(checkerboard(height, width)[..., None], colours, total / np.maximum(count, 1))


class PictureSignal(GridSignal):
    """The pixels of a picture, as GridSignal batches them; coordinates are (x, y), x to the right and y down.

    Off the grid, the visit to a pixel goes to a random place in the part of the plane that is nearest to it, where the
    colour is that of the cubic spline through the pixels.

    Args:
        picture: the picture.
        device: see GridSignal.
        samples_per_batch: see GridSignal.
        seed: of the order and the offsets.
        off_grid: the part of every batch that is off the grid, 0 to 1.
        hold_out: "checkerboard" visits every second pixel only, and the spline knows nothing of the others.
        in_file: whether a reconstruction is measured as its file holds it, not as an array does.
    """

    unit = "pixels"

    def __init__(
        self,
        picture: Picture,
        device: torch.device | str,
        *,
        samples_per_batch: int | None,
        seed: int,
        off_grid: float = 0.0,
        hold_out: HoldOut = "none",
        in_file: bool = True,
    ) -> None:
        kept = None
        if hold_out == "checkerboard":
            kept = checkerboard(picture.height, picture.width).ravel().nonzero()[0]
        values = picture.values if picture.peak is None else picture.unit  # white is 1 for both kinds of floats
        super().__init__(values, device, white=picture.white, samples_per_batch=samples_per_batch, seed=seed, kept=kept)
        self.picture, self.kind, self.in_file, self.hold_out = picture, picture.kind, in_file, hold_out
        self._off_grid = off_grid
        self._spline: CubicSpline | None = None
        if off_grid > 0:
            sizes = (picture.height, picture.width, picture.channels, picture.values.itemsize)
            check_picture_memory(*sizes, "the picture", spline=True)
            colours = picture.unit
            self._spline = CubicSpline(colours if kept is None else fill_checkerboard(colours), device)

    @property
    def description(self) -> dict[str, Any]:
        """Width, height and channels, and of HDR the peak."""
        picture = self.picture
        sizes = {"width": picture.width, "height": picture.height, "channels": picture.channels}
        return sizes | {"radiance_peak": picture.peak}

    @property
    def targets(self) -> np.ndarray:
        """See Picture.unit."""
        return self.picture.unit

    def draw(self, step: int) -> tuple[Tensor, ...]:
        """The pixels of a step, int64 [N]; off the grid also how far the first M are from their centres, [M, 2]."""
        if self._spline is None:
            return super().draw(step)
        index = self._chosen(step)
        generator = seeded_generator(self.device, self._seed, *divmod(step, self.batches_per_pass))
        offset = torch.rand(round(self._off_grid * len(index)), 2, generator=generator, device=self.device) - 0.5
        if self._kept is not None:  # the squares become the diamonds that fill the plane around every second pixel
            offset = torch.stack([offset[:, 0] + offset[:, 1], offset[:, 0] - offset[:, 1]], -1)
        return index, offset

    def part(self, drawn: tuple[Tensor, ...], rank: int, size: int) -> tuple[Tensor, ...]:
        """See Signal.part; its share of the pixels off the grid, and of the others."""
        if len(drawn) < 2:
            return super().part(drawn, rank, size)
        index, offset = drawn
        (off_grid, mine), (others,) = (
            super(PictureSignal, self).part(tensors, rank, size)
            for tensors in ((index[: len(offset)], offset), (index[len(offset) :],))
        )
        return torch.cat([off_grid, others]), mine

    def at(self, *drawn: Tensor) -> tuple[Tensor, Tensor]:
        """See Signal.at."""
        if len(drawn) < 2:
            return super().at(*drawn)
        assert self._spline is not None
        index, offset = drawn
        coords, targets = super().at(index[len(offset) :])
        off_grid = grid_coords(index[: len(offset)], self.shape) + offset
        return torch.cat([off_grid / self._size, coords]), torch.cat([self._spline(off_grid), targets])

    def seen(self, values: np.ndarray) -> np.ndarray:
        """See GridSignal.seen: rounded to what the picture's kind can hold; NaN where there is one."""
        if np.isnan(values).any():  # which whole steps cannot hold
            return np.full_like(values, np.nan)
        return self.picture.like(values[None]).unit[0]

    @torch.no_grad()
    def preview(self, field: Field, num_samples: int, *, chunk: int = 65536) -> np.ndarray:
        """See Signal.preview: each pixel is the mean of four of the picture's under it, HDR on its curve."""
        picture = self.picture
        scale = min(1.0, math.sqrt(num_samples / (picture.width * picture.height)) / 2)
        width, height = (max(1, round(scale * side)) for side in (picture.width, picture.height))
        columns, rows = (
            ((torch.arange(2 * small, device=self.device) + 0.5) * side / (2 * small)).long()
            for small, side in ((width, picture.width), (height, picture.height))
        )
        index = (rows[:, None] * picture.width + columns).flatten()
        values = torch.cat([field(self.coords(part)).float().cpu() for part in index.split(chunk)])
        means = values.clamp(0, 1).view(height, 2, width, 2, picture.channels).mean((1, 3))
        return codes(means.numpy(), np.uint8)

    def reconstruct(self, field: Field, *, chunk: int = 65536) -> "PictureReconstruction":
        """The field at the picture's own pixels, strip by strip: of floats there is never more than a strip."""
        return PictureReconstruction(self, field, chunk)


class PictureReconstruction(Reconstruction):
    """A field at the pixels of its picture, rounded to what the picture's kind can hold: `picture`, and its psnr.

    The psnr is NaN where the field's values are, and there is no picture then.
    `figures` measures the field between the pixels, as it is then.
    """

    def __init__(self, signal: PictureSignal, field: Field, chunk: int) -> None:
        self._signal, self._field, self._chunk = signal, field, chunk
        target = signal.picture
        values = np.empty(target.values.shape, target.values.dtype)
        square = square_held_out = 0.0
        count_held_out = 0
        for rows, colours in signal.strips(field, chunk):
            seen = np.clip(colours, 0, 1 if target.peak is None else np.inf)
            wanted = target.to_unit(target.values[rows])
            square += squared_error(seen, wanted)
            if math.isnan(square):  # which whole steps cannot hold: they would be taken for black
                break
            values[rows] = target.like(colours).values
            if signal.hold_out == "checkerboard":
                unseen = ~checkerboard(len(seen), target.width, rows.start)
                square_held_out += squared_error(seen[unseen], wanted[unseen])
                count_held_out += int(unseen.sum()) * target.channels
        self.picture = replace(target, values=values)
        self._psnr_unrounded = decibels(square, values.size)
        self.psnr = math.nan if math.isnan(square) else picture_psnr(self.picture, target)
        self._psnr_held_out = decibels(square_held_out, count_held_out) if count_held_out else None

    @cached_property
    def _content(self) -> bytes:
        return encode(self.picture)

    @cached_property
    def stored(self) -> Picture:
        """The reconstruction as it reads back from its file; the array itself where there is none."""
        return decode_picture(self._content, name="the reconstruction") if self._signal.in_file else self.picture

    def figures(self) -> dict[str, Any]:
        """All measures of the fit.

        Returns:
            psnr: dB over all values on [0, 1] of `stored`; infinite if not one value differs.
            psnr_unrounded: dB of the field's own floats, clamped to [0, 1], before rounding to the file's depth.
            ssim: of `stored`, mean over the channels; None if a side is shorter than the window of 11.
            psnr_half_pixel, border_jump: see BetweenPixels.
            psnr_held_out: dB of the field's own floats over the pixels that were held out; None if there are none.
        """
        target = self._signal.picture
        return {
            "psnr": picture_psnr(self.stored, target),
            "psnr_unrounded": self._psnr_unrounded,
            "ssim": picture_ssim(self.stored, target),
            **self._between_pixels(),
            "psnr_held_out": self._psnr_held_out,
        }

    @torch.no_grad()
    def _between_pixels(self) -> dict[str, float | None]:
        picture, device = self._signal.picture, self._signal.device
        top, left = (max(0, (side - _WINDOW) // 2) for side in (picture.height, picture.width))
        window = picture.to_unit(picture.values[top : top + _WINDOW, left : left + _WINDOW])
        corner = torch.tensor([left, top], device=device)
        size = torch.tensor([picture.width, picture.height], dtype=torch.float32, device=device)

        def field(coords: Tensor) -> Tensor:
            return self._field((coords + corner) / size).float()

        return between_pixels(field, CubicSpline(window, device), chunk=self._chunk)._asdict()

    def write(self, folder: Path) -> dict[str, Path]:
        """Write reconstruction.* in the picture's own format, and error.png; see Reconstruction.write."""
        from loe_field.signals.error_map import error_figure

        paths = {"reconstruction": folder / f"reconstruction{self.picture.suffix}", "error": folder / "error.png"}
        write_each(
            {
                paths["reconstruction"]: lambda path: path.write_bytes(self._content),
                paths["error"]: lambda path: error_figure(self.stored, self._signal.picture).savefig(path),
            }
        )
        return paths
