"""The radiance field's options: what is trained by what, what it begins with, and what is not computed."""

import pytest
import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.configs.method_configs import method_configs  # noqa: F401  (the host's modules import each other)
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.utils.external import TCNN_EXISTS

from loe_field.adapter.network import LoEConfig
from loe_field.errors import InputError
from loe_field.nerf.model import LoENerfModelConfig

pytestmark = pytest.mark.slow

SMALL = LoEConfig(num_layers=3, layer_width=16, tile_size=1, num_frequencies=0, grid_levels=4, grid_table_size=256)


def model_of(loe=SMALL, *, scene="box", background_color="white", **options):
    torch.manual_seed(0)
    config = LoENerfModelConfig(loe=loe, scene=scene, background_color=background_color, num_samples=16, **options)
    box = SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3]))
    return config.setup(scene_box=box, num_train_data=2, metadata={}).train()


def rays(count=64):
    torch.manual_seed(1)
    origins = torch.rand(count, 3) * torch.tensor([0.0, 1.6, 1.6]) - torch.tensor([3.0, 0.8, 0.8])
    directions = torch.tensor([1.0, 0, 0]).expand_as(origins)
    return RayBundle(origins=origins, directions=directions, pixel_area=torch.full_like(origins[:, :1], 1e-4))


def test_muon_takes_the_matrices_that_the_option_names():
    names = {}
    for muon in ("hidden", "all"):
        model = model_of(muon=muon)
        groups = {name: {id(p) for p in params} for name, params in model.get_param_groups().items()}
        assert sum(map(len, groups.values())) == sum(p.numel() > 0 for p in model.parameters())
        names[muon] = {n for n, p in model.named_parameters() if id(p) in groups["experts"]}
    field, colour = "field.encoding.network.layers.{}.weight", "field.color.layers.{}.weight"
    assert names["hidden"] == {field.format(1)}
    assert names["all"] == {field.format(0), field.format(1), colour.format(0), colour.format(1)}
    without_grid = model_of(LoEConfig(num_layers=3, layer_width=16, tile_size=2, num_frequencies=2))
    assert all(
        p is not without_grid.field.encoding.network.layers[0].weight
        for p in without_grid.get_param_groups()["experts"]
    )


@pytest.mark.parametrize(
    ("scene", "given", "expected"), [("box", None, 0.02), ("unbounded", None, 0.3), ("unbounded", 0.1, 0.1)]
)
def test_all_begin_with_the_density_that_is_asked_for(scene, given, expected):
    model = model_of(scene=scene, initial_density=given)
    points = torch.rand(500, 1, 3) - 0.5
    for field in (model.field, *model.proposal_networks):
        density = field.density_fn(points)
        assert (density.log().mean().exp() / expected).log().abs() < 0.7


@pytest.mark.parametrize("background", ["white", "last_sample"])
def test_faint_samples_have_no_colour_and_nobody_sees_it(background):
    model, asked = model_of(background_color=background, initial_density=3.0), []
    given = model.field.color.forward
    model.field.color.forward = lambda x: (asked.append(len(x)), given(x))[1]
    with torch.no_grad():  # an opaque front: nothing is seen behind it
        model.field.encoding.network.head.bias[0] += 3
    seen = {}
    for faint in (0.0, None):
        model.config.faint = faint
        torch.manual_seed(2)
        outputs = model(rays())
        outputs["rgb"].sum().backward()
        seen[faint] = outputs["rgb"].detach(), model.field.encoding.network.head.weight.grad.clone()
        model.zero_grad()
    assert (seen[0.0][0] - seen[None][0]).abs().max() < 2e-3
    assert (seen[0.0][1] - seen[None][1]).norm() < 0.03 * seen[0.0][1].norm()
    assert asked[0] == 64 * 16
    assert 0 < asked[1] < 0.75 * asked[0]


REFUSED = {
    "initial_density": [0.0, float("nan"), 1e-300, 1e300],
    "faint": [-0.1, 1.0, float("nan")],
    "skip_below": [-0.1, 1.0, float("nan")],
    "grid_gain": [0.0, -1.0, float("nan"), float("inf")],
    "interlevel_loss_mult": [-1.0, float("nan"), float("inf")],
    "distortion_loss_mult": [-1.0, float("nan"), float("inf")],
}


@pytest.mark.parametrize(("option", "value"), [(o, v) for o, values in REFUSED.items() for v in values])
def test_what_cannot_be_is_refused(option, value):
    with pytest.raises(InputError, match=option.replace("_", "-")):
        model_of(**{option: value})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "option", [{"bias_tile_size": None}, {"bias_levels": "fine", "bias_tile_size": 4}, {"expert_levels": -1}], ids=str
)
def test_what_only_pictures_have_is_refused(option):
    with pytest.raises(InputError, match=next(iter(option)).replace("_", ".")):
        model_of(LoEConfig(num_layers=3, layer_width=16, tile_size=2, num_frequencies=2, **option))


def test_only_the_coarsest_levels_have_experts():
    model = model_of(LoEConfig(num_layers=4, layer_width=16, tile_size=2, num_frequencies=2, expert_levels=1))
    assert model.field.encoding.network.tile_sizes == (1, 1, 2)
    assert model.proposal_networks[0].encoding.network.tile_sizes == (2,)


@pytest.mark.parametrize("option", ["proposal_layers", "proposal_width", "proposal_grid_features"])
def test_a_refused_option_of_the_proposal_networks_is_told_from_the_fields(option):
    with pytest.raises(InputError, match=r"an option of --pipeline\.model\.proposal-"):
        model_of(**{option: 0})  # pyright: ignore[reportArgumentType]


def test_the_gain_is_that_of_the_matrix_behind_a_grid():
    plain, raised = (model_of(grid_gain=gain).field.encoding.network for gain in (1.0, 3.0))
    torch.testing.assert_close(raised.layers[0].weight, 3 * plain.layers[0].weight)
    torch.testing.assert_close(raised.layers[1].weight, plain.layers[1].weight)
    without = LoEConfig(num_layers=3, layer_width=16, tile_size=2, num_frequencies=2)
    plain, raised = (model_of(without, grid_gain=gain).field.encoding.network for gain in (1.0, 3.0))
    torch.testing.assert_close(raised.layers[0].weight, plain.layers[0].weight)


@pytest.mark.skipif(TCNN_EXISTS, reason="tinycudann serves")
def test_tcnn_that_is_not_installed_is_refused():
    with pytest.raises(InputError, match="tinycudann is not installed"):
        model_of(host_implementation="tcnn")
