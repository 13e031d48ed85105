"""A scene's step is fit for a CUDA graph: rehearsed on the meta device, which as a GPU cannot be waited for."""

from contextlib import nullcontext
from functools import reduce

import pytest
import torch
from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.configs.method_configs import method_configs  # noqa: F401  (the host's modules import each other)
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.callbacks import TrainingCallbackLocation
from nerfstudio.model_components.renderers import RGBRenderer
from recording import Launches, Rehearsal
from scenes import write_scene
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from loe_field.adapter.network import LoEConfig
from loe_field.nerf.datamanager import SceneDataManagerConfig
from loe_field.nerf.model import LoENerfModelConfig
from loe_field.nerf.pipeline import NerfPipelineConfig
from loe_field.nerf.rays import RayTable
from loe_field.network.optim import Muon, decay

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _no_autocast(monkeypatch):
    """The meta device has none, not even one that is off."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)


class NothingFromTheHost(TorchDispatchMode):
    """Refuses tensors that are made of Python's numbers or copied from the CPU: each makes a recording break off."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given, made = (
            {t.device.type for t in tree_leaves(tree) if isinstance(t, torch.Tensor)} for tree in (args, result)
        )
        copies = func._schema.name in ("aten::_to_copy", "aten::copy_") and "cpu" in given and "meta" in given | made
        assert not copies, f"{func} copies from the CPU"
        assert func._schema.name != "aten::lift_fresh", "a tensor is made of Python's numbers"
        return result


GRID = LoEConfig(num_layers=2, layer_width=16, tile_size=1, num_frequencies=2, grid_levels=4, grid_table_size=256)


def small_pipeline(folder, white=False, **options):
    """The pipeline of a small scene."""
    scene = write_scene(folder / "scene", views=6, height=12, width=16, white=white)
    parser = NerfstudioDataParserConfig(downscale_factor=1)
    loe = LoEConfig(num_layers=3, layer_width=16, tile_size=1, pattern="quad_tree", num_frequencies=2)
    config = NerfPipelineConfig(
        datamanager=SceneDataManagerConfig(data=scene, dataparser=parser),
        model=LoENerfModelConfig(**{"loe": loe, "num_samples": 8, "num_proposal_samples": (16,)} | options),
    )
    return config.setup(device="cpu")


def on_meta(folder, white, **options):
    """The pipeline of a small scene, all of it on the meta device, and pixels as `draw` gives them."""
    pipeline = small_pipeline(folder, white, **options).to("meta").train()
    dataset = pipeline.datamanager.train_dataset
    pipeline.datamanager.train_pixel_sampler = RayTable(dataset, "meta", num_rays_per_batch=32, seed=0)
    return pipeline, torch.randint(100, (32,), device="meta")


def rehearse(pipeline, chosen):
    """Losses and backward pass as TrainStep records them."""
    with torch.device("meta"), NothingFromTheHost():
        reduce(torch.add, pipeline.losses(chosen).values()).backward()


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize(
    ("white", "options"),
    [
        (False, {}),
        (False, {"background_color": "white"}),
        (False, {"background_color": "last_sample", "scene": "unbounded"}),
        (True, {"camera_optimizer": CameraOptimizerConfig(mode="SO3xR3")}),
        (True, {"appearance_dim": 4, "num_proposal_samples": (16, 8), "background_color": "black"}),
        (True, {"loe": GRID, "proposal_grid_levels": 3, "proposal_frequencies": 0, "proposal_layers": 2}),
    ],
    ids=["box", "white", "unbounded", "poses", "appearance", "grid"],
)
def test_nothing_is_copied_or_waited_for(white, options, trained, tmp_path):
    pipeline, chosen = on_meta(tmp_path, white, **options)
    assert pipeline.capturable
    callbacks = pipeline.get_training_callbacks(None)
    for callback in callbacks:
        callback.run_callback(12 if trained else 13)
    rehearse(pipeline, chosen)
    model = pipeline.model
    assert all((p.grad is not None) == trained for p in model.proposal_networks.parameters())
    assert all(p.grad is not None for p in model.field.parameters())
    assert pipeline.variant(12) != pipeline.variant(13)


