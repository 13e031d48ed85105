"""Pictures read from files: one reader each for Pillow's formats of 8 bits, deep PNG, TIFF and EXR."""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from loe_field.errors import InputError
from loe_field.files import temporary_folder
from loe_field.pictures.memory import check_picture_memory
from loe_field.pictures.picture import (
    CHANNEL_NAMES,
    EXR_CHANNELS,
    FORMATS,
    Picture,
    as_hdr,
    check_finite,
    straight,
    upright,
)
from loe_field.pictures.pillow import unlimited
from loe_field.pictures.tiff import read_tiff

_ORIENTATION = 0x0112  # the tag of EXIF
_EXR = b"v/1\x01"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG = b"\x89PNG\r\n\x1a\n"
_STARTS = {"PNG": _PNG, "JPEG": b"\xff\xd8\xff", "BMP": b"BM", "WEBP": b"RIFF"}
_CLEAR = "has one transparent colour: read as alpha, and written back as alpha"


def read_picture(path: Path) -> Picture:
    """Read a PNG, JPEG, TIFF, BMP, WebP or EXR file, turned upright as its orientation says.

    Grey, grey with alpha, RGB, RGBA, palette and black-and-white; 8 and 16 bit; floats in TIFF, within [0, 1] or else
    HDR; EXR, which is HDR always. Whatever is changed in reading is said in the picture's note; see also `read_tiff`.

    Raises:
        InputError: the file is missing, no picture, damaged, of a kind that is not supported, too large for this
            machine's memory, or it holds NaN or infinity.
    """
    what = f"give --data the path of a picture ({', '.join(FORMATS)})"
    try:
        path.stat()
        if not path.is_file():  # to open a pipe would wait for ever
            raise InputError(f"{path} is not a file: {what}")
        with open(path, "rb") as file:
            return _read(file, str(path))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path} does not exist: {what}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def decode_picture(content: bytes, *, name: str) -> Picture:
    """read_picture for a file's content in memory; `name` stands for it in error messages."""
    return _read(io.BytesIO(content), name)


def _read(file: BinaryIO, name: str) -> Picture:
    try:
        with unlimited(), _tifffile_silent():
            return _decode(file, name)
    except InputError:
        raise
    except ModuleNotFoundError as error:  # the decoders of few files are imported where they are needed
        raise _undecoded(name, str(error.name)) from None
    except Exception as error:  # decoders raise anything at bytes that are not what they should be
        if "'imagecodecs'" in str(error):  # so tifffile says that it is not installed
            raise _undecoded(name, "imagecodecs") from None
        raise _unreadable(name, str(error)) from error


@contextmanager
def _tifffile_silent() -> Iterator[None]:
    """Keep tifffile from logging in several lines what one line says here."""
    log = logging.getLogger("tifffile")
    was_disabled, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = was_disabled


def _undecoded(name: str, package: str) -> InputError:
    return InputError(
        f"{name} takes {package} to be read, which is not installed: pip install {package.lower()}, or save the "
        "picture as PNG of 8 bits"
    )


def _unreadable(name: str, problem: str = "") -> InputError:
    problem = f" ({' '.join(problem.split()).rstrip('.')})" if problem else ""
    return InputError(
        f"{name} is damaged or cut short, or of a kind that cannot be read{problem}: get a whole copy of it, or save "
        "it anew as PNG or TIFF"
    )


