"""Whatever holds for all baselines."""

import math
from typing import get_args

import pytest
import torch
from torch.autograd import gradcheck

from loe_field import baselines
from loe_field.baselines import (
    BaconOptions,
    Baseline,
    BaselineName,
    FinerOptions,
    FourierOptions,
    GaussOptions,
    HashGridOptions,
    Recipe,
    ReluPeOptions,
    SirenOptions,
    WireOptions,
    build,
    name_of,
    recipe,
)

NAMES = get_args(BaselineName)
SMALL = {"num_layers": 3, "layer_width": 6}
SMALL_OPTIONS = {
    "fourier": FourierOptions(num_features=7, sigma=1.0),
    "bacon": BaconOptions(resolution=(16,)),
    "hash-grid": HashGridOptions(num_levels=3, log2_hashmap_size=6, min_resolution=3, max_resolution=12),
    "finer": FinerOptions(omega_0=5, hidden_omega_0=5, scale_gradient=True),
    "siren": SirenOptions(omega_0=5, hidden_omega_0=5),
    "wire": WireOptions(omega_0=3, sigma_0=2),
    "gauss": GaussOptions(sigma=0.5),
    "relu-pe": ReluPeOptions(num_frequencies=2),
}


def small(name, *, dim=2, out_features=3, seed=0, **changes):
    torch.manual_seed(seed)
    arguments = SMALL | {"options": SMALL_OPTIONS[name]} | changes
    return build(name, dim=dim, out_features=out_features, **arguments)


@pytest.mark.parametrize("name", NAMES)
def test_default_sizes(name):
    """The authors' networks for an RGB picture; numbers worked out by hand from the layer sizes."""
    wanted = {
        "siren": (198_915, 197_888),
        "finer": (198_915, 197_888),
        "gauss": (198_915, 197_888),
        "relu-pe": (42 * 256 + 3 * 256**2 + 768 + 4 * 256 + 3, 42 * 256 + 3 * 256**2 + 768),
        "fourier": (512 * 256 + 2 * 256**2 + 768 + 3 * 256 + 3, 512 + 512 * 256 + 2 * 256**2 + 768),
        "wire": (3 * 181 + 4 * (181**2 + 181) + 6 * 181 + 3, 2 * 181 + 8 * 181**2 + 6 * 181),
        "bacon": (
            4 * (256**2 + 256) + 5 * 256 + 4 * (768 + 3),
            4 * 256**2 + 5 * 2 * 256 + 4 * 256 + 768,
        ),
    }
    net = build(name, dim=2, out_features=3)
    assert (net.num_layers, net.layer_width) == net.default_size
    if name in wanted:
        assert (net.num_parameters, net.macs_per_point) == wanted[name]
    else:
        mlp = 32 * 64 + 64 * 64 + 64 * 3
        assert net.macs_per_point == 4 * 32 + mlp
        cells = [math.floor(16 * 16 ** (i / 15) + 1e-9) for i in range(16)]
        assert net.num_parameters == mlp + 2 * sum((n + 1) ** 2 for n in cells)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_multiply_adds_are_those_of_the_matrices(name, dim):
    """One for every number of a matrix, but for complex ones (four in a pair), features of corners and filters."""
    net = small(name, dim=dim, num_layers=4)
    assert net.num_parameters == sum(p.numel() for p in net.parameters())
    matrices = sum(p.numel() for n, p in net.named_parameters() if n.endswith("weight"))
    more = {
        "fourier": dim * 7,
        "wire": 2 * 2 * 6**2,
        "bacon": 4 * dim * 6 + 3 * 6 - 2 * 6 * 3,
        "hash-grid": 2**dim * 3 * 2,
    }
    assert net.macs_per_point == matrices + more.get(name, 0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(0,), (2, 0), (), (3, 4, 5)])
def test_any_batch_shape(name, shape):
    for dim in (1, 2, 3):
        net = small(name, dim=dim)
        out = net(torch.rand(*shape, dim))
        assert out.shape == (*shape, 3)
        assert out.dtype == torch.float32
        out.sum().backward()


