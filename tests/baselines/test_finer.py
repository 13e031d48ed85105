import math

import pytest
import torch

from loe_field.baselines import Finer, FinerOptions, Siren


def activation(**options):
    net = Finer(num_layers=2, layer_width=1, options=FinerOptions(**options))
    return lambda z: net._activate(z, 30.0)


def test_near_zero_it_is_sirens_sine():
    z = torch.linspace(-1e-4, 1e-4, 101, dtype=torch.float64)
    difference = (activation()(z) - torch.sin(30 * z)).abs()
    assert (difference <= 30 * z.square() + 1e-15).all()


def test_the_period_shrinks_away_from_zero():
    """Zeros lie where omega (|z| + 1) z = k pi, ever closer together; the local frequency is omega (2 |z| + 1)."""
    k = torch.arange(0, 40, dtype=torch.float64)
    zeros = (torch.sqrt(1 + 4 * k * math.pi / 30) - 1) / 2
    assert activation()(zeros).abs().max() < 1e-12
    assert (zeros.diff().diff() < 0).all()
    between = (zeros[1:] + zeros[:-1]) / 2
    assert (activation()(between).abs() > 0.9).all()
    torch.testing.assert_close(activation()(-between), -activation()(between))


@pytest.mark.parametrize("scale_gradient", [False, True])
def test_what_the_backward_pass_differentiates(scale_gradient):
    z = torch.linspace(-2, 2, 41, dtype=torch.float64).requires_grad_()
    activation(scale_gradient=scale_gradient)(z).sum().backward()
    frequency = 30 * ((2 if scale_gradient else 1) * z.abs() + 1)
    torch.testing.assert_close(z.grad, frequency * torch.cos(30 * (z.abs() + 1) * z))


def test_the_first_bias_spans_k():
    torch.manual_seed(0)
    wide, plain = Finer(options=FinerOptions(first_bias_scale=10.0)), Finer()
    assert 9.5 < wide.layers[0].bias.abs().max() <= 10
    assert abs(wide.layers[0].bias.std() - 10 / math.sqrt(3)) < 0.5
    assert 0.65 < plain.layers[0].bias.abs().max() <= 1 / math.sqrt(2)
    for net in (wide, plain):
        assert net.layers[1].bias.abs().max() <= 1 / 16


def test_weights_are_sirens():
    torch.manual_seed(0)
    finer = Finer()
    torch.manual_seed(0)
    for ours, theirs in zip(finer.layers, Siren().layers):
        assert torch.equal(ours.weight, theirs.weight)
