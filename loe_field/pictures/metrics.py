"""Measures of how near two pictures are: PSNR and SSIM."""

import math
from collections.abc import Callable, Iterator

import numpy as np

from loe_field.pictures.picture import Picture

_SIGMA, _WINDOW = 1.5, 11  # pixels: the Gaussian of SSIM, and the side at which it is cut off
_STRIP = 512  # rows that are measured at once, so that a large picture takes no more memory than its own

_Rows = Callable[[slice], tuple[np.ndarray, np.ndarray]]  # of a picture and of its target


def squared_error(values: np.ndarray, target: np.ndarray) -> float:
    """Sum of squared differences of two arrays of one shape."""
    error = np.subtract(values, target, dtype=np.float32)
    return float(np.sum(np.square(error, out=error), dtype=np.float64))


def decibels(square: float, count: int) -> float:
    """PSNR in dB of a sum of squared errors over so many values on [0, 1]; infinite if there is no error."""
    return math.inf if square == 0 else -10 * math.log10(square / count)


def psnr(values: np.ndarray, target: np.ndarray, white: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(white^2 / mean squared error), over all values; infinite if equal."""
    square = sum(squared_error(values[rows], target[rows]) for rows in _strips(len(values)))
    return decibels(square / white**2, values.size)


def colour_corrected(values: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The values with colours nearest to the target's by one affine map of colours (least squares), clipped.

    PSNR after such a correction is what Mip-NeRF 360's and Zip-NeRF's code call cc_psnr; theirs is a quadratic map.

    Args:
        values: [height, width, 3] in [0, 1].
        target: likewise.
    """
    colours = values.reshape(-1, values.shape[-1]).astype(np.float64)
    colours = np.concatenate([colours, np.ones((len(colours), 1))], 1)
    found = np.linalg.lstsq(colours.T @ colours, colours.T @ target.reshape(len(colours), -1), rcond=1e-9)[0]
    return (colours @ found).clip(0, 1).astype(values.dtype).reshape(values.shape)


def picture_psnr(picture: Picture, target: Picture) -> float:
    """PSNR in dB between two pictures of one kind; HDR on its curve, where the target's peak is 1."""
    if target.peak is None:
        return psnr(picture.values, target.values, target.white)
    rows_of = _as_fitted(picture, target)
    return decibels(sum(squared_error(*rows_of(rows)) for rows in _strips(target.height)), target.values.size)


def ssim(values: np.ndarray, target: np.ndarray, *, mirrored: bool = False) -> float | None:
    """Structural similarity, mean over the channels; None if a side is below 11 pixels, those of its window.

    With a Gaussian window of sigma 1.5 (Wang, Bovik, Sheikh and Simoncelli, "Image Quality Assessment", 2004), at the
    pixels around which a whole window fits.

    Args:
        values: [height, width, channels] in [0, 1].
        target: likewise.
        mirrored: at all pixels, both pictures mirrored at their borders, as nerfstudio measures views.
    """
    margin = (_WINDOW // 2,) * 2 if mirrored and min(target.shape[:2]) >= _WINDOW else (0, 0)
    values, target = (np.pad(part, (margin, margin, (0, 0)), mode="reflect") for part in (values, target))
    return _ssim(lambda rows: (values[rows], target[rows]), *target.shape)


def picture_ssim(picture: Picture, target: Picture) -> float | None:
    """SSIM between two pictures of one kind as they are fitted; see `ssim`."""
    return _ssim(_as_fitted(picture, target), *target.values.shape)


def _ssim(rows_of: _Rows, height: int, width: int, channels: int) -> float | None:
    from skimage.metrics import structural_similarity  # half a second to import

    if min(height, width) < _WINDOW:
        return None
    total, margin = 0.0, _WINDOW - 1
    for strip in _strips(height - margin):  # rows that are the middle of a window
        pair = [part.astype(np.float64) for part in rows_of(slice(strip.start, strip.stop + margin))]
        for seen, wanted in zip(*(np.moveaxis(part, -1, 0) for part in pair)):
            options = {"gaussian_weights": True, "sigma": _SIGMA, "use_sample_covariance": False}
            mean = structural_similarity(seen, wanted, data_range=1.0, **options)
            total += float(np.mean(mean)) * (strip.stop - strip.start)
    return total / ((height - margin) * channels)


def _as_fitted(picture: Picture, target: Picture) -> _Rows:
    return lambda rows: (target.to_unit(picture.values[rows]), target.to_unit(target.values[rows]))


def _strips(height: int) -> Iterator[slice]:
    return (slice(first, min(first + _STRIP, height)) for first in range(0, height, _STRIP))
