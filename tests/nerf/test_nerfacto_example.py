"""The example trains in this package's Trainer and in the host's, and its grids are what the host's options say."""

from dataclasses import replace

import pytest
import torch
from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from scenes import write_scene
from support import read_metrics

from examples.nerfacto_with_loe import NerfactoWithLoEConfig, method

pytestmark = pytest.mark.slow

SMALL = {
    "num_levels": 3,
    "max_res": 64,
    "log2_hashmap_size": 8,
    "num_proposal_samples_per_ray": (8, 8),
    "num_nerf_samples_per_ray": 4,
    "proposal_net_args_list": [
        {"hidden_dim": 8, "log2_hashmap_size": 7, "num_levels": 2, "max_res": 32, "use_linear": False}
    ],
    "eval_num_rays_per_chunk": 512,
}


@pytest.fixture
def options(tmp_path):
    scene = write_scene(tmp_path / "scene", views=6, height=8, width=10)
    return {"data": scene, "output_dir": tmp_path, "timestamp": "now", "max_num_iterations": 3}


def trained(config):
    """The field's network after a run that moved all of it, and those of the proposals, which may have no loss yet."""
    config.machine.device_type = "cpu"
    config.pipeline.datamanager.data = config.data
    config.pipeline.datamanager.train_num_rays_per_batch = 32
    config.set_experiment_name()
    torch.manual_seed(0)
    trainer = config.setup()
    trainer.setup()
    model = trainer.pipeline.model
    network, *proposals = (f.mlp_base.network for f in (model.field, *model.proposal_networks))
    before = [p.detach().clone() for p in network.parameters()]
    trainer.train()
    assert [name for (name, p), old in zip(network.named_parameters(), before) if torch.equal(p, old)] == []
    return network, proposals


def test_in_this_packages_trainer(options, tmp_path):
    model = NerfactoWithLoEConfig(**SMALL)
    config = replace(method.config, pipeline=replace(method.config.pipeline, model=model), num_threads=1, **options)
    network, proposals = trained(config)
    metrics = read_metrics(tmp_path / "scene" / "nerfacto-loe" / "now")
    assert metrics["num_steps"] == 3
    assert 3 < metrics["psnr"] < 40
    assert network.grid_table.shape == (3 * 2**8, 2)
    assert {p.grid_table.shape for p in proposals} == {(2 * 2**7, 2)}
    assert network.obstacle is None  # the kernels compute it


def test_in_the_hosts_own_trainer(options, tmp_path):
    adam = {"optimizer": AdamOptimizerConfig(lr=1e-2, eps=1e-15), "scheduler": None}
    datamanager = VanillaDataManagerConfig(dataparser=NerfstudioDataParserConfig(), eval_num_rays_per_batch=32)
    model = NerfactoWithLoEConfig(**SMALL, camera_optimizer=CameraOptimizerConfig(mode="off"))
    config = TrainerConfig(
        method_name="nerfacto-loe",
        pipeline=VanillaPipelineConfig(datamanager=datamanager, model=model),
        optimizers={"fields": adam, "proposal_networks": adam},
        viewer=ViewerConfig(),
        vis="tensorboard",
        **options,
    )
    trained(config)
    (checkpoint,) = (tmp_path / "scene" / "nerfacto-loe" / "now").rglob("*.ckpt")
    weights = torch.load(checkpoint, weights_only=True)["pipeline"]
    assert weights["_model.field.mlp_base.network.grid_table"].shape == (3 * 2**8, 2)
