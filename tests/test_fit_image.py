"""fit_image: the command's recipe on arrays, in the caller's own process."""

import random
import subprocess
import sys
import tempfile
import threading

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from support import read_metrics, run_folder, run_here, waves

from loe_field import ImageFit, InputError, LoEMLP, fit_image, methods

pytestmark = pytest.mark.slow

SMALL = {"num_layers": 5, "layer_width": 16, "num_frequencies": 4, "num_threads": 1}


@pytest.fixture(scope="module")
def colours(small_picture):
    return np.asarray(Image.open(small_picture))


@pytest.fixture(scope="module")
def fitted(colours, tmp_path_factory):
    """A fit, and the run's folder that it was asked to leave."""
    return fit_image(colours, num_steps=300, output_dir=tmp_path_factory.mktemp("out"), **SMALL)


def psnr(a, b):
    return -10 * np.log10(np.mean((a / 255.0 - b / 255.0) ** 2))


def test_it_is_what_the_command_makes(fitted, small_picture, tmp_path):
    options = ("--pipeline.model.num-layers", 5, "--pipeline.model.layer-width", 16, "--num-threads", 1,
               "--pipeline.model.num-frequencies", 4, "--max-num-iterations", 300)  # fmt: skip
    done = run_here("ns-train", "loe-image", "--data", small_picture, "--output-dir", tmp_path, *options)
    assert done.returncode == 0, done.stderr
    metrics = read_metrics(run_folder(tmp_path))
    assert fitted.psnr == pytest.approx(metrics["psnr"], abs=0.01)
    assert fitted.ssim == pytest.approx(metrics["ssim"], abs=1e-4)
    assert fitted.field.num_parameters == metrics["num_parameters"]


def test_what_comes_back(fitted, colours):
    assert isinstance(fitted, ImageFit)
    assert isinstance(fitted.field, LoEMLP)
    assert (fitted.reconstruction.shape, fitted.reconstruction.dtype) == (colours.shape, colours.dtype)
    assert fitted.psnr == pytest.approx(psnr(fitted.reconstruction, colours), abs=1e-3)
    assert fitted.psnr > 25
    assert fitted.num_steps == 300
    assert [point.step for point in fitted.curve][-1] == 300
    assert fitted.curve[-1].psnr == pytest.approx(fitted.psnr, abs=1e-3)
    assert fitted.seconds == pytest.approx(fitted.metrics["train_seconds"])


def test_rendered_at_its_own_size_it_is_the_reconstruction(fitted):
    np.testing.assert_array_equal(fitted.render(), fitted.reconstruction)


def test_sizes_of_renders(fitted):
    assert fitted.render(2.5).shape == (100, 150, 3)
    assert fitted.render(0.001).shape == (1, 1, 3)
    # Three times as large, every third pixel's centre is one of the picture's own.
    np.testing.assert_array_equal(fitted.render(3, upscaling="field")[1::3, 1::3], fitted.reconstruction)
    np.testing.assert_allclose(fitted.render(3)[1::3, 1::3].astype(int), fitted.reconstruction, atol=1)


def test_smaller_is_the_mean(fitted):
    pixels = fitted.at(np.stack(np.meshgrid(np.arange(60), np.arange(40)), -1) + 0.5).astype(np.float64)
    means = pixels.reshape(20, 2, 30, 2, 3).mean((1, 3))
    np.testing.assert_allclose(fitted.render(0.5), means.clip(0, 1) * 255, atol=0.51)


def test_what_is_not_seen_has_no_part_in_a_mean():
    array = np.zeros((16, 16, 4), np.uint8)
    array[:, ::2] = (0, 255, 0, 0)
    array[:, 1::2] = (200, 0, 0, 255)
    half = fit_image(array, num_steps=300, **SMALL).render(0.5).astype(int)
    np.testing.assert_allclose(half, np.broadcast_to((200, 0, 0, 128), half.shape), atol=16)


