"""Pictures in and out: the numbers of a file, and files that hold new numbers the way the old file did."""

import dataclasses
import io
import math
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import OpenImageIO as oiio
import psutil
import tifffile
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy.spatial import KDTree

from loe_field.errors import InputError

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "EXR")
"""What can be read and written, by Pillow's names."""

_SUFFIX = {"PNG": ".png", "JPEG": ".jpg", "TIFF": ".tif", "BMP": ".bmp", "WEBP": ".webp", "EXR": ".exr"}
MU = 5000.0
"""Of the curve that radiance is fitted and measured in (Kalantari and Ramamoorthi, 2017)."""
_PEAK = 99.9
"""Percentile of its values that stands for 1."""
_EXR = b"v/1\x01"
_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"BM", _EXR)
CHANNEL_NAMES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
EXR_CHANNELS = {1: ("Y",), 2: ("Y", "A"), 3: ("R", "G", "B"), 4: ("R", "G", "B", "A")}
_MAPPED_FROM = 2**26
"""Values from which on a TIFF is mapped rather than read."""
_BYTES_PER_PIXEL = 32
"""Memory that fitting takes per pixel beside the picture and its copies: the shuffle, and the error map.

With it the estimate for 8192x8192 RGB is 4.6 GiB, of which the spline of loe-image-smooth would be 2; 2.2 GiB above the
empty process were measured with loe-image and a mapped TIFF."""


