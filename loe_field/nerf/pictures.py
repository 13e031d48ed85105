"""The pictures of a scene as the rest wants them: 8 bits, RGB or RGBA, whatever the files hold."""

from pathlib import Path

import numpy as np
from nerfstudio.cameras.cameras import CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset
from PIL import Image

from loe_field.errors import InputError

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError)
"""Pillow's errors at files that are damaged or no pictures (UnidentifiedImageError is an OSError)."""


class PosedPictures(InputDataset):
    """The host's dataset, which would take a palette's indices for colours, wrap 16 bits and refuse grey with alpha."""

    def __init__(self, dataparser_outputs: DataparserOutputs, scale_factor: float = 1.0) -> None:
        super().__init__(dataparser_outputs, scale_factor)
        # The host divides 0 by 0 where a fisheye's axis meets the very centre of a pixel.
        x, y, kind = self.cameras.cx, self.cameras.cy, self.cameras.camera_type
        on_axis = (kind == CameraType.FISHEYE.value) & (x % 1 == 0.5) & (y % 1 == 0.5)
        self.cameras.cx = x + 1e-3 * on_axis

    def get_numpy_image(self, image_idx: int) -> np.ndarray:
        """A picture, uint8 [height, width, 3 or 4]; an InputError if it is damaged or cannot be had in 8 bits."""
        path = self.image_filenames[image_idx]
        try:
            with Image.open(path) as file:
                picture = in_8_bits(file)
        except UNREADABLE as error:
            raise InputError(f"{path} cannot be read ({error}): mend it, or delete it to train without it") from None
        if self.scale_factor != 1.0:
            size = int(picture.width * self.scale_factor), int(picture.height * self.scale_factor)
            picture = picture.resize(size, resample=Image.Resampling.BILINEAR)
        return np.array(picture)


def in_8_bits(picture: Image.Image) -> Image.Image:
    """The picture as RGB, or RGBA where anything in it may be transparent; a ValueError at floats or over 16 bits."""
    if picture.mode in ("RGB", "RGBA") and "transparency" not in picture.info:
        picture.load()
        return picture
    if picture.mode.startswith("I"):
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("it has more than 16 bits")
        picture = Image.fromarray(np.rint(values / 257).astype(np.uint8))
    elif picture.mode == "F":
        raise ValueError("it holds floats, not 8 or 16 bits")
    return picture.convert("RGBA" if picture.has_transparency_data else "RGB")


def sees_through(path: Path) -> bool:
    """Whether any pixel of the picture is transparent; False also where it cannot be read."""
    try:
        with Image.open(path) as picture:
            return picture.has_transparency_data and bool((np.asarray(in_8_bits(picture))[..., 3] < 255).any())
    except UNREADABLE:
        return False
