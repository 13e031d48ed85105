"""A signal of one and one of three dimensions through the same four classes as a picture: no file of their own."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import yaml

from loe_field import methods
from loe_field.adapter.datamanager import SignalDataManagerConfig
from loe_field.adapter.model import SignalModelConfig
from loe_field.adapter.network import LoEConfig
from loe_field.adapter.pipeline import SignalPipelineConfig
from loe_field.adapter.trainer import SignalTrainerConfig
from loe_field.errors import InputError
from loe_field.signals.signal import GridSignal

pytestmark = pytest.mark.slow


@dataclass
class ArrayConfig(SignalDataManagerConfig):
    """An array in a file: the whole of a new signal's preset, here for the test."""

    def open_signal(self, device, seed):
        """The array."""
        return GridSignal(np.load(self.data), device, samples_per_batch=256, seed=seed)


def preset(path, output, **options):
    config = SignalTrainerConfig(
        method_name="loe-array",
        experiment_name="array",
        timestamp="now",
        output_dir=output,
        num_threads=1,
        pipeline=SignalPipelineConfig(
            datamanager=ArrayConfig(data=path),
            model=SignalModelConfig(loe=LoEConfig(num_layers=5, layer_width=16, num_frequencies=4)),
        ),
        optimizers=methods.loe_image.config.optimizers,
    )
    config.machine.device_type = "cpu"
    return replace(config, **options)


def tone():
    t = np.arange(1000) / 1000
    return (0.5 + 0.3 * np.sin(60 * t) + 0.1 * np.sin(230 * t))[:, None]


def ball():
    z, y, x = np.mgrid[:10, :12, :14] / 12
    inside = np.hypot(np.hypot(x - 0.5, y - 0.5), z - 0.4)
    return np.stack([1 / (1 + np.exp(20 * (inside - 0.3))), 0.5 + 0.4 * np.sin(6 * x)], -1)


@pytest.mark.parametrize("make", [tone, ball])
def test_an_array_is_fitted_measured_and_written(make, tmp_path):
    values = make().astype(np.float32)
    np.save(tmp_path / "array.npy", values)
    trainer = preset(tmp_path / "array.npy", tmp_path, max_num_iterations=300).setup(local_rank=0, world_size=1)
    trainer.setup()
    fit = trainer.train()
    folder = tmp_path / "array/loe-array/now"
    written = np.load(folder / "reconstruction.npy")
    assert written.shape == values.shape
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["psnr"] == pytest.approx(-10 * np.log10(np.square(written - values).mean()), abs=1e-3)
    assert metrics["psnr"] == fit.metrics["psnr"] > 30
    assert metrics["num_targets"] == values.size
    assert metrics["resolution"] == [*values.shape[-2::-1]]


def test_a_signal_without_a_view_in_space_says_so(tmp_path):
    np.save(tmp_path / "array.npy", tone())
    trainer = preset(tmp_path / "array.npy", tmp_path).setup(local_rank=0, world_size=1)
    trainer.setup()
    with pytest.raises(InputError, match="no view in space"):
        _ = trainer.pipeline.datamanager.next_eval_image(0)


def test_a_pipeline_leaves_the_registered_recipe_as_it_is():
    before = yaml.dump(methods.loe_image.config)
    pipeline = methods.loe_image.config.pipeline.setup(device="cpu", test_mode="val", world_size=1, local_rank=0)
    assert pipeline.config.datamanager.pixels_per_batch == 8192
    assert yaml.dump(methods.loe_image.config) == before
