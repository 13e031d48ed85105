"""Files of any size, written row by row: what is in memory is a few rows."""

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import OpenImageIO as oiio
import tifffile
from PIL import Image

from loe_field.errors import InputError
from loe_field.image.picture import available_memory

FileFormat = Literal["PNG", "JPEG", "TIFF", "WEBP", "EXR", "NPY"]
SUFFIXES: dict[str, FileFormat] = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP", ".exr": "EXR",
    ".npy": "NPY",
}  # fmt: skip
DTYPES: dict[FileFormat, dict[int, type[np.generic]]] = {
    "PNG": {8: np.uint8, 16: np.uint16},
    "JPEG": {8: np.uint8},
    "TIFF": {8: np.uint8, 16: np.uint16, 32: np.float32},
    "WEBP": {8: np.uint8},
    "EXR": {16: np.float16, 32: np.float32},
    "NPY": {8: np.uint8, 16: np.uint16, 32: np.float32},
}
"""What each can hold, by bits per channel."""
_LONGEST_SIDE: dict[FileFormat, int] = {"PNG": 1_000_000, "JPEG": 65_500, "WEBP": 16_383}
"""libpng's own limit, that of libjpeg (of the format: 65,535) and that of the format."""
_WEBP_BYTES_PER_PIXEL = 40
"""Memory of the lossless encoder, the picture itself included; 38 were measured on noise."""


@dataclass(frozen=True)
class Sheet:
    """What a file is to hold.

    Attributes:
        format: how it is written.
        width: columns.
        height: rows.
        channels: their names: "Y", "R", "G", "B", "A", or others that are not colours.
        dtype: one of the format's DTYPES.
        icc_profile: the colour profile, where the format has a place for one.
    """

    format: FileFormat
    width: int
    height: int
    channels: tuple[str, ...]
    dtype: np.dtype
    icc_profile: bytes | None = None

    @property
    def has_alpha(self) -> bool:
        """Whether the last channel is alpha."""
        return self.channels[-1] == "A"


