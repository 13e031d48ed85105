"""The model as the host uses it, and the measures."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from loe_field.errors import InputError
from loe_field.image.datamanager import PictureDataset
from loe_field.image.model import LoEImageModel, LoEImageModelConfig, levels_for
from loe_field.image.picture import Picture
from loe_field.image.pipeline import psnr, ssim

VALUES = np.random.default_rng(0).integers(0, 256, (6, 10, 4), dtype=np.uint8)


def make(channels=3, **options):
    dataset = PictureDataset((6, 10, channels), lambda: Picture(VALUES[..., :channels], "PNG", "RGBA"))
    config = LoEImageModelConfig(**({"num_layers": 4, "layer_width": 8, "num_frequencies": 2} | options))
    torch.manual_seed(0)
    model = LoEImageModel(config, scene_box=dataset.scene_box, num_train_data=1, metadata=dataset.metadata)
    return model, dataset


@pytest.mark.parametrize("chunk", [7, 65536])
def test_the_datasets_camera_sees_the_picture_pixel_by_pixel(chunk):
    model, dataset = make(eval_num_rays_per_chunk=chunk)
    outputs = model.get_outputs_for_camera(dataset.cameras[0:1])
    torch.testing.assert_close(outputs["rgb"], model.render().clamp(0, 1), atol=1e-5, rtol=0)
    assert outputs["depth"].shape == outputs["accumulation"].shape == (6, 10, 1)
    assert outputs["accumulation"].min() == 1
    centre = outputs["depth"][2:4, 4:6]
    torch.testing.assert_close(centre, torch.ones_like(centre), atol=0.02, rtol=0)


def test_a_camera_further_away_sees_background_beside_the_picture():
    model, dataset = make()
    camera = dataset.cameras[0:1]
    camera.camera_to_worlds[..., 1, 3] = 2.0
    outputs = model.get_outputs_for_camera(camera)
    inside = outputs["accumulation"][..., 0] > 0
    assert inside[2:4, 3:7].all()
    assert not inside[0].any()
    assert outputs["rgb"][~inside].abs().max() == 0
    assert outputs["depth"][~inside].min() > 100


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_every_kind_of_channels_shows_as_colour(channels):
    model, dataset = make(channels)
    outputs = model.get_outputs_for_camera(dataset.cameras[0:1])
    rendered = model.render().clamp(0, 1)
    expected = rendered[..., :1].expand(-1, -1, 3) if channels < 3 else rendered[..., :3]
    if channels in (2, 4):
        expected = expected * rendered[..., -1:]
    torch.testing.assert_close(outputs["rgb"], expected, atol=1e-5, rtol=0)
    metrics, images = model.get_image_metrics_and_images(outputs, {"image": dataset.image})
    assert math.isfinite(metrics["psnr"])
    assert images["img"].shape == (6, 20, 3)


def test_render_is_the_field_at_pixel_centres():
    model, _ = make()
    expected = model.field(torch.tensor([[3.5 / 10, 4.5 / 6]]))
    torch.testing.assert_close(model.render()[4, 3], expected[0])


def test_parameter_groups_hold_every_parameter_of_the_field_once():
    model, _ = make()
    groups = model.get_param_groups()
    held = [id(p) for params in groups.values() for p in params]
    assert sorted(held) == sorted(id(p) for p in model.field.parameters())
    assert {p.shape for p in groups["experts"]} == {(4, 8, 8)}
    assert "experts" not in make(num_layers=2)[0].get_param_groups()


@pytest.mark.parametrize(
    ("height", "width", "levels"), [(512, 512, 9), (1, 100, 9), (512, 768, 10), (1024, 8, 10), (8192, 8192, 13)]
)
def test_levels_grow_with_the_picture(height, width, levels):
    assert levels_for(height, width) == levels


def test_a_bad_option_is_the_users_to_mend():
    with pytest.raises(InputError, match=r"layer_width is 0.*--pipeline.model"):
        make(layer_width=0)


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
    assert ssim(thick, thick) == pytest.approx(1)
    noisy = thick.like(thick.values / 255 + rng.normal(0, 0.2, thick.values.shape))
    assert ssim(noisy, thick) < 0.97
    thin = Picture(thick.values[:5], "PNG", "RGB")
    assert ssim(thin, thin) is None
