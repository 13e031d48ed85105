import math

import pytest
import torch
from support import spread
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from loe_field import Level, LoEMLP, PositionalEncoding, PositionDependentLinear

SMALL = {"num_layers": 4, "layer_width": 8}


def make(dtype=torch.float64, seed=0, **options):
    torch.manual_seed(seed)
    return spread(LoEMLP(**(SMALL | options))).to(dtype)


def dense_copy(field, activation):
    """The ordinary MLP with the same numbers as a field of tile_size 1."""
    modules = []
    for layer in field.layers:
        linear = nn.Linear(layer.weight.shape[2], layer.weight.shape[1])
        linear.weight, linear.bias = nn.Parameter(layer.weight[0]), layer.bias
        modules += [linear, activation]
    return nn.Sequential(*modules, field.head)


class Sine(nn.Module):
    def forward(self, x):
        return torch.sin(x)


@pytest.mark.parametrize(("name", "module"), [("sine", Sine()), ("relu", nn.ReLU()), ("leaky_relu", nn.LeakyReLU(0.2))])
@pytest.mark.parametrize("blending", ["nearest", "linear"])
def test_tile_size_1_is_the_dense_mlp_exactly(name, module, blending):
    field = make(torch.float32, tile_size=1, activation=name, blending=blending, implementation="torch")
    points = torch.rand(50, 2)
    assert torch.equal(field(points), dense_copy(field, module)(points))


@pytest.mark.filterwarnings("ignore:the network is computed layer by layer")
@pytest.mark.parametrize("implementation", ["auto", "torch"])
@pytest.mark.parametrize("tiles", [1, 8])
@pytest.mark.parametrize("part", ["layers.1.bias", "head.bias", "head.weight"])
def test_parameters_of_another_shape_are_refused(part, tiles, implementation):
    """Kernels would read, and in the backward pass write, beyond their end."""
    field = make(torch.float32, bias_tile_size=tiles, out_features=3, implementation=implementation)
    module, name = part.rsplit(".", 1)
    shape = (3, 5) if name == "weight" or (tiles > 1 and "layers" in part) else (2,)
    setattr(field.get_submodule(module), name, nn.Parameter(torch.zeros(shape)))
    with pytest.raises((ValueError, RuntimeError), match=r"must be|must match|multiplied"):
        field(torch.rand(9, 2))


@pytest.mark.parametrize("dim", [1, 2, 3, 4])
@pytest.mark.parametrize("tile_size", [2, 3])
@pytest.mark.parametrize("blending", ["nearest", "linear"])
def test_grouped_network_equals_the_reference(dim, tile_size, blending):
    options = {"dim": dim, "tile_size": tile_size, "blending": blending, "num_frequencies": 2, "out_features": 3}
    fast, plain = make(**options), make(implementation="reference", **options)
    points = torch.rand(5, 7, dim, dtype=torch.float64) * 3 - 1
    torch.testing.assert_close(fast(points), plain(points), atol=1e-12, rtol=1e-12)


TILED = {
    "bias tiles": {"bias_tile_size": 5},
    "mixed": {"tile_size": [1, 3, 1], "bias_tile_size": [4, 1, 2], "bias_pattern": [(9, 0.25), (5, 0), (1.5, 0)]},
    "hashed": {"tile_size": [2, 1, 2], "bias_tile_size": 6, "bias_table_size": 16},
    "nearest": {"bias_tile_size": [3, 2, 1], "bias_blending": "nearest"},
    "both blended": {"blending": "linear", "tile_size": [1, 2, 3], "bias_tile_size": 3},
    "sizes alone": {"tile_size": [3, 1, 2]},
}


@pytest.mark.parametrize("dim", [1, 2, 3, 4])
@pytest.mark.parametrize("name", TILED)
def test_tiled_networks_equal_the_reference(dim, name):
    """Also where a level with several experts comes after one with padded rows and one that moves none."""
    options = {"dim": dim, "num_frequencies": 2, "out_features": 3, **TILED[name]}
    fast, plain = make(implementation="torch", **options), make(implementation="reference", **options)
    for points in (torch.rand(5, 7, dim, dtype=torch.float64) * 3 - 1, torch.empty(0, dim, dtype=torch.float64)):
        torch.testing.assert_close(fast(points), plain(points), atol=1e-12, rtol=1e-12)
    found = [torch.autograd.grad(net(points + 0.3).square().sum(), net.parameters()) for net in (fast, plain)]
    for got, expected in zip(*found):
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-10)


