"""Pictures written to files of any size, row by row: one writer per format, and a few rows in memory.

Every byte goes through Python's own files, so that a full disk is an OSError: libjpeg ends the process there, and
OpenEXR closes a cut file without a word.
"""

import io
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import tifffile
from PIL import Image

from loe_field.errors import InputError
from loe_field.pictures.memory import available_memory
from loe_field.pictures.picture import EXR_CHANNELS, Picture, nearest

SUFFIXES = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP", ".exr": "EXR",
    ".npy": "NPY",
}  # fmt: skip
"""Formats that a user may ask for by a file's name."""
DTYPES: dict[str, dict[int, type[np.generic]]] = {
    "PNG": {8: np.uint8, 16: np.uint16},
    "JPEG": {8: np.uint8},
    "TIFF": {8: np.uint8, 16: np.uint16, 32: np.float32},
    "WEBP": {8: np.uint8},
    "EXR": {16: np.float16, 32: np.float32},
    "NPY": {8: np.uint8, 16: np.uint16, 32: np.float32},
}
"""Dtypes that each can hold, by bits per channel."""
_LONGEST_SIDE = {"PNG": 1_000_000, "JPEG": 65_500, "WEBP": 16_383}  # of libpng, libjpeg (JPEG: 65,535) and WebP
_WEBP_BYTES_PER_PIXEL = 40  # of the lossless encoder, the picture itself included; 38 were measured on noise
_BLOCK = 2**20  # bytes of rows that are filtered and compressed at once
_BLACK_AND_WHITE = np.array([[0], [255]], np.uint8)


