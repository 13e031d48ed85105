import math

import torch

from loe_field.baselines import Fourier, FourierOptions


def test_the_kernel_is_a_gaussian_of_the_distance():
    """Tancik et al.: features' inner products depend on p - q alone; with many it is a Gaussian's."""
    torch.manual_seed(0)
    net = Fourier(options=FourierOptions(sigma=1.0, num_features=100_000), num_layers=2, layer_width=1).double()
    p = torch.rand(30, 2, dtype=torch.float64)
    shift = 0.4 * torch.rand(30, 2, dtype=torch.float64) - 0.2
    kernel = (net.features(p) * net.features(p + shift)).mean(-1) * 2
    moved = (net.features(p + 3) * net.features(p + 3 + shift)).mean(-1) * 2
    torch.testing.assert_close(kernel, moved, atol=1e-10, rtol=0)
    wanted = torch.exp(-2 * math.pi**2 * shift.square().sum(-1))
    torch.testing.assert_close(kernel, wanted, atol=0.02, rtol=0)


def test_sigma_is_in_periods_per_picture():
    torch.manual_seed(0)
    net = Fourier(options=FourierOptions(num_features=5000))
    assert abs(net.frequencies.std() - 10) < 0.3
    assert abs(net.frequencies.mean()) < 0.5
    point = torch.tensor([[0.3, 0.7]])
    phase = 2 * math.pi * (0.3 * net.frequencies[:, 0] + 0.7 * net.frequencies[:, 1])
    torch.testing.assert_close(net.features(point)[0, :5000], phase.cos(), atol=1e-4, rtol=0)
    torch.testing.assert_close(net.features(point)[0, 5000:], phase.sin(), atol=1e-4, rtol=0)


def test_frequencies_are_not_trained_and_results_are_colours():
    net = Fourier(out_features=3)
    assert "frequencies" in net.state_dict()
    assert all("frequencies" not in name for name, _ in net.named_parameters())
    out = net(torch.rand(100, 2))
    assert (out > 0).all()
    assert (out < 1).all()


def test_initial_weights_are_glorots():
    torch.manual_seed(0)
    weight = Fourier().layers[1].weight
    assert abs(weight.std() - math.sqrt(2 / 512)) < 1e-3
    assert weight.abs().max() <= 2 * math.sqrt(2 / 512) / 0.8796 + 1e-4
