"""A finished or interrupted run, or a file of loe-export, read back; the picture need not be there any more."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from nerfstudio.data.scene_box import SceneBox

from loe_field.errors import InputError
from loe_field.export.weights import read_field
from loe_field.image.model import LoEImageModel, LoEImageModelConfig
from loe_field.image.picture import CHANNEL_NAMES, Picture, blank_picture, read_picture
from loe_field.training.checkpoints import find_checkpoint, read_checkpoint, require_same_shapes


def load_model(config: Path) -> tuple[LoEImageModel, Picture]:
    """The field of a run as its latest checkpoint has it, on a GPU if there is one.

    The checkpoint lies beside the config, wherever the folder has been moved to. Kernels that the run was told to use
    and that this machine may not have are chosen anew.

    Args:
        config: config.yml of a run of loe-image or a method derived from it, nothing in it is executed; or a
            .safetensors file of loe-export.

    Returns:
        The model, in evaluation mode; and a picture of the kind that it was fitted to, without content (that of the
        file itself, if the checkpoint does not say what kind it was). A .safetensors file says no more than size,
        channels and whether it is radiance: it stands for 8 bits, or EXR.

    Raises:
        InputError: there is no such run, it is not one of a picture, or its checkpoint is missing or damaged; or an
            option in it is unknown.
    """
    if config.suffix.lower() == ".safetensors":
        return _load_exported(config)
    options = _read_config(config)
    model_config = _filled(LoEImageModelConfig(), options["pipeline"]["model"], config)
    folder = config.parent / options["relative_model_dir"]
    if not folder.is_dir():
        raise InputError(f"{folder} is not there: --load-config wants the config.yml in its run's folder")
    checkpoint = find_checkpoint(folder)
    state = read_checkpoint(checkpoint)
    picture = blank_picture(state["picture"]) if "picture" in state else _picture_of(options, checkpoint)
    if model_config.implementation in ("cpu", "triton"):
        model_config.implementation = "auto"
    model = _built(model_config, picture)
    weights = {name.removeprefix("module.").removeprefix("_model."): w for name, w in state["pipeline"].items()}
    require_same_shapes(weights, model.state_dict())
    model.load_state_dict(weights)
    return _ready(model), picture


def _load_exported(path: Path) -> tuple[LoEImageModel, Picture]:
    """load_model for a .safetensors file."""
    field, stored = read_field(path)
    if stored.picture_size is None:
        raise InputError(f"{path} does not say how large its picture is: give a file of loe-export")
    if field.dim != 2 or not 1 <= field.head.out_features <= 4 or field.head.out_features != stored.picture_size[2]:
        raise InputError(
            f"{path} takes {field.dim} coordinates and gives {field.head.out_features} channels where its picture has "
            f"{stored.picture_size[2]}: a picture's field is wanted"
        )
    kind = {"shape": stored.picture_size, "mode": CHANNEL_NAMES[field.head.out_features]}
    kind |= (
        {"dtype": "uint8", "format": "PNG"} if stored.radiance_peak is None else {"dtype": "float32", "format": "EXR"}
    )
    picture = blank_picture({**kind, "palette": None, "icc_profile": None, "peak": stored.radiance_peak})
    model = _built(LoEImageModelConfig(), picture)
    model.field = field
    return _ready(model), picture


def _built(config: LoEImageModelConfig, picture: Picture) -> LoEImageModel:
    """A model for a picture, not trained."""
    model = config.setup(
        scene_box=SceneBox(aabb=torch.tensor([[-0.5, -0.5, -0.5], [0.5, 0.5, 0.5]])),
        num_train_data=1,
        metadata={"height": picture.height, "width": picture.width, "channels": picture.channels},
    )
    assert isinstance(model, LoEImageModel)
    return model


def _ready(model: LoEImageModel) -> LoEImageModel:
    """For evaluation, on a GPU if there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval().requires_grad_(False)


def load_target(config: Path, kind: Picture) -> Picture:
    """The picture that a run was fitted to.

    Args:
        config: config.yml of the run.
        kind: what load_model says of it.

    Raises:
        InputError: it is gone, cannot be read, or has another shape by now.
    """
    if config.suffix.lower() == ".safetensors":
        raise InputError(f"{config} does not say which picture it is of")
    options = _read_config(config)
    path = _picture_path(options)
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
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(
            f"{path} cannot be read ({str(error).splitlines()[0]}): give the config.yml of a run"
        ) from None
    name = config.get("") if isinstance(config, dict) else None
    if name != "loe_field.image.trainer.ImageTrainerConfig":
        what = f"of a run of {config['method_name']}" if name and "method_name" in config else "no config of a run"
        raise InputError(f"{path} is {what}: --load-config wants the config.yml of a run of ns-train loe-image")
    return config


def _filled(config: Any, state: dict[str, Any], path: Path) -> Any:
    """A config with its state in it, and its parts with theirs."""
    values = {name: value for name, value in state.items() if name not in ("", "_target")}
    for name, value in values.items():
        if not hasattr(config, name):
            raise InputError(
                f"{path} was written by another version: {type(config).__name__} has no {name} in this one"
            )
        if isinstance(value, dict) and "" in value:
            values[name] = _filled(getattr(config, name), value, path)
    return replace(config, **values)


def _picture_of(config: dict[str, Any], checkpoint: Path) -> Picture:
    """The run's picture, for checkpoints that do not say what kind it was."""
    path = _picture_path(config)
    if not path.is_file():
        raise InputError(
            f"{checkpoint} was written by an older version and does not say how large its picture was, and "
            f"{path} is gone: put the picture back"
        )
    return read_picture(path)


def _picture_path(config: dict[str, Any]) -> Path:
    path = config["pipeline"]["datamanager"]["data"]
    if path is None:
        from loe_field.image.datamanager import default_picture

        return default_picture()
    return path
