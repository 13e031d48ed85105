"""What comes by time: checkpoints beside the training, told of where they fail, and evaluations as on a GPU."""

import copy
import threading
import time
from dataclasses import replace

import pytest
import torch
from nerfstudio.configs.method_configs import method_configs  # noqa: F401  (the host's modules import each other)
from PIL import Image
from support import waves

from loe_field import fit_image
from loe_field.adapter.network import LoEConfig
from loe_field.errors import InputError
from loe_field.methods import loe_image
from loe_field.training import loop
from loe_field.training.checkpoints import write_checkpoint

pytestmark = pytest.mark.slow

SMALL = {"num_steps": 40, "num_layers": 4, "layer_width": 8, "num_threads": 1}


@pytest.fixture
def save_all_the_time(monkeypatch):
    """A checkpoint is due as soon as the last one is written."""
    monkeypatch.setattr(loop, "_SECONDS_PER_SAVE", 0.0)
    monkeypatch.setattr(loop, "_PART_FOR_SAVES", float("inf"))


@pytest.fixture
def weights(monkeypatch):
    """The first matrix after each step of the run."""
    after, look = {}, loop.LoETrainer._after_step

    def look_at_weights(self):
        after[self.step] = self.pipeline.model.field.layers[0].weight.detach().clone()
        look(self)

    monkeypatch.setattr(loop.LoETrainer, "_after_step", look_at_weights)
    return after


def in_thread():
    return threading.current_thread() is not threading.main_thread()


def test_a_checkpoint_is_of_one_step_whatever_is_trained_while_it_is_written(
    save_all_the_time, weights, tmp_path, monkeypatch
):
    found = {}

    def write_slowly(folder, step, content, **options):
        deadline = time.monotonic() + 60
        while in_thread() and len(weights) < min(40, step + 9) and time.monotonic() < deadline:
            time.sleep(0.001)
        path = write_checkpoint(folder, step, content, **options)
        found[step] = torch.load(path, weights_only=True)
        return path

    monkeypatch.setattr(loop, "write_checkpoint", write_slowly)
    fit = fit_image(waves(16, 16, 3), **SMALL, output_dir=tmp_path)
    assert (min(found), max(found)) == (0, 39)
    assert 3 <= len(found) <= 7, "while one is written no other is begun"
    for step, state in found.items():
        assert state["step"] == step
        assert torch.equal(state["pipeline"]["_model.field.layers.0.weight"], weights[step])
        moments = [moment["step"] for moment in state["optimizers"]["fields"]["state"].values()]
        assert moments == [step + 1] * len(moments)
    assert [path.name for path in fit.folder.glob("nerfstudio_models/*")] == ["step-000000039.ckpt"]


def test_a_checkpoint_that_cannot_be_written_beside_the_training_ends_it(save_all_the_time, tmp_path, monkeypatch):
    def fail(folder, step, content, **options):
        if in_thread() and step > 2:
            raise InputError(f"step {step} cannot be written: No space left on device")
        return write_checkpoint(folder, step, content, **options)

    monkeypatch.setattr(loop, "write_checkpoint", fail)
    with pytest.raises(InputError, match=r"step \d+ cannot be written: No space left on device. The last good") as told:
        fit_image(waves(16, 16, 3), **SMALL | {"num_steps": 10**6}, output_dir=tmp_path)
    (folder,) = tmp_path.glob("*/*/*")
    assert (folder / "metrics.json").is_file()
    (last,) = folder.glob("nerfstudio_models/*")
    assert str(last) in str(told.value)