@dataclass(frozen=True)
class Picture:
    """A picture as numbers, with all that is needed to write others like it.

    Attributes:
        values: [height, width, channels]; uint8, uint16, or floats: within [0, 1], or radiance of any height.
        format: one of FORMATS.
        mode: Pillow's name for the channels: "1", "L", "LA", "P", "RGB" or "RGBA".
        palette: for mode "P" the colours [entries, 3 or 4] uint8; values hold colours, not indices.
        icc_profile: the colour profile, carried along.
        note: what was changed on reading, for the user; empty if nothing.
        peak: of radiance the value that stands for 1; None for everything else. Radiance is fitted and measured as
            log(1 + MU v / peak) / log(1 + MU), above 1 where it is above the peak; its alpha stays as it is.
    """

    values: np.ndarray
    format: str
    mode: str
    palette: np.ndarray | None = None
    icc_profile: bytes | None = None
    note: str = ""
    peak: float | None = None

    @property
    def height(self) -> int:
        """Rows."""
        return self.values.shape[0]

    @property
    def width(self) -> int:
        """Columns."""
        return self.values.shape[1]

    @property
    def channels(self) -> int:
        """Numbers per pixel."""
        return self.values.shape[2]

    @property
    def white(self) -> float:
        """The number that stands for 1: 255, 65535, or 1 for floats."""
        return float(np.iinfo(self.values.dtype).max) if self.values.dtype.kind == "u" else 1.0

    @property
    def unit(self) -> np.ndarray:
        """What is fitted, float32: the values on [0, 1], of radiance on its curve."""
        return self.to_unit(self.values)

    def to_unit(self, values: np.ndarray) -> np.ndarray:
        """Values of this kind of picture, [..., channels], as they are fitted."""
        if self.peak is None:
            return np.divide(values, self.white, dtype=np.float32)
        unit = np.array(values, np.float32)
        shown = unit[..., : self.channels - self.has_alpha]
        shown[...] = np.log1p(shown * np.float32(MU / self.peak)) / np.float32(np.log1p(MU))
        return unit

    def from_unit(self, unit: np.ndarray) -> np.ndarray:
        """The inverse for radiance, float32, never below 0; of other pictures the same numbers."""
        if self.peak is None:
            return unit
        values = np.maximum(unit, 0, dtype=np.float32)
        shown = values[..., : self.channels - self.has_alpha]
        shown[...] = np.expm1(np.minimum(shown * np.float32(np.log1p(MU)), 80)) * np.float32(self.peak / MU)
        return values

    @property
    def ceiling(self) -> float:
        """The largest number that is fitted: 1, of radiance none."""
        return 1.0 if self.peak is None else np.inf

    @property
    def has_alpha(self) -> bool:
        """Whether the last channel is alpha."""
        return self.channels in (2, 4)

    @property
    def suffix(self) -> str:
        """File name ending, dot included."""
        return _SUFFIX[self.format]

    @property
    def bits(self) -> int:
        """Bits per channel."""
        return 1 if self.mode == "1" else 8 * self.values.dtype.itemsize

    @property
    def kind(self) -> dict[str, Any]:
        """Everything but the content, as plain numbers and text that a checkpoint can hold; see `blank_picture`."""
        return {
            "shape": list(self.values.shape),
            "dtype": self.values.dtype.name,
            "format": self.format,
            "mode": self.mode,
            "palette": None if self.palette is None else self.palette.tolist(),
            "icc_profile": self.icc_profile,
            "peak": self.peak,
        }

    def like(self, unit_values: np.ndarray) -> "Picture":
        """A picture of this kind with other content, rounded to what this kind can hold.

        Args:
            unit_values: [height, width, channels], floating point, as `unit` has them; clamped to [0, 1], of radiance
                to what the dtype holds.

        Returns:
            values of this dtype: rounded to the nearest step, to black or white for mode "1", to the nearest palette
            colour for mode "P".
        """
        if self.mode == "1":
            values = np.where(unit_values >= 0.5, np.uint8(255), np.uint8(0))
        elif self.palette is not None:
            colours = np.clip(unit_values, 0, 1).reshape(-1, unit_values.shape[-1]) * 255
            values = self.palette[KDTree(self.palette).query(colours)[1]].reshape(unit_values.shape)
        elif self.peak is not None:
            values = radiance(self.from_unit(unit_values), self.values.dtype, alpha=self.has_alpha)
        else:
            values = codes(unit_values, self.values.dtype)
        return dataclasses.replace(self, values=values)

    def encode(self) -> bytes:
        """The file's content: lossless where the format can be, JPEG at its highest quality."""
        if self.format == "EXR":
            return self._encode_exr()
        if self.values.dtype.kind == "f" or (self.format == "TIFF" and self.bits > 8):
            return self._encode_tiff()
        if self.bits > 8:
            done, content = cv2.imencode(".png", _swap_red_and_blue(self.values))
            if not done:
                raise RuntimeError("OpenCV could not encode a 16-bit PNG")
            return content.tobytes()
        if self.format == "BMP" and self.channels == 4:
            return self._encode_bmp_with_alpha()
        image = Image.fromarray(self.values[..., 0] if self.channels == 1 else self.values)
        if self.mode == "1":
            image = image.convert("1", dither=Image.Dither.NONE)
        elif self.palette is not None:
            image = self._with_palette()
        options = {
            "JPEG": {"quality": 100, "subsampling": 0},
            "TIFF": {"compression": "tiff_deflate"},
            "WEBP": {"lossless": True, "exact": True},
        }.get(self.format, {})
        if self.icc_profile and self.format != "BMP":
            options["icc_profile"] = self.icc_profile
        content = io.BytesIO()
        image.save(content, format=self.format, **options)
        return content.getvalue()

    def _with_palette(self) -> Image.Image:
        assert self.palette is not None
        index = KDTree(self.palette).query(self.values.reshape(-1, self.channels))[1]
        image = Image.fromarray(index.reshape(self.values.shape[:2]).astype(np.uint8)).convert("P")
        image.putpalette(self.palette[:, :3].tobytes())
        if self.channels == 4:
            image.info["transparency"] = self.palette[:, 3].tobytes()
        return image

    def _encode_bmp_with_alpha(self) -> bytes:
        """Bottom-up 32-bit rows under a version 4 header, whose channel masks name the alpha; Pillow's has none."""
        rows = self.values[::-1].tobytes()
        masks = (0x000000FF, 0x0000FF00, 0x00FF0000, 0xFF000000)
        header = struct.pack(
            "<IiiHHIIiiII4I4s48x", 108, self.width, self.height, 1, 32, 3, len(rows), 2835, 2835, 0, 0, *masks, b"BGRs"
        )
        return struct.pack("<2sIHHI", b"BM", 14 + len(header) + len(rows), 0, 0, 14 + len(header)) + header + rows

    def _encode_exr(self) -> bytes:
        """With alpha multiplied into the colours, as the format has it."""
        values = self.values
        if self.has_alpha:
            values = np.concatenate([values[..., :-1] * values[..., -1:], values[..., -1:]], -1)
        with tempfile.TemporaryDirectory(prefix="loe_field-") as folder:  # the library has no files in memory
            path = Path(folder) / "a.exr"
            spec = oiio.ImageSpec(self.width, self.height, self.channels, "half" if self.bits == 16 else "float")
            spec.channelnames = EXR_CHANNELS[self.channels]
            spec.attribute("compression", "zip")
            output = oiio.ImageOutput.create("exr")
            if not (
                output
                and output.open(str(path), spec)
                and output.write_image(np.ascontiguousarray(values))
                and output.close()
            ):
                raise RuntimeError(f"OpenImageIO could not encode an EXR: {output and output.geterror()}")
            return path.read_bytes()

    def _encode_tiff(self) -> bytes:
        content = io.BytesIO()
        tifffile.imwrite(
            content,
            self.values[..., 0] if self.channels == 1 else self.values,
            photometric="rgb" if self.channels >= 3 else "minisblack",
            extrasamples=["unassalpha"] if self.channels in (2, 4) else None,
            compression="zlib",
            iccprofile=self.icc_profile,
        )
        return content.getvalue()


