"""The host's readers of scenes, given content that was looked at first: what they would take wrongly or die of."""

import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from nerfstudio.cameras.cameras import CAMERA_MODEL_TO_TYPE
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataparserOutputs
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParser
from nerfstudio.data.dataparsers.nerfstudio_dataparser import MAX_AUTO_RESOLUTION, Nerfstudio
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from loe_field.errors import InputError
from loe_field.nerf.pictures import Unreadable, opened
from loe_field.typed import typed
from loe_field.words import say

_ENDINGS = (".png", ".jpg", ".jpeg", ".PNG", ".JPG", ".JPEG")
_FAR = 16
"""Distance of the cameras from the origin, in their own extent, from which on they are centred in doubles: nearer, the
host's 32 bits keep them to 1e-6 of the extent."""
_TOO_FAR = 2**10
"""As _FAR, but beyond help where the host is told not to centre: 32 bits keep 6e-5 of the extent."""
_LENS = ("fl_x", "fl_y", "cx", "cy", "w", "h", "k1", "k2", "k3", "k4", "p1", "p2")


def read_json(path: Path) -> Any:
    """What a JSON file holds, with or without a byte-order mark; an InputError if it is none."""
    if not os.path.isfile(path):
        raise InputError(f"{path} is not there, or not a file")
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        words = str(error).partition(";")[0]  # of a number of 5,000 digits: advice that only a program can follow
        raise InputError(f"{path} cannot be read as JSON ({words})") from None


@dataclass
class _FarOutputs(DataparserOutputs):
    """Outputs whose dataparser_transform is in doubles, for scenes far from the origin of their coordinates."""

    def transform_poses_to_original_space(
        self, poses: Tensor, camera_convention: Literal["opengl", "opencv"] = "opencv"
    ) -> Tensor:
        """As the host does, in doubles."""
        return super().transform_poses_to_original_space(poses.double(), camera_convention)


class LookingParser(DataParser):
    """A reader of the host's whose JSON files are read here; whatever it stumbles over is an InputError."""

    host: type[DataParser]
    """The host's reader."""
    shrink: float = 1.0
    """Scale by which pictures and cameras are still to be made smaller, where the host has no smaller pictures."""

    def get_dataparser_outputs(self, split: str = "train", **kwargs: Any) -> DataparserOutputs:
        """The views of a split."""
        try:
            with self._json_read_here():
                return super().get_dataparser_outputs(split, **kwargs)
        except InputError:
            raise
        except Exception as error:  # the host's readers raise anything at files that they cannot take
            words = " ".join(str(error).split())
            if isinstance(error, LookupError) or not words:
                words = f"{type(error).__name__} {words}".strip()
            raise InputError(f"{self.config.data} cannot be read as a scene: {words}") from error

    @contextmanager
    def _json_read_here(self) -> Iterator[None]:
        module = sys.modules[self.host.__module__]
        original = getattr(module, "load_from_json", None)
        if original is None:
            yield
            return
        module.load_from_json = self._load  # type: ignore[attr-defined]
        try:
            yield
        finally:
            module.load_from_json = original  # type: ignore[attr-defined]

    def _load(self, path: Path) -> Any:
        """A JSON file as the host may have it; the host writes into it, but not into its frames."""
        read = self.__dict__.setdefault("_read", {})
        if path not in read:
            read[path] = self._look(read_json(path), path)
        return dict(read[path]) if isinstance(read[path], dict) else read[path]

    def _look(self, content: Any, path: Path) -> Any:
        """What the host gets in place of a file's content."""
        frames = content.get("frames") if isinstance(content, dict) else None
        if not isinstance(frames, list) or not all(
            isinstance(f, dict) and isinstance(f.get("file_path"), str) and "transform_matrix" in f for f in frames
        ):
            return content
        if not frames:
            raise InputError(f"{path} lists no frames: each picture needs one, with file_path and transform_matrix")
        _check_lens(content, str(path))
        poses, files = _poses(frames, path), _Files(path.parent)
        for frame, pose in zip(frames, poses):
            name = frame["file_path"] = files.slashed(frame["file_path"])
            frame["transform_matrix"] = pose
            for whole in (path.parent / name, path.parent / f"{name}.png"):
                if os.path.exists(whole) and not (os.path.isfile(whole) or os.path.isdir(whole)):
                    raise InputError(f"{whole} is not a file that holds a picture")
        return content


