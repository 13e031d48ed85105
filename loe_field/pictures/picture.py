"""A picture as numbers: those of its file, and those that are fitted."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import KDTree

from loe_field.errors import InputError

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "EXR")
"""Formats that are read and written, by Pillow's names."""
MU = 5000.0
"""Parameter of the curve on which HDR is fitted and measured (Kalantari and Ramamoorthi, 2017)."""
CHANNEL_NAMES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
EXR_CHANNELS = {1: ("Y",), 2: ("Y", "A"), 3: ("R", "G", "B"), 4: ("R", "G", "B", "A")}

_PEAK = 99.9  # percentile of an HDR picture's values that stands for 1
_SUFFIX = {"PNG": ".png", "JPEG": ".jpg", "TIFF": ".tif", "BMP": ".bmp", "WEBP": ".webp", "EXR": ".exr"}


@dataclass(frozen=True)
class Picture:
    """A picture as numbers, with all that is needed to write others like it."""

    values: np.ndarray  # [height, width, channels]; uint8, uint16, or floats: within [0, 1], or HDR of any height
    format: str  # one of FORMATS
    mode: str  # Pillow's name for the channels: "1", "L", "LA", "P", "RGB" or "RGBA"
    palette: np.ndarray | None = None  # of mode "P", [entries, 3 or 4] uint8; values hold colours, not indices
    icc_profile: bytes | None = None  # carried along
    note: str = ""  # for the user, on changes made in reading
    peak: float | None = None
    """The value of HDR that stands for 1; None for everything else. HDR is fitted and measured as
    log(1 + MU v / peak) / log(1 + MU), above 1 where it is above the peak; its alpha stays as it is."""

    def __deepcopy__(self, memo: object) -> "Picture":
        """The picture itself: it never changes."""
        return self

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
        """The fitted numbers, float32: the values on [0, 1], those of HDR on its curve."""
        return self.to_unit(self.values)

    def to_unit(self, values: np.ndarray) -> np.ndarray:
        """Values of this kind of picture, [..., channels], as they are fitted, float32."""
        if self.peak is None:
            return np.divide(values, self.white, dtype=np.float32)
        unit = np.array(values, np.float32)
        shown = unit[..., : self.channels - self.has_alpha]
        shown[...] = np.log1p(shown * np.float32(MU / self.peak)) / np.float32(np.log1p(MU))
        return unit

    def from_unit(self, unit: np.ndarray) -> np.ndarray:
        """The inverse for HDR, float32, never below 0; the same numbers for other pictures."""
        if self.peak is None:
            return unit
        values = np.maximum(unit, 0, dtype=np.float32)
        shown = values[..., : self.channels - self.has_alpha]
        shown[...] = np.expm1(np.minimum(shown * np.float32(np.log1p(MU)), 80)) * np.float32(self.peak / MU)
        return values

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
        palette = None if self.palette is None else self.palette.tolist()
        held = {"shape": list(self.values.shape), "dtype": self.values.dtype.name, "palette": palette}
        return held | {name: getattr(self, name) for name in ("format", "mode", "icc_profile", "peak")}

    def like(self, unit_values: np.ndarray) -> "Picture":
        """A picture of this kind with other content, rounded to what this kind can hold.

        Args:
            unit_values: [height, width, channels], floating point, as `unit` has them; clamped to [0, 1], HDR to the
                range of the dtype, and rounded to the nearest step, black or white, or palette colour.
        """
        if self.mode == "1":
            values = np.where(unit_values >= 0.5, np.uint8(255), np.uint8(0))
        elif self.palette is not None:
            values = self.palette[nearest(self.palette, np.clip(unit_values, 0, 1) * 255)]
        elif self.peak is not None:
            values = hdr_values(self.from_unit(unit_values), self.values.dtype, alpha=self.has_alpha)
        else:
            values = codes(unit_values, self.values.dtype)
        return replace(self, values=values)


def blank_picture(kind: dict[str, Any]) -> Picture:
    """A picture of a kind (`Picture.kind`) with nothing in it; its values are one zero, seen everywhere."""
    palette = None if kind["palette"] is None else np.array(kind["palette"], np.uint8)
    values = np.broadcast_to(np.zeros((), kind["dtype"]), kind["shape"])
    return Picture(values, kind["format"], kind["mode"], palette, kind["icc_profile"], peak=kind.get("peak"))


def nearest(palette: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Indices [...] of the entries of a palette [entries, channels] that are nearest to colours [..., channels]."""
    return np.asarray(KDTree(palette).query(colours)[1])


def codes(unit_values: np.ndarray, dtype: npt.DTypeLike) -> np.ndarray:
    """Numbers in [0, 1], clamped, as a file of this dtype holds them: whole steps of 1/255 or 1/65535, or floats."""
    dtype = np.dtype(dtype)
    values = np.clip(unit_values, 0, 1)
    return np.rint(values * float(np.iinfo(dtype).max)).astype(dtype) if dtype.kind == "u" else values.astype(dtype)


def hdr_values(values: np.ndarray, dtype: np.dtype, *, alpha: bool) -> np.ndarray:
    """HDR [..., channels] as a file of this floating-point dtype holds it: from 0 to its largest number."""
    largest = np.full(values.shape[-1], np.finfo(dtype).max, np.float32)
    if alpha:
        largest[-1] = 1
    return np.clip(values, 0, largest).astype(dtype)


def as_hdr(picture: Picture, name: str) -> Picture:
    """The picture as HDR: nothing negative, and a peak."""
    values, note = picture.values, picture.note
    if negative := int((values < 0).sum()):
        what = f"holds {negative:,} negative values, down to {values.min():g}: taken as 0"
        note = f"{note}, and {what}" if note else f"{name} {what}"
        values = np.maximum(values, 0)
    shown = values[..., : picture.channels - picture.has_alpha]
    peak = float(np.percentile(shown.astype(np.float32), _PEAK)) or float(shown.max()) or 1.0
    if peak < MU / np.finfo(np.float32).max:
        raise InputError(f"{name} goes up to {peak:g}, too small for floats of 32 bits on the HDR curve: scale it up")
    return replace(picture, values=values, note=note, peak=peak)


def check_finite(values: np.ndarray, name: str) -> None:
    """Refuse NaN and infinity with InputError."""
    if bad := int(values.size - np.isfinite(values).sum()):
        raise InputError(f"{name} holds {bad} values that are NaN or infinite: replace them before fitting")


def straight(values: np.ndarray) -> np.ndarray:
    """Colours that are multiplied by the alpha behind them, [..., channels], divided by it; 0 where nothing is seen."""
    if values.dtype.kind == "f":
        alpha = values[..., -1:].clip(0, 1)
        colours = np.zeros_like(values[..., :-1])
        np.divide(values[..., :-1], alpha, out=colours, where=alpha > 0)
    else:
        white, alpha = int(np.iinfo(values.dtype).max), values[..., -1:]
        divisor = np.maximum(alpha, 1).astype(np.uint32)  # in which 65535 * 65535 and its rounding fit
        colours = (values[..., :-1].astype(np.uint32) * white + divisor // 2) // divisor
        colours = np.minimum(colours, white) * (alpha > 0)
    return np.concatenate([colours.astype(values.dtype, copy=False), alpha], -1)


def upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """Apply EXIF orientation 1 to 8 to [height, width, channels]."""
    values = values.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else values
    values = values[:, ::-1] if orientation in (2, 3, 6, 7) else values
    return values[::-1] if orientation in (3, 4, 7, 8) else values