def blank_picture(kind: dict[str, Any]) -> Picture:
    """A picture of a kind (`Picture.kind`) with nothing in it; its values are one zero, seen everywhere."""
    palette = None if kind["palette"] is None else np.array(kind["palette"], np.uint8)
    values = np.broadcast_to(np.zeros((), kind["dtype"]), kind["shape"])
    return Picture(values, kind["format"], kind["mode"], palette, kind["icc_profile"], peak=kind.get("peak"))


def codes(unit_values: np.ndarray, dtype: npt.DTypeLike) -> np.ndarray:
    """Numbers in [0, 1], clamped, as a file of this dtype holds them: whole steps of 1/255 or 1/65535, or floats."""
    dtype = np.dtype(dtype)
    values = np.clip(unit_values, 0, 1)
    return np.rint(values * float(np.iinfo(dtype).max)).astype(dtype) if dtype.kind == "u" else values.astype(dtype)


def radiance(values: np.ndarray, dtype: np.dtype, *, alpha: bool) -> np.ndarray:
    """Radiance [..., channels] as a file of this floating-point dtype holds it: from 0 to its largest number."""
    largest = np.full(values.shape[-1], np.finfo(dtype).max, np.float32)
    if alpha:
        largest[-1] = 1
    return np.clip(values, 0, largest).astype(dtype)


