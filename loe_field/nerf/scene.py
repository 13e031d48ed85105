"""Checks of a given scene, before anything is written."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from nerfstudio.cameras.camera_utils import radial_and_tangential_undistort
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig, DataparserOutputs
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGPDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.utils.rich_utils import CONSOLE
from PIL import Image
from torch import Tensor

from loe_field.errors import InputError
from loe_field.nerf.pictures import Unreadable, opened, sees_through
from loe_field.nerf.rays import lens_numbers
from loe_field.words import say

_OTHER_FORMATS = {
    "transforms_train.json": "blender-data",
    "transforms.json": "nerfstudio-data",
    "poses_bounds.npy": "nerfstudio-data after ns-process-data",
    "cameras.npz": "dnerf-data or sdfstudio-data",
    "meta_data.json": "sdfstudio-data",
}
"""Files of other formats, and the host's word for each."""
_COLMAP_FOLDERS = ("colmap/sparse/0", "sparse/0", "sparse", "colmap/sparse", "colmap/0", "colmap", "dense/sparse", "")
"""Where COLMAP's cameras may lie in a scene; the host looks into the first only."""


def check_scene(config: DataParserConfig) -> None:
    """Refuse a scene that is not there, or of another format than the host's reader wants; says which it is."""
    data = config.data
    if data == Path():
        raise InputError("no scene was given: --data takes the folder of a scene, or its transforms.json")
    if not os.path.exists(data):
        raise InputError(f"{data} is not there: --data takes the folder of a scene, or its transforms.json")
    if isinstance(config, ColmapDataParserConfig):
        if not _has_colmap(data / config.colmap_path):
            raise InputError(f"{data / config.colmap_path} has no cameras of COLMAP's{_hint(data)}")
        if not (data / config.images_path).is_dir():
            folders = sorted(p.name for p in data.iterdir() if p.is_dir() and p.name not in ("sparse", "colmap"))
            there = f": --images-path names it, there are {', '.join(folders)}" if folders else ""
            raise InputError(f"{data / config.images_path}, the folder of the pictures, is not there{there}")
        return
    if isinstance(config, BlenderDataParserConfig):
        if not os.path.isfile(data / "transforms_train.json"):
            raise InputError(f"{data} has no transforms_train.json{_hint(data)}")
        return
    if isinstance(config, NerfstudioDataParserConfig) and not 0 < config.train_split_fraction <= 1:
        part = f"--train-split-fraction is {config.train_split_fraction:g}"
        raise InputError(f"{part}: it is the part of the views to train on, above 0 and up to 1")
    if not isinstance(config, NerfstudioDataParserConfig | InstantNGPDataParserConfig) or data.suffix == ".json":
        return
    if os.path.exists(data / "transforms.json") and not os.path.isfile(data / "transforms.json"):
        raise InputError(f"{data / 'transforms.json'} is not a file")
    if not os.path.isfile(data / "transforms.json"):
        hint = _hint(data) or "; ns-process-data makes one of pictures or a video"
        raise InputError(f"{data} has no transforms.json{hint}")


def _has_colmap(folder: Path) -> bool:
    return any(os.path.isfile(folder / f"cameras.{kind}") for kind in ("bin", "txt"))


def _hint(data: Path) -> str:
    """What to append to the command for a scene of another format."""
    word = next((word for name, word in _OTHER_FORMATS.items() if os.path.isfile(data / name)), None)
    found = next((folder for folder in _COLMAP_FOLDERS if _has_colmap(data / folder)), None)
    if word is None and found is not None:
        word = "colmap" if found == _COLMAP_FOLDERS[0] else f"colmap --colmap-path {found or '.'}"
        if not (data / "images").is_dir():
            pictures = next((name for name in ("input", "rgb", "frames") if (data / name).is_dir()), "FOLDER")
            word += f" --images-path {pictures}"
    return f": it looks like another format, append {word} to the command" if word else ""


