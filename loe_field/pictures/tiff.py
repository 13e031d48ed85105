"""TIFF: tifffile and imagecodecs decode what is stored, and what the numbers mean is decided here."""

import math
import struct
from typing import Any, BinaryIO, Literal

import numpy as np
from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC, PLANARCONFIG, TiffFile

from loe_field.errors import InputError
from loe_field.pictures.memory import check_picture_memory
from loe_field.pictures.picture import CHANNEL_NAMES, Picture, as_hdr, check_finite, straight, upright

Alpha = Literal["", "straight", "associated", "left out"]

_COLOURS = {
    PHOTOMETRIC.MINISWHITE: 1, PHOTOMETRIC.MINISBLACK: 1, PHOTOMETRIC.PALETTE: 1, PHOTOMETRIC.RGB: 3,
    PHOTOMETRIC.SEPARATED: 4, PHOTOMETRIC.YCBCR: 3, PHOTOMETRIC.CIELAB: 3,
}  # fmt: skip
"""Channels of each kind of colours that is read, alpha not counted."""
_CONVERTED = {PHOTOMETRIC.SEPARATED: "CMYK", PHOTOMETRIC.YCBCR: "YCbCr", PHOTOMETRIC.CIELAB: "CIELAB"}
_FAX = (2, 3, 4)  # compressions of CCITT, whose names differ between versions of tifffile
_PRIVATE = 700  # code of the first tag that is none of TIFF's own
_MAPPED_FROM = 2**26  # values from which on a picture is mapped rather than read
_D50 = np.array([0.96422, 1.0, 0.82521])  # XYZ of the white that CIELAB is relative to
_D50_TO_SRGB = np.array(  # linear, by Bradford's method (brucelindbloom.com)
    [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540], [0.0719453, -0.2289914, 1.4052427]]
)


def read_tiff(file: BinaryIO, name: str) -> Picture:
    """The one picture of an open TIFF, upright; reduced copies of it are passed over.

    Grey, palettes, RGB, CMYK, YCbCr and CIELAB of 1 to 16 bits; grey and RGB of floats; one channel of alpha. CMYK,
    YCbCr and CIELAB become RGB, other depths 8 or 16 bits, associated alpha straight, with a note. A large plain file
    is mapped, left where it lies.

    Raises:
        InputError: the file holds something else.
        Exception: its bytes cannot be decoded; of any kind, as the decoders have it.
    """
    with TiffFile(file) as tiff:
        notes: list[str] = []
        page = _only_page(tiff, name, notes)
        kind, channels, bits = _kind(page, name), page.samplesperpixel, page.bitspersample
        height, width = max(page.imagelength, page.tilelength), max(page.imagewidth, page.tilewidth)
        check_picture_memory(height, width, channels, page.dtype.itemsize, name)
        _check_whole(file, tiff, page)
        alpha, profile = _alpha(page, channels - _COLOURS[kind], notes), page.iccprofile
        plain = kind in (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB) and bits in (8, 16) and alpha in ("", "straight")
        mapped = _mapped(file, page, tiff) if plain else None
        values = _stored(file, page, kind) if mapped is None else mapped
        palette = None
        if kind == PHOTOMETRIC.PALETTE:
            values, palette = _coloured(values, page.colormap, notes)
    if kind != PHOTOMETRIC.PALETTE and mapped is None:
        values = _in_full_range(values, bits, notes, name)
        if alpha == "associated":
            values = straight(values)
        values = _as_seen(values[..., :-1] if alpha == "left out" else values, kind, notes)
    if kind in _CONVERTED:
        profile = None  # of other colours than RGB
    mode = "P" if palette is not None else "1" if bits == channels == 1 else CHANNEL_NAMES[values.shape[2]]
    note = f"{name} {', and '.join(notes)}" if notes else ""
    picture = Picture(values, "TIFF", mode, palette, profile, note)
    is_light = values.dtype.kind == "f" and (values.min() < 0 or values.max() > 1)
    return as_hdr(picture, name) if is_light else picture


def _only_page(tiff: Any, name: str, notes: list[str]) -> Any:
    """The one page that is neither a reduced copy (an overview) nor the mask of another."""
    pages = [page for page in tiff.pages if not (page.is_reduced or page.is_mask)]
    if any(page.is_mask and not page.is_reduced for page in tiff.pages):
        notes.append("has a mask beside it: left out")
    count = max(len(pages), int((tiff.imagej_metadata or {}).get("images", 1)))
    if count > 1:
        raise InputError(f"{name} holds {count} pictures: save the one that you want on its own")
    if not pages:
        raise InputError(f"{name} holds reduced pictures or masks only, as camera raws do: develop or convert it")
    return pages[0]