def test_hdr():
    array = (waves(24, 32, 3).astype(np.float32) / 16) ** 3  # up to 4,000
    array[5, 7] = 0
    fit = fit_image(array, num_steps=300, hdr=True, **SMALL)
    assert (fit.reconstruction.shape, fit.reconstruction.dtype) == (array.shape, array.dtype)
    peak = fit.metrics["radiance_peak"]
    assert peak == pytest.approx(np.percentile(array, 99.9), rel=1e-3)

    def curve(values):
        return (np.log1p(5000 * values / peak) / np.log1p(5000)).clip(0, 1)

    error = np.square(curve(fit.reconstruction) - curve(array)).mean(dtype=np.float64)
    assert fit.psnr == pytest.approx(-10 * np.log10(error), abs=0.05)
    assert fit.psnr > 24
    np.testing.assert_allclose(fit.render(), fit.reconstruction, rtol=1e-4, atol=1e-3)
    centres = np.stack(np.meshgrid(np.arange(32), np.arange(24)), -1) + 0.5
    np.testing.assert_allclose(fit.at(centres), fit.reconstruction, rtol=1e-3, atol=1e-2)
    means = fit.reconstruction.astype(np.float64).reshape(12, 2, 16, 2, 3).mean((1, 3))
    np.testing.assert_allclose(fit.render(0.5), means, rtol=1e-3, atol=1e-2)


def test_places_are_in_pixels(fitted):
    places = [[0.5, 0.5], [59.5, 39.5], [10.5, 20.5]]
    values = fitted.at(places)
    assert (values.shape, values.dtype) == ((3, 3), np.float32)
    seen = np.rint(values.clip(0, 1) * 255)
    np.testing.assert_array_equal(seen, fitted.reconstruction[[0, 39, 20], [0, 59, 10]])
    assert fitted.at((3.2, 4.7)).shape == (3,)


def test_the_folder_serves_the_hosts_tools(fitted, tmp_path):
    assert (fitted.folder / "picture.png").is_file()
    done = run_here("ns-eval", "--load-config", fitted.folder / "config.yml", "--output-path", tmp_path / "e.json")
    assert done.returncode == 0, done.stderr
    assert f'"psnr": {fitted.psnr:.4f}'[:-2] in (tmp_path / "e.json").read_text()