def file_format(path: Path) -> FileFormat:
    """The format that a file name stands for.

    Raises:
        InputError: it stands for none.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path} does not end in a suffix that can be written: give {', '.join(SUFFIXES)}")
    return SUFFIXES[path.suffix.lower()]


def check_sheet(sheet: Sheet) -> None:
    """Refuse what a format cannot hold, before any work is done.

    Raises:
        InputError: a side is too long, there is alpha where there is no place for it, or an encoder that needs the
            whole picture would need more memory than there is.
    """
    longest = _LONGEST_SIDE.get(sheet.format)
    if longest is not None and max(sheet.width, sheet.height) > longest:
        raise InputError(
            f"{sheet.width} x {sheet.height} pixels do not go into {sheet.format}, whose sides end at {longest:,}: "
            "give a .tif, .exr or .npy name, or a smaller --scale"
        )
    if sheet.format == "JPEG" and sheet.has_alpha:
        raise InputError("the picture has alpha and JPEG has none: give a .png, .webp, .tif, .exr or .npy name")
    if sheet.format == "WEBP":
        needed, free = _WEBP_BYTES_PER_PIXEL * sheet.width * sheet.height, available_memory()
        if needed > free:
            raise InputError(
                f"WebP's encoder wants the whole picture: about {needed / 2**30:.1f} GiB for {sheet.width} x "
                f"{sheet.height}, and {free / 2**30:.1f} GiB are free. PNG, TIFF, JPEG, EXR and NPY are written row "
                "by row: give one of their names"
            )


def write_rows(path: Path, sheet: Sheet, bands: Iterable[np.ndarray]) -> None:
    """Write a file from bands of rows, top to bottom.

    PNG, TIFF (deflate; BigTIFF from 4 GB on) and NPY without loss, WebP lossless, JPEG at its highest quality, EXR
    with alpha multiplied into the colours, as that format has it.

    Args:
        path: where; its suffix does not matter.
        sheet: what check_sheet found good.
        bands: each [rows, width, channels] of the sheet's dtype, height rows in all.

    Raises:
        OSError: it cannot be written.
    """
    if sheet.format == "NPY":
        _write_npy(path, sheet, bands)
    elif sheet.format == "TIFF":
        _write_tiff(path, sheet, bands)
    elif sheet.format == "WEBP":
        _write_webp(path, sheet, bands)
    else:
        _write_scanlines(path, sheet, bands)


def _write_npy(path: Path, sheet: Sheet, bands: Iterable[np.ndarray]) -> None:
    header = {
        "descr": np.lib.format.dtype_to_descr(sheet.dtype),
        "fortran_order": False,
        "shape": (sheet.height, sheet.width, len(sheet.channels)),
    }
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for band in bands:
            file.write(band.tobytes())


def _write_tiff(path: Path, sheet: Sheet, bands: Iterable[np.ndarray]) -> None:
    channels = len(sheet.channels)
    colours = 3 if sheet.channels[:3] == ("R", "G", "B") else 1
    strip = max(1, 2**18 // (sheet.width * channels * sheet.dtype.itemsize))
    size = sheet.width * sheet.height * channels * sheet.dtype.itemsize
    tifffile.imwrite(
        path,
        (zlib.compress(rows.tobytes()) for rows in _equal_bands(bands, strip)),
        shape=(sheet.height, sheet.width, *((channels,) if channels > 1 else ())),
        dtype=sheet.dtype,
        rowsperstrip=strip,
        photometric="rgb" if colours == 3 else "minisblack",
        planarconfig="contig" if channels > 1 else None,
        extrasamples=["unassalpha" if sheet.has_alpha else "unspecified"] * (channels - colours) or None,
        compression="zlib",
        bigtiff=size > 2**32 - 2**25,
        iccprofile=sheet.icc_profile,
        description=None if sheet.channels[0] in ("Y", "R") else " ".join(sheet.channels),
        metadata=None,
    )


def _equal_bands(bands: Iterable[np.ndarray], rows: int) -> Iterator[np.ndarray]:
    """The same rows in bands of one height, the last one lower."""
    kept: list[np.ndarray] = []
    count = 0
    for band in bands:
        kept.append(band)
        count += len(band)
        if count >= rows:
            whole = np.concatenate(kept)
            cut = count - count % rows
            yield from np.split(whole[:cut], cut // rows)
            kept, count = [whole[cut:]], count - cut
    if count:
        yield np.concatenate(kept)


def _write_webp(path: Path, sheet: Sheet, bands: Iterable[np.ndarray]) -> None:
    values = np.empty((sheet.height, sheet.width, len(sheet.channels)), sheet.dtype)
    row = 0
    for band in bands:
        values[row : row + len(band)] = band
        row += len(band)
    image = Image.fromarray(values[..., 0] if len(sheet.channels) == 1 else values)
    options = {"icc_profile": sheet.icc_profile} if sheet.icc_profile else {}
    image.save(path, format="WEBP", lossless=True, exact=True, **options)


def _write_scanlines(path: Path, sheet: Sheet, bands: Iterable[np.ndarray]) -> None:
    """PNG, JPEG and EXR."""
    spec = oiio.ImageSpec(sheet.width, sheet.height, len(sheet.channels), _OIIO_TYPES[sheet.dtype.name])
    spec.channelnames = sheet.channels
    if sheet.has_alpha:
        spec.alpha_channel = len(sheet.channels) - 1
    options = {
        "PNG": {"oiio:UnassociatedAlpha": 1},
        "JPEG": {"Compression": "jpeg:100", "jpeg:subsampling": "4:4:4"},
        "EXR": {"compression": "zip"},
    }
    for name, value in options[sheet.format].items():
        spec.attribute(name, value)
    if sheet.icc_profile and sheet.format != "EXR":
        profile = np.frombuffer(sheet.icc_profile, np.uint8)
        spec.attribute("ICCProfile", oiio.TypeDesc(f"uint8[{len(profile)}]"), profile)
    output = oiio.ImageOutput.create(sheet.format.lower())
    if output is None or not output.open(str(path), spec):
        raise OSError(output.geterror() if output else oiio.geterror())
    row = 0
    for band in bands:
        if sheet.format == "EXR" and sheet.has_alpha:
            band = np.concatenate([band[..., :-1] * band[..., -1:], band[..., -1:]], -1)
        if not output.write_scanlines(row, row + len(band), 0, np.ascontiguousarray(band)):
            raise OSError(output.geterror())
        row += len(band)
    if not output.close():
        raise OSError(output.geterror())


_OIIO_TYPES = {"uint8": "uint8", "uint16": "uint16", "float16": "half", "float32": "float"}
