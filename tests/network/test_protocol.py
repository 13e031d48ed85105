"""LoEMLP and every baseline are a `Network`."""

import copy
from typing import get_args

import pytest
import torch

from loe_field import LoEMLP
from loe_field.baselines import BaselineName, FinerOptions, HashGridOptions, build
from loe_field.network.protocol import Network, Recipe

OPTIONS = {"hash-grid": HashGridOptions(log2_hashmap_size=6, max_resolution=32)}


def loe(**options):
    return LoEMLP(num_layers=4, layer_width=8, out_features=3, **options)


def baseline(name):
    return build(name, dim=2, out_features=3, num_layers=4, layer_width=8, options=OPTIONS.get(name))


NETWORKS = {
    "loe": loe,
    "loe, linear": lambda: loe(blending="linear"),
    "loe, bias tiles": lambda: loe(bias_tile_size=4, tile_size=[1, 2, 2]),
    "loe, relu": lambda: loe(activation="relu"),
    **{name: lambda name=name: baseline(name) for name in get_args(BaselineName)},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_keeps_the_protocol(name):
    torch.manual_seed(0)
    net, coords = NETWORKS[name](), torch.rand(5, 7, 2)
    assert isinstance(net, Network)
    values = net(coords)
    assert values.shape == (5, 7, net.out_features) == (5, 7, 3)
    assert torch.equal(net(coords, net.group(coords)), values)
    outputs = net.outputs_to_fit(coords)
    assert len(outputs) == (3 if name == "bacon" else 1)
    assert torch.equal(outputs[-1], values)
    assert all(output.shape == values.shape for output in outputs)

    assert net.dim == 2
    assert net.num_parameters == sum(p.numel() for p in net.parameters())
    assert 0 < net.macs_per_point < 100 * net.num_parameters
    assert net.floats_per_point >= 8
    assert net.resolved_implementation in ("cpu", "torch")
    groups = net.param_groups()
    assert all(groups.values())
    assert set(groups) <= {"experts", "fields", "decayed", "grid"}
    assert sorted(id(p) for group in groups.values() for p in group) == sorted(id(p) for p in net.parameters())
    assert net.piecewise_linear is (name in ("loe, relu", "relu-pe", "fourier", "hash-grid"))
    assert (net.recipe is None) is name.startswith("loe")
    assert net.recipe is None or isinstance(net.recipe, Recipe)


@pytest.mark.parametrize("name", NETWORKS)
def test_options_are_plain_and_tell_networks_apart(name):
    def plain(value):
        if isinstance(value, list | tuple):
            return all(map(plain, value))
        return value is None or isinstance(value, bool | int | float | str)

    options = NETWORKS[name]().options
    assert all(plain(value) for value in options.values())
    assert all(options != make().options for other, make in NETWORKS.items() if other != name)


def test_what_waits_for_a_gpu_is_told():
    assert not baseline("hash-grid").capturable
    assert baseline("siren").capturable
    assert loe(tile_size=1, implementation="torch").capturable
    assert not loe(implementation="torch").capturable
    assert "linear" in loe(blending="linear").obstacle
    assert baseline("siren").obstacle is None


def test_derivatives_are_exact_once_asked_for():
    torch.manual_seed(0)
    finer, coords = baseline("finer"), torch.rand(9, 2, requires_grad=True)
    true = build("finer", dim=2, out_features=3, num_layers=4, layer_width=8, options=FinerOptions(scale_gradient=True))
    true.load_state_dict(finer.state_dict())

    def slope(net):
        return torch.autograd.grad(net(coords).sum(), coords)[0]

    assert not torch.allclose(slope(finer), slope(true))
    finer.with_exact_derivatives()
    assert torch.equal(slope(finer), slope(true))
    for name, make in NETWORKS.items():
        net = make()
        before = copy.deepcopy(net)
        net.with_exact_derivatives()
        assert torch.equal(net(coords), before(coords)), name