def test_proposal_networks_have_a_grid_of_their_own(tmp_path):
    options = {"proposal_tile_size": 1, "proposal_frequencies": 0, "proposal_grid_levels": 5, "proposal_layers": 2}
    pipeline = small_pipeline(tmp_path, loe=GRID, proposal_grid_table_size=512, **options)
    field, proposal = pipeline.model.networks
    assert (proposal.grid.num_levels, proposal.grid.max_resolution, proposal.grid.table_size) == (5, 128, 512)
    assert (proposal.encoding.num_frequencies, len(proposal.layers), proposal.tile_size) == (0, 1, 1)
    groups = pipeline.get_param_groups()
    assert [id(p) for p in groups["grid"]] == [id(field.grid_table), id(proposal.grid_table)]
    numbers = [p for name, group in groups.items() if name != "camera_opt" for p in group]
    assert len({id(p) for p in numbers}) == len(numbers)
    plain = small_pipeline(tmp_path / "plain", loe=GRID, proposal_grid_levels=0).model.networks[1]
    assert plain.grid is None
    assert plain.encoding.num_frequencies == 2


def test_a_replayed_step_is_a_handful_of_launches(tmp_path):
    """A copy of the pixels and two learning rates; up to step 1,000 the annealing; once in 64 steps the draw."""
    pipeline = small_pipeline(tmp_path).train()
    groups = pipeline.get_param_groups()
    optimizers = {"experts": Muon(groups["experts"]), "fields": torch.optim.Adam(groups["fields"], fused=True)}
    schedules = {name: decay(optimizer, 2000) for name, optimizer in optimizers.items()}
    take = Rehearsal(pipeline, optimizers, schedules, device="cpu")
    callbacks, counts = pipeline.get_training_callbacks(None), {}
    for step in (*range(990, 1004), *range(1020, 1028)):
        with Launches() as take.launches:
            for callback in callbacks:
                callback.run_callback_at_location(step, TrainingCallbackLocation.BEFORE_TRAIN_ITERATION)
            take(step)
        counts[step] = take.launches.count
    assert take.recordings == 2, "with and without the proposal networks"
    assert [counts[step] for step in (998, 999, 1000, 1001, 1002, 1003)] == [4, 4, 4, 3, 3, 3]
    assert [counts[step] for step in range(1020, 1028)] == [3, 3, 3, 3, 4, 3, 3, 3]


def test_directions_that_are_computed_are_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("loe_field.nerf.rays._SMALL_TABLE", 0)
    pipeline, chosen = on_meta(tmp_path, False)
    assert pipeline.datamanager.train_pixel_sampler._lens is not None
    rehearse(pipeline, chosen)


def test_the_rehearsal_sees_a_copy(tmp_path):
    pipeline, chosen = on_meta(tmp_path, False)
    pipeline.model.renderer_rgb = RGBRenderer("white")
    with pytest.raises(AssertionError, match="copies from the CPU"):
        rehearse(pipeline, chosen)


def test_the_rehearsal_sees_a_number_that_is_read(tmp_path, monkeypatch):
    pipeline, chosen = on_meta(tmp_path, False)
    compute = pipeline.model.get_loss_dict
    monkeypatch.setattr(
        pipeline.model, "get_loss_dict", lambda *a: {"loss": compute(*a)["rgb_loss"] * float(torch.ones(()))}
    )
    with pytest.raises((AssertionError, RuntimeError)):
        rehearse(pipeline, chosen)


def test_networks_that_wait_are_not_recorded(tmp_path):
    pipeline, _ = on_meta(tmp_path, False, loe=LoEConfig(num_layers=3, layer_width=16, tile_size=2))
    assert not pipeline.capturable
