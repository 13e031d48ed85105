import torch

from loe_field.baselines import ReluPe, ReluPeOptions


def test_the_octaves_are_the_only_frequencies():
    """Column by column the encoding is one pure tone of 1, 2, 4, .. periods over the picture."""
    net = ReluPe(dim=1, options=ReluPeOptions(num_frequencies=6))
    points = torch.arange(256, dtype=torch.float64)[:, None] / 256
    columns = net.encoding(points)
    assert torch.equal(columns[:, :1], points)
    spectrum = torch.fft.rfft(columns[:, 1:], dim=0).abs() / 128
    for column in range(12):
        wanted = torch.zeros(129, dtype=torch.float64)
        wanted[2 ** (column % 6)] = 1
        torch.testing.assert_close(spectrum[:, column], wanted, atol=1e-12, rtol=0)


def test_a_relu_mlp_follows():
    net = ReluPe(num_layers=3, layer_width=5, out_features=2).double()
    points = torch.rand(10, 2, dtype=torch.float64)
    first, second, last = net.layers
    torch.testing.assert_close(net(points), last(second(first(net.encoding(points)).clamp(min=0)).clamp(min=0)))
    assert first.in_features == 2 + 2 * 2 * 10
