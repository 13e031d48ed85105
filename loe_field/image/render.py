"""A run's field as a picture file, of any size, of any window, or its derivative."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from loe_field.errors import InputError
from loe_field.files import write_output
from loe_field.image.derivatives import Derivative, derivative_of
from loe_field.image.model import LoEImageModel
from loe_field.image.picture import EXR_CHANNELS, MU, Picture, codes, radiance
from loe_field.image.rows import DTYPES, FileFormat, Sheet, check_sheet, file_format, write_rows
from loe_field.image.window import (
    OnGrid,
    Upscaling,
    View,
    colours_of,
    evaluated,
    on_grid,
    pictured,
    rendered_rows,
)

_BRIGHTEST = 0.999
"""Part of the picture in which a derivative shown as a picture is below white."""
_SAMPLES = 2**14


@dataclass(frozen=True)
class Rendering:
    """What is to be rendered, and into what.

    Attributes:
        output: the file; its suffix says the format.
        view: the window and the size.
        upscaling: what fills the places between the centres of the picture's pixels, where the view leaves them.
        derivative: instead of the colours.
        bit_depth: bits per channel; None for the picture's own where the format has them.
        chunk: points evaluated at once.
    """

    output: Path
    view: View
    upscaling: Upscaling
    derivative: Derivative | None = None
    bit_depth: int | None = None
    chunk: int = 65536


def render(model: LoEImageModel, picture: Picture, wanted: Rendering, advance: Callable[[int], None]) -> list[str]:
    """Render and write the file, whole or not at all.

    Args:
        model: the field.
        picture: of the kind that it was fitted to; its content does not matter.
        wanted: what.
        advance: told of the rows that are done, band by band.

    Returns:
        Lines for the user: what was written, and how.

    Raises:
        InputError: the format cannot hold it, the derivative does not exist, or the file cannot be written.
    """
    output, view = wanted.output, wanted.view
    if wanted.chunk < 1:
        raise InputError(f"--chunk-size is {wanted.chunk}: it must be at least 1")
    job = _colours(model, picture, wanted) if wanted.derivative is None else _derivative(model, picture, wanted)
    check_sheet(job.sheet)

    def bands():
        for band in rendered_rows(job.function, view, chunk=wanted.chunk, alpha=job.alpha):
            yield job.encode(band)
            advance(len(band))

    try:
        with write_output(output) as path:
            write_rows(path, job.sheet, bands())
    except MemoryError:
        raise InputError(
            f"rows of {view.width:,} pixels do not fit into memory: give a smaller --scale or --size, or a --crop"
        ) from None
    names = "".join(job.sheet.channels) if "." not in job.sheet.channels[0] else " ".join(job.sheet.channels)
    bits = f"{8 * job.sheet.dtype.itemsize} bit{' float' if job.sheet.dtype.kind == 'f' else ''}"
    return [f"{output}: {view.width} x {view.height} pixels, {names}, {bits}{job.how}", *job.notes]


@dataclass(frozen=True)
class _Job:
    """A function, and what becomes of its values."""

    sheet: Sheet
    function: OnGrid
    encode: Callable[[np.ndarray], np.ndarray]
    alpha: bool
    how: str
    notes: tuple[str, ...] = ()


def _colours(model: LoEImageModel, picture: Picture, wanted: Rendering) -> _Job:
    view = wanted.view
    is_radiance = picture.peak is not None
    kind, bits, alpha = file_format(wanted.output), wanted.bit_depth, picture.has_alpha
    if kind == picture.format == "EXR" and bits is None:
        bits = picture.bits
    dtype = _dtype(kind, bits, default=32 if is_radiance else max(8, picture.bits))
    function = on_grid(evaluated(colours_of(model), model.device, wanted.chunk))
    function = pictured(function, picture, view, wanted.upscaling)
    how = ""
    if view.leaves_centres:
        spline = wanted.upscaling == "spline"
        how = ", the cubic spline through the field's pixels" if spline else ", the field between its pixels too"
    if view.samples != (1, 1):
        how += ", each the mean of {} x {} samples".format(*view.samples)
    sheet = _sheet(wanted, EXR_CHANNELS[picture.channels], dtype, picture.icc_profile)
    few = "black and white" if picture.mode == "1" else "a palette" if picture.palette is not None else ""
    if few and view.is_of_own_pixels and dtype == np.uint8:
        return _Job(sheet, function, lambda band: picture.like(band).values, alpha, how)
    notes = (f"the run's picture has {few}: other colours lie between its pixels",) if few else ()
    if is_radiance:
        if dtype.kind == "f":
            return _Job(sheet, function, lambda band: radiance(band, dtype, alpha=alpha), alpha, how)
        how += f", tone-mapped as log(1 + {MU:g} v / {picture.peak:.3g}) / log(1 + {MU:g})"
        return _Job(sheet, function, lambda band: codes(picture.to_unit(band), dtype), alpha, how)
    return _Job(sheet, function, lambda band: codes(band, dtype), alpha, how, notes)


def _derivative(model: LoEImageModel, picture: Picture, wanted: Rendering) -> _Job:
    assert wanted.derivative is not None
    kind = file_format(wanted.output)
    function = evaluated(derivative_of(model, wanted.derivative), model.device, wanted.chunk)
    dtype = _dtype(kind, wanted.bit_depth, default=32 if 32 in DTYPES[kind] else 8)
    colours = EXR_CHANNELS[picture.channels]
    if dtype.kind == "f":
        parts = ("dx", "dy") if wanted.derivative == "gradient" else ("laplacian",)
        names = tuple(f"{colour}.{part}" for colour in colours for part in parts)
        how = ", values per pixel" if wanted.derivative == "gradient" else ", values per square pixel"
        how += "" if picture.peak is None else ", of the curve on which radiance is fitted"
        return _Job(_sheet(wanted, names, dtype), on_grid(function), lambda band: band.astype(dtype), False, how)
    shown = len([colour for colour in colours if colour != "A"])

    def strength(values: np.ndarray) -> np.ndarray:
        if wanted.derivative == "gradient":
            return np.sqrt(np.square(values[..., : 2 * shown]).sum(-1, keepdims=True))
        return values[..., :shown].mean(-1, keepdims=True)

    drawn = torch.rand(_SAMPLES, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    some = function(drawn * drawn.new_tensor([picture.width, picture.height])).numpy()
    white = max(float(np.quantile(np.abs(strength(some)), _BRIGHTEST)), 1e-12)

    def encode(band: np.ndarray) -> np.ndarray:
        values = strength(band) / white
        return codes(values if wanted.derivative == "gradient" else 0.5 + 0.5 * values, dtype)

    if wanted.derivative == "gradient":
        how = f", |gradient| of all channels, white is {white:.3g} a pixel"
    else:
        how = f", mean Laplacian of the channels, black to white is -{white:.3g} to {white:.3g} a square pixel"
    return _Job(_sheet(wanted, ("Y",), dtype), on_grid(function), encode, False, how)


def _sheet(wanted: Rendering, channels: tuple[str, ...], dtype: np.dtype, icc_profile: bytes | None = None) -> Sheet:
    view = wanted.view
    return Sheet(file_format(wanted.output), view.width, view.height, channels, dtype, icc_profile)


def _dtype(kind: FileFormat, bit_depth: int | None, *, default: int) -> np.dtype:
    """What a format holds at a depth; where none was given the default's, or the nearest that the format has."""
    if bit_depth is not None and bit_depth not in DTYPES[kind]:
        raise InputError(f"--bit-depth is {bit_depth}: {kind} has {' and '.join(map(str, DTYPES[kind]))}")
    if bit_depth is None:
        bit_depth = 32 if kind == "NPY" else min(DTYPES[kind], key=lambda bits: (abs(bits - default), -bits))
        if kind == "EXR" and default > 8:
            bit_depth = 32  # a half float has 11 bits
    return np.dtype(DTYPES[kind][bit_depth])
