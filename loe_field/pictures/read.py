"""Pictures read from files: one reader for each of Pillow's formats of 8 bits, deep PNG, deep TIFF and EXR."""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import OpenImageIO as oiio
import tifffile
from PIL import Image, ImageOps, UnidentifiedImageError

from loe_field.errors import InputError
from loe_field.files import temporary_folder
from loe_field.pictures.memory import check_picture_memory
from loe_field.pictures.picture import CHANNEL_NAMES, EXR_CHANNELS, FORMATS, MU, Picture

_ORIENTATION = 0x0112  # the tag of EXIF and TIFF
_EXR = b"v/1\x01"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"BM", _EXR, *_TIFF)
_PEAK = 99.9  # percentile of an HDR picture's values that stands for 1
_MAPPED_FROM = 2**26  # values from which on a TIFF is mapped rather than read


def read_picture(path: Path) -> Picture:
    """Read a PNG, JPEG, TIFF, BMP, WebP or EXR file, turned upright as its EXIF orientation says.

    Grey, grey with alpha, RGB, RGBA, palette and black-and-white; 8 and 16 bit; floats in TIFF, within [0, 1] or else
    HDR; EXR, which is HDR always. CMYK becomes RGB, and negative HDR 0, with a note.

    Raises:
        InputError: the file is missing, no picture, damaged, of a kind that is not supported, too large for this
            machine's memory, or it holds NaN or infinity.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist: give --data the path of a picture ({', '.join(FORMATS)})")
    if not path.is_file():
        raise InputError(f"{path} is not a file: give --data the path of one picture ({', '.join(FORMATS)})")
    if mapped := _mapped_tiff(path):
        return mapped
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if not content:
        raise InputError(f"{path} is empty (0 bytes): it holds no picture")
    return decode_picture(content, name=str(path))


def decode_picture(content: bytes, *, name: str) -> Picture:
    """read_picture for a file's content in memory; `name` stands for it in error messages."""
    pixel_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # the real limit is memory, checked below
    try:
        return _decode(content, name)
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, tifffile.TiffFileError, EOFError) as error:
        raise _damaged(name, str(error)) from None
    finally:
        Image.MAX_IMAGE_PIXELS = pixel_limit


def _damaged(name: str, problem: str = "") -> InputError:
    problem = f": {problem.strip().rstrip('.')}" if problem else ""
    return InputError(f"{name} is damaged or cut short{problem}. Get a whole copy of it")


def _decode(content: bytes, name: str) -> Picture:
    if content.startswith(_EXR):
        return _read_exr(content, name)
    if content.startswith(_TIFF) and (deep_tiff := _read_deep_tiff(content, name)):
        return deep_tiff
    try:
        image = Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        if content[:8] == b"\x89PNG\r\n\x1a\n" and b"\0\0\0\0" in (content[16:20], content[20:24]):
            raise InputError(f"{name} has no pixels: its width or height is 0") from None
        if content.startswith(_SIGNATURES) or content[8:12] == b"WEBP":
            raise _damaged(name) from None
        raise InputError(f"{name} is not a picture that can be read: {', '.join(FORMATS)} are supported") from None
    file_format = "JPEG" if image.format == "MPO" else image.format or "?"  # MPO: a phone's JPEG with a second view
    if file_format not in FORMATS:
        raise InputError(f"{name} is a {file_format} picture: convert it to one of {', '.join(FORMATS)}")
    if file_format != "JPEG":
        _check_single(getattr(image, "n_frames", 1), name)
    deep_png = file_format == "PNG" and content[24] == 16
    check_picture_memory(image.height, image.width, len(image.getbands()), 2 if deep_png else 1, name)
    return _read_deep_png(content, image, name) if deep_png else _read_with_pillow(image, file_format, name)


def _check_single(pictures: int, name: str) -> None:
    if pictures > 1:
        raise InputError(f"{name} holds {pictures} pictures: save the one that you want on its own")


