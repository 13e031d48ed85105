"""What nerfstudio's own test of its methods does with each, done with ours: two steps on a tiny blender scene."""

from copy import deepcopy
from pathlib import Path

import pytest
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.scripts.train import train_loop
from scenes import write_blender_scene


@pytest.mark.parametrize("name", ["loe-nerf", "loe-nerf-adam", "peer-nerfacto", "peer-vanilla-nerf"])
def test_two_steps(name, tmp_path):
    config = deepcopy(all_methods[name])
    config.machine.device_type = "cpu"
    config.max_num_iterations = 2
    datamanager, model = config.pipeline.datamanager, config.pipeline.model
    datamanager.dataparser = BlenderDataParserConfig(data=write_blender_scene(tmp_path / "scene", 6, 6, 8))
    datamanager.eval_num_images_to_sample_from = datamanager.train_num_images_to_sample_from = 1
    datamanager.train_num_rays_per_batch = 64
    config.vis = "tensorboard"
    config.logging.relative_log_dir = Path("logs")
    config.output_dir = tmp_path
    config.timestamp = "now"
    config.viewer.quit_on_train_completion = True
    if hasattr(model, "implementation"):
        model.implementation = "torch"
    config.set_experiment_name()
    train_loop(local_rank=0, world_size=1, config=config)
    assert (tmp_path / f"scene/{name}/now/metrics.json").is_file()
    if name == "loe-nerf":
        assert (model.scene, model.background_color) == ("box", "white")
