"""A finished or interrupted run, read back from its folder; its picture need not be there any more."""

from pathlib import Path

import torch
import yaml
from nerfstudio.data.scene_box import SceneBox

from loe_field.errors import InputError
from loe_field.image.datamanager import ImageDataManagerConfig, default_picture
from loe_field.image.model import LoEImageModel, LoEImageModelConfig
from loe_field.image.picture import Picture, blank_picture, read_picture
from loe_field.image.trainer import ImageTrainerConfig
from loe_field.training.checkpoints import find_checkpoint, read_checkpoint, require_same_shapes


def load_model(config: Path) -> tuple[LoEImageModel, Picture]:
    """The field of a run as its latest checkpoint has it, on a GPU if there is one.

    The checkpoint lies beside the config, wherever the folder has been moved to. Kernels that the run was told to use
    and that this machine may not have are chosen anew.

    Args:
        config: config.yml of a run of loe-image or a method derived from it. It is executed as nerfstudio does: only
            for files that you trust.

    Returns:
        The model, in evaluation mode; and a picture of the kind that it was fitted to, without content (that of the
        file itself, if the checkpoint does not say what kind it was).

    Raises:
        InputError: there is no such run, it is not one of a picture, or its checkpoint is missing or damaged.
    """
    options = _read_config(config)
    assert isinstance(options.pipeline.model, LoEImageModelConfig)
    checkpoint = find_checkpoint(config.parent / options.relative_model_dir)
    state = read_checkpoint(checkpoint)
    picture = blank_picture(state["picture"]) if "picture" in state else _picture_of(options, checkpoint)
    if options.pipeline.model.implementation in ("cpu", "triton"):
        options.pipeline.model.implementation = "auto"
    model = options.pipeline.model.setup(
        scene_box=SceneBox(aabb=torch.tensor([[-0.5, -0.5, -0.5], [0.5, 0.5, 0.5]])),
        num_train_data=1,
        metadata={"height": picture.height, "width": picture.width, "channels": picture.channels},
    )
    assert isinstance(model, LoEImageModel)
    weights = {name.removeprefix("module.").removeprefix("_model."): w for name, w in state["pipeline"].items()}
    require_same_shapes(weights, model.state_dict())
    model.load_state_dict(weights)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval().requires_grad_(False), picture


def _read_config(path: Path) -> ImageTrainerConfig:
    if not path.is_file():
        raise InputError(f"{path} is not a file: --load-config wants the config.yml of a run of ns-train loe-image")
    try:
        config = yaml.load(path.read_text("utf8"), Loader=yaml.Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(
            f"{path} cannot be read ({str(error).splitlines()[0]}): give the config.yml of a run"
        ) from None
    if not isinstance(config, ImageTrainerConfig):
        what = getattr(config, "method_name", None)
        what = f"of a run of {what}" if what else "no config of a run"
        raise InputError(f"{path} is {what}: --load-config wants the config.yml of a run of ns-train loe-image")
    return config


def _picture_of(config: ImageTrainerConfig, checkpoint: Path) -> Picture:
    """The run's picture, for checkpoints that do not say what kind it was."""
    assert isinstance(config.pipeline.datamanager, ImageDataManagerConfig)
    path = Path(config.pipeline.datamanager.data or default_picture())
    if not path.is_file():
        raise InputError(
            f"{checkpoint} was written by an older version and does not say how large its picture was, and "
            f"{path} is gone: put the picture back"
        )
    return read_picture(path)