class _NerfstudioParser(LookingParser, Nerfstudio):
    """The host's own format: transforms.json."""

    host = Nerfstudio

    def _look(self, content: Any, path: Path) -> dict[str, Any]:
        frames = content.get("frames") if isinstance(content, dict) else None
        if not isinstance(frames, list) or not frames:
            raise InputError(f"{path} lists no frames: each picture needs one, with file_path and transform_matrix")
        model = content.get("camera_model", "OPENCV")
        if not isinstance(model, str) or model not in CAMERA_MODEL_TO_TYPE:
            raise InputError(f"{path}: camera_model is {model!r}, the host knows {', '.join(CAMERA_MODEL_TO_TYPE)}")
        for number, frame in enumerate(frames):
            if not isinstance(frame, dict) or "file_path" not in frame or "transform_matrix" not in frame:
                raise InputError(f"{path}, frame {number} has no file_path or no transform_matrix")
            for name in ("file_path", "mask_path", "depth_file_path"):
                if not isinstance(frame.get(name, ""), str):
                    what = f"{name} is {frame[name]!r}, not the path of a picture"
                    raise InputError(f"{path}, frame {number}: {what}")
        if "fl_x" not in content and "fl_x" not in frames[0] and "camera_angle_x" in content:
            raise InputError(
                f"{path} has camera_angle_x and no fl_x, as Blender's scenes do: append instant-ngp-data to the "
                "command (blender-data for a folder with transforms_train.json)"
            )
        _check_lens(content, str(path))
        files = _Files(path.parent)
        poses = _poses(frames, path)
        kept: dict[str, int] = {}
        for number, frame in enumerate(frames):
            _check_lens(frame | {"camera_model": None}, f"{path}, frame {number}")
            name = files.found(frame["file_path"])
            whole = os.path.normpath(path.parent / name)
            if (other := kept.setdefault(whole, number)) == number:
                frames[number] = frame | {"file_path": name}
                for extra in (
                    ("mask_path", "depth_file_path") if {"mask_path", "depth_file_path"} & frame.keys() else ()
                ):
                    if extra in frame:
                        frames[number][extra] = files.slashed(frame[extra])
            elif not np.allclose(poses[number], poses[other], rtol=1e-9):
                raise InputError(
                    f"{path}, frames {other} and {number} have one picture, {frame['file_path']}, and different poses: "
                    "remove one"
                )
        if twice := len(frames) - len(kept):
            _say(f"{twice} frames of {path} say again what others say: left out")
        numbers = list(kept.values())
        poses, frames = poses[numbers], [frames[n] for n in numbers]
        for split in ("train_filenames", "val_filenames", "test_filenames"):
            if split in content:
                names = typed(list[str], content[split], f"{path}, {split}")
                content[split] = [files.found(name) for name in names]
        if "applied_transform" in content:
            content["applied_transform"] = _applied(content["applied_transform"], path)
        if np.ptp(poses[:, :3, 3], axis=0).max() == 0:
            _say_one_place(len(frames))
            self.config.auto_scale_poses = False  # the host would divide by their extent
        if len(frames) == 1:
            self.config.eval_mode, self.config.train_split_fraction = "fraction", 1.0
        self._offset = _centre(poses, self.config.center_method)
        if self.downscale_factor is None:
            self._choose_downscale_factor(path.parent, [frame["file_path"] for frame in frames])
        self.config.load_3D_points = False  # nothing here uses them, and the host may ask a question about them
        return content | {"frames": [frame | {"transform_matrix": pose} for frame, pose in zip(frames, poses)]}

    def _load(self, path: Path) -> Any:
        self._content = super()._load(path)
        return self._content

    def _choose_downscale_factor(self, folder: Path, names: Sequence[str]) -> None:
        """As the host chooses it: halve while the longer side is above its limit and a folder images_2, ... is there.

        The host would look at the first picture only, whether it can be read or not.
        """
        if (wanted := self.config.downscale_factor) is not None:
            _check_factor(wanted)
            if wanted > 1 and not (folder / f"images_{wanted}").is_dir():
                self.shrink = _shrunk(wanted, f"images_{wanted}")
                wanted = 1
            self.downscale_factor = wanted
            return
        name, longest = _first_readable([folder / name for name in names])
        factor = 1
        while longest / factor > MAX_AUTO_RESOLUTION and (folder / f"images_{2 * factor}" / name).is_file():
            factor *= 2
        self.downscale_factor = factor

    def _generate_dataparser_outputs(self, split: str = "train", **_: Any) -> DataparserOutputs:
        outputs = super()._generate_dataparser_outputs(split)
        return _with_offset(outputs, self._offset, self._content.get("applied_transform"))


