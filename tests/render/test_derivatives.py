"""Gradient and Laplacian against differences of the field itself, in fp64."""

import pytest
import torch

from loe_field.adapter.network import LoEConfig, build_network
from loe_field.errors import InputError
from loe_field.render.derivatives import derivative_of

SIZE = (24, 16)
CASES = {
    "nearest": {},
    "linear": {"blending": "linear"},
    "shifted": {"pattern": "gray_code", "omega_0": 2.0},
    "leaky": {"activation": "leaky_relu"},
    **{name: {"network": name} for name in ("siren", "finer", "wire", "gauss", "bacon", "fourier", "hash-grid")},
}
SMOOTH = [name for name in CASES if name not in ("leaky", "fourier", "hash-grid")]


def make(case, channels=3):
    """A network, and its field over the picture."""
    torch.manual_seed(0)
    options = {"num_layers": 4, "layer_width": 16, "num_frequencies": 2} | CASES[case]
    name = options.pop("network", "loe")
    if name == "hash-grid":
        options["num_layers"] = 3
    network = build_network(name, LoEConfig(**options).sized(SIZE, channels), None, resolution=SIZE, channels=channels)
    network.requires_grad_(False)
    return network, lambda where: network(where / where.new_tensor(SIZE))


def coords(count=200):
    """Inside the finest cells, away from their borders."""
    drawn = torch.rand(count, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cell = torch.tensor(SIZE, dtype=torch.float64) / 32
    return (torch.floor(drawn * 32) + 0.2 + 0.6 * drawn.flip(0)) * cell


def differences(network, f, where, step):
    """The same by central differences of the field in fp64: [N, channels, 2] and [N, channels]."""
    network.double()
    axes = torch.eye(2, dtype=torch.float64) * step
    slopes = torch.stack([(f(where + a) - f(where - a)) / (2 * step) for a in axes], -1)
    bends = sum((f(where + a) - 2 * f(where) + f(where - a)) / step**2 for a in axes)
    return slopes, bends


@pytest.mark.parametrize("case", CASES)
def test_the_gradient(case):
    (network, field), where = make(case), coords()
    found = derivative_of(field, network, "gradient")(where.float()).double()
    expected = differences(network, field, where, 1e-6)[0].flatten(1)
    wrong = (found - expected).abs() > 1e-3 * expected.abs().max()
    assert found.shape == (len(where), 6)
    assert expected.abs().max() > 1e-5
    assert wrong.any(1).float().mean() <= (0.0 if case in SMOOTH else 0.02), (found - expected).abs().max()


@pytest.mark.parametrize("case", SMOOTH)
def test_the_laplacian(case):
    (network, field), where = make(case), coords()
    found = derivative_of(field, network, "laplacian")(where.float()).double()
    expected = differences(network, field, where, 1e-4)[1]
    assert found.shape == (len(where), 3)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("case", ["leaky", "fourier", "hash-grid"])
def test_no_laplacian_of_straight_pieces(case):
    network, field = make(case)
    with pytest.raises(InputError, match=r"straight pieces.*gradient"):
        derivative_of(field, network, "laplacian")
