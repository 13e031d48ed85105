import math

import torch

from loe_field.baselines import Wire, WireOptions
from loe_field.baselines.wire import ComplexLinear, gabor


def test_the_envelope():
    """|psi(z)| = exp(-omega Im z - sigma^2 |z|^2), no more than exp((omega / (2 sigma))^2)."""
    torch.manual_seed(0)
    z = torch.randn(1000, dtype=torch.complex128)
    out = gabor(z, 3.0, 1.5)
    torch.testing.assert_close(out.abs(), torch.exp(-3 * z.imag - 1.5**2 * z.abs() ** 2))
    torch.testing.assert_close(out, torch.exp(3j * z - (1.5 * z).abs() ** 2))
    assert out.abs().max() <= math.exp(1)
    torch.testing.assert_close(gabor(torch.tensor(-1j / 1.5), 3.0, 1.5).abs().item(), math.e)


def test_a_real_argument_gives_a_complex_wavelet():
    z = torch.linspace(-1, 1, 41, dtype=torch.float64)
    out = gabor(z, 4.0, 2.0)
    assert out.is_complex()
    torch.testing.assert_close(out.abs(), torch.exp(-4 * z**2))
    torch.testing.assert_close(out, gabor(z.to(torch.complex128), 4.0, 2.0))
    torch.testing.assert_close(out.real, torch.cos(4 * z) * torch.exp(-4 * z**2))


def test_the_network_is_the_formula_over_complex_numbers():
    torch.manual_seed(0)
    net = Wire(num_layers=4, layer_width=6, out_features=2, options=WireOptions(omega_0=3, sigma_0=2)).double()
    p = torch.rand(10, 2, dtype=torch.float64)
    h = (2 * p - 1) @ net.layers[0].weight.T + net.layers[0].bias
    for layer in net.layers[1:3]:
        h = torch.exp(3j * h - (2 * h).abs() ** 2)
        h = h @ torch.view_as_complex(layer.weight).T + torch.view_as_complex(layer.bias)
    h = torch.exp(3j * h - (2 * h).abs() ** 2)
    last = net.layers[3]
    torch.testing.assert_close(net(p), (h @ torch.view_as_complex(last.weight).T).real + last.bias)


def test_first_layer_real_others_complex():
    net = Wire(num_layers=4, layer_width=6, out_features=2)
    assert [tuple(layer.weight.shape) for layer in net.layers] == [(6, 2), (6, 6, 2), (6, 6, 2), (2, 6, 2)]
    assert net.num_parameters == (2 * 6 + 6) + 2 * 2 * (36 + 6) + (2 * 2 * 6 + 2)
    assert net.layers[1].weight[..., 1].abs().min() > 0


def test_the_initial_weights_are_those_of_torchs_complex_layer():
    torch.manual_seed(0)
    ours, theirs = ComplexLinear(100, 400), torch.nn.Linear(100, 400, dtype=torch.complex64)
    theirs = torch.view_as_real(theirs.weight.detach())
    for part in (0, 1):
        assert 0.0999 < ours.weight[..., part].abs().max() <= 0.1
        assert 0.0999 < theirs[..., part].abs().max() <= 0.1
        torch.testing.assert_close(ours.weight[..., part].std(), theirs[..., part].std(), rtol=0.02, atol=0)


def test_a_change_of_dtype_keeps_imaginary_parts():
    net = Wire(num_layers=3, layer_width=4)
    before = net.layers[1].weight.detach().clone()
    torch.testing.assert_close(net.to(torch.float64).layers[1].weight.float(), before)


def test_default_width_is_256_over_root_2():
    assert Wire().layer_width == int(256 / math.sqrt(2))