class _ColmapParser(LookingParser, ColmapDataParser):
    """COLMAP's own files."""

    host = ColmapDataParser
    _model: dict[str, Any] | None = None

    def _get_all_images_and_cameras(self, recon_dir: Path) -> dict[str, Any]:
        if self._model is None:
            for path in recon_dir.iterdir():
                if not (path.is_file() or path.is_dir()):
                    raise InputError(f"{path} is not a file of COLMAP's")
            model = super()._get_all_images_and_cameras(recon_dir)
            frames = model["frames"]
            for frame in frames:
                _check_lens(frame, f"the camera of {frame['file_path']}")
            poses = _poses(frames, recon_dir)
            if np.ptp(poses[:, :3, 3], axis=0).max() == 0:
                _say_one_place(len(frames))
                self.config.auto_scale_poses = False
            self._offset = _centre(poses, self.config.center_method)
            self._model = model | {"frames": [f | {"transform_matrix": pose} for f, pose in zip(frames, poses)]}
        return dict(self._model)

    def _get_image_indices(self, image_filenames: list[Path], split: str) -> np.ndarray:
        if len(image_filenames) == 1:
            return np.arange(1 if split == "train" else 0)
        return super()._get_image_indices(image_filenames, split)

    def _setup_downscale_factor(
        self, image_filenames: list[Path], mask_filenames: list[Path], depth_filenames: list[Path]
    ) -> Any:
        """As the host does, without its question: where there are no smaller pictures they are made while reading."""
        if self._downscale_factor is None:
            wanted = self.config.downscale_factor
            if wanted is None:
                longest = _first_readable(image_filenames)[1]
                wanted = 2 ** max(0, math.ceil(math.log2(longest / MAX_AUTO_RESOLUTION)))
            _check_factor(wanted)
            folder = self.config.data / self.config.images_path
            smaller = folder.parent / f"{folder.name}_{wanted}"
            if wanted > 1 and not smaller.is_dir():
                self.shrink = _shrunk(wanted, smaller.name)
                wanted = 1
            self._downscale_factor = wanted
        return super()._setup_downscale_factor(image_filenames, mask_filenames, depth_filenames)

    def _load_3D_points(self, colmap_path: Path, transform_matrix: Tensor, scale_factor: float) -> dict[str, Any]:
        """None: nothing here uses them."""
        return {}

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: Any) -> DataparserOutputs:
        outputs = super()._generate_dataparser_outputs(split, **kwargs)
        assert self._model is not None
        return _with_offset(outputs, self._offset, self._model.get("applied_transform"))