def _check_whole(file: BinaryIO, tiff: Any, page: Any) -> None:
    """Refuse a page of which tags, strips or tiles are lost: tifffile would go on with defaults and zeros."""
    layout = tiff.tiff
    file.seek(page.offset)
    (count,) = struct.unpack(layout.tagnoformat, file.read(layout.tagnosize))
    entries = file.read(count * layout.tagsize)
    codes = {struct.unpack_from(layout.byteorder + "H", entries, i * layout.tagsize)[0] for i in range(count)}
    if lost := {code for code in codes if code < _PRIVATE} - {tag.code for tag in page.tags}:
        raise ValueError(f"the values of its tags {', '.join(map(str, sorted(lost)))} are not there")
    down, across = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    planes = page.samplesperpixel if page.planarconfig == PLANARCONFIG.SEPARATE else 1
    parts = planes * math.ceil(page.imagelength / down) * math.ceil(page.imagewidth / across)
    there = sum(size > 0 for size in page.databytecounts[:parts])
    if not page.is_contiguous and page.compression != COMPRESSION.OJPEG and there < parts:
        raise ValueError(f"{parts - there} of its {parts} strips or tiles are not there")


def _kind(page: Any, name: str) -> PHOTOMETRIC:
    """What the channels are, after a check of all that can be refused before anything is decoded."""
    kind, channels = page.photometric, page.samplesperpixel
    if 262 not in page.tags and page.compression not in (*_FAX, COMPRESSION.OJPEG):  # as libtiff guesses it
        kind = PHOTOMETRIC.RGB if channels >= 3 else PHOTOMETRIC.MINISBLACK
    known = _COLOURS.get(kind)
    if known is None or channels not in (known, known + (kind != PHOTOMETRIC.PALETTE)) or page.imagedepth != 1:
        colours = getattr(kind, "name", kind)
        raise InputError(
            f"{name} has {channels} channels of {colours} and depth {page.imagedepth}: convert it to grey or RGB, "
            "alone or with alpha"
        )
    numbers = page.dtype if isinstance(page.bitspersample, int) else None
    if numbers is None or not (numbers.kind in "bf" or (numbers.kind == "u" and numbers.itemsize <= 2)):
        held = numbers or f"{page.bitspersample}-bit"
        raise InputError(f"{name} holds {held} numbers: convert it to 8 or 16 bits per channel, or to floats")
    if numbers.kind == "f" and kind not in (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB):
        raise InputError(f"{name} holds floats of {kind.name}: convert it to grey or RGB")
    only = {PHOTOMETRIC.CIELAB: (8, 16), PHOTOMETRIC.YCBCR: (8,)}.get(kind)
    if only and (page.bitspersample not in only or channels > 3):
        bits = page.bitspersample
        raise InputError(f"{name} is {kind.name} of {bits} bits and {channels} channels: convert it to RGB")
    inks = page.tags.valueof(332, 1), page.tags.valueof(334, 4)  # InkSet, NumberOfInks
    if kind == PHOTOMETRIC.SEPARATED and inks != (1, 4):
        raise InputError(f"{name} is separated into other inks than CMYK: convert it to RGB")
    return kind


def _alpha(page: Any, extra: int, notes: list[str]) -> Alpha:
    """How the channel beyond the colours, if there is one, is to be taken."""
    if not extra:
        return ""
    said = page.extrasamples[0] if page.extrasamples else None
    if said == EXTRASAMPLE.ASSOCALPHA:
        notes.append("has colours multiplied by alpha: divided, and written back with straight alpha")
        return "associated"
    if said == EXTRASAMPLE.UNSPECIFIED:
        notes.append("has a last channel that is said to be no alpha: left out")
        return "left out"
    if said != EXTRASAMPLE.UNASSALPHA:
        notes.append("does not say what its last channel is: taken as straight alpha")
    return "straight"


def _mapped(file: BinaryIO, page: Any, tiff: TiffFile) -> np.ndarray | None:
    """The values of a large file that holds just them, [height, width, channels]; None for everything else."""
    shape = (page.imagelength, page.imagewidth, page.samplesperpixel)
    fits = (
        math.prod(shape) >= _MAPPED_FROM
        and page.is_memmappable
        and tiff.byteorder == "<"
        and (page.planarconfig == PLANARCONFIG.CONTIG or shape[2] == 1)
        and page.tags.valueof(274, 1) == 1
    )
    # Copy on write: nothing is written, but torch takes no memory that could not be.
    return np.memmap(file, page.dtype, "c", page.dataoffsets[0], shape) if fits else None