@pytest.mark.parametrize("name", NAMES)
def test_points_do_not_see_each_other(name):
    net = small(name).double()
    points = torch.rand(20, 2, dtype=torch.float64)
    order = torch.randperm(20)
    torch.testing.assert_close(net(points)[order], net(points[order]), atol=1e-12, rtol=1e-12)
    strided = points.repeat(1, 2)[:, 1:3]
    torch.testing.assert_close(net(strided), net(strided.contiguous()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dim", [1, 3])
def test_derivatives(name, dim):
    net = small(name, dim=dim, out_features=2).double()
    points = torch.rand(3, dim, dtype=torch.float64).requires_grad_()
    assert gradcheck(net, points)
    for parameter in list(net.parameters())[:2]:
        if name == "hash-grid":
            parameter = list(net.parameters())[-1]  # the table is larger than gradcheck likes
        assert gradcheck(lambda _: net(points), parameter)


@pytest.mark.parametrize("name", NAMES)
def test_all_parameters_learn(name):
    """The authors' Adam moves every parameter that `forward` depends on, and lowers the error."""
    net = small(name, layer_width=16)
    points, target = torch.rand(256, 2), torch.rand(1, 3).expand(256, -1)
    authors = recipe(name)
    groups = [{"params": parameters} for parameters in net.param_groups().values()]
    adam = torch.optim.Adam(groups, lr=1e-3, betas=authors.betas, eps=authors.eps, amsgrad=authors.amsgrad)
    assert sum(len(group["params"]) for group in adam.param_groups) == len(list(net.parameters()))
    before = None
    for _ in range(30):
        loss = (net(points) - target).square().mean()
        before = before or loss.item()
        adam.zero_grad()
        loss.backward()
        adam.step()
    unused = [n for n, p in net.named_parameters() if p.grad is None]
    assert all(name == "bacon" and n.startswith("heads.0") for n in unused), unused
    assert loss.item() < before


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_network(name):
    points = torch.rand(16, 2)
    assert torch.equal(small(name)(points), small(name)(points))
    assert not torch.equal(small(name)(points), small(name, seed=1)(points))


@pytest.mark.parametrize("name", NAMES)
def test_state_comes_back(name):
    points = torch.rand(16, 2)
    first, second = small(name), small(name, seed=1)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(points), second(points))


@pytest.mark.parametrize("name", NAMES)
def test_fp32_is_fp64_rounded(name):
    points = torch.rand(100, 2)
    net = small(name)
    single = net(points)
    torch.testing.assert_close(net.double()(points.double()).float(), single, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_autocast_has_no_say(name):
    net, points = small(name), torch.rand(50, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(net(points), net(points).float())
        inside = net(points)
    assert torch.equal(inside, net(points))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"dim": 4}, "dim is 4"),
        ({"dim": 0}, "dim is 0"),
        ({"out_features": 0}, "out_features is 0"),
        ({"num_layers": 1}, "num_layers is 1"),
        ({"layer_width": 0}, "layer_width is 0"),
    ],
)
def test_bad_sizes_are_named(name, sizes, words):
    with pytest.raises(ValueError, match=words):
        build(name, **{"dim": 2, "out_features": 1} | sizes)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("siren", SirenOptions(omega_0=0), "omega_0 is 0"),
        ("siren", SirenOptions(hidden_omega_0=-1), "hidden_omega_0 is -1"),
        ("siren", FinerOptions(), "FinerOptions, but siren takes SirenOptions"),
        ("finer", FinerOptions(first_bias_scale=0), "first_bias_scale is 0"),
        ("relu-pe", ReluPeOptions(num_frequencies=-1), "num_frequencies is -1"),
        ("fourier", FourierOptions(sigma=0), "sigma is 0"),
        ("fourier", FourierOptions(num_features=0), "num_features is 0"),
        ("wire", WireOptions(omega_0=math.nan), "omega_0 is nan"),
        ("wire", WireOptions(sigma_0=0), "sigma_0 is 0"),
        ("gauss", GaussOptions(sigma=math.inf), "sigma is inf"),
        ("bacon", BaconOptions(resolution=(4, 4, 4)), "for each of 2 axes"),
        ("bacon", BaconOptions(scales=(0.5, 0.5)), "5 positive numbers"),
        ("bacon", BaconOptions(scales=(0.5, 0.5, 0.5, 0.5, 0.5)), "at most 1"),
        ("hash-grid", HashGridOptions(implementation="cuda"), "unknown implementation 'cuda'"),  # type: ignore[arg-type]
        ("hash-grid", HashGridOptions(num_levels=0), "num_levels is 0"),
        ("hash-grid", HashGridOptions(log2_hashmap_size=31), "log2_hashmap_size is 31"),
        ("hash-grid", HashGridOptions(max_resolution=8), "max_resolution is 8"),
    ],
)
def test_bad_options_are_named(name, options, words):
    with pytest.raises(ValueError, match=words):
        build(name, dim=2, out_features=1, options=options)


def test_unknown_names_are_named():
    with pytest.raises(ValueError, match="unknown network 'mlp': choose one of siren"):
        build("mlp", dim=2, out_features=1)
    with pytest.raises(ValueError, match="unknown network 'mlp': choose one of siren"):
        recipe("mlp")


@pytest.mark.parametrize("name", NAMES)
def test_points_of_another_dimension_are_refused(name):
    with pytest.raises(ValueError, match=r"coords is \(5, 3\): the last axis must hold 2 coordinates"):
        small(name)(torch.rand(5, 3))


def test_every_baseline_has_a_recipe_and_documented_options():
    for name in NAMES:
        net = build(name, dim=1, out_features=1, layer_width=4)
        assert isinstance(net, Baseline)
        assert net.recipe is recipe(name)
        assert name_of(net.options_type()) == name
        assert baselines.NETWORKS[name] is type(net)
        summary = net.options_type.__doc__
        assert summary.endswith(".")
        assert "\n" not in summary, "--help shows it beside the name"
    assert {name: recipe(name).batch for name in NAMES if recipe(name).batch} == {"wire": 2**16, "hash-grid": 2**18}


def test_recipe_schedules():
    with pytest.raises(ValueError, match="unknown schedule"):
        Recipe(lr=1.0, schedule="linear")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="final_factor is 0"):
        Recipe(lr=1.0, schedule="exponential", final_factor=0)


def test_weight_decay_is_for_the_matrices_of_the_network_alone():
    net = small("hash-grid")
    groups = net.param_groups()
    assert recipe("hash-grid").weight_decay == 1e-6
    assert [id(p) for p in groups["fields"]] == [id(net.grid.table)]
    assert len(groups["decayed"]) == len(net.layers)


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_moves_to_a_gpu(name):
    net, points = small(name), torch.rand(1000, 2)
    expected = net(points)
    torch.testing.assert_close(net.cuda()(points.cuda()).cpu(), expected, atol=1e-4, rtol=1e-3)