def test_one_matrix_and_blended_bias_tiles_are_continuous():
    """At every border of every cell, where nearest experts jump."""
    across = [torch.tensor([[0.5 + d, 0.25 - d]], dtype=torch.float64) for d in (-1e-9, 1e-9)]
    smooth, jumps = make(tile_size=1, bias_tile_size=4, bias_pattern=[(8, 0), (4, 0), (2, 0)]), make()
    assert (smooth(across[0]) - smooth(across[1])).abs().item() < 1e-7
    assert (jumps(across[0]) - jumps(across[1])).abs().item() > 1e-4


def test_a_network_starts_as_that_without_bias_tiles():
    torch.manual_seed(0)
    field, points = LoEMLP(bias_tile_size=4), torch.rand(9, 2)
    torch.manual_seed(0)
    torch.testing.assert_close(field(points), LoEMLP()(points), atol=1e-6, rtol=1e-6)


def test_tiled_networks_tell_their_sizes():
    field = make(bias_tile_size=[8, 1, 4], tile_size=[1, 2, 2])
    assert [tuple(layer.bias.shape) for layer in field.layers] == [(64, 8), (8,), (16, 8)]
    groups = field.param_groups()
    assert all(p is layer.weight for p, layer in zip(groups["experts"], list(field.layers)[1:]))
    assert groups["grid"] == [field.layers[0].bias, field.layers[2].bias]
    assert field.macs_per_point == make().macs_per_point + 2 * 4 * 8
    assert field.obstacle is None or "float64" in field.obstacle
    assert "bias_tile=BiasTile" in repr(field.layers[0])
    again = LoEMLP(**field.options).double()
    again.load_state_dict(field.state_dict())
    points = torch.rand(9, 2, dtype=torch.float64)
    assert torch.equal(again(points), field(points))
    assert "bias_tile_size" not in make().options


def test_every_point_is_served_by_its_own_cell():
    """Moving one expert moves exactly the points in its cells."""
    field = make()
    points = torch.rand(400, 2, dtype=torch.float64)
    before = field(points)
    with torch.no_grad():
        field.layers[1].weight[2] += 1
    level = field.levels[1]
    cells = (points * level.alpha).floor().long() % 2
    moved = (field(points) != before).squeeze(1)
    assert torch.equal(moved, cells[:, 0] * 2 + cells[:, 1] == 2)


def test_order_of_points_does_not_matter():
    field = make()
    points = torch.rand(64, 2, dtype=torch.float64)
    order = torch.randperm(64)
    torch.testing.assert_close(field(points)[order], field(points[order]), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"blending": "linear"},
        {"omega_0": 3.0, "num_frequencies": 1},
        {"tile_size": [1, 2], "bias_tile_size": [3, 2]},
    ],
)
def test_derivatives_of_the_network(options):
    field = make(**{"num_layers": 3, "layer_width": 3} | options)
    points = (torch.rand(4, 2, dtype=torch.float64)).requires_grad_()
    assert gradcheck(field, points)
    assert gradgradcheck(field, points)
    weight = field.layers[1].weight
    assert gradcheck(lambda _: field(points), weight)
    assert gradgradcheck(lambda _: field(points), weight)


@pytest.mark.parametrize("shape", [(0, 2), (2, 0, 2), (2,), (3, 4, 5, 2)])
@pytest.mark.parametrize(
    "options",
    [{}, {"tile_size": 1}, {"blending": "linear"}, {"implementation": "reference"}, {"bias_tile_size": 3}],
)
def test_any_batch_shape(shape, options):
    field = make(torch.float32, out_features=3, **options)
    out = field(torch.rand(shape))
    assert out.shape == (*shape[:-1], 3)
    out.sum().backward()


