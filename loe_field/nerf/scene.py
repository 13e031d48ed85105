"""Checks of a given scene, before anything is written."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nerfstudio.cameras.cameras import CAMERA_MODEL_TO_TYPE, Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataParserConfig, DataparserOutputs
from nerfstudio.data.dataparsers.nerfstudio_dataparser import MAX_AUTO_RESOLUTION, NerfstudioDataParserConfig
from nerfstudio.utils.rich_utils import CONSOLE
from PIL import Image

from loe_field.errors import InputError
from loe_field.nerf.pictures import UNREADABLE, sees_through
from loe_field.nerf.rays import lens_numbers
from loe_field.words import say

_OTHER_FORMATS = {
    "transforms_train.json": "blender-data",
    "colmap": "colmap",
    "sparse": "colmap",
    "poses_bounds.npy": "nerfstudio-data after ns-process-data",
    "cameras.npz": "dnerf-data or sdfstudio-data",
    "meta_data.json": "sdfstudio-data",
}
"""Files of other formats, and the host's word for each."""


def check_scene(config: DataParserConfig) -> None:
    """Look at a scene in nerfstudio's own format before the host reads it; other formats are left to the host.

    Where the first picture is missing, by whose size the host chooses a downscale factor, the factor is chosen here by
    the first that is there.
    """
    data = config.data
    if data == Path():
        raise InputError("no scene was given: --data takes the folder of a scene, or its transforms.json")
    if not data.exists():
        raise InputError(f"{data} is not there: --data takes the folder of a scene, or its transforms.json")
    if not isinstance(config, NerfstudioDataParserConfig):
        return
    if not 0 < (part := config.train_split_fraction) <= 1:
        raise InputError(
            f"--train-split-fraction is {part:g}: it is the part of the views to train on, above 0 and up to 1"
        )
    path = data if data.suffix == ".json" else data / "transforms.json"
    if not path.is_file():
        others = [word for name, word in _OTHER_FORMATS.items() if (data / name).exists()]
        hint = f": it looks like another format, append {others[0]} to the command" if others else ""
        raise InputError(f"{data} has no transforms.json{hint or '; ns-process-data makes one of pictures or a video'}")
    try:
        content = json.loads(path.read_text("utf8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error})") from None
    frames = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not frames:
        raise InputError(f"{path} lists no frames: each picture needs one, with file_path and transform_matrix")
    model = content.get("camera_model", "OPENCV")
    if model not in CAMERA_MODEL_TO_TYPE:
        raise InputError(f"{path}: camera_model is {model!r}, the host knows {', '.join(CAMERA_MODEL_TO_TYPE)}")
    places = []
    for number, frame in enumerate(frames):
        if not isinstance(frame, dict) or "file_path" not in frame or "transform_matrix" not in frame:
            raise InputError(f"{path}, frame {number} has no file_path or no transform_matrix")
        if not isinstance(frame["file_path"], str):
            raise InputError(f"{path}, frame {number}: file_path is {frame['file_path']!r}, not the path of a picture")
        pose = _pose(frame["transform_matrix"], f"{path}, frame {number} ({frame['file_path']})")
        places.append(pose[:3, 3])
    if len(frames) < 2:
        raise InputError(f"{path} has one single view: depth takes at least two, from different places")
    if np.ptp(places, axis=0).max() == 0:
        raise InputError(f"{path} has all its cameras in one place: depth takes views from different places")
    _choose_downscale_factor(config, [path.parent / frame["file_path"] for frame in frames])


def _pose(matrix: object, where: str) -> np.ndarray:
    try:
        values = np.asarray(matrix, dtype=float)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.shape not in ((4, 4), (3, 4)):
        raise InputError(f"{where}: transform_matrix is not 4 rows of 4 numbers")
    if not np.isfinite(values).all():
        raise InputError(f"{where}: transform_matrix holds numbers that are not finite, mend or remove the frame")
    return values


def _choose_downscale_factor(config: NerfstudioDataParserConfig, paths: Sequence[Path]) -> None:
    """As the host chooses it: halve while the longer side is above its limit and a folder images_2, ... is there."""
    first = min(paths)
    if config.downscale_factor is not None or first.is_file():
        return
    there = next((path for path in sorted(paths) if path.is_file()), None)
    if there is None:
        raise InputError(f"not one of the {len(paths)} pictures is there, the first is {first}: nothing to train on")
    factor = 1
    with Image.open(there) as picture:
        longest = max(picture.size)
    folder = there.parent.parent
    while longest / factor > MAX_AUTO_RESOLUTION and (folder / f"images_{2 * factor}" / there.name).is_file():
        factor *= 2
    config.downscale_factor = factor


def usable(outputs: DataparserOutputs, split: str, *, whole: bool = False) -> DataparserOutputs:
    """The views of a split whose pictures are there and can be opened; says how many are left out.

    Their metadata also has "background", for the model: the colour [3] in [0, 1] that the dataparser has behind
    the object, "transparent" if a pixel of them is and they are put on nothing, else None. Pictures are read to their
    ends if whole, else only their heads.
    """
    cameras, kept, lost, transparent = outputs.cameras, [], [], False
    if not cameras.shape:
        raise InputError(
            f"there is one single {split} view, whose pose this format's reader in the host loses: have more of them "
            "(the dataparser's --eval-mode, --train-split-fraction or --eval-interval)"
        )
    _check_cameras(cameras, outputs.image_filenames)
    for i, path in enumerate(outputs.image_filenames):
        try:
            with Image.open(path) as picture:
                size = picture.size
                if whole:
                    picture.load()
        except UNREADABLE:
            lost.append(path)
            continue
        wanted = int(cameras.width[i]), int(cameras.height[i])
        if size != wanted:
            raise InputError(
                f"{path} is {size[0]}x{size[1]} and its camera {wanted[0]}x{wanted[1]} pixels: pictures of several "
                "sizes need w, h, fl_x, fl_y, cx and cy in each frame of transforms.json, not once for all"
            )
        if outputs.mask_filenames is not None:
            _check_mask(outputs.mask_filenames[i], path, size)
        kept.append(i)
        transparent = transparent or sees_through(path)
    colour = outputs.alpha_color
    background = colour.tolist() if colour is not None else "transparent" if transparent else None
    outputs = replace(outputs, metadata={**outputs.metadata, "background": background})
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


def _check_cameras(cameras: Cameras, paths: Sequence[Path]) -> None:
    """Refuse poses and lenses that are not finite, poses that make space flat, and focal lengths of 0."""
    if not torch.isfinite(cameras.camera_to_worlds).all():
        raise InputError("the cameras' poses are not finite once read, centred and scaled: mend them in the scene")
    sizes = torch.linalg.svdvals(cameras.camera_to_worlds[:, :, :3])
    flat = sizes[:, 2] <= 1e-3 * sizes[:, 0]
    if flat.any():
        path = paths[int(flat.nonzero()[0])]
        raise InputError(f"the pose of {path} is singular, not a rotation: mend or remove its frame")
    lens = lens_numbers(cameras)
    wrong = ~torch.isfinite(lens).all(1) | (lens[:, :2] == 0).any(1)
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise InputError(
            f"the lens of {paths[first]} has numbers that are not finite, or a focal length of 0: mend fl_x, fl_y, cx, "
            "cy and k1, k2, ... of the scene"
        )


def _check_mask(mask: Path, path: Path, size: tuple[int, int]) -> None:
    """Refuse a mask that is not there, damaged, of another size than its picture or of several channels."""
    try:
        with Image.open(mask) as picture:
            found, bands = picture.size, len(picture.getbands())
    except UNREADABLE as error:
        raise InputError(f"the mask {mask} of {path} cannot be read ({error})") from None
    if found != size or bands != 1:
        raise InputError(
            f"the mask {mask} is {found[0]}x{found[1]} with {bands} channels: it must be {size[0]}x{size[1]} as its "
            f"picture {path}, with one channel"
        )