def usable(outputs: DataparserOutputs, split: str, *, whole: bool = False) -> DataparserOutputs:
    """The views of a split whose pictures are there and can be opened; says how many are left out.

    Their metadata also has "background", for the model: the colour [3] in [0, 1] that the dataparser has behind
    the object, "transparent" if a pixel of them is and they are put on nothing, else None; and for the memory
    "bytes_per_pixel": its channels, and 8 where masks choose pixels. Pictures are read to their ends if whole, else
    only their heads.
    """
    cameras, kept, lost, channels = outputs.cameras, [], [], 3
    if not len(outputs.image_filenames):
        return outputs
    if not cameras.shape:
        raise InputError(
            f"there is one single {split} view, whose pose this format's reader in the host loses: have more of them "
            "(the dataparser's --eval-mode, --train-split-fraction or --eval-interval)"
        )
    _check_cameras(cameras, outputs.image_filenames)
    sizes: Counter[tuple[int, int]] = Counter()
    wrong: tuple[Path, tuple[int, int], tuple[int, int], bool] | None = None
    for i, path in enumerate(outputs.image_filenames):
        try:
            with opened(path) as picture:
                channels = max(channels, 3 + picture.has_transparency_data)
                size, wanted = picture.size, (int(cameras.width[i]), int(cameras.height[i]))
                if size != wanted and wrong is None:
                    wrong = path, size, wanted, _turned(picture)
                if whole and wrong is None:
                    picture.load()
        except Unreadable as error:
            lost.append(f"{path} ({error})")
            continue
        sizes[size] += 1
        if wrong is None and outputs.mask_filenames is not None:
            _check_mask(outputs.mask_filenames[i], path, size)
        kept.append(i)
    if wrong is not None:
        raise InputError(_wrong_size(*wrong, len(sizes) > 1))
    transparent = any(sees_through(outputs.image_filenames[i]) for i in kept)
    colour = outputs.alpha_color
    background = colour.tolist() if colour is not None else "transparent" if transparent else None
    each = channels + (8 if outputs.mask_filenames is not None else 0)
    mine = {"background": background, "bytes_per_pixel": each}
    outputs = replace(outputs, metadata={**outputs.metadata, **mine})
    if not lost:
        return outputs
    count = len(outputs.image_filenames)
    say(
        f"{len(lost)} of {count} pictures of the {split} views are missing or cannot be opened and left out, the first "
        f"is {lost[0]}",
        CONSOLE,
    )

    def left(value: Any) -> Any:
        """A list with an entry for each view, without those of the lost ones; anything else as it is."""
        return [value[i] for i in kept] if isinstance(value, list) and len(value) == count else value

    return replace(
        outputs,
        image_filenames=left(list(outputs.image_filenames)),
        cameras=cameras[torch.tensor(kept, dtype=torch.long)],
        mask_filenames=left(outputs.mask_filenames),
        metadata={name: left(value) for name, value in outputs.metadata.items()},
    )


def _turned(picture: Image.Image) -> bool:
    """Whether viewers show the picture with width and height exchanged."""
    return "exif" in picture.info and picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)


def _wrong_size(path: Path, size: tuple[int, int], wanted: tuple[int, int], turned: bool, several: bool) -> str:
    """What is wrong where a picture is not of its camera's size."""
    seen = f"{path} is {size[0]}x{size[1]} and its camera {wanted[0]}x{wanted[1]} pixels"
    if size == wanted[::-1] and turned:
        return f"{seen}: its EXIF orientation turns it for viewers, not for the host; save the pictures upright"
    if several:
        return (
            f"{seen}: pictures of several sizes need w, h, fl_x, fl_y, cx and cy in each frame of transforms.json, not "
            "once for all"
        )
    if size == wanted[::-1]:
        return f"{seen}: w and h are exchanged"
    if abs(size[0] - wanted[0]) <= 1 and abs(size[1] - wanted[1]) <= 1:
        return f"{seen}: smaller pictures were rounded otherwise; colmap has --downscale-rounding-mode round and ceil"
    factor = size[0] / wanted[0]
    if abs(factor * wanted[1] - size[1]) <= 1:
        return f"{seen}: the pictures were scaled by {factor:.4g}; so must be w, h, fl_x, fl_y, cx and cy"
    return f"{seen}: w and h must be the pictures' own, and fl_x, fl_y, cx and cy belong to them"