@dataclass(frozen=True)
class Sheet:
    """The content of a file."""

    format: str  # one of picture.FORMATS, or "NPY"
    width: int
    height: int
    channels: tuple[str, ...]  # names: "Y", "R", "G", "B", "A", or others that are not colours
    dtype: np.dtype  # one of the format's DTYPES
    icc_profile: bytes | None = None  # written where the format has a place for one
    palette: np.ndarray | None = None
    """The only colours of PNG, TIFF and BMP, uint8 [entries, channels], written as their indices: of one bit for the
    two greys black and white, of 8 otherwise. None for all colours."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        return self.height, self.width, len(self.channels)

    @property
    def has_alpha(self) -> bool:
        """Whether the last channel is alpha."""
        return self.channels[-1] == "A"

    @property
    def is_bilevel(self) -> bool:
        """Whether it is black and white."""
        return self.palette is not None and self.palette.shape[1] == 1

    @property
    def row_bytes(self) -> int:
        """Bytes of a row as `stored` gives them."""
        per_pixel = 1 if self.palette is not None else len(self.channels) * self.dtype.itemsize
        return (self.width + 7) // 8 if self.is_bilevel else self.width * per_pixel

    def stored(self, band: np.ndarray) -> np.ndarray:
        """A band as the file holds it: itself, or the indices uint8 [rows, width] of its colours, packed if bits."""
        if self.palette is None:
            return band
        index = nearest(self.palette, band).astype(np.uint8)
        return np.packbits(index, axis=1) if self.is_bilevel else index


def write_picture(path: Path, picture: Picture) -> None:
    """Write a picture in its own format, without loss where that can be; see `write_rows`."""
    write_rows(path, _sheet_of(picture), [picture.values])


def encode(picture: Picture) -> bytes:
    """The content of the file that `write_picture` writes."""
    file, sheet = io.BytesIO(), _sheet_of(picture)
    _WRITERS[sheet.format](file, sheet, [picture.values])
    return file.getvalue()


def _sheet_of(picture: Picture) -> Sheet:
    palette = _BLACK_AND_WHITE if picture.mode == "1" else picture.palette
    channels, dtype = EXR_CHANNELS[picture.channels], picture.values.dtype
    return Sheet(picture.format, picture.width, picture.height, channels, dtype, picture.icc_profile, palette)


def file_format(path: Path) -> str:
    """The format that a file name stands for, or InputError."""
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path} does not end in a suffix that can be written: give {', '.join(SUFFIXES)}")
    return SUFFIXES[path.suffix.lower()]


def check_sheet(sheet: Sheet) -> None:
    """Refuse with InputError what a format cannot hold, or an encoder in this memory, before any work is done."""
    longest = _LONGEST_SIDE.get(sheet.format)
    if longest is not None and max(sheet.width, sheet.height) > longest:
        raise InputError(
            f"{sheet.width} x {sheet.height} pixels do not go into {sheet.format}, whose sides end at {longest:,}: "
            "give a .tif, .exr or .npy name, or a smaller --scale"
        )
    if sheet.format == "JPEG" and sheet.has_alpha:
        raise InputError("the picture has alpha and JPEG has none: give a .png, .webp, .tif, .exr or .npy name")
    needed, free = _WEBP_BYTES_PER_PIXEL * sheet.width * sheet.height, available_memory()
    if sheet.format == "WEBP" and needed > free:
        raise InputError(
            f"WebP's encoder wants the whole picture: about {needed / 2**30:.1f} GiB for {sheet.width} x "
            f"{sheet.height}, and {free / 2**30:.1f} GiB are free. PNG, TIFF, JPEG, EXR and NPY are written row "
            "by row: give one of their names"
        )


def write_rows(path: Path, sheet: Sheet, bands: Iterable[np.ndarray]) -> None:
    """Write a file, whatever its suffix, from bands of rows, top to bottom, or raise OSError.

    PNG, TIFF (deflate; BigTIFF from 4 GB on), BMP and NPY without loss, WebP lossless, JPEG at its highest quality, EXR
    with alpha multiplied into the colours, as that format has it.

    Args:
        path: the file.
        sheet: one that check_sheet accepts.
        bands: each [rows, width, channels] of the sheet's dtype, height rows in all.
    """
    with open(path, "wb") as file:
        _WRITERS[sheet.format](file, sheet, bands)


def _write_npy(file: BinaryIO, sheet: Sheet, bands: Iterable[np.ndarray]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(sheet.dtype), "fortran_order": False, "shape": sheet.shape}
    np.lib.format.write_array_header_1_0(file, header)
    for band in bands:
        file.write(band.tobytes())


def _write_png(file: BinaryIO, sheet: Sheet, bands: Iterable[np.ndarray]) -> None:
    """By hand: OpenImageIO's writer has no palettes and no bits, and dies of a colour profile that libpng refuses."""
    palette = None if sheet.is_bilevel else sheet.palette
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[len(sheet.channels)] if palette is None else 3
    depth = 1 if sheet.is_bilevel else 8 * sheet.dtype.itemsize
    compressor, above = zlib.compressobj(), np.zeros((1, sheet.row_bytes), np.uint8)

    def chunk(name: bytes, data: bytes) -> None:
        file.write(struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)))

    file.write(b"\x89PNG\r\n\x1a\n")
    chunk(b"IHDR", struct.pack(">IIBBBBB", sheet.width, sheet.height, depth, kind, 0, 0, 0))
    if sheet.icc_profile:
        chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(sheet.icc_profile))
    if palette is not None:
        chunk(b"PLTE", palette[:, :3].tobytes())
        if sheet.has_alpha:
            chunk(b"tRNS", palette[:, 3:].tobytes())
    for band in _equal_bands(bands, max(1, _BLOCK // sheet.row_bytes)):
        rows = sheet.stored(band)
        rows = rows.astype(rows.dtype.newbyteorder(">")).reshape(len(band), -1).view(np.uint8)
        rows = np.concatenate([above, rows])
        above = rows[-1:]
        # The filter "up", 2 before every row: on photographs within 3 % of the best filter for all rows.
        filtered = np.pad(np.diff(rows, axis=0), ((0, 0), (1, 0)), constant_values=2)
        chunk(b"IDAT", compressor.compress(filtered.tobytes()))
    chunk(b"IDAT", compressor.flush())
    chunk(b"IEND", b"")


def _write_tiff(file: BinaryIO, sheet: Sheet, bands: Iterable[np.ndarray]) -> None:
    channels = 1 if sheet.palette is not None else len(sheet.channels)
    colours = 3 if channels >= 3 and sheet.channels[:3] == ("R", "G", "B") else 1
    strip = max(1, 2**18 // sheet.row_bytes)
    colormap = None
    if sheet.palette is not None and not sheet.is_bilevel:
        entries = sheet.palette[:, :3].T.astype(np.uint16) * 257
        colormap = np.pad(entries, ((0, 0), (0, 256 - entries.shape[1])))
    tifffile.imwrite(
        file,
        (zlib.compress(sheet.stored(rows).tobytes()) for rows in _equal_bands(bands, strip)),
        shape=(*sheet.shape[:2], channels) if channels > 1 else sheet.shape[:2],
        dtype=np.dtype(bool) if sheet.is_bilevel else sheet.dtype,
        rowsperstrip=strip,
        photometric="palette" if colormap is not None else "rgb" if colours == 3 else "minisblack",
        planarconfig="contig" if channels > 1 else None,
        extrasamples=["unassalpha" if sheet.has_alpha else "unspecified"] * (channels - colours) or None,
        compression="zlib",
        bigtiff=sheet.row_bytes * sheet.height > 2**32 - 2**25,
        iccprofile=sheet.icc_profile,
        description=None if sheet.channels[0] in ("Y", "R") else " ".join(sheet.channels),
        metadata=None,
        colormap=colormap,
    )


def _equal_bands(bands: Iterable[np.ndarray], rows: int) -> Iterator[np.ndarray]:
    """The same rows in bands of one height, the last one lower."""
    kept: list[np.ndarray] = []
    count = 0
    for band in bands:
        kept.append(band)
        count += len(band)
        if count >= rows:
            whole = np.concatenate(kept) if len(kept) > 1 else band
            cut = count - count % rows
            yield from np.split(whole[:cut], cut // rows)
            kept, count = [whole[cut:]], count - cut
    if count:
        yield np.concatenate(kept)


def _write_with_pillow(file: BinaryIO, sheet: Sheet, bands: Iterable[np.ndarray]) -> None:
    """WebP, whose encoder wants the whole picture, and BMP; Pillow writes no channel masks, which name BMP's alpha."""
    values = np.concatenate(list(bands))
    if sheet.format == "BMP" and sheet.has_alpha:  # in a header of version 4, rows from the bottom up
        layout = (108, sheet.width, sheet.height, 1, 32, 3, values.size, 2835, 2835, 0, 0)
        masks = (0x000000FF, 0x0000FF00, 0x00FF0000, 0xFF000000)
        start = struct.pack("<2sIHHI", b"BM", 122 + values.size, 0, 0, 122)
        header = struct.pack("<IiiHHIIiiII4I4s48x", *layout, *masks, b"BGRs")
        file.write(start + header + values[::-1].tobytes())
        return
    image = Image.fromarray(values[..., 0] if len(sheet.channels) == 1 else values)
    if sheet.is_bilevel:
        image = image.convert("1")
    elif sheet.palette is not None:
        image = Image.fromarray(sheet.stored(values))
        image.putpalette(sheet.palette.tobytes())
    # Into memory: for a file's own errors Pillow has a number of its encoders.
    content = io.BytesIO()
    image.save(content, format=sheet.format, lossless=True, exact=True, icc_profile=sheet.icc_profile)
    file.write(content.getbuffer())


def _write_jpeg(file: BinaryIO, sheet: Sheet, bands: Iterable[np.ndarray]) -> None:
    """Strips of 8 rows, each a JPEG of Pillow's, joined by restart markers (ITU-T T.81, B.2).

    The header of the first serves all: quality and Huffman tables are the same.
    """
    for number, strip in enumerate(_equal_bands(bands, 8)):
        content = io.BytesIO()
        image = Image.fromarray(strip[..., 0] if len(sheet.channels) == 1 else strip)
        image.save(
            content, format="JPEG", quality=100, subsampling=0, icc_profile=None if number else sheet.icc_profile
        )
        data = content.getvalue()
        place, frame = 2, 0
        while (marker := data[place + 1]) != 0xDA:  # start of scan
            if marker == 0xC0:  # start of frame
                frame = place
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        scan = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if number == 0:
            height = struct.pack(">H", sheet.height)
            blocks = struct.pack(">HHH", 0xFFDD, 4, -(-sheet.width // 8))  # between two restart markers
            file.write(data[: frame + 5] + height + data[frame + 7 : place] + blocks + data[place:scan])
        else:
            file.write(bytes([0xFF, 0xD0 + (number - 1) % 8]))
        file.write(data[scan:-2])
    file.write(b"\xff\xd9")


def _write_exr(file: BinaryIO, sheet: Sheet, bands: Iterable[np.ndarray]) -> None:
    """Scan lines, 16 to a chunk, zip compression, as openexr.com's "OpenEXR File Layout" has it."""
    order = sorted(range(len(sheet.channels)), key=lambda i: sheet.channels[i])
    kind = {"float16": 1, "float32": 2}[sheet.dtype.name]
    names = [sheet.channels[i].encode() for i in order]
    window = struct.pack("<4i", 0, 0, sheet.width - 1, sheet.height - 1)
    attributes = {
        b"channels\0chlist": b"".join(n + struct.pack("<xiB3xii", kind, 0, 1, 1) for n in names) + b"\0",
        b"compression\0compression": b"\3",
        b"dataWindow\0box2i": window,
        b"displayWindow\0box2i": window,
        b"lineOrder\0lineOrder": b"\0",
        b"pixelAspectRatio\0float": struct.pack("<f", 1),
        b"screenWindowCenter\0v2f": struct.pack("<ff", 0, 0),
        b"screenWindowWidth\0float": struct.pack("<f", 1),
    }
    file.write(struct.pack("<II", 20000630, 2))
    for name, value in attributes.items():
        file.write(name + struct.pack("<xi", len(value)) + value)
    file.write(b"\0")
    table, offsets = file.tell(), np.zeros(-(-sheet.height // 16), "<u8")
    file.write(offsets.tobytes())
    for number, band in enumerate(_equal_bands(bands, 16)):
        if sheet.has_alpha:
            band = np.concatenate([band[..., :-1] * band[..., -1:], band[..., -1:]], -1)
        offsets[number] = file.tell()
        planes = band[..., order].transpose(0, 2, 1)  # row by row, in it channel by channel
        data = planes.astype(sheet.dtype.newbyteorder("<")).tobytes()
        halves = np.frombuffer(data, np.uint8).reshape(-1, 2).T.ravel()  # the even bytes, then the odd ones
        steps = np.diff(halves, prepend=np.uint8(128)) + np.uint8(128)
        data = min(data, zlib.compress(steps.tobytes()), key=len)  # a reader tells them by their size
        file.write(struct.pack("<ii", 16 * number, len(data)) + data)
    file.seek(table)
    file.write(offsets.tobytes())


_WRITERS = {
    "PNG": _write_png, "JPEG": _write_jpeg, "TIFF": _write_tiff, "EXR": _write_exr,
    "BMP": _write_with_pillow, "WEBP": _write_with_pillow, "NPY": _write_npy,
}  # fmt: skip