def parser_class(host: type[DataParser]) -> type[DataParser]:
    """The class that reads here what a reader of the host's reads there."""
    ours = {Nerfstudio: _NerfstudioParser, ColmapDataParser: _ColmapParser}.get(host)
    return ours or type(host.__name__, (LookingParser, host), {"host": host})


class _Files:
    """The files of a scene; each folder is listed once, for a scene may have many thousands."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._listed: dict[str, set[str]] = {}

    def __contains__(self, name: str) -> bool:
        folder, last = os.path.split(os.path.join(self._root, name))
        if folder not in self._listed:
            try:
                with os.scandir(folder) as entries:
                    self._listed[folder] = {entry.name for entry in entries if entry.is_file()}
            except (OSError, ValueError):
                self._listed[folder] = set()
        return last in self._listed[folder]

    def slashed(self, name: str) -> str:
        """The name, with Windows' backslashes as slashes unless there is a file of just that name."""
        return name.replace("\\", "/") if "\\" in name and name not in self else name

    def found(self, name: str) -> str:
        """As slashed, and with the ending that the picture has and the name lacks."""
        name = self.slashed(name)
        if name.endswith(_ENDINGS) or name in self:
            return name
        return next((name + ending for ending in _ENDINGS if name + ending in self), name)


def _poses(frames: Sequence[dict[str, Any]], path: Path) -> np.ndarray:
    """Camera to world of each frame, float64 [N, 4, 4]; poses of 3 rows get the fourth."""
    try:
        poses = np.array([frame["transform_matrix"] for frame in frames], dtype=float)
    except (TypeError, ValueError, OverflowError):
        poses = np.empty(0)
    if poses.shape[1:] != (4, 4) or not np.isfinite(poses).all():
        poses = np.stack([_pose(f["transform_matrix"], _where(path, n, f)) for n, f in enumerate(frames)])
    ends = np.abs(poses[:, 3] - [0, 0, 0, 1]).max(1) > 1e-6
    if ends.any():
        number = int(ends.argmax())
        row, column = poses[number, 3].tolist(), np.abs(poses[number, :, 3] - [0, 0, 0, 1]).max() <= 1e-6
        hint = "; it looks transposed" if column else ""
        raise InputError(
            f"{_where(path, number, frames[number])}: transform_matrix ends with the row {row}, not 0, 0, 0, 1{hint}"
        )
    return poses


def _where(path: Path, number: int, frame: dict[str, Any]) -> str:
    return f"{path}, frame {number} ({frame['file_path']})"


def _pose(matrix: object, where: str) -> np.ndarray:
    try:
        values = np.array(matrix, dtype=float)
    except (TypeError, ValueError):
        values = np.empty(0)
    except OverflowError:
        values = np.full((4, 4), np.inf)
    if values.shape not in ((4, 4), (3, 4)):
        raise InputError(f"{where}: transform_matrix is not 4 rows of 4 numbers")
    if not np.isfinite(values).all():
        raise InputError(f"{where}: transform_matrix holds numbers that are not finite, mend or remove the frame")
    return values if len(values) == 4 else np.concatenate([values, [[0, 0, 0, 1]]])


def _applied(matrix: object, path: Path) -> list[list[float]]:
    """The host's applied_transform, [3][4], of 3 or 4 rows."""
    try:
        values = np.array(matrix, dtype=float)
    except (TypeError, ValueError, OverflowError):
        values = np.empty(0)
    if values.shape == (4, 4) and np.abs(values[3] - [0, 0, 0, 1]).max() <= 1e-6:
        values = values[:3]
    if values.shape != (3, 4) or not np.isfinite(values).all() or abs(np.linalg.det(values[:, :3])) < 1e-12:
        raise InputError(f"{path}: applied_transform is not 3 rows of 4 numbers that turn, scale and shift space")
    return values.tolist()