def test_fp32_is_as_good_as_fp32_can_be():
    """Error against fp64 at most twice that of the reference in fp32 (plus a floor)."""
    points = torch.rand(2000, 2)
    exact = make(num_layers=10, layer_width=64)
    fast = make(torch.float32, num_layers=10, layer_width=64)
    plain = make(torch.float32, num_layers=10, layer_width=64, implementation="reference")
    truth = exact(points.double())
    error, budget = ((net(points).double() - truth).abs().max() for net in (fast, plain))
    assert error <= 2 * budget + 1e-7


@pytest.mark.parametrize("implementation", ["auto", "torch", "reference"])
def test_bf16_autocast_keeps_coordinates_and_phases_exact_enough(implementation):
    field = make(torch.float32, num_layers=10, layer_width=64, num_frequencies=7, implementation=implementation)
    points = (torch.arange(512)[:, None] + 0.5).expand(-1, 2) / 512
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = field(points)
    exact = field(points)
    assert rough.dtype == torch.float32
    # With coordinates or the encoding's phases rounded to 8 bits, neighbours would merge and the error be of the
    # size of the signal itself.
    assert (rough - exact).square().mean() < 1e-3 * exact.var()
    rough.sum().backward()
    assert field.layers[3].weight.grad.dtype == torch.float32


def test_default_sizes_are_the_papers():
    field = LoEMLP()
    assert field.num_parameters == 132_225
    assert field.macs_per_point == 32_960
    assert LoEMLP(blending="linear").macs_per_point == 4 * (32_960 - 64) + 64


def test_initialization_bounds():
    torch.manual_seed(0)
    default, siren = LoEMLP(), LoEMLP(initialization="siren", omega_0=30.0)
    torch.testing.assert_close(default.layers[4].weight.abs().max().item(), 1 / 8, atol=1e-3, rtol=0)
    torch.testing.assert_close(siren.layers[0].weight.abs().max().item(), 1 / 2, atol=0.05, rtol=0)
    torch.testing.assert_close(siren.layers[4].weight.abs().max().item(), math.sqrt(6 / 64) / 30, atol=1e-4, rtol=0)
    first, second = default.layers[4].weight[:2]
    assert not torch.equal(first, second), "experts start apart"


def test_siren_keeps_the_signal_through_depth():
    """SIREN, section 3.2: with its initialisation pre-activations stay standard normal in every layer."""
    torch.manual_seed(0)
    field = LoEMLP(initialization="siren", omega_0=30.0, num_layers=8, layer_width=256)
    phases = []
    for layer in field.layers:
        layer.register_forward_hook(lambda module, inputs, output: phases.append(30 * output))
    field.implementation = "reference"  # layer by layer, so that the hooks run
    field(torch.rand(2000, 2) * 2 - 1)
    for phase in phases[1:]:
        assert 0.8 < phase.std() < 1.9


def test_positional_encoding():
    encoding = PositionalEncoding(2, 3)
    points = torch.rand(10, 2, dtype=torch.float64)
    out = encoding(points)
    assert out.shape == (10, encoding.out_features) == (10, 14)
    assert torch.equal(out[:, :2], points)
    phase = math.pi * (2 * points - 1)
    torch.testing.assert_close(out[:, 2:5], torch.sin(phase[:, :1] * torch.tensor([1.0, 2.0, 4.0])))
    torch.testing.assert_close(out[:, 11:14], torch.cos(phase[:, 1:] * torch.tensor([1.0, 2.0, 4.0])))
    assert torch.equal(PositionalEncoding(2, 0)(points), points)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layer_width": 0}, "layer_width is 0"),
        ({"tile_size": 0}, "tile_size is 0"),
        ({"num_layers": 1}, "num_layers is 1"),
        ({"dim": 5}, "dim is 5"),
        ({"pattern": "spiral"}, "unknown pattern"),
        ({"activation": "tanh"}, "unknown activation"),
        ({"initialization": "zeros"}, "unknown initialization"),
        ({"blending": "cubic"}, "unknown blending"),
        ({"implementation": "triton?"}, "unknown implementation"),
        ({"omega_0": 0.0}, "omega_0 is 0"),
        ({"omega_0": 30.0, "activation": "relu"}, "only sine has a frequency"),
        ({"num_frequencies": -1}, "num_frequencies is -1"),
        ({"out_features": 0}, "out_features is 0"),
        ({"tile_size": [2, 2]}, "tile_size lists 2 sizes and the network has 3"),
        ({"bias_tile_size": [2, 0, 2]}, "bias_tile_size is 0"),
        ({"bias_tile_size": 2**24 + 1}, "bias_tile_size is 16777217: it must be 1 to 16,777,216"),
        ({"bias_tile_size": 2**16}, "makes 4,294,967,296 vectors over 2 coordinates"),
        ({"bias_blending": "nearest"}, "bias_tile_size is 1, and one vector has no pattern"),
        ({"bias_tile_size": 2, "bias_table_size": 2.0}, "bias_table_size is 2.0: a whole number"),
        ({"bias_tile_size": 2, "bias_pattern": [1, 2, 3]}, r"the levels are \[1, 2, 3\]: one pair"),
        ({"bias_tile_size": 2, "bias_pattern": [(1e39, 0)] * 3}, "alpha must be positive and both finite in 32 bits"),
        ({"bias_tile_size": 2, "bias_blending": "cubic"}, "unknown bias_blending 'cubic'"),
        ({"bias_tile_size": 2, "bias_table_size": 3}, "bias_table_size is 3: a power of two"),
        ({"bias_tile_size": 2, "bias_pattern": [(2, 0)]}, "lists 1"),
    ],
)
def test_bad_options_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        LoEMLP(**(SMALL | options))


