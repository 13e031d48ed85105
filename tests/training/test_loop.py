"""What comes by time: checkpoints beside the training, told of where they fail, and evaluations as on a GPU."""

import threading
import time
from dataclasses import replace

import pytest
import torch
from support import waves

from loe_field import fit_image
from loe_field.errors import InputError
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