def test_the_same_again_and_nothing_left_or_said(fitted, colours, capfd, monkeypatch, tmp_path):
    """Twice in one process, beside the caller's own random numbers, from within no_grad."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    with torch.no_grad():
        again = fit_image(colours, num_steps=300, **SMALL)
        assert not torch.is_grad_enabled()
    assert again.folder is None
    np.testing.assert_array_equal(again.reconstruction, fitted.reconstruction)
    assert list(tmp_path.iterdir()) == []
    assert random.getstate() == before[0]
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])
    assert torch.equal(torch.get_rng_state(), before[2])
    assert capfd.readouterr().out == ""


def test_progress_is_the_commands(colours, capfd):
    fit_image(colours, num_steps=4, progress=True, **SMALL)
    said = capfd.readouterr().out
    assert "step 4/4 (100 %)" in said
    assert "metrics.json" not in said


def test_another_seed_is_another_fit(fitted, colours):
    other = fit_image(colours, num_steps=300, seed=1, **SMALL)
    assert not np.array_equal(other.reconstruction, fitted.reconstruction)
    assert other.psnr == pytest.approx(fitted.psnr, abs=2)


ARRAYS = {
    "grey": waves(20, 30, 1)[..., 0],
    "grey with a channel": waves(20, 30, 1),
    "grey and alpha": waves(20, 30, 2),
    "alpha": waves(20, 30, 4),
    "16 bits": waves(20, 30, 3, np.uint16),
    "16 bits with alpha, other byte order": waves(20, 30, 2, np.uint16).astype(">u2"),
    "floats": waves(20, 30, 3) / 255,
    "half floats, grey": (waves(20, 30, 1)[..., 0] / 255).astype(np.float16),
    "a view": waves(40, 60, 3)[::2, ::-2],
    "one pixel": waves(1, 1, 3),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_kinds_of_arrays(name):
    array = ARRAYS[name]
    fit = fit_image(array, num_steps=200, **SMALL)
    assert fit.reconstruction.shape == array.shape
    assert fit.reconstruction.dtype == array.dtype.newbyteorder("=")
    white = 1 if array.dtype.kind == "f" else np.iinfo(array.dtype).max
    error = np.square((fit.reconstruction.astype(float) - array.astype(float)) / white).mean()
    if error:
        assert -10 * np.log10(error) == pytest.approx(fit.psnr, abs=0.01)
    assert fit.psnr > 24
    np.testing.assert_allclose(fit.render().astype(float), fit.reconstruction.astype(float), atol=1e-3 * white)
    assert fit.at([[0.5, 0.5]]).shape == (1, *array.shape[2:])
    assert fit.at([0.5, 0.5]).shape == array.shape[2:]  # one place; of grey without channels one number


@pytest.mark.parametrize(
    ("array", "options", "words"),
    [
        (np.zeros(5, np.uint8), {}, r"shape \[5\]"),
        (np.zeros((4, 4, 5), np.uint8), {}, "1 to 4 channels"),
        (np.zeros((0, 4), np.uint8), {}, "no pixels"),
        (np.zeros((4, 4), np.int64), {}, "int64 numbers"),
        (np.full((4, 4), np.nan), {}, "16 values that are NaN"),
        (np.full((4, 4), 255.0), {}, "255 to 255.*hdr=True"),
        (np.full((4, 4), -0.5), {}, "down to -0.5"),
        (np.zeros((4, 4), np.uint8), {"hdr": True}, "hdr=True is for floats"),
        (np.full((4, 4, 4), 2.0), {"hdr": True}, "alpha goes up to 2"),
        (np.full((4, 4), 1e300), {"radiance": True}, "32 bits"),
        (np.full((4, 4), 1e-40), {"hdr": True}, "scale it up"),
        ("photo.png", {}, "'photo.png' is no array"),
        (np.zeros((4, 4)), {"num_steps": 0}, "^num_steps is 0: it must be at least 1"),
        (np.zeros((4, 4)), {"seed": -1}, "^seed is -1: it must be at least 0"),
        (np.zeros((4, 4)), {"num_layers": 1}, "num_layers"),
        (np.zeros((4, 4)), {"device": "cuda:1"}, "one of cpu, cuda"),
        (np.zeros((4, 4)), {"precision": "fp8"}, "'fp8'"),
        (np.zeros((4, 4)), {"method": "loe-nerf"}, "'loe-nerf'"),
        (np.zeros((4, 4)), {"output_dir": "/proc/nowhere"}, "cannot be written"),
        (np.zeros((4, 4)), {"output_dir": "x" * 300}, "too long"),
        (np.zeros((4, 4)), {"output_dir": 5}, "output_dir is 5"),
        (np.zeros((4, 4)), {"num_steps": "5"}, "num_steps is '5': a whole number"),
        (np.zeros((4, 4)), {"num_steps": 2.5}, "num_steps is 2.5: a whole number"),
        (np.zeros((4, 4)), {"num_steps": np.nan}, "num_steps is nan: a whole number"),
        (np.zeros((4, 4)), {"seed": None}, "seed is None: a whole number"),
        (np.zeros((4, 4)), {"progress": "yes"}, "progress is 'yes': true or false"),
        (np.zeros((4, 4)), {"method": ["a"]}, "method is"),
        (np.zeros((4, 4)), {"max_train_seconds": "1"}, "max_train_seconds is '1'"),
        (np.zeros((4, 4)), {"target_psnr": "x"}, "target_psnr is 'x'"),
        (np.zeros((4, 4)), {"tile_size": 2.0}, "tile_size is 2.0"),
        (np.zeros((4, 4)), {"tile_size": 1000}, "tile_size is 1000: it must be 1 to 8"),
        (np.zeros((4, 4)), {"layer_width": 10**6}, "GiB to train"),
        (np.zeros((4, 4)), {"num_layers": 10**9}, "num_layers is 1000000000: it must be 2 to 128"),
        (np.zeros((4, 4)), {"num_frequencies": 10**30}, "more than any machine has"),
        (np.zeros((4, 4)), {"num_threads": 10**9}, "at most 1024"),
        (np.zeros((4, 4)), {"pixels_per_batch": "all"}, "pixels_per_batch is 'all'"),
        (np.zeros((4, 4)), {"device": torch.device("meta")}, "device is device"),
        ([[1, 2], [3]], {}, "inhomogeneous"),
        (torch.rand(4, 4, requires_grad=True), {}, "requires grad"),
        (torch.rand(4, 4, device="meta"), {}, "meta"),
        (np.ma.masked_array(np.zeros((4, 4)), np.eye(4)), {}, "masked values"),
        (np.zeros((4, 4), complex), {}, "complex128"),
        (np.zeros((4, 4), object), {}, "object"),
        (np.broadcast_to(np.uint8(3), (10**6, 10**6)), {}, "too large for memory"),
    ],
)
def test_bad_input_is_one_clear_error(array, options, words, tmp_path):
    options = {"output_dir": tmp_path, **options}
    with pytest.raises(ValueError, match=words) as error:
        fit_image(array, **options)
    assert isinstance(error.value, InputError)
    assert not isinstance(error.value, SystemExit)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_bad_places_and_scales(fitted):
    with pytest.raises(InputError, match=r"\[4, 3\]"):
        fitted.at(np.zeros((4, 3)))
    for places in ("x", [[1, 2], [3]], [[1j, 1]], torch.zeros(2, 2, requires_grad=True)):
        with pytest.raises(InputError, match="xy cannot be read"):
            fitted.at(places)
    for scale in (0, -1, np.inf, np.nan, "2", [2], True, 1e9):
        with pytest.raises(InputError, match=r"above 0|finite number|the most along a side"):
            fitted.render(scale)
    with pytest.raises(InputError, match="one of spline, field"):
        fitted.render(2, upscaling="bicubic")


def test_torchs_defaults_are_put_aside_and_come_back():
    array = waves(6, 9, 1)
    alone = fit_image(array, num_steps=2, **SMALL)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        other = fit_image(array, num_steps=2, **SMALL)
        assert (torch.get_default_dtype(), torch.get_default_device().type) == (torch.float64, "meta")
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert (other.reconstruction == alone.reconstruction).all()
    with pytest.raises(InputError, match="call it outside"), torch.device("meta"):
        fit_image(array, num_steps=2, **SMALL)


def test_without_the_host_it_names_the_package():
    code = """