def _check_lens(source: dict[str, Any], where: str) -> None:
    """Refuse numbers of a lens that are none, not finite or of no picture."""
    for name in _LENS:
        if name not in source:
            continue
        value = source[name]
        shown = f"{value!r:.40}"
        if not _is_number(value):
            raise InputError(f"{where}: {name} of the lens is {shown}, not a number that is finite")
        number = float(value)
        if name in ("fl_x", "fl_y") and number <= 0:
            raise InputError(f"{where}: {name} is {shown}: a focal length is above 0 pixels")
        if name in ("w", "h") and not 1 <= number <= 1e6:
            raise InputError(f"{where}: {name} is {shown}: a picture has from 1 to 1,000,000 pixels along a side")
    wanted = 12 if source.get("camera_model") == "FISHEYE624" else 6
    parameters = source.get("distortion_params", [0] * wanted if wanted == 6 else None)
    if not isinstance(parameters, list) or len(parameters) != wanted or not all(map(_is_number, parameters)):
        shown = f"{parameters!r:.80}"
        raise InputError(f"{where}: distortion_params is {shown}: this camera_model has {wanted} numbers there")
    if source.get("k5") or source.get("k6"):
        raise InputError(f"{where}: the lens has k5 and k6, which the host has not: undistort the pictures first")


def _is_number(value: object) -> bool:
    """Whether float() makes a finite number of it."""
    try:
        return not isinstance(value, bool) and math.isfinite(float(value))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return False


def _centre(poses: np.ndarray, center_method: str) -> np.ndarray:
    """Shift the places of poses [N, 4, 4] to their middle if that is far from the origin; returns the shift, [3].

    The host makes 32 bits of them before it centres them: 5e6 m away, as in UTM, these keep half metres.
    """
    places = poses[:, :3, 3]
    middle = places.mean(0)
    away, extent = float(np.abs(middle).max()), float(np.abs(places - middle).max())
    if away <= _FAR * extent:
        return np.zeros(3)
    if center_method == "none":
        if extent and away > _TOO_FAR * extent:
            raise InputError(
                f"the cameras are {extent:.4g} around a point that is {away:.4g} from the origin, too far for the 32 "
                "bits of the host: leave out --center-method none, or subtract that point from all poses"
            )
        return np.zeros(3)
    places -= middle
    return middle


def _with_offset(outputs: DataparserOutputs, offset: np.ndarray, applied: Any) -> DataparserOutputs:
    """The outputs of poses that were shifted by -offset after the applied transform [3][4] (None: there was none).

    Their transform, in doubles, takes the original coordinates; it must, for 32 bits do not hold them.
    """
    if not offset.any():
        return outputs
    transform = outputs.dataparser_transform.double()
    turn = torch.eye(3) if applied is None else torch.tensor(applied)[:, :3]
    transform[:, 3] -= transform[:, :3] @ torch.linalg.solve(turn.double(), torch.from_numpy(offset))
    fields: dict[str, Any] = vars(outputs) | {"dataparser_transform": transform}
    return _FarOutputs(**fields)


def _first_readable(paths: Sequence[Path]) -> tuple[str, int]:
    """Name and longer side of the first picture that can be opened."""
    for path in paths:
        try:
            with opened(path) as picture:
                return path.name, max(picture.size)
        except Unreadable:
            continue
    raise InputError(
        f"not one of the {len(paths)} pictures is there and can be opened, the first is {paths[0]}: nothing to train on"
    )


def _check_factor(factor: int) -> None:
    if factor < 1:
        raise InputError(f"--downscale-factor is {factor}: it must be at least 1")


def _shrunk(factor: int, folder: str) -> float:
    _say(
        f"there is no folder {folder}: pictures are scaled to 1/{factor} as they are read (--downscale-factor chooses)"
    )
    return 1 / factor


def _say_one_place(count: int) -> None:
    if count > 1:
        _say("all cameras are in one place: colours can be learned, depth cannot")


def _say(words: str) -> None:
    say(words, CONSOLE)