def _decode(file: BinaryIO, name: str) -> Picture:
    start, size = file.read(70), file.seek(0, io.SEEK_END)
    file.seek(0)
    if not start:
        raise InputError(f"{name} is empty (0 bytes): it holds no picture")
    if start.startswith(_EXR):
        return _read_exr(file.read(), name)
    if start.startswith(_TIFF):
        return read_tiff(file, name)
    try:
        image = Image.open(file)
    except UnidentifiedImageError:
        if start.startswith(_PNG) and b"\0\0\0\0" in (start[16:20], start[20:24]):
            raise InputError(f"{name} has no pixels: its width or height is 0") from None
        for kind, mark in _STARTS.items():
            if start.startswith(mark) and (kind != "WEBP" or start[8:12] == b"WEBP"):
                file.seek(0)
                Image.OPEN[kind][0](file, "")  # says why, where Image.open does not
                raise
        raise InputError(f"{name} is not a picture that can be read: {', '.join(FORMATS)} are supported") from None
    file_format = "JPEG" if image.format == "MPO" else image.format or "?"  # MPO: a phone's JPEG with a second view
    if file_format not in FORMATS:
        raise InputError(f"{name} is a {file_format} picture: convert it to one of {', '.join(FORMATS)}")
    pictures = 1 if file_format == "JPEG" else getattr(image, "n_frames", 1)
    if pictures > 1:
        raise InputError(f"{name} holds {pictures} pictures: save the one that you want on its own")
    blocks = (image.height // 8) * (image.width // 8)
    if file_format == "JPEG" and 8 * size < blocks:  # each takes a bit at least; libjpeg fills up what is lacking
        raise ValueError(f"{size} bytes do not hold {image.width} x {image.height} pixels")
    bits = start[24] if file_format == "PNG" else 8
    channels = 4 if image.mode == "P" else len(image.getbands()) + ("transparency" in image.info)
    check_picture_memory(image.height, image.width, channels, 2 if bits == 16 else 1, name)
    if bits == 16:
        file.seek(0)
        return _read_deep_png(file.read(), image, name)
    has_mask = file_format == "BMP" and image.mode == "RGB" and start[14] >= 56 and start[30] == 3
    note = f"{name} has alpha in 16 bits per pixel: left out" if has_mask and any(start[66:70]) else ""
    return _read_with_pillow(image, file_format, bits, note, name)


def _read_with_pillow(image: Image.Image, file_format: str, bits: int, note: str, name: str) -> Picture:
    """A picture of at most 8 bits per channel; `bits` are those of a grey PNG."""
    icc_profile = image.info.get("icc_profile")
    if image.mode in ("CMYK", "RGBX"):
        note = f"{name} is {image.mode}: converted to RGB, and written back as RGB"
        image, icc_profile = image.convert("RGB"), None
    image.load()
    image = ImageOps.exif_transpose(image)
    palette, mode, clear = None, image.mode, image.info.get("transparency")
    if mode == "P":
        entries = len(image.getpalette() or ()) // 3
        ramp = image.crop((0, 0, entries, 1))  # every entry once
        ramp.putdata(range(entries))
        palette = np.asarray(ramp.convert("RGB" if clear is None else "RGBA")).reshape(entries, -1)
        values = palette[np.minimum(np.asarray(image), entries - 1)]
    elif mode in ("1", "L", "LA", "RGB", "RGBA"):
        values = np.atleast_3d(np.asarray(image.convert("L") if mode == "1" else image))
        if clear is not None:
            note = f"{name} {_CLEAR}"
            white = 2**bits - 1  # the colour is the file's own number, or of one bit Pillow's; values are scaled
            colour = np.minimum(clear, white) * (255 // white)
            alpha = np.any(values != colour, -1, keepdims=True) * np.uint8(255)
            values = np.concatenate([values, alpha], -1)
            mode = CHANNEL_NAMES[values.shape[2]]
    else:
        raise InputError(f"{name} has pixels of kind {mode!r}: convert it to 8 or 16 bits per channel, grey or colour")
    return Picture(np.array(values), file_format, mode, palette, icc_profile, note)


def _read_deep_png(content: bytes, image: Image.Image, name: str) -> Picture:
    """A PNG of 16 bits per channel, which Pillow, that has opened it as `image`, would cut down to 8 in colour."""
    image.load()  # Pillow says best what is wrong with a damaged file
    with _opened(content, ".png", name) as file:
        values = upright(_pixels(file, "uint16"), image.getexif().get(_ORIENTATION, 1))
    note = f"{name} {_CLEAR}" if "transparency" in image.info else ""
    mode, icc_profile = CHANNEL_NAMES[values.shape[2]], image.info.get("icc_profile")
    return Picture(np.ascontiguousarray(values), "PNG", mode, None, icc_profile, note)


def _read_exr(content: bytes, name: str) -> Picture:
    """An EXR of one part with the channels Y or R, G and B, alpha or not; half or float."""
    import OpenImageIO as oiio

    with _opened(content, ".exr", name) as file:
        spec = file.spec()
        if spec.deep:
            raise InputError(f"{name} holds deep pixels, of many samples each: flatten it")
        if file.seek_subimage(1, 0):
            raise InputError(f"{name} holds several pictures: save the one that you want on its own")
        file.seek_subimage(0, 0)
        names = [channel.rsplit(".", 1)[-1] for channel in spec.channelnames]
        wanted = next((c for c in reversed(EXR_CHANNELS.values()) if sorted(c) == sorted(names)), None)
        if wanted is None:
            raise InputError(
                f"{name} has the channels {', '.join(spec.channelnames)}: R, G, B or Y, alone or with A, can be fitted"
            )
        if spec.format.basetype not in (oiio.HALF, oiio.FLOAT):
            raise InputError(f"{name} holds {spec.format} numbers: convert it to halves or floats")
        check_picture_memory(spec.height, spec.width, len(wanted), 4, name)
        values = _pixels(file, "float")
    values = np.ascontiguousarray(values[..., [names.index(channel) for channel in wanted]])
    check_finite(values, name)
    if wanted[-1] == "A":
        values = straight(values)
    notes = []
    if spec.getattribute("openexr:luminancechroma"):
        notes.append("is luminance and chroma: converted to RGB, and written back as RGB")
    if (spec.x, spec.y, spec.width, spec.height) != (spec.full_x, spec.full_y, spec.full_width, spec.full_height):
        notes.append(
            f"has {spec.width}x{spec.height} pixels from ({spec.x}, {spec.y}) on and shows "
            f"{spec.full_width}x{spec.full_height} from ({spec.full_x}, {spec.full_y}) on: its pixels are read, all of "
            "them and no others"
        )
    note = f"{name} {', and '.join(notes)}" if notes else ""
    dtype = np.float16 if spec.format == oiio.HALF else np.float32
    return as_hdr(Picture(values.astype(dtype), "EXR", CHANNEL_NAMES[len(wanted)], note=note), name)


@contextmanager
def _opened(content: bytes, suffix: str, name: str) -> Iterator[Any]:
    """OpenImageIO's reader of a file, told to change no value: alpha and colours stay as they are stored."""
    import OpenImageIO as oiio

    hints = oiio.ImageSpec()
    hints.attribute("oiio:UnassociatedAlpha", 1)
    hints.attribute("oiio:RawColor", 1)
    with temporary_folder() as folder:  # its binding has no files in memory
        path = Path(folder) / f"a{suffix}"
        path.write_bytes(content)
        file = oiio.ImageInput.open(str(path), hints)
        if file is None:
            raise ValueError(oiio.geterror().replace(str(path), "the file"))
        try:
            yield file
        finally:
            file.close()


def _pixels(file: Any, dtype: str) -> np.ndarray:
    """All values of an open file, [height, width, channels], in a dtype by OpenImageIO's name."""
    values = file.read_image(dtype)
    problem = file.geterror()
    if values is None or problem:
        raise ValueError(problem)
    return np.atleast_3d(values)
