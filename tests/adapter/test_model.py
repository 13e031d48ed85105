"""The model as the host uses it, and the measures."""

import math

import numpy as np
import pytest
import torch
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.model_components.renderers import background_color_override_context

from loe_field.adapter.datamanager import SignalDataset
from loe_field.adapter.model import SignalModel, SignalModelConfig
from loe_field.adapter.network import LoEConfig
from loe_field.errors import InputError
from loe_field.image.view import BACKGROUND, FAR, SIDE, PictureView
from loe_field.pictures.picture import Picture
from loe_field.signals.picture import PictureSignal

pytestmark = pytest.mark.slow

VALUES = np.random.default_rng(0).integers(0, 256, (6, 10, 4), dtype=np.uint8)


def make(channels=3, chunk=65536, **options):
    signal = PictureSignal(Picture(VALUES[..., :channels], "PNG", "RGBA"), "cpu", samples_per_batch=None, seed=0)
    dataset = SignalDataset(signal, PictureView(signal))
    network = LoEConfig(**({"num_layers": 4, "layer_width": 8, "num_frequencies": 2} | options))
    config = SignalModelConfig(loe=network, eval_num_rays_per_chunk=chunk)
    torch.manual_seed(0)
    model = SignalModel(config, scene_box=dataset.scene_box, num_train_data=1, metadata=dataset.metadata)
    return model, dataset


def rendered(model):
    """The field at the pixels' centres, [6, 10, channels]."""
    y, x = torch.meshgrid((torch.arange(6) + 0.5) / 6, (torch.arange(10) + 0.5) / 10, indexing="ij")
    return model.values(torch.stack([x, y], -1))


@pytest.mark.parametrize("chunk", [7, 65536])
def test_the_datasets_camera_sees_the_picture_pixel_by_pixel(chunk):
    model, dataset = make(chunk=chunk)
    outputs = model.get_outputs_for_camera(dataset.cameras[0:1])
    assert set(outputs) == {"rgb", "target", "error", "depth", "accumulation"}
    torch.testing.assert_close(outputs["rgb"], rendered(model).clamp(0, 1), atol=1e-6, rtol=0)
    torch.testing.assert_close(outputs["target"], dataset.view.image, atol=0, rtol=0)
    error = (outputs["rgb"] - dataset.view.image).abs().amax(-1, keepdim=True)
    torch.testing.assert_close(outputs["error"], error)
    assert outputs["depth"].shape == outputs["accumulation"].shape == (6, 10, 1)
    assert outputs["accumulation"].min() == 1
    centre = outputs["depth"][2:4, 4:6]
    torch.testing.assert_close(centre, torch.full_like(centre, SIDE), rtol=0.02, atol=0)


def test_a_camera_further_away_sees_background_beside_the_picture():
    model, dataset = make()
    camera = dataset.cameras[0:1]
    camera.camera_to_worlds[..., 1, 3] *= 1.9
    outputs = model.get_outputs_for_camera(camera)
    inside = outputs["accumulation"][..., 0] > 0
    assert inside[2:4, 3:7].all()
    assert not inside[0].any()
    for name in ("rgb", "target"):
        torch.testing.assert_close(outputs[name][~inside].unique(dim=0), torch.tensor([BACKGROUND]))
    assert outputs["error"][~inside].abs().max() == 0
    assert outputs["depth"][~inside].unique() == FAR
    assert all(value.isfinite().all() for value in outputs.values())
    transparent = model.get_rgba_image(outputs)
    assert torch.equal(transparent[..., 3] > 0, inside)


def test_nothing_is_seen_by_a_camera_that_looks_away_or_along_the_picture():
    model, dataset = make()
    camera = dataset.cameras[0:1]
    for y in (-SIDE, 0.0):  # beyond the picture, and within its plane
        camera.camera_to_worlds[..., 1, 3] = y
        outputs = model.get_outputs_for_camera(camera)
        assert outputs["accumulation"].max() == 0
        assert all(value.isfinite().all() for value in outputs.values())


def test_closer_by_a_pixel_fills_the_view_and_the_field_goes_on_between_pixels():
    model, dataset = make(blending="linear")
    camera = dataset.cameras[0:1]
    camera.camera_to_worlds[..., 1, 3] /= 40
    outputs = model.get_outputs_for_camera(camera)
    assert outputs["accumulation"].min() == 1
    seen = outputs["target"].view(-1, 3).unique(dim=0)
    assert len(seen) == 4  # the camera looks at the corner of the four pixels in the middle
    torch.testing.assert_close(seen, dataset.view.image[2:4, 4:6].reshape(-1, 3).unique(dim=0))
    assert len(outputs["rgb"].view(-1, 3).unique(dim=0)) == 60


def test_the_viewers_crop_box_cuts_the_picture_and_its_colour_fills_the_rest():
    model, dataset = make()
    box = OrientedBox(torch.eye(3), torch.zeros(3), torch.tensor([0.4 * SIDE] * 3))
    with background_color_override_context(torch.tensor([1.0, 0.0, 0.0])):
        outputs = model.get_outputs_for_camera(dataset.cameras[0:1], obb_box=box)
    inside = outputs["accumulation"][..., 0] > 0
    assert inside[1:5, 3:7].all()
    assert inside.sum() == 4 * 4
    torch.testing.assert_close(outputs["rgb"][~inside].unique(dim=0), torch.tensor([[1.0, 0.0, 0.0]]))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_every_kind_of_channels_shows_as_colour(channels):
    model, dataset = make(channels)
    outputs = model.get_outputs_for_camera(dataset.cameras[0:1])
    values = rendered(model).clamp(0, 1)
    expected = values[..., :1].expand(-1, -1, 3) if channels < 3 else values[..., :3]
    if channels in (2, 4):
        expected = expected * values[..., -1:]
    torch.testing.assert_close(outputs["rgb"], expected, atol=1e-6, rtol=0)
    assert outputs["target"].shape == outputs["rgb"].shape
    metrics, images = model.get_image_metrics_and_images(outputs, {"image": dataset.view.image})
    assert math.isfinite(metrics["psnr"])
    assert images["img"].shape == (6, 20, 3)


def test_parameter_groups_hold_every_parameter_of_the_field_once():
    model, _ = make()
    groups = model.get_param_groups()
    held = [id(p) for params in groups.values() for p in params]
    assert sorted(held) == sorted(id(p) for p in model.field.parameters())
    assert {p.shape for p in groups["experts"]} == {(4, 8, 8)}
    with_grid = make(grid_levels=2)[0]
    assert [p is with_grid.field.grid_table for p in with_grid.get_param_groups()["grid"]] == [True]
    assert "experts" not in make(num_layers=2)[0].get_param_groups()


def test_a_bad_option_is_the_users_to_mend():
    with pytest.raises(InputError, match=r"layer_width is 0.*--pipeline.model"):
        make(layer_width=0)