@pytest.mark.parametrize(
    "change",
    [
        {"num_layers": 5},
        {"layer_width": 9},
        {"tile_size": 3},
        {"pattern": "quad_tree"},
        {"pattern": [(5, 0), (3, 0), (2, 0)]},
        {"blending": "linear"},
        {"activation": "relu"},
        {"omega_0": 2.0},
        {"initialization": "siren"},
        {"num_frequencies": 2},
        {"tile_size": [2, 1, 2]},
        {"bias_tile_size": 3},
    ],
)
def test_no_option_is_dead(change):
    points = torch.rand(64, 2, dtype=torch.float64)
    assert not torch.equal(make(**change)(points), make()(points))


@pytest.mark.parametrize(
    "change", [{"bias_pattern": [(5, 0), (3, 0), (2, 0)]}, {"bias_blending": "nearest"}, {"bias_table_size": 4}]
)
def test_no_option_of_bias_tiles_is_dead(change):
    points = torch.rand(64, 2, dtype=torch.float64)
    assert not torch.equal(make(bias_tile_size=3, **change)(points), make(bias_tile_size=3)(points))


def test_wrong_number_of_coordinates():
    with pytest.raises(ValueError, match="must hold 2 coordinates"):
        make()(torch.rand(4, 3, dtype=torch.float64))


@pytest.mark.parametrize("implementation", ["auto", "torch", "reference"])
def test_coordinates_of_another_dtype(implementation):
    """Refused by all alike, before a kernel would read them as what they are not."""
    with pytest.raises(ValueError, match=r"coords is torch.float64 on cpu, the parameters are torch.float32 on cpu"):
        make(torch.float32, implementation=implementation)(torch.rand(4, 2, dtype=torch.float64))


def test_layer_module():
    torch.manual_seed(0)
    layer = PositionDependentLinear(5, 3, level=Level(4.0), dim=2)
    out = layer(torch.rand(6, 5), torch.rand(6, 2))
    assert out.shape == (6, 3)
    assert "experts=4" in repr(layer)


@pytest.mark.gpu
@pytest.mark.parametrize("blending", ["nearest", "linear"])
@pytest.mark.parametrize("dim", [2, 3])
def test_a_gpu_computes_the_same(dim, blending):
    field = make(dim=dim, blending=blending, num_frequencies=2)
    points = torch.rand(500, dim, dtype=torch.float64)
    expected = field(points)
    (expected_grad,) = torch.autograd.grad(expected.square().sum(), field.layers[1].weight)
    field.cuda()
    out = field(points.cuda())
    (grad,) = torch.autograd.grad(out.square().sum(), field.layers[1].weight)
    torch.testing.assert_close(out.cpu(), expected, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(grad.cpu(), expected_grad, atol=1e-9, rtol=1e-9)
