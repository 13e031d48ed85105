"""A run's field as a picture file, of any size, of any window, or its derivative."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from loe_field.errors import InputError, shortage
from loe_field.files import write_folder, write_output
from loe_field.network.protocol import Network
from loe_field.pictures.picture import EXR_CHANNELS, MU, Picture, codes, hdr_values
from loe_field.pictures.write import DTYPES, Sheet, check_sheet, file_format, write_rows
from loe_field.render.derivatives import Derivative, PixelField, derivative_of
from loe_field.render.tiles import Pyramid, TileFormat, write_tiles
from loe_field.render.window import OnGrid, Upscaling, View, evaluated, on_grid, pictured, rendered_rows

_BRIGHTEST = 0.999  # part of the picture in which a derivative shown as a picture is below white
_SAMPLES = 2**14  # coords at which that is measured


@dataclass(frozen=True)
class RenderJob:
    """A view of a field and the file for it, whose suffix says the format; see the options of loe-render."""

    output: Path
    view: View
    upscaling: Upscaling
    derivative: Derivative | None = None
    bit_depth: int | None = None
    chunk: int = 65536
    tiles: TileFormat | None = None
    """The suffix of the tiles of a pyramid, to which the file's folder is given instead; see tiles.py."""

    @property
    def format(self) -> str:
        """Of the file, or the tiles."""
        return file_format(self.output if self.tiles is None else Path(f"tile.{self.tiles}"))

    def sheet(self, channels: tuple[str, ...], dtype: np.dtype, icc_profile: bytes | None = None) -> Sheet:
        """The file's sheet."""
        return Sheet(self.format, self.view.width, self.view.height, channels, dtype, icc_profile)


def write_rendering(
    field: PixelField, network: Network, picture: Picture, job: RenderJob, advance: Callable[[int], None]
) -> list[str]:
    """Render a field and write the file, or the folder with its tiles, whole or not at all.

    Args:
        field: coords [N, 2] in pixels to values [N, channels] as they were fitted, on the device of the network.
        network: that of the field.
        picture: of the kind that the field was fitted to; its content does not matter.
        job: the view and the file.
        advance: told of the rows that are done, band by band.

    Returns:
        Lines for the user: the file, its size and depth, and how it came about.

    Raises:
        InputError: the format cannot hold it, the derivative does not exist, or the file cannot be written.
    """
    view = job.view
    if job.chunk < 1:
        raise InputError(f"--chunk-size is {job.chunk}: it must be at least 1")
    if job.derivative is not None:
        field = derivative_of(field, network, job.derivative)
    function = evaluated(field, next(network.parameters()).device, job.chunk)
    plan = (_colours if job.derivative is None else _derivative)(function, picture, job)
    check_sheet(plan.sheet)

    def bands():
        for band in rendered_rows(plan.function, view, chunk=job.chunk, alpha=plan.alpha):
            yield band
            advance(len(band))

    names = "".join(plan.sheet.channels) if "." not in plan.sheet.channels[0] else " ".join(plan.sheet.channels)
    bits = f"{8 * plan.sheet.dtype.itemsize} bit{' float' if plan.sheet.dtype.kind == 'f' else ''}"
    what = f"{view.width} x {view.height} pixels, {names}, {bits}{plan.how}"
    try:
        if job.tiles is not None:
            return [f"{job.output / 'index.html'}: {what}{_write_pyramid(job, plan, bands(), what)}", *plan.notes]
        with write_output(job.output) as path:
            write_rows(path, plan.sheet, map(plan.encode, bands()))
    except (MemoryError, RuntimeError) as error:
        problem = shortage(error)
        if problem is None:
            raise
        raise InputError(
            f"rows of {view.width:,} pixels do not fit into memory ({problem}): give a smaller --scale or --size, a "
            "--crop, or a smaller --chunk-size"
        ) from None
    return [f"{job.output}: {what}", *plan.notes]


def _write_pyramid(job: RenderJob, plan: "_Plan", bands: Iterator[np.ndarray], what: str) -> str:
    """Write the folder; returns a word on it."""
    with write_folder(job.output) as folder:
        pyramid = Pyramid(folder, plan.sheet, plan.alpha, plan.encode)
        write_tiles(pyramid, bands, f"{job.output.name}: {what}")
    return f", {pyramid.num_tiles:,} tiles in {len(pyramid.sizes)} levels"


@dataclass(frozen=True)
class _Plan:
    """A function on a grid, and the file's values made of its own."""

    sheet: Sheet
    function: OnGrid
    encode: Callable[[np.ndarray], np.ndarray]
    alpha: bool
    how: str
    notes: tuple[str, ...] = ()