def _stored(file: BinaryIO, page: Any, kind: PHOTOMETRIC) -> np.ndarray:
    """The numbers of a page, [height, width, channels], upright; YCbCr as RGB of 8 bits."""
    orientation = page.tags.valueof(274, 1)
    by_codec = page.compression == COMPRESSION.JPEG and page.planarconfig == PLANARCONFIG.CONTIG
    fax = page.compression in _FAX and page.samplesperpixel == 1 and kind != PHOTOMETRIC.PALETTE
    if not fax and (kind != PHOTOMETRIC.YCBCR or by_codec):
        planes = list(page.asarray(squeeze=False)[:, 0])
        values = planes[0] if len(planes) == 1 else np.concatenate(planes, -1)
        return np.require(upright(values, orientation), page.dtype, ["C", "W"])
    # Fax, and YCbCr that is not in JPEG, are left to libtiff, which mirrors by the orientation but does not turn.
    import imagecodecs

    file.seek(0)
    values = imagecodecs.tiff_decode(file.read(), index=page.index, asrgb=True)
    values = values[:, ::-1] if orientation in (2, 3, 6, 7) else values
    values = values[::-1] if orientation in (3, 4, 7, 8) else values
    values = values[..., :3] if kind == PHOTOMETRIC.YCBCR else (values[..., :1] > 0) ^ (kind == PHOTOMETRIC.MINISWHITE)
    return np.ascontiguousarray(upright(values, orientation))


def _coloured(index: np.ndarray, colormap: np.ndarray, notes: list[str]) -> tuple[np.ndarray, np.ndarray | None]:
    """The colours of indices [height, width, 1], and the palette if it is one of 8 bits."""
    palette = np.asarray(colormap, np.uint16).T
    if palette.max() < 256:  # some writers fill 8 of the 16 bits
        palette = palette * np.uint16(257)
    if len(palette) > 256:
        notes.append(f"has a palette of {len(palette)} colours: read as RGB, and written back as RGB")
        return palette[index[..., 0]], None
    palette = (palette >> 8).astype(np.uint8)
    return palette[index[..., 0].astype(np.uint8)], palette


def _in_full_range(values: np.ndarray, bits: int, notes: list[str], name: str) -> np.ndarray:
    """Whole numbers of any depth as 8 or 16 bits, floats as those of 32."""
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            values = values.astype(np.float32, copy=False)
        check_finite(values, name)
        return values
    if bits in (8, 16):
        return values
    white, dtype = (65535, np.uint16) if bits > 8 else (255, np.uint8)
    if bits > 1 or values.shape[2] > 1:
        notes.append(f"has {bits} bits per channel: scaled to {8 * dtype().itemsize}, and written back with those")
    steps = np.rint(np.arange(2**bits) * (white / (2**bits - 1))).astype(dtype)
    return steps[values.astype(np.uint16, copy=False)]


def _as_seen(values: np.ndarray, kind: PHOTOMETRIC, notes: list[str]) -> np.ndarray:
    """Colours of a kind, alpha behind them or not, as grey or RGB."""
    count = _COLOURS[kind]
    colours, alpha = values[..., :count], values[..., count:]
    if kind == PHOTOMETRIC.MINISWHITE:
        colours = ~colours
    elif kind == PHOTOMETRIC.SEPARATED:
        white, light = int(np.iinfo(values.dtype).max), (~colours).astype(np.uint32)
        colours = ((light[..., :3] * light[..., 3:] + white // 2) // white).astype(values.dtype)
    elif kind == PHOTOMETRIC.CIELAB:
        colours = _lab_to_rgb(colours)
    if kind in _CONVERTED:
        notes.append(f"is {_CONVERTED[kind]}: converted to RGB, and written back as RGB")
    return np.concatenate([colours, alpha], -1) if alpha.shape[2] else colours


def _lab_to_rgb(lab: np.ndarray) -> np.ndarray:
    """CIELAB whose white is D50, L without a sign, a and b with one, as sRGB of the same depth (CIE 15, IEC 61966)."""
    white, signed = np.iinfo(lab.dtype).max, np.dtype(f"i{lab.dtype.itemsize}")
    rgb = np.empty_like(lab)
    for row, out in zip(lab, rgb):  # row by row: in doubles
        lightness, (_, a, b) = row[:, 0] * (100 / white), row.view(signed).T / 2.0 ** (8 * signed.itemsize - 8)
        y = (lightness + 16) / 116
        f = np.stack([y + a / 500, y, y - b / 200], -1)
        xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * _D50
        linear = (xyz @ _D50_TO_SRGB.T).clip(0, 1)
        out[:] = np.rint(np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * white)
    return rgb
