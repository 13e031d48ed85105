"""PSNR and SSIM against other implementations of them."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from torchmetrics.functional.image import structural_similarity_index_measure

from loe_field.pictures.metrics import colour_corrected, picture_psnr, picture_ssim, psnr, ssim
from loe_field.pictures.picture import Picture


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_psnr_is_skimages(dtype):
    white = 1.0 if dtype == np.float32 else float(np.iinfo(dtype).max)
    rng = np.random.default_rng(1)
    a, b = ((rng.random((9, 7, 3)) * white).astype(dtype) for _ in range(2))
    expected = peak_signal_noise_ratio(b.astype(float), a.astype(float), data_range=white)
    assert psnr(a, b, white) == pytest.approx(expected, abs=1e-4)
    assert psnr(a, a, white) == math.inf


def test_ssim_of_itself_is_one_and_of_a_thin_picture_none():
    rng = np.random.default_rng(1)
    thick = Picture(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8), "PNG", "RGB")
    assert picture_ssim(thick, thick) == pytest.approx(1)
    noisy = thick.like(thick.values / 255 + rng.normal(0, 0.2, thick.values.shape))
    assert picture_ssim(noisy, thick) < 0.97
    thin = Picture(thick.values[:5], "PNG", "RGB")
    assert picture_ssim(thin, thin) is None


def test_one_map_of_colours_is_taken_off():
    target = np.random.default_rng(3).random((20, 30, 3)).astype(np.float32)
    seen = (target @ np.array([[0.6, 0.1, 0], [0, 0.7, 0.1], [0.1, 0, 0.5]]) + 0.05).astype(np.float32)
    assert psnr(seen, target) < 20
    assert psnr(colour_corrected(seen, target), target) > 80
    mean = np.broadcast_to(target.mean((0, 1)), target.shape)
    np.testing.assert_allclose(colour_corrected(np.zeros_like(target), target), mean, atol=1e-6)


@pytest.mark.parametrize("height", [11, 26, 27, 50])
def test_measures_do_not_depend_on_strips(height, monkeypatch):
    noise = np.random.default_rng(0)
    first, second = (Picture(noise.integers(0, 256, (height, 20, 3), np.uint8), "PNG", "RGB") for _ in range(2))
    whole = psnr(first.values, second.values, 255), picture_ssim(first, second)
    monkeypatch.setattr("loe_field.pictures.metrics._STRIP", 16)
    assert (psnr(first.values, second.values, 255), picture_ssim(first, second)) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize(("height", "width"), [(11, 11), (40, 50), (97, 33)])
def test_ssim_is_torchmetrics(height, width):
    rng = np.random.default_rng(1)
    target = rng.random((height, width, 3)).cumsum(0).cumsum(1).astype(np.float32) % 1
    for noise in (0.02, 0.3):
        values = (target + rng.normal(0, noise, target.shape)).clip(0, 1).astype(np.float32)
        seen, wanted = (torch.from_numpy(x).movedim(-1, 0)[None] for x in (values, target))
        mean, theirs = structural_similarity_index_measure(seen, wanted, data_range=1.0, return_full_image=True)
        assert ssim(values, target, mirrored=True) == pytest.approx(float(mean), abs=1e-5)
        assert ssim(values, target) == pytest.approx(float(theirs[..., 5:-5, 5:-5].mean()), abs=1e-5)


def test_measures_of_pictures_are_those_of_their_numbers():
    rng = np.random.default_rng(1)
    first, second = (Picture(rng.integers(0, 65536, (20, 20, 4), np.uint16), "PNG", "RGBA") for _ in range(2))
    assert picture_psnr(first, second) == pytest.approx(psnr(first.unit, second.unit), abs=1e-4)
    assert picture_ssim(first, second) == pytest.approx(ssim(first.unit, second.unit), abs=1e-9)
