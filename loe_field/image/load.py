"""A run, finished or interrupted, or a file of loe-export, read back; its picture may be gone."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import torch
import yaml
from torch import Tensor

from loe_field.adapter.network import LoEConfig, build_network
from loe_field.baselines import BaselineName, options_type
from loe_field.errors import InputError
from loe_field.export.fields import Peak, PictureSize, read_field
from loe_field.export.shards import Place, find_member, read_set
from loe_field.network.protocol import Network
from loe_field.pictures.picture import CHANNEL_NAMES, FORMATS, Picture, blank_picture
from loe_field.pictures.read import read_picture
from loe_field.signals.picture import default_picture
from loe_field.training.checkpoints import find_checkpoint, read_checkpoint, require_finite, require_same_shapes
from loe_field.typed import Between, typed

T = TypeVar("T")
_Byte = Annotated[int, Between(0, 255)]


@dataclass(frozen=True)
class _Kind:
    """`Picture.kind`, as a checkpoint holds it.

    Raises:
        ValueError: two of them contradict each other.
    """

    shape: PictureSize
    dtype: Literal["uint8", "uint16", "float16", "float32"]
    format: Literal[FORMATS]  # type: ignore[valid-type]
    mode: Literal["1", "L", "LA", "P", "RGB", "RGBA"]
    palette: list[list[_Byte]] | None = None
    icc_profile: bytes | None = None
    peak: Peak | None = None

    def __post_init__(self) -> None:
        channels = self.shape[2]
        if (self.mode == "P") != bool(self.palette) or any(len(entry) != channels for entry in self.palette or ()):
            raise ValueError("its palette does not go with its mode and channels")
        if self.mode != "P" and CHANNEL_NAMES.get(channels) != {"1": "L"}.get(self.mode, self.mode):
            raise ValueError(f"{channels} channels do not go with the mode {self.mode}")
        if self.peak is not None and not self.dtype.startswith("float"):
            raise ValueError(f"a peak does not go with {self.dtype}")


@dataclass(frozen=True)
class PictureField:
    """The field of a picture.

    Attributes:
        network: takes coordinates in [0, 1) along both sides.
        picture: of the fitted picture's kind, without content.
        name: "loe", or the baseline's.
    """

    network: Network
    picture: Picture
    name: str = "loe"

    @property
    def device(self) -> torch.device:
        """The device of the network's parameters."""
        return next(self.network.parameters()).device

    def __call__(self, coords: Tensor) -> Tensor:
        """Values as fitted, [N, channels], not clamped, at coordinates [N, 2] in pixels."""
        return self.network(coords / coords.new_tensor([self.picture.width, self.picture.height]))


def load_run(config: Path, member: str | None = None) -> PictureField:
    """The field of a run as its latest checkpoint has it, or one of a set, on a GPU if there is one.

    The checkpoint lies beside the config, wherever the folder has been moved to. Kernels that the run was told to use
    and that this machine may not have are chosen anew.

    Args:
        config: config.yml of a run of loe-image or a method derived from it, nothing in it is executed; a
            .safetensors file of loe-export; or the folder of loe-images.
        member: the name, or else the number, of the field of such a folder that is wanted.

    Returns:
        The field, for evaluation. A .safetensors file says no more of the picture than size, channels and whether it
        is HDR: it stands for 8 bits, or EXR.

    Raises:
        InputError: there is no such run, it is not one of a picture, or its checkpoint is missing or damaged; or an
            option in it is unknown.
    """
    if (place := _place(config, member)) is not None:
        return _ready(field_of(place))
    if config.suffix.lower() == ".safetensors":
        return _load_exported(config)
    options = _read_config(config)
    model = options["pipeline"]["model"]
    folder = config.parent / typed(Path, options.get("relative_model_dir"), f"{config}, relative_model_dir")
    if not folder.is_dir():
        raise InputError(f"{folder} is not there: --load-config wants the config.yml in its run's folder")
    checkpoint = find_checkpoint(folder)
    state = read_checkpoint(checkpoint)
    if "signal" not in state:
        raise InputError(f"{checkpoint} does not say which kind its picture was: it was written by another version")
    picture = blank_picture(vars(typed(_Kind, state["signal"], f"{checkpoint}, signal")))
    size = (picture.width, picture.height)
    name = typed(Literal["loe", BaselineName], model["network"], f"{config}, network")
    loe = _filled(LoEConfig, model["loe"], config)
    if loe.implementation in ("cpu", "triton"):
        loe.implementation = "auto"
    if name == "loe":
        loe = loe.sized(size, picture.channels)
    held = None if name == "loe" else model["baseline"]
    baseline = None if held is None else _filled(options_type(name), held, config)  # type: ignore[arg-type]
    try:
        network = build_network(name, loe, baseline, resolution=size, channels=picture.channels)
    except ValueError as error:
        raise InputError(f"{config} or its checkpoint cannot be understood ({error}): get the run as it was") from None
    prefix = "_model.field."
    weights = {name.removeprefix("module."): w for name, w in state["pipeline"].items()}
    weights = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
    assert isinstance(network, torch.nn.Module)
    require_same_shapes(weights, network.state_dict())
    require_finite(weights, checkpoint)
    network.load_state_dict(weights)
    return _ready(PictureField(network, picture, name))