def _colours(function: PixelField, picture: Picture, job: RenderJob) -> _Plan:
    view = job.view
    is_hdr = picture.peak is not None
    kind, bits, alpha = job.format, job.bit_depth, picture.has_alpha
    if kind == picture.format == "EXR" and bits is None:
        bits = picture.bits
    dtype = _dtype(kind, bits, default=32 if is_hdr else max(8, picture.bits))
    grid = pictured(on_grid(function), picture, view, job.upscaling)
    between = {"spline": ", the cubic spline through the field's pixels", "field": ", the field between its pixels too"}
    how = between[job.upscaling] if view.leaves_centres else ""
    if view.samples != (1, 1):
        how += ", each the mean of {} x {} samples".format(*view.samples)
    sheet = job.sheet(EXR_CHANNELS[picture.channels], dtype, picture.icc_profile)
    few = "black and white" if picture.mode == "1" else "a palette" if picture.palette is not None else ""
    if few and view.is_of_own_pixels and dtype == np.uint8 and job.tiles is None:
        return _Plan(sheet, grid, lambda band: picture.like(band).values, alpha, how)
    notes = (f"the run's picture has {few}: other colours lie between its pixels",) if few else ()
    if not is_hdr and dtype == np.uint8 and picture.bits > 8:
        how = f" of the picture's {picture.bits}{how}"
    if is_hdr and dtype.kind == "f":
        return _Plan(sheet, grid, lambda band: hdr_values(band, dtype, alpha=alpha), alpha, how)
    if is_hdr:
        how += f", tone-mapped as log(1 + {MU:g} v / {picture.peak:.3g}) / log(1 + {MU:g})"
        return _Plan(sheet, grid, lambda band: codes(picture.to_unit(band), dtype), alpha, how)
    return _Plan(sheet, grid, lambda band: codes(band, dtype), alpha, how, notes)


def _derivative(function: PixelField, picture: Picture, job: RenderJob) -> _Plan:
    assert job.derivative is not None
    kind = job.format
    dtype = _dtype(kind, job.bit_depth, default=32 if 32 in DTYPES[kind] else 8)
    colours = EXR_CHANNELS[picture.channels]
    if dtype.kind == "f":
        parts = ("dx", "dy") if job.derivative == "gradient" else ("laplacian",)
        names = tuple(f"{colour}.{part}" for colour in colours for part in parts)
        how = ", values per pixel" if job.derivative == "gradient" else ", values per square pixel"
        how += "" if picture.peak is None else ", of the curve on which HDR is fitted"
        return _Plan(job.sheet(names, dtype), on_grid(function), lambda band: band.astype(dtype), False, how)
    shown = len([colour for colour in colours if colour != "A"])

    def strength(values: np.ndarray) -> np.ndarray:
        if job.derivative == "gradient":
            return np.sqrt(np.square(values[..., : 2 * shown]).sum(-1, keepdims=True))
        return values[..., :shown].mean(-1, keepdims=True)

    drawn = torch.rand(_SAMPLES, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    some = function(drawn * drawn.new_tensor([picture.width, picture.height])).numpy()
    white = max(float(np.quantile(np.abs(strength(some)), _BRIGHTEST)), 1e-12)

    def encode(band: np.ndarray) -> np.ndarray:
        values = strength(band) / white
        return codes(values if job.derivative == "gradient" else 0.5 + 0.5 * values, dtype)

    if job.derivative == "gradient":
        how = f", |gradient| of all channels, white is {white:.3g} a pixel"
    else:
        how = f", mean Laplacian of the channels, black to white is -{white:.3g} to {white:.3g} a square pixel"
    return _Plan(job.sheet(("Y",), dtype), on_grid(function), encode, False, how)


def _dtype(kind: str, bit_depth: int | None, *, default: int) -> np.dtype:
    """A format's dtype of a depth; where none was given that of the default, or the nearest that the format has."""
    if bit_depth is not None and bit_depth not in DTYPES[kind]:
        raise InputError(f"--bit-depth is {bit_depth}: {kind} has {' and '.join(map(str, DTYPES[kind]))}")
    if bit_depth is None:
        bit_depth = 32 if kind == "NPY" else min(DTYPES[kind], key=lambda bits: (abs(bits - default), -bits))
        if kind == "EXR" and default > 8:
            bit_depth = 32  # a half float has 11 bits
    return np.dtype(DTYPES[kind][bit_depth])
