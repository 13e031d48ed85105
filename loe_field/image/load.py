"""A finished fit, read back from its run."""

from pathlib import Path

import torch
import yaml

from loe_field.errors import InputError
from loe_field.image.model import LoEImageModelConfig
from loe_field.image.pipeline import ImagePipeline
from loe_field.image.trainer import ImageTrainerConfig
from loe_field.training.checkpoints import find_checkpoint, read_checkpoint


def load_fit(config: Path) -> ImagePipeline:
    """The pipeline of a run with its latest checkpoint, for evaluation, on the GPU if there is one.

    The host's eval_setup looks for the checkpoint where the run was made, and reads the picture; here the checkpoint is
    the one beside config.yml, wherever that lies now, and the picture is read when it is first asked for
    (datamanager.picture, to measure PSNR), so that a fit can be used without it. Kernels that the run named, which may
    not serve on this machine, become "auto". config.yml is YAML that names Python objects: open only those you trust.

    Args:
        config: config.yml of a run of loe-image or one of its variants.

    Raises:
        InputError: there is no such file, it is of no such run, or its checkpoint cannot be used.
    """
    path = config.expanduser().resolve()
    if not path.is_file():
        raise InputError(f"{path} is not a file: --load-config wants the config.yml that a run of loe-image left")
    try:
        trainer = yaml.load(path.read_text("utf8"), Loader=yaml.Loader)
    except (yaml.YAMLError, UnicodeDecodeError, OSError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path} cannot be read as the config.yml of a run: {' '.join(str(error).split())}") from None
    if not isinstance(trainer, ImageTrainerConfig):
        method = getattr(trainer, "method_name", None)
        kind = "no run's config.yml" if method is None else f"of a run of {method}"
        raise InputError(
            f"{path} is {kind}: --load-config wants that of loe-image, loe-image-paper or loe-image-smooth"
        )
    folder = path.parent / trainer.relative_model_dir
    if not folder.is_dir():
        raise InputError(f"{folder} is not there: the run left no checkpoint, or config.yml was moved without it")
    state = read_checkpoint(find_checkpoint(folder))
    model = trainer.pipeline.model
    assert isinstance(model, LoEImageModelConfig)
    if model.implementation in ("cpu", "triton"):
        model.implementation = "auto"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = trainer.pipeline.setup(device=device, test_mode="inference")
    assert isinstance(pipeline, ImagePipeline)
    pipeline.load_pipeline(state["pipeline"], state["step"])
    return pipeline.eval()
