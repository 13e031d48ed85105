"""Many fields by the Triton kernels: on a CUDA GPU, or in Triton's interpreter, which a process of its own turns on."""

import pytest
import torch
from on_triton import DEVICE, kernels, needs_triton, once
from support import run_tests, spread

from loe_field import LoEMLP
from loe_field.network.tiling import FeatureGrid

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.mark.slow
@needs_triton
@once
def test_in_the_interpreter():
    run_tests(__file__, TRITON_INTERPRET="1")


def results(network, coords, cotangent, rows=None):
    out = network(coords, rows)
    return [out, *torch.autograd.grad(out, network.parameters(), cotangent)]


@kernels
@needs_triton
@pytest.mark.parametrize(
    ("own", "options"),
    [
        (False, {"layer_width": 12, "num_frequencies": 1}),
        (True, {"tile_size": [1, 2], "activation": "relu", "pattern": "gray_code"}),
        (False, {"tile_size": 1, "grid": FeatureGrid(num_levels=2, max_resolution=32, table_size=64)}),
    ],
    ids=["shared points", "own points, sizes", "grid"],
)
def test_error_budget(options, own):
    """Against fp64 at most twice the error of eager fp32, plus a floor; grouped beforehand the same to the last bit."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(0)
    options = {"num_layers": 3, "out_features": 3, "layer_width": 5, **options, "num_fields": 2}
    ours = spread(LoEMLP(**options, implementation="triton")).to(DEVICE)
    others = [LoEMLP(**options, implementation="torch").to(DEVICE, dtype) for dtype in (torch.float64, torch.float32)]
    for net in others:
        net.load_state_dict(ours.state_dict())
    for count in (0, 33):
        coords = torch.rand(*[2] * own, count, 2, device=DEVICE) * 3 - 1
        cotangent = torch.randn(2, count, 3, device=DEVICE)
        found = [
            results(net, coords.to(net.head.bias.dtype), cotangent.to(net.head.bias.dtype)) for net in (*others, ours)
        ]
        for true, plain, fast in zip(*found):
            assert fast.shape == true.shape
            if true.numel():
                scale = true.abs().max()
                error, budget = ((got.double() - true).abs().max() for got in (fast, plain))
                assert error <= 2 * budget + scale * 1e-6
        assert torch.equal(ours(coords, ours.group(coords)), found[-1][0])


@kernels
@needs_triton
def test_second_derivatives_and_obstacles():
    torch.manual_seed(0)
    options = {"num_layers": 3, "layer_width": 8, "num_fields": 2}
    ours, plain = (spread(LoEMLP(**options, implementation=name)).to(DEVICE) for name in ("triton", "torch"))
    plain.load_state_dict(ours.state_dict())
    found = []
    for net in (ours, plain):
        coords = torch.linspace(0, 1, 20, device=DEVICE).view(10, 2).requires_grad_()
        (slope,) = torch.autograd.grad(net(coords).sum(), coords, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), net.layers[1].weight)[0])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4 * found[1].abs().max().item())
    with pytest.raises(RuntimeError, match="bias tiles of many fields"):
        LoEMLP(**options, bias_tile_size=2, implementation="triton").to(DEVICE)(coords.detach())
