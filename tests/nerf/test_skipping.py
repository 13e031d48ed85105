"""What the field is not asked for cannot be seen."""

import pytest
import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.configs.method_configs import method_configs  # noqa: F401  (the host's modules import each other)
from nerfstudio.data.scene_box import SceneBox

from loe_field.adapter.network import LoEConfig
from loe_field.errors import InputError
from loe_field.nerf.model import LoENerfModelConfig

pytestmark = pytest.mark.slow

BOX = torch.tensor([[-1.0] * 3, [1.0] * 3])


def model_of(background, **options):
    config = LoENerfModelConfig(
        loe=LoEConfig(num_layers=3, layer_width=16, tile_size=2, num_frequencies=3),
        scene="box",
        host_implementation="torch",  # asks the functions that are replaced below
        background_color=background,
        **options,
    )
    torch.manual_seed(0)
    model = config.setup(scene_box=SceneBox(BOX), num_train_data=2, metadata={}).eval()

    def ball(positions):  # a solid ball in empty space, as a trained proposal network and field see it
        return 1e3 * (positions.norm(dim=-1, keepdim=True) < 0.5)

    asked = []

    def density(samples, of=model.field.get_density):
        positions = samples.frustums.get_positions()
        asked.append(positions[..., 0].numel())
        return ball(positions), of(samples)[1]

    model.field.get_density = density
    model.proposal_networks[0].density_fn = ball
    return model, asked


def rays():
    """From one side through the ball, past it, and past the box."""
    y, z = (
        a.flatten() for a in torch.meshgrid(torch.linspace(-1.2, 1.2, 24), torch.linspace(-0.9, 0.9, 18), indexing="ij")
    )
    origins = torch.stack([torch.full_like(y, -3), y, z], -1)
    directions = torch.tensor([1.0, 0, 0]).expand_as(origins)
    return RayBundle(origins=origins, directions=directions, pixel_area=torch.full_like(origins[:, :1], 1e-4))


@pytest.mark.parametrize("background", ["random", "last_sample", "black", "white"])
def test_the_picture_is_the_same_at_a_fraction_of_the_points(background):
    model, asked = model_of(background, skip_below=1e-3)
    with torch.no_grad():
        sparse, few = model(rays()), sum(asked)
        asked.clear()
        model.config.skip_below = 0.0
        full = model(rays())
    assert set(sparse) == set(full)
    for name in ("rgb", "accumulation"):
        assert (sparse[name] - full[name]).abs().max() < 1e-2, name
        assert (sparse[name] - full[name]).abs().mean() < 1e-3, name
    hit = full["accumulation"][:, 0] > 0.5
    assert hit.any()
    for name in ("depth", "expected_depth"):
        assert sparse[name].shape == full[name].shape
        assert (sparse[name] - full[name])[hit].abs().max() < 5e-2, name
    if background == "last_sample":  # which every ray may see
        assert few == 0.75 * sum(asked)
    else:
        assert few < 0.2 * sum(asked)


def test_rays_that_all_see_nothing():
    model, asked = model_of("white", skip_below=1e-3)
    with torch.no_grad():
        assert (model(rays()[:20])["rgb"] == 1).all()
    assert sum(asked) == 24


def test_training_follows_as_before():
    model, _ = model_of("white")
    sampler = model.proposal_sampler
    were = sampler.num_nerf_samples_per_ray, sampler.pdf_sampler.histogram_padding
    with torch.no_grad():
        model(rays())
    assert (sampler.num_nerf_samples_per_ray, sampler.pdf_sampler.histogram_padding) == were


def test_training_computes_all():
    model, asked = model_of("white")
    model.train()
    model(rays())
    assert sum(asked) == 24 * 18 * model.config.num_samples


@pytest.mark.parametrize("threshold", [0.0, 0.001, 0.9])
def test_the_kernels_see_what_the_hosts_operations_see(threshold):
    views = {}
    for way in ("torch", "auto"):
        config = LoENerfModelConfig(
            scene="box", background_color="white", host_implementation=way, skip_below=threshold
        )
        torch.manual_seed(0)
        model = config.setup(scene_box=SceneBox(BOX), num_train_data=2, metadata={}).eval()
        with torch.no_grad():
            views[way] = model(rays())
    for name, view in views["auto"].items():
        torch.testing.assert_close(view, views["torch"][name], atol=2e-4, rtol=1e-3)


def test_a_threshold_that_is_none():
    with pytest.raises(InputError, match="skip-below is 1"):
        model_of("white", skip_below=1.0)