def read_picture(path: Path) -> Picture:
    """Read a PNG, JPEG, TIFF, BMP, WebP or EXR file, turned upright as its EXIF orientation says.

    Grey, grey with alpha, RGB, RGBA, palette and black-and-white; 8 and 16 bit; floats in TIFF, within [0, 1] or else
    radiance; EXR, which is radiance always. CMYK becomes RGB, and negative radiance 0, with a note.

    Raises:
        InputError: there is no such file, it is no picture, it is damaged, it is of a kind that is not supported, it
            holds NaN or infinity, or it is too large for this machine's memory.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist: give --data the path of a picture ({', '.join(FORMATS)})")
    if not path.is_file():
        raise InputError(f"{path} is not a file: give --data the path of one picture ({', '.join(FORMATS)})")
    mapped = _mapped_tiff(path)
    if mapped is not None:
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
    except (OSError, SyntaxError, ValueError, tifffile.TiffFileError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name} is damaged or cut short: {str(error).rstrip('.')}. Get a whole copy of it") from None
    finally:
        Image.MAX_IMAGE_PIXELS = pixel_limit


def _decode(content: bytes, name: str) -> Picture:
    if content.startswith(_EXR):
        return _read_exr(content, name)
    deep_tiff = _read_float_or_deep_tiff(content, name)
    if deep_tiff is not None:
        return deep_tiff
    try:
        image = Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        if _png_size(content) == (0, 0):
            raise InputError(f"{name} has no pixels: its width or height is 0") from None
        if content.startswith(_SIGNATURES) or content[8:12] == b"WEBP":
            raise InputError(f"{name} is damaged or cut short. Get a whole copy of it") from None
        raise InputError(f"{name} is not a picture that can be read: {', '.join(FORMATS)} are supported") from None
    file_format = "JPEG" if image.format == "MPO" else image.format or "?"  # MPO: a phone's JPEG with a second view
    if file_format not in FORMATS:
        raise InputError(f"{name} is a {file_format} picture: convert it to one of {', '.join(FORMATS)}")
    if file_format != "JPEG" and getattr(image, "n_frames", 1) > 1:
        raise InputError(f"{name} holds {image.n_frames} pictures: save the one that you want on its own")  # type: ignore[attr-defined]
    if 0 in image.size:
        raise InputError(f"{name} has no pixels: it is {image.width} x {image.height}")
    deep_png = file_format == "PNG" and content[24] == 16
    channels = len(image.getbands())
    check_picture_memory(image.height, image.width, channels, 2 if deep_png else 1, name)
    icc_profile = image.info.get("icc_profile")
    orientation = image.getexif().get(0x0112, 1)
    if deep_png:
        image.load()  # Pillow says what is wrong with a damaged file; OpenCV would only leave it black
        return _deep_png(content, image.mode, icc_profile, orientation, name)

    note = ""
    if image.mode in ("CMYK", "YCbCr", "LAB", "RGBX", "RGBa"):
        target = "RGBA" if image.mode == "RGBa" else "RGB"
        note = f"{name} is {image.mode}: converted to {target}, and written back as {target}"
        image, icc_profile = image.convert(target), None
    image.load()
    image = ImageOps.exif_transpose(image)
    palette = None
    mode = image.mode
    if mode in ("P", "PA"):
        if mode == "PA":
            raise InputError(f"{name} has a palette with an alpha channel beside it: convert it to RGBA")
        colours = "RGBA" if "transparency" in image.info else "RGB"
        entries = len(image.getpalette("RGB") or ()) // 3
        ramp = Image.fromarray(np.arange(entries, dtype=np.uint8)[None]).convert("P")
        ramp.putpalette(image.getpalette("RGB"))  # type: ignore[arg-type]
        if "transparency" in image.info:
            ramp.info["transparency"] = image.info["transparency"]
        palette = np.asarray(ramp.convert(colours)).reshape(entries, -1)
        values = palette[np.minimum(np.asarray(image), entries - 1)]
    elif mode in ("1", "L", "LA", "RGB", "RGBA"):
        values = np.asarray(image.convert("L") if mode == "1" else image)
    else:
        raise InputError(f"{name} has pixels of kind {mode!r}: convert it to 8 or 16 bits per channel, grey or colour")
    return Picture(np.array(np.atleast_3d(values)), file_format, mode, palette, icc_profile, note)


def _png_size(content: bytes) -> tuple[int, int] | None:
    """(0, 0) for a PNG that declares no pixels, which Pillow takes for no picture at all; None for anything else."""
    is_png = content[:8] == b"\x89PNG\r\n\x1a\n" and content[12:16] == b"IHDR" and len(content) >= 24
    return (0, 0) if is_png and 0 in np.frombuffer(content[16:24], ">u4") else None


def _deep_png(content: bytes, mode: str, icc_profile: bytes | None, orientation: int, name: str) -> Picture:
    """A PNG of 16 bits per channel, which Pillow would cut down to 8 in colour."""
    values = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise InputError(f"{name} is a 16-bit PNG that OpenCV cannot decode: it may be damaged")
    values = np.atleast_3d(values)
    note = ""
    if content[25] == 4:  # PNG's colour type "grey with alpha"
        note = f"{name} is 16-bit grey with alpha: written back as RGBA"
    values = _upright(_swap_red_and_blue(values), orientation)
    return Picture(np.array(values), "PNG", CHANNEL_NAMES[values.shape[2]], None, icc_profile, note)


def _mapped_tiff(path: Path) -> Picture | None:
    """A large TIFF of whole numbers without compression, left where it lies and mapped; None for everything else."""
    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages[0]
            assert isinstance(page, tifffile.TiffPage)
            orientation = page.tags.get(274)
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
                and (orientation is None or orientation.value == 1)
            )
            profile = page.iccprofile
        if not plain or math.prod(shape) < _MAPPED_FROM:
            return None
        # Copy on write: nothing is written, but torch takes no memory that could not be.
        values = tifffile.memmap(path, mode="c").reshape(shape)
    except (OSError, ValueError, tifffile.TiffFileError):
        return None  # whoever decodes it says what is wrong
    check_picture_memory(*shape, values.itemsize, str(path))
    return Picture(values, "TIFF", CHANNEL_NAMES[shape[2]], None, profile)


def _read_float_or_deep_tiff(content: bytes, name: str) -> Picture | None:
    """A TIFF of 16 bits or of floats per channel; None for everything that Pillow reads in full."""
    if content[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return None
    with tifffile.TiffFile(io.BytesIO(content)) as tiff:
        page = tiff.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        if page.dtype is None or page.dtype in (np.uint8, np.bool_):
            return None
        if len(tiff.pages) > 1:
            raise InputError(f"{name} holds {len(tiff.pages)} pictures: save the one that you want on its own")
        if page.dtype.kind not in "uf" or (page.dtype.kind == "u" and page.dtype.itemsize > 2):
            raise InputError(f"{name} holds {page.dtype} numbers: convert it to 8 or 16 bits per channel, or to floats")
        height, width, channels = page.imagelength, page.imagewidth, page.samplesperpixel
        if 0 in (height, width):
            raise InputError(f"{name} has no pixels: it is {width} x {height}")
        if channels not in CHANNEL_NAMES or page.imagedepth != 1:
            raise InputError(
                f"{name} has {channels} channels and depth {page.imagedepth}: 1 to 4 channels are supported"
            )
        check_picture_memory(height, width, channels, page.dtype.itemsize, name)
        try:
            values = page.asarray()
            if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and channels > 1:
                values = np.moveaxis(values, 0, -1)
        except ValueError:  # a compression that tifffile leaves to other packages
            values = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
            if values is None:
                raise InputError(
                    f"{name}: TIFF with {tifffile.COMPRESSION(page.compression).name} compression cannot be decoded"
                ) from None
            values = _swap_red_and_blue(np.atleast_3d(values))
        orientation = page.tags.get(274)
        icc_profile = page.iccprofile
    values = values.reshape(height, width, channels)
    values = _upright(values, 1 if orientation is None else orientation.value)
    picture = Picture(np.array(values), "TIFF", CHANNEL_NAMES[channels], None, icc_profile)
    if values.dtype.kind != "f":
        return picture
    picture = dataclasses.replace(picture, values=picture.values.astype(np.float32))
    _check_finite(picture.values, name)
    return picture if picture.values.min() >= 0 and picture.values.max() <= 1 else _as_radiance(picture, name)


def _read_exr(content: bytes, name: str) -> Picture:
    """An EXR of one part with the channels Y or R, G and B, alpha or not; half or float."""
    with tempfile.TemporaryDirectory(prefix="loe_field-") as folder:  # the library has no files in memory
        path = Path(folder) / "a.exr"
        path.write_bytes(content)
        file = oiio.ImageInput.open(str(path))
        if file is None:
            raise InputError(f"{name} is damaged or cut short: {oiio.geterror().rstrip('.')}. Get a whole copy of it")
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
        half = spec.format == oiio.HALF
        check_picture_memory(spec.height, spec.width, len(wanted), 4, name)
        values = file.read_image(oiio.FLOAT)
        problem = file.geterror()
        file.close()
    if values is None or problem:
        raise InputError(f"{name} is damaged or cut short: {problem.rstrip('.')}. Get a whole copy of it")
    values = np.ascontiguousarray(np.atleast_3d(values)[..., [names.index(channel) for channel in wanted]])
    _check_finite(values, name)
    if wanted[-1] == "A":
        alpha = values[..., -1:] = values[..., -1:].clip(0, 1)
        np.divide(values[..., :-1], alpha, out=values[..., :-1], where=alpha > 0)
        values[..., :-1] *= alpha > 0
    picture = Picture(values.astype(np.float16 if half else np.float32), "EXR", CHANNEL_NAMES[len(wanted)])
    return _as_radiance(picture, name)


def _check_finite(values: np.ndarray, name: str) -> None:
    bad = int(values.size - np.isfinite(values).sum())
    if bad:
        raise InputError(f"{name} holds {bad} values that are NaN or infinite: replace them before fitting")


def _as_radiance(picture: Picture, name: str) -> Picture:
    """The picture as radiance: nothing negative, and a peak."""
    values, note = picture.values, picture.note
    negative = int((values < 0).sum())
    if negative:
        note = f"{name} holds {negative:,} negative values, down to {values.min():g}: taken as 0"
        values = np.maximum(values, 0)
    shown = values[..., : picture.channels - picture.has_alpha]
    peak = float(np.percentile(shown.astype(np.float32), _PEAK)) or float(shown.max()) or 1.0
    return dataclasses.replace(picture, values=values, note=note, peak=peak)


def _swap_red_and_blue(values: np.ndarray) -> np.ndarray:
    """OpenCV's channel order to ours and back."""
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[values.shape[2]]
    return values[..., order]


def _upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """Apply EXIF orientation 1 to 8 to [height, width, channels]."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values


def available_memory() -> int:
    """Bytes that this process may still take: what is free on the machine, or in its control group if that is less."""
    free = psutil.virtual_memory().available
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no control groups, or "max"
            continue
    return max(0, free)


def check_picture_memory(height: int, width: int, channels: int, bytes_per_value: int, name: str) -> None:
    """Refuse a picture that cannot be fitted in this machine's memory.

    Raises:
        InputError: with the sizes, and what helps.
    """
    needed = height * width * (6 * channels * bytes_per_value + 8 * channels + _BYTES_PER_PIXEL)
    free = available_memory()
    if needed > free:
        shrink = (free / needed) ** 0.5
        raise InputError(
            f"{name} is too large for memory: {width} x {height} pixels of {channels} channels take about "
            f"{needed / 2**30:.1f} GiB to fit and {free / 2**30:.1f} GiB are free. Fit a crop, or scale it to at most "
            f"{int(width * shrink)} x {int(height * shrink)}"
        )