import sys
sys.modules["nerfstudio"] = None
from loe_field import fit_image
try:
    fit_image([[0.0, 1.0]])
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "fit_image needs nerfstudio, which is not installed: pip install loe-field\n", done


def test_fits_in_two_threads_are_those_of_each_alone(colours):
    results = {}

    def fit(seed):
        results[seed] = fit_image(colours, num_steps=20, seed=seed, **SMALL)

    threads = [threading.Thread(target=fit, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in (1, 2):
        alone = fit_image(colours, num_steps=20, seed=seed, **SMALL)
        for mine, other in zip(alone.field.parameters(), results[seed].field.parameters()):
            assert torch.equal(mine, other)


def test_a_fit_leaves_the_recipes_as_they_are():
    """A small array first: the large one gets its own batch and tiles."""
    before = [yaml.dump(spec.config) for spec in methods.PICTURES]
    small = fit_image(waves(64, 64, 3), num_steps=2)
    large = fit_image(waves(1200, 1100, 3), num_steps=1, num_layers=3)
    assert [yaml.dump(spec.config) for spec in methods.PICTURES] == before
    assert (small.metrics["pixels_per_batch"], small.field.tile_size) == (4096, 2)
    assert large.field.tile_size == 4
    assert 16_000 < large.metrics["pixels_per_batch"] <= 16_384


def test_ctrl_c_is_an_exception_like_any_other():
    code = """
import os, signal, threading
import numpy as np
from loe_field import fit_image
from loe_field.adapter.trainer import SignalTrainer
evaluate = SignalTrainer._after_step
def interrupted(self):
    if self.step == 20:
        os.kill(os.getpid(), signal.SIGINT)
    evaluate(self)
SignalTrainer._after_step = interrupted
try:
    fit_image(np.zeros((8, 8), np.uint8), num_layers=3, layer_width=16)
except KeyboardInterrupt:
    print("stopped")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "stopped\n", done
    assert "Traceback" not in done.stderr