def _check_cameras(cameras: Cameras, paths: Sequence[Path]) -> None:
    """Refuse poses and lenses that are not finite, poses that make space flat, and lenses that see no picture."""
    if not torch.isfinite(cameras.camera_to_worlds).all():
        raise InputError("the cameras' poses are not finite once read, centred and scaled: mend them in the scene")
    sizes = torch.linalg.svdvals(cameras.camera_to_worlds[:, :, :3])
    flat = sizes[:, 2] <= 1e-3 * sizes[:, 0]
    if flat.any():
        path = paths[int(flat.nonzero()[0])]
        raise InputError(f"the pose of {path} is singular, not a rotation: mend or remove its frame")
    lens = lens_numbers(cameras)
    focal, middle, size, kind = lens[:, :2], lens[:, 2:4], lens[:, 4:6], lens[:, 6]
    wrong = ~torch.isfinite(lens).all(1) | (focal <= 0).any(1)
    if wrong.any():
        raise InputError(
            f"the lens of {paths[int(wrong.nonzero()[0])]} has numbers that are not finite, or a focal length that is "
            "not above 0: mend fl_x, fl_y, cx, cy and k1, k2, ... of the scene"
        )
    absurd = (((size / focal).log10().abs() > 4) | ((middle / size).abs() > 1e3)).any(1)
    absurd &= kind != CameraType.ORTHOPHOTO.value
    if absurd.any():
        first = int(absurd.nonzero()[0])
        (fx, fy), (cx, cy), (width, height) = (x[first].tolist() for x in (focal, middle, size))
        raise InputError(
            f"{paths[first]} has {width:.0f}x{height:.0f} pixels, and its lens a focal length of {fx:g} and {fy:g} "
            f"pixels and its middle at {cx:g}, {cy:g}: mend fl_x, fl_y, cx and cy"
        )
    _check_distortion(lens[(kind == CameraType.PERSPECTIVE.value) | (kind == CameraType.FISHEYE.value)])


def _check_distortion(lens: Tensor) -> None:
    """Refuse lenses [N, lens_numbers] whose distortion cannot be undone over most of the picture; say where some is."""
    if lens.shape[1] != 13 or not len(lens := lens.unique(dim=0)):
        return
    part = torch.linspace(0.02, 0.98, 17, dtype=lens.dtype)
    grid = torch.cartesian_prod(part, part)
    wanted = (grid * lens[:, None, 4:6] - lens[:, None, 2:4]) / lens[:, None, :2]
    k1, k2, k3, k4, p1, p2 = lens[:, None, 7:].unbind(-1)
    x, y = radial_and_tangential_undistort(wanted, lens[:, None, 7:]).unbind(-1)
    r = x * x + y * y
    d = 1 + r * (k1 + r * (k2 + r * (k3 + r * k4)))
    found = torch.stack(
        [d * x + 2 * p1 * x * y + p2 * (r + 2 * x * x), d * y + 2 * p2 * x * y + p1 * (r + 2 * y * y)], -1
    )
    lost = float((~(((found - wanted) * lens[:, None, :2]).norm(dim=-1) < 1)).double().mean(1).max())
    if lost > 0.5:
        raise InputError(
            f"the distortion of a lens cannot be undone for {lost:.0%} of its picture: mend k1, k2, k3, k4, p1 and p2 "
            "of the scene"
        )
    if lost:
        CONSOLE.print(f"the distortion of a lens cannot be undone for {lost:.0%} of its picture: rays are wrong there")


def _check_mask(mask: Path, path: Path, size: tuple[int, int]) -> None:
    """Refuse a mask that is not there, damaged, of another size than its picture or of several channels."""
    try:
        with opened(mask) as picture:
            found, bands = picture.size, len(picture.getbands())
    except Unreadable as error:
        raise InputError(f"the mask {mask} of {path} cannot be read ({error})") from None
    if found != size or bands != 1:
        raise InputError(
            f"the mask {mask} is {found[0]}x{found[1]} with {bands} channels: it must be {size[0]}x{size[1]} as its "
            f"picture {path}, with one channel"
        )
