"""What nerfstudio's own test of its methods does with each, done with ours: two steps on a tiny blender scene."""

from copy import deepcopy
from pathlib import Path

import pytest
from conftest import read_metrics
from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.scripts.train import train_loop
from scenes import write_blender_scene

from loe_field.errors import InputError

DEFAULT_PARAMETERS = 1_305_252


def two_steps(name, folder, **options):
    """Two steps of a method with options of its model; the config as it is after them, and metrics.json."""
    config = deepcopy(all_methods[name])
    config.machine.device_type = "cpu"
    config.max_num_iterations = 2
    datamanager, model = config.pipeline.datamanager, config.pipeline.model
    datamanager.dataparser = BlenderDataParserConfig(data=write_blender_scene(folder / "scene", 6, 6, 8))
    datamanager.eval_num_images_to_sample_from = datamanager.train_num_images_to_sample_from = 1
    datamanager.train_num_rays_per_batch = 64
    config.vis = "tensorboard"
    config.logging.relative_log_dir = Path("logs")
    config.output_dir = folder
    config.timestamp = "now"
    config.viewer.quit_on_train_completion = True
    if hasattr(model, "implementation"):
        model.implementation = "torch"
    for option, value in options.items():
        setattr(model, option, value)
    config.set_experiment_name()
    train_loop(local_rank=0, world_size=1, config=config)
    return config, read_metrics(folder / f"scene/{name}/now")


@pytest.mark.parametrize("name", ["loe-nerf", "loe-nerf-adam", "peer-nerfacto", "peer-vanilla-nerf"])
def test_two_steps(name, tmp_path):
    config, metrics = two_steps(name, tmp_path)
    assert metrics["num_steps"] == 2
    assert metrics["psnr"] > 0
    if name == "loe-nerf":
        assert (config.pipeline.model.scene, config.pipeline.model.background_color) == ("box", "white")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_samples": 0}, "num-samples is 0: it must be at least 1"),
        ({"num_proposal_samples": ()}, "num-proposal-samples is 0: it must be at least 1"),
        ({"near_plane": 5.0, "far_plane": 1.0}, "near-plane is 5 and far-plane 1"),
        ({"implementation": "triton"}, "the kernels need an NVIDIA GPU"),
    ],
    ids=["samples", "proposals", "planes", "implementation"],
)
def test_options_that_cannot_be(options, words, tmp_path):
    with pytest.raises(InputError, match=words):
        two_steps("loe-nerf", tmp_path, **options)
    assert not (tmp_path / "scene/loe-nerf").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"tile_size": 1},
        {"appearance_dim": 4, "blending": "linear"},
        {"camera_optimizer": CameraOptimizerConfig(mode="SO3xR3")},
        {"network": "hash-grid", "num_proposal_samples": (16, 8)},
        {"scene": "unbounded", "background_color": "random", "levels": ((1.0, 0.0), (2.0, 0.5)), "num_layers": 3},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_the_model(options, tmp_path):
    _, changed = two_steps("loe-nerf", tmp_path, **options)
    assert changed["num_parameters"] != DEFAULT_PARAMETERS
    assert changed["psnr"] > 0