def _read_with_pillow(image: Image.Image, file_format: str, name: str) -> Picture:
    """A picture of at most 8 bits per channel."""
    note, icc_profile = "", image.info.get("icc_profile")
    if image.mode in ("CMYK", "YCbCr", "LAB", "RGBX", "RGBa"):
        target = "RGBA" if image.mode == "RGBa" else "RGB"
        note = f"{name} is {image.mode}: converted to {target}, and written back as {target}"
        image, icc_profile = image.convert(target), None
    image.load()
    image = ImageOps.exif_transpose(image)
    palette, mode = None, image.mode
    if mode == "PA":
        raise InputError(f"{name} has a palette with an alpha channel beside it: convert it to RGBA")
    if mode == "P":
        entries = len(image.getpalette() or ()) // 3
        ramp = image.crop((0, 0, entries, 1))  # every entry once
        ramp.putdata(range(entries))
        palette = np.asarray(ramp.convert("RGBA" if "transparency" in image.info else "RGB")).reshape(entries, -1)
        values = palette[np.minimum(np.asarray(image), entries - 1)]
    elif mode in ("1", "L", "LA", "RGB", "RGBA"):
        values = np.asarray(image.convert("L") if mode == "1" else image)
    else:
        raise InputError(f"{name} has pixels of kind {mode!r}: convert it to 8 or 16 bits per channel, grey or colour")
    return Picture(np.array(np.atleast_3d(values)), file_format, mode, palette, icc_profile, note)


def _read_deep_png(content: bytes, image: Image.Image, name: str) -> Picture:
    """A PNG of 16 bits per channel, which Pillow, that has opened it as `image`, would cut down to 8 in colour."""
    icc_profile, orientation = image.info.get("icc_profile"), image.getexif().get(_ORIENTATION, 1)
    image.load()  # Pillow says best what is wrong with a damaged file
    with _opened(content, ".png", name) as file:
        values = _upright(_pixels(file, "uint16", name), orientation)
    return Picture(np.ascontiguousarray(values), "PNG", CHANNEL_NAMES[values.shape[2]], None, icc_profile)


def _mapped_tiff(path: Path) -> Picture | None:
    """A large TIFF of whole numbers without compression, left where it lies and mapped; None for everything else."""
    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            shape = (page.imagelength, page.imagewidth, page.samplesperpixel)
            plain = (
                len(tiff.pages) == 1
                and page.is_memmappable
                and page.photometric in (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB)
                and page.planarconfig == tifffile.PLANARCONFIG.CONTIG
                and page.dtype in (np.uint8, np.uint16)
                and tiff.byteorder == "<"
                and shape[2] in CHANNEL_NAMES
                and page.imagedepth == 1
                and page.tags.valueof(_ORIENTATION, 1) == 1
                and math.prod(shape) >= _MAPPED_FROM
            )
            profile = page.iccprofile
        if not plain:
            return None
        # Copy on write: nothing is written, but torch takes no memory that could not be.
        values = tifffile.memmap(path, mode="c").reshape(shape)
    except (OSError, ValueError, tifffile.TiffFileError):
        return None  # decode_picture says what is wrong
    check_picture_memory(*shape, values.itemsize, str(path))
    return Picture(values, "TIFF", CHANNEL_NAMES[shape[2]], None, profile)


def _read_deep_tiff(content: bytes, name: str) -> Picture | None:
    """A TIFF of 16 bits or of floats per channel; None for everything that Pillow reads in full."""
    with tifffile.TiffFile(io.BytesIO(content)) as tiff:
        page = tiff.pages.first
        if page.dtype is None or page.dtype in (np.uint8, np.bool_):
            return None
        _check_single(len(tiff.pages), name)
        if page.dtype.kind not in "uf" or (page.dtype.kind == "u" and page.dtype.itemsize > 2):
            raise InputError(f"{name} holds {page.dtype} numbers: convert it to 8 or 16 bits per channel, or to floats")
        if page.photometric == tifffile.PHOTOMETRIC.SEPARATED:
            raise InputError(f"{name} is CMYK of more than 8 bits: convert it to RGB")
        height, width, channels = page.imagelength, page.imagewidth, page.samplesperpixel
        if channels not in CHANNEL_NAMES or page.imagedepth != 1:
            raise InputError(
                f"{name} has {channels} channels and depth {page.imagedepth}: 1 to 4 channels are supported"
            )
        check_picture_memory(height, width, channels, page.dtype.itemsize, name)
        is_float = page.dtype.kind == "f"
        try:
            values = page.asarray()
            if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and channels > 1:
                values = np.moveaxis(values, 0, -1)
        except ValueError:  # a compression that tifffile leaves to other packages
            with _opened(content, ".tif", name) as file:
                values = _pixels(file, "float" if is_float else "uint16", name)
        values = _upright(values.reshape(height, width, channels), page.tags.valueof(_ORIENTATION, 1))
        values = np.array(values, np.float32 if is_float else np.uint16, order="C")
        picture = Picture(values, "TIFF", CHANNEL_NAMES[channels], None, page.iccprofile)
    if not is_float:
        return picture
    _check_finite(values, name)
    return picture if values.min() >= 0 and values.max() <= 1 else as_hdr(picture, name)


