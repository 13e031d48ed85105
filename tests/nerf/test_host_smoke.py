"""Nerfstudio's own test of its methods, with ours: a few steps on a tiny blender scene."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from PIL import Image
from scenes import write_blender_scene
from support import read_metrics
from torch.utils._pytree import tree_leaves_with_path

from loe_field.adapter.network import LoEConfig
from loe_field.errors import InputError
from loe_field.runs import baseline_methods
from loe_field.runs.suite import COMPARED

pytestmark = pytest.mark.slow

METHODS = all_methods | {name: getattr(baseline_methods, name.replace("-", "_")).config for name in COMPARED}
NUM_PARAMETERS = 1_175_416
LOE = {"num_layers": 6, "layer_width": 64, "tile_size": 4, "pattern": "quad_tree", "num_frequencies": 6}


def ready(name, folder, steps=2, loe=None, evaluate_every=1000, **options):
    """The Trainer of a method with options of its model and of its levels."""
    config = deepcopy(METHODS[name])
    config.machine.device_type = "cpu"
    config.max_num_iterations, config.num_threads = steps, 1
    config.steps_per_eval_all_images = evaluate_every
    datamanager, model = config.pipeline.datamanager, config.pipeline.model
    datamanager.dataparser = BlenderDataParserConfig(data=write_blender_scene(folder / "scene", 6, 12, 16))
    datamanager.train_num_rays_per_batch = 64
    config.output_dir = folder
    config.timestamp = "now"
    if loe is not None:
        model.loe = LoEConfig(**LOE | loe)
    for option, value in options.items():
        setattr(model, option, value)
    config.set_experiment_name()
    torch.manual_seed(0)
    trainer = config.setup()
    trainer.setup()
    return trainer


def weights(trainer):
    groups = trainer.pipeline.get_param_groups()
    return {name: [p.detach().clone() for p in group] for name, group in groups.items()}


def trained(name, folder, **options):
    """The Trainer after its run, and metrics.json; every group of parameters was trained."""
    trainer = ready(name, folder, **options)
    before = weights(trainer)
    trainer.train()
    for group, parameters in weights(trainer).items():
        assert any(not torch.equal(p, q) for p, q in zip(parameters, before[group])), group
    return trainer, read_metrics(folder / f"scene/{name}/now")


def psnr_of_views(folder):
    """Mean PSNR of the views in a run's folder: the picture of 16 pixels at the left, the view at the right."""
    views = [np.asarray(Image.open(path)) / 255 for path in sorted(folder.glob("views/*.png"))]
    return np.mean([-10 * np.log10(((view[:, :16] - view[:, -16:]) ** 2).mean()) for view in views])


@pytest.mark.parametrize("name", ["loe-nerf", *COMPARED])
def test_two_steps(name, tmp_path):
    trainer, metrics = trained(name, tmp_path)
    assert metrics["num_steps"] == 2
    assert metrics["psnr"] == pytest.approx(psnr_of_views(tmp_path / f"scene/{name}/now"), abs=0.05)
    if name == "loe-nerf":
        model = trainer.config.pipeline.model
        assert (model.scene, model.background_color) == ("box", "white")
        assert metrics["num_parameters"] == NUM_PARAMETERS


def test_the_loggers_get_losses_rates_gradients_and_psnr(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = deepcopy(METHODS["loe-nerf"])
    config.vis, config.log_gradients, config.logging.relative_log_dir = "tensorboard", True, Path("logs")
    config.logging.steps_per_log = 2
    monkeypatch.setitem(METHODS, "loe-nerf", config)
    trained("loe-nerf", tmp_path, steps=4, camera_optimizer=CameraOptimizerConfig(mode="SO3xR3"))
    log = EventAccumulator(str(tmp_path / "scene/loe-nerf/now/logs"))
    log.Reload()
    names = set(log.Tags()["scalars"])
    wanted = {"Train Loss", "Train Loss Dict/rgb_loss", "learning_rate/experts", "Eval PSNR"}
    wanted |= {"Train Metrics Dict/Gradients/Total", "Train Metrics Dict/camera_opt_rotation_max"}
    assert wanted <= names
    assert [event.step for event in log.Scalars("Train Loss")] == [1, 3]
    assert log.Scalars("Train Metrics Dict/Gradients/Total")[0].value > 0
    parts = sum(log.Scalars(name)[1].value for name in names if name.startswith("Train Loss Dict/"))
    assert log.Scalars("Train Loss")[1].value == pytest.approx(parts, rel=1e-5)


NERFACTO = {"num_levels": 4, "log2_hashmap_size": 10, "hidden_dim": 16, "hidden_dim_color": 16, "features_per_level": 2}
NERFACTO |= {"num_proposal_samples_per_ray": (16, 8), "num_nerf_samples_per_ray": 8}
SMALL = {"loe": {"num_layers": 3, "layer_width": 16}, "num_proposal_samples": (16,), "num_samples": 8}


@pytest.mark.parametrize(("name", "options"), [("loe-nerf", SMALL), ("baseline-nerfacto", NERFACTO)])
def test_steps_in_turns_of_50_are_the_same_steps(name, options, tmp_path):
    """The host's callbacks run at every step: the proposal networks are trained in 11 steps, then in every second."""
    ends = []
    for per_turn in (1, 50):
        trainer = ready(name, tmp_path / str(per_turn), steps=60, **options)
        trainer.config.steps_per_iteration = per_turn
        proposals, counted = list(trainer.pipeline.model.proposal_networks.parameters()), []

        def count(step, proposals=proposals, counted=counted):
            counted.append(any(p.grad is not None for p in proposals))

        trainer.callbacks.append(TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], count))
        trainer.train()
        assert counted == [step <= 10 or step % 2 == 0 for step in range(60)]
        ends.append(weights(trainer))
    for group, parameters in ends[0].items():
        assert all(torch.equal(p, q) for p, q in zip(parameters, ends[1][group])), group