@pytest.mark.parametrize("by_time", [True, False])
def test_saving_is_not_training(by_time, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_SECONDS_PER_SAVE", 0.0)
    pack, packed = loop.packed, []

    def pack_slowly(state):
        time.sleep(0.2)
        packed.append(state["step"])
        return pack(state)

    monkeypatch.setattr(loop, "packed", pack_slowly)
    if not by_time:
        from loe_field import methods

        monkeypatch.setattr(methods.loe_image.config, "steps_per_save", 25)
    start = time.monotonic()
    fit = fit_image(waves(16, 16, 3), **SMALL, output_dir=tmp_path)
    assert packed == ([0, 39] if by_time else [24, 39]), "a fiftieth of the time: not before 10 s"
    assert fit.seconds < time.monotonic() - start - 0.4


@pytest.mark.parametrize(("part_of_time", "steps"), [(1.0, list(range(2, 49, 2))), (1e-9, [2, 48])])
def test_evaluations_by_time_are_so_many_in_a_run_and_cost_no_more_than_their_part(
    part_of_time, steps, tmp_path, monkeypatch, capsys
):
    by_time = replace(loop.defaults_for(loop.device_of("cpu")), evaluates_by_time=True)
    monkeypatch.setattr(loop, "defaults_for", lambda device: by_time)
    monkeypatch.setattr(loop, "_PART_FOR_EVALUATIONS", part_of_time)
    fit = fit_image(waves(16, 16, 3), **SMALL | {"num_steps": 48}, output_dir=tmp_path, progress=True)
    assert [point.step for point in fit.curve] == steps
    assert "256 pixels a step, evaluated by time" in capsys.readouterr().out
    assert "\nsteps_per_iteration: 1\n" in (fit.folder / "config.yml").read_text()
    assert fit.metrics["steps_per_iteration"] == 1


def test_a_large_picture_ends_by_the_clock_is_measured_at_samples_and_can_be_seen_soon(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("loe_field.signals.signal._MOST_MEASURED", 100)
    monkeypatch.setattr("loe_field.signals.signal._SOME_MEASURED", 64)
    monkeypatch.setattr("loe_field.signals.sizes._TIMED_FROM", 32 * 24)
    monkeypatch.setattr("loe_field.signals.sizes._SECONDS", 1)
    monkeypatch.setattr("loe_field.adapter.trainer.SignalTrainer.first_preview", 0.01)
    monkeypatch.setattr("loe_field.adapter.trainer._PREVIEW_SAMPLES", 96)
    path = tmp_path / "photo.png"
    Image.fromarray(waves(24, 32, 3)).save(path)
    config = copy.deepcopy(loe_image.config)
    config.pipeline.datamanager.data, config.output_dir, config.machine.device_type = path, tmp_path, "cpu"
    config.pipeline.model.loe = LoEConfig(num_layers=3, layer_width=8)
    config.set_timestamp()
    trainer = config.setup()
    trainer.setup()
    assert (trainer.config.max_num_iterations, trainer.config.max_train_seconds) == (6000, 1.0)
    seen, shapes = [], []
    reconstruct, write = trainer.pipeline.reconstruct, trainer._write_preview
    monkeypatch.setattr(trainer.pipeline, "reconstruct", lambda: seen.append(trainer.step) or reconstruct())
    monkeypatch.setattr(trainer, "_write_preview", lambda: write() or shapes.append(Image.open(preview).size))
    preview = trainer.base_dir / "preview.png"
    result = trainer.train()
    assert seen == [trainer.step], "all pixels are measured once, at the end"
    assert 2 <= len(trainer.record.curve) <= 26
    assert trainer.record.curve[-1].psnr == pytest.approx(result.metrics["psnr"])
    assert result.metrics["psnr_best"] == result.metrics["psnr"]
    assert trainer.record.curve[-1].seconds >= 1
    assert trainer.step < 5999
    assert shapes == [(6, 4), (8, 6), (11, 8), (16, 12), (23, 17), (32, 24), (32, 24), (32, 24)][: len(shapes)]
    assert len(shapes) >= 2, "the end is seen too"
    printed = capsys.readouterr().out
    assert printed.replace("\n", " ").count("ends after 1 s, by its size") == 1
    assert printed.count("a first look after") == 1


@pytest.mark.parametrize(("target", "stops"), [(98, False), (1, True)])
def test_a_target_that_samples_reach_counts_once_all_samples_do(target, stops, monkeypatch):
    monkeypatch.setattr("loe_field.signals.signal._MOST_MEASURED", 100)
    monkeypatch.setattr("loe_field.signals.signal._SOME_MEASURED", 64)
    monkeypatch.setattr("loe_field.signals.signal.GridSignal.quick_psnr", lambda *_, **__: 99.0)
    fit = fit_image(waves(16, 16, 3), **SMALL, target_psnr=target, pixels_per_batch=64)
    assert fit.num_steps == (6 if stops else 40)
    assert max(point.psnr for point in fit.curve) < 98