def _read_exr(content: bytes, name: str) -> Picture:
    """An EXR of one part with the channels Y or R, G and B, alpha or not; half or float."""
    with _opened(content, ".exr", name) as file:
        spec = file.spec()
        if file.seek_subimage(1, 0):
            raise InputError(f"{name} holds several pictures: save the one that you want on its own")
        file.seek_subimage(0, 0)
        names = [channel.rsplit(".", 1)[-1] for channel in spec.channelnames]
        wanted = next((c for c in reversed(EXR_CHANNELS.values()) if sorted(c) == sorted(names)), None)
        if wanted is None:
            raise InputError(
                f"{name} has the channels {', '.join(spec.channelnames)}: R, G, B or Y, alone or with A, can be fitted"
            )
        check_picture_memory(spec.height, spec.width, len(wanted), 4, name)
        values = _pixels(file, "float", name)
        half = spec.format == oiio.HALF
    values = np.ascontiguousarray(values[..., [names.index(channel) for channel in wanted]])
    _check_finite(values, name)
    if wanted[-1] == "A":
        alpha = values[..., -1:] = values[..., -1:].clip(0, 1)
        np.divide(values[..., :-1], alpha, out=values[..., :-1], where=alpha > 0)
        values[..., :-1] *= alpha > 0
    picture = Picture(values.astype(np.float16 if half else np.float32), "EXR", CHANNEL_NAMES[len(wanted)])
    return as_hdr(picture, name)


@contextmanager
def _opened(content: bytes, suffix: str, name: str) -> Iterator[Any]:
    """OpenImageIO's reader of a file, told to change no value: alpha and colours stay as they are stored."""
    hints = oiio.ImageSpec()
    hints.attribute("oiio:UnassociatedAlpha", 1)
    hints.attribute("oiio:RawColor", 1)
    with temporary_folder() as folder:  # its binding has no files in memory
        path = Path(folder) / f"a{suffix}"
        path.write_bytes(content)
        file = oiio.ImageInput.open(str(path), hints)
        if file is None:
            raise _damaged(name, oiio.geterror())
        try:
            yield file
        finally:
            file.close()


def _pixels(file: Any, dtype: str, name: str) -> np.ndarray:
    """All values of an open file, [height, width, channels], in a dtype by OpenImageIO's name."""
    values = file.read_image(dtype)
    problem = file.geterror()
    if values is None or problem:
        raise _damaged(name, problem)
    return np.atleast_3d(values)


def _check_finite(values: np.ndarray, name: str) -> None:
    if bad := int(values.size - np.isfinite(values).sum()):
        raise InputError(f"{name} holds {bad} values that are NaN or infinite: replace them before fitting")


def as_hdr(picture: Picture, name: str) -> Picture:
    """The picture as HDR: nothing negative, and a peak."""
    values, note = picture.values, picture.note
    if negative := int((values < 0).sum()):
        note = f"{name} holds {negative:,} negative values, down to {values.min():g}: taken as 0"
        values = np.maximum(values, 0)
    shown = values[..., : picture.channels - picture.has_alpha]
    peak = float(np.percentile(shown.astype(np.float32), _PEAK)) or float(shown.max()) or 1.0
    if peak < MU / np.finfo(np.float32).max:
        raise InputError(f"{name} goes up to {peak:g}, too small for floats of 32 bits on the HDR curve: scale it up")
    return replace(picture, values=values, note=note, peak=peak)


def _upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """Apply EXIF orientation 1 to 8 to [height, width, channels]."""
    values = values.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else values
    values = values[:, ::-1] if orientation in (2, 3, 6, 7) else values
    return values[::-1] if orientation in (3, 4, 7, 8) else values