def test_turns_evaluations_checkpoints_and_a_resume_change_no_digit(tmp_path):
    plain = {"steps_per_iteration": 1}
    turns = {"steps_per_iteration": 6, "steps_per_save": 10, "save_only_latest_checkpoint": False}
    turns["steps_per_eval_all_images"] = 8
    checkpoint = tmp_path / "1/scene/loe-nerf/now/nerfstudio_models/step-000000009.ckpt"
    resumed = {"steps_per_iteration": 6, "load_checkpoint": checkpoint}
    ends = []
    for number, options in enumerate((plain, turns, resumed)):
        trainer = ready("loe-nerf", tmp_path / str(number), steps=24, **SMALL)
        for option, value in options.items():
            setattr(trainer.config, option, value)
        if "load_checkpoint" in options:
            trainer.setup()
        trainer.train()
        metrics = read_metrics(tmp_path / f"{number}/scene/loe-nerf/now")
        timed = {"train_seconds", "rays_per_second", "steps_per_iteration", "psnr_best", "data"}
        ends.append(({name: value for name, value in metrics.items() if name not in timed}, weights(trainer)))
    (figures, wanted), *others = ends
    for found, parameters in others:
        assert found == figures
        for group in wanted:
            assert all(torch.equal(p, q) for p, q in zip(wanted[group], parameters[group], strict=True)), group


VANILLA = {"num_coarse_samples": 4, "num_importance_samples": 8}
EVERYTHING = {
    "camera_optimizer": CameraOptimizerConfig(mode="SO3xR3"),
    "appearance_dim": 4,
    "background_color": "random",
}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("loe-nerf", SMALL | EVERYTHING | {"scene": "unbounded"}),
        ("baseline-nerfacto", NERFACTO | {"proposal_warmup": 2, "proposal_update_every": 4}),
        ("baseline-vanilla-nerf", VANILLA),
    ],
)
def test_a_resumed_run_is_the_undisturbed_one(name, options, tmp_path):
    """To the last bit, evaluations and another history of random numbers notwithstanding."""
    whole = ready(name, tmp_path / "whole", steps=12, **options)
    whole.config.steps_per_save, whole.config.save_only_latest_checkpoint = 6, False
    whole.train()
    resumed = ready(name, tmp_path / "resumed", steps=12, evaluate_every=4, **options)
    resumed.config.load_checkpoint = whole.checkpoint_dir / "step-000000005.ckpt"
    resumed.setup()
    torch.rand(5)
    resumed.train()
    ends = [torch.load(t.checkpoint_dir / "step-000000011.ckpt", weights_only=True) for t in (whole, resumed)]
    wanted, found = (
        {path: leaf for path, leaf in tree_leaves_with_path(end) if isinstance(leaf, torch.Tensor)} for end in ends
    )
    assert wanted.keys() == found.keys()
    assert len(wanted) > 30
    assert [path for path, leaf in wanted.items() if not torch.equal(leaf, found[path])] == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_samples": 0}, "num-samples is 0: it must be at least 1"),
        ({"num_proposal_samples": ()}, "num-proposal-samples is 0: it must be at least 1"),
        ({"near_plane": 5.0, "far_plane": 1.0}, "near-plane is 5 and far-plane 1"),
        ({"loe": {"tile_size": None}}, "tile-size is None: a scene needs a number"),
        ({"loe": {"implementation": "triton"}}, "the kernels need an NVIDIA GPU"),
    ],
    ids=["samples", "proposals", "planes", "tile size", "implementation"],
)
def test_options_that_cannot_be(options, words, tmp_path):
    with pytest.raises(InputError, match=words):
        ready("loe-nerf", tmp_path, **options)
    assert not (tmp_path / "scene/loe-nerf").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"loe": {"tile_size": 1}},
        {"loe": {"blending": "linear"}, "appearance_dim": 4},
        {"camera_optimizer": CameraOptimizerConfig(mode="SO3xR3")},
        {"network": "hash-grid", "num_proposal_samples": (16, 8), "steps": 30},  # proposals bound the field at first
        {
            "scene": "unbounded",
            "background_color": "random",
            "loe": {"levels": ((1.0, 0.0), (2.0, 0.5)), "num_layers": 3},
        },
    ],
    ids=["tile_size", "linear", "poses", "hash-grid", "unbounded"],
)
def test_options_of_the_model(options, tmp_path):
    _, metrics = trained("loe-nerf", tmp_path, **options)
    assert metrics["num_parameters"] != NUM_PARAMETERS
    assert metrics["psnr"] == pytest.approx(psnr_of_views(tmp_path / "scene/loe-nerf/now"), abs=0.05)


def test_a_config_of_before_the_grid_builds_the_networks_of_then(tmp_path):
    trainer = ready("loe-nerf", tmp_path, loe={}, proposal_layers=5)
    assert "grid" not in trainer.pipeline.get_param_groups()
    assert sum(p.numel() for group in weights(trainer).values() for p in group) == 1_305_252
    model = trainer.config.pipeline.model
    del model.__dict__["proposal_grid_levels"], model.loe.__dict__["grid_levels"]  # as yaml leaves what it has not
    assert (model.loe.grid, model.proposal.grid) == (None, None)