def _place(config: Path, member: str | None) -> Place | None:
    """The member of a set's folder; None where there is no member and no folder."""
    if member is None and not config.is_dir():
        return None
    if member is None:
        raise InputError(f"{config} is a folder: give --member a name or number of its set, or the config.yml of a run")
    return find_member(read_set(config), member, config)


def field_of(place: Place) -> PictureField:
    """A member of a set, on the CPU; of its picture the kind, without palette and colour profile."""
    kind, peak = place.shard.picture, place.member.radiance_peak
    file_format = "EXR" if peak is not None else "PNG" if kind.dtype == "uint8" else "TIFF"
    values = np.broadcast_to(np.zeros((), kind.dtype), (kind.height, kind.width, kind.channels))
    picture = Picture(values, file_format, CHANNEL_NAMES[kind.channels], peak=peak)
    return PictureField(place.shard.field(place.row), picture)


def _load_exported(path: Path) -> PictureField:
    """load_run for a .safetensors file."""
    field, stored = read_field(path)
    if stored.picture_size is None:
        raise InputError(f"{path} does not say how large its picture is: give a file of loe-export")
    channels = field.out_features
    if field.dim != 2 or not 1 <= channels <= 4 or channels != stored.picture_size[2]:
        raise InputError(
            f"{path} takes {field.dim} coordinates and gives {channels} channels where its picture has "
            f"{stored.picture_size[2]}: a picture's field is wanted"
        )
    peak = stored.radiance_peak
    dtype, file_format = ("uint8", "PNG") if peak is None else ("float32", "EXR")
    values = np.broadcast_to(np.zeros((), dtype), stored.picture_size)
    return _ready(PictureField(field, Picture(values, file_format, CHANNEL_NAMES[channels], peak=peak)))


def _ready(field: PictureField) -> PictureField:
    """For evaluation, on a GPU if there is one."""
    field.network.to("cuda" if torch.cuda.is_available() else "cpu").eval().requires_grad_(False)
    return field


def load_target(config: Path, kind: Picture, member: str | None = None) -> Picture:
    """The picture that a run, given by its config.yml, was fitted to; `kind` is that of its field.

    Raises:
        InputError: it is gone, cannot be read, or has another shape by now.
    """
    if config.suffix.lower() == ".safetensors":
        raise InputError(f"{config} does not say which picture it is of")
    if (place := _place(config, member)) is not None:
        path = Path(place.member.path or "")
    else:
        data = _read_config(config)["pipeline"]["datamanager"].get("data")
        path = typed(Path | None, data, f"{config}, data") or default_picture()
    picture = read_picture(path)
    if picture.values.shape != kind.values.shape:
        was, now = (f"{p.width} x {p.height} pixels of {p.channels} channels" for p in (kind, picture))
        raise InputError(f"{path} has {now}, and the fit is of {was}: put the picture that was fitted back")
    return picture


class _PlainLoader(yaml.SafeLoader):
    """YAML as nerfstudio writes its configs, without its classes: of an object its state, of a class its name.

    With them, two thirds of the host would be imported for a few numbers: 20 s and 260 MiB more.
    """

    def state(self, name: str, node: yaml.MappingNode) -> dict[str, Any]:
        return {"": name} | {str(key): value for key, value in self.construct_mapping(node, deep=True).items()}

    def items(self, node: yaml.SequenceNode) -> tuple[Any, ...]:
        return tuple(self.construct_sequence(node, deep=True))

    def called(self, name: str, node: yaml.SequenceNode) -> Any:
        return Path(*self.items(node)) if name.startswith("pathlib.") else (name, *self.items(node))


_PYTHON = "tag:yaml.org,2002:python/"
_PlainLoader.add_multi_constructor(_PYTHON + "object:", _PlainLoader.state)
_PlainLoader.add_multi_constructor(_PYTHON + "object/apply:", _PlainLoader.called)
_PlainLoader.add_multi_constructor(_PYTHON + "name:", lambda loader, name, node: name)
_PlainLoader.add_constructor(_PYTHON + "tuple", _PlainLoader.items)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path} is not a file: --load-config wants the config.yml of a run of ns-train loe-image")
    try:
        config = yaml.load(path.read_text("utf8"), Loader=_PlainLoader)
    except Exception as error:  # PyYAML raises whatever a tag's broken value leads to
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path} cannot be read ({reason}): give the config.yml of a run") from None
    method = str(config.get("method_name", "")) if isinstance(config, dict) and "" in config else ""
    if not method.startswith("loe-image"):
        kind = f"of a run of {method}" if method else "no config of a run"
        raise InputError(f"{path} is {kind}: --load-config wants the config.yml of a run of ns-train loe-image")
    try:
        pipeline = typed(dict[str, Any], config.get("pipeline"), f"{path}, pipeline")
        known = pipeline["datamanager"][""] == "loe_field.image.config.ImageDataManagerConfig"
        if not known or not {"network", "loe", "baseline"} <= pipeline["model"].keys():
            raise KeyError
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{path} was written by another version: render and export it with that one") from None
    return config


def _filled(kind: type[T], state: Any, path: Path) -> T:
    """A config of a class with the state that a file holds."""
    values = {name: value for name, value in typed(dict[str, Any], state, str(path)).items() if name != ""}
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    for name in values.keys() - known:
        raise InputError(f"{path} was written by another version: {kind.__name__} has no {name} in this one")
    return typed(kind, values, str(path))
