"""Many fields computed together: each is what it is alone, in value, derivatives and training."""

import pytest
import torch
from support import spread

from loe_field import LoEMLP
from loe_field.network.tiling import FeatureGrid

SMALL = {"num_layers": 4, "layer_width": 8, "out_features": 3}
SHAPES = {
    "nearest": {},
    "odd sizes": {"layer_width": 5, "tile_size": [3, 1, 2], "pattern": "gray_code", "num_frequencies": 2},
    "dense": {"tile_size": 1},
    "linear": {"blending": "linear"},
    "linear, 3 experts an axis": {"blending": "linear", "tile_size": 3, "dim": 1},
    "3D": {"dim": 3, "activation": "relu", "num_layers": 3},
    "bias tiles": {"bias_tile_size": [4, 1, 3], "tile_size": [1, 2, 2]},
    "hashed bias tiles": {"bias_tile_size": 6, "bias_table_size": 16},
    "grid": {"grid": FeatureGrid(num_levels=3, max_resolution=64, table_size=64), "num_frequencies": 1},
}


def together(fields=3, implementation="torch", dtype=torch.float64, **options):
    torch.manual_seed(0)
    return spread(LoEMLP(**(SMALL | options), num_fields=fields, implementation=implementation)).to(dtype)


def apart(network, coords):
    """What its fields give one by one: coords [N, dim] or [F, N, dim] to [F, N, out]."""
    coords = coords.expand(network.num_fields, *coords.shape[-2:])
    return torch.stack([network.field(i)(points) for i, points in enumerate(coords)])


def results(network, coords, cotangent):
    """Output and the gradients of coords and all parameters."""
    coords = coords.detach().requires_grad_()
    out = network(coords)
    return [out, *torch.autograd.grad(out, [coords, *network.parameters()], cotangent, materialize_grads=True)]


def results_apart(network, coords, cotangent):
    """The same of its fields one by one, the gradient of points that they share added up."""
    fields = [network.field(i) for i in range(network.num_fields)]
    coords = coords.detach().requires_grad_()
    out = torch.stack([f(coords if coords.dim() == 2 else coords[i]) for i, f in enumerate(fields)])
    inputs = [coords, *(p for f in fields for p in f.parameters())]
    grad, *grads = torch.autograd.grad(out, inputs, cotangent, materialize_grads=True)
    count = len(grads) // len(fields)
    return [out, grad, *(torch.stack(grads[i::count]) for i in range(count))]


def points(network, count, own, dtype=torch.float64):
    shape = (network.num_fields, count, network.dim) if own else (count, network.dim)
    return torch.rand(shape, dtype=torch.float64).to(dtype) * 3 - 1


@pytest.mark.parametrize("own", [False, True], ids=["shared points", "own points"])
@pytest.mark.parametrize("implementation", ["reference", "torch"])
@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
def test_fields_give_what_each_gives_alone(options, implementation, own):
    network = together(implementation=implementation, **options)
    for count in (0, 1, 3, 40):
        coords = points(network, count, own)
        cotangent = torch.randn(3, count, 3, dtype=torch.float64)
        found, expected = (f(network, coords, cotangent) for f in (results, results_apart))
        for got, alone in zip(found, expected):
            torch.testing.assert_close(got, alone, atol=1e-11, rtol=1e-9)
