import pytest
import torch

from loe_field.baselines import Bacon, BaconOptions
from loe_field.baselines.bacon import SineFilter


def make(seed=0, **arguments):
    torch.manual_seed(seed)
    return Bacon(layer_width=24, **arguments).double()


def grid(shape):
    axes = [torch.arange(n, dtype=torch.float64) / n for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)


@pytest.mark.parametrize(
    ("dim", "resolution", "shape"),
    [(1, (64,), (160,)), (2, (32,), (80, 80)), (2, (32, 16), (80, 48)), (3, (16,), (24, 24, 24))],
)
def test_no_output_holds_a_frequency_above_its_band(dim, resolution, shape):
    """Lindell et al.: zero, to rounding, beyond the band; something of size inside, and up to its edge."""
    net = make(dim=dim, options=BaconOptions(resolution=resolution))
    outputs = net.outputs(grid(shape))
    assert len(outputs) == 4
    last_edge = 0
    for value, bandwidth in outputs:
        spectrum = torch.fft.fftn(value.detach()[..., 0]).abs()
        frequencies = [(torch.fft.fftfreq(n) * n).abs() for n in shape]
        inside = torch.ones(shape, dtype=torch.bool)
        for axis, (frequency, band) in enumerate(zip(frequencies, bandwidth)):
            assert band < shape[axis] / 2, "the grid resolves the band"
            view = [1] * dim
            view[axis] = -1
            inside &= (frequency <= band).view(view)
        size = spectrum.max()
        assert spectrum[~inside].max() < 1e-12 * size
        occupied = (spectrum > 1e-8 * size).nonzero()[:, 0]
        edge = int(frequencies[0][occupied].max())
        assert last_edge < edge <= bandwidth[0]
        last_edge = edge


def test_bands_add_up_to_the_pictures_nyquist_limit():
    torch.manual_seed(0)
    net = Bacon(options=BaconOptions(resolution=(512,)))
    assert net.bandwidths == [(64, 64), (128, 128), (192, 192), (256, 256)]
    assert [f.frequencies.abs().max().item() for f in net.filters] == [32, 32, 64, 64, 64]
    assert Bacon(num_layers=4, options=BaconOptions(resolution=(64, 32))).bandwidths[-1] == (32, 16)


def test_frequencies_are_whole_so_that_everything_has_period_1():
    net = make(options=BaconOptions(resolution=(40,)))
    for f in net.filters:
        assert torch.equal(f.frequencies, f.frequencies.round())
    points = torch.rand(20, 2, dtype=torch.float64)
    torch.testing.assert_close(net(points), net(points + torch.tensor([2.0, -1.0])))


def test_the_formula():
    net = make(num_layers=3, out_features=2, options=BaconOptions(resolution=(16,)))
    p = torch.rand(10, 2, dtype=torch.float64)
    g = [torch.sin(2 * torch.pi * p @ f.frequencies.T + f.phase) for f in net.filters]
    first = g[1] * net.hidden[0](g[0])
    second = g[2] * net.hidden[1](first)
    outputs = net.outputs(p)
    torch.testing.assert_close(outputs[0].value, net.heads[0](first))
    torch.testing.assert_close(outputs[1].value, net.heads[1](second))
    assert torch.equal(outputs[1].value, net(p))


def test_frequencies_are_uniform_over_the_band():
    torch.manual_seed(0)
    drawn = SineFilter((4, 4), 9000).frequencies
    for axis in (0, 1):
        values, times = drawn[:, axis].unique(return_counts=True)
        assert torch.equal(values, torch.arange(-4.0, 5.0))
        assert times.min() > 850
        assert times.max() < 1150


def test_frequencies_are_fixed_and_phases_trained():
    net = make()
    names = [name for name, _ in net.named_parameters()]
    assert "filters.0.phase" in names
    assert all("frequencies" not in name for name in names)
    assert "filters.0.frequencies" in net.state_dict()


def test_intermediate_outputs_can_be_left_out():
    lean = Bacon(out_features=3, options=BaconOptions(intermediate_outputs=False))
    assert Bacon(out_features=3).num_parameters - lean.num_parameters == 3 * (256 * 3 + 3)
    (only,) = lean.outputs(torch.rand(4, 2))
    assert only.bandwidth == (256, 256)


def test_chosen_scales():
    net = Bacon(num_layers=3, options=BaconOptions(resolution=(64,), scales=(0.25, 0.25, 0.5)))
    assert net.bandwidths == [(16, 16), (32, 32)]


def test_any_batch_shape_of_all_outputs():
    assert [tuple(o.value.shape) for o in make(out_features=3).outputs(torch.rand(2, 0, 2, dtype=torch.float64))] == [
        (2, 0, 3)
    ] * 4
