"""The pictures of a scene as the rest wants them: 8 bits, RGB or RGBA, whatever the files hold."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from nerfstudio.cameras.cameras import CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset
from PIL import Image
from torch import Tensor

from loe_field.errors import InputError
from loe_field.pictures.pillow import unlimited


class Unreadable(ValueError):
    """A file that is no picture, or a damaged one."""


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """A picture's file, opened by Pillow; whatever goes wrong with it is Unreadable.

    A FIFO, which would never end, is none.
    """
    if not os.path.isfile(path):
        raise Unreadable("it is not a file" if os.path.exists(path) else "it is not there")
    try:
        with unlimited(), Image.open(path) as picture:
            yield picture
    except InputError:
        raise
    except Exception as error:  # decoders raise anything at bytes that are not what they should be
        raise Unreadable(" ".join(str(error).split()) or type(error).__name__) from error


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
            with opened(path) as file:
                picture = in_8_bits(file)
        except Unreadable as error:
            raise InputError(f"{path} cannot be read ({error}): mend it, or delete it to train without it") from None
        if self.scale_factor != 1.0:
            size = int(picture.width * self.scale_factor), int(picture.height * self.scale_factor)
            picture = picture.resize(size, resample=Image.Resampling.BILINEAR)
        return np.array(picture)

    def get_data(self, image_idx: int, image_type: Literal["uint8", "float32"] = "float32") -> dict[str, Any]:
        """A view as the host has it, but a mask keeps what is brighter than half of its brightest value.

        The host keeps whatever is not 0: in a JPEG, and in what was made of one, that is a good part of the black.
        """
        data: dict[str, Any] = {"image_idx": image_idx}
        data["image"] = self.get_image_uint8(image_idx) if image_type == "uint8" else self.get_image_float32(image_idx)
        if (masks := self._dataparser_outputs.mask_filenames) is not None:
            data["mask"] = mask = self._mask(masks[image_idx], self.image_filenames[image_idx])
            if self.mask_color:
                colour = torch.tensor(self.mask_color, dtype=torch.float32)
                colour = (colour * 255).to(torch.uint8) if image_type == "uint8" else colour
                data["image"] = torch.where(mask, data["image"], colour)
        return data | self.get_metadata(data)

    def _mask(self, path: Path, picture: Path) -> Tensor:
        """Where a picture counts, bool [height, width, 1]."""
        try:
            with opened(path) as mask:
                if self.scale_factor != 1.0:
                    size = int(mask.width * self.scale_factor), int(mask.height * self.scale_factor)
                    mask = mask.resize(size, resample=Image.Resampling.NEAREST)
                values = np.array(mask)
        except Unreadable as error:
            raise InputError(f"the mask {path} of {picture} cannot be read ({error})") from None
        return torch.from_numpy(values > values.max() / 2)[..., None]


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
        with opened(path) as picture:
            return picture.has_transparency_data and bool((np.asarray(in_8_bits(picture))[..., 3] < 255).any())
    except Unreadable:
        return False
