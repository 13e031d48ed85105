"""The kernels in C: against fp64, on every shape they may meet, and as a part of autograd."""

import os
import subprocess
import sys

import pytest
import torch
from support import spread
from torch.autograd import gradgradcheck

from loe_field import LoEMLP, expert_index
from loe_field.network.kernels import cpu

pytestmark = pytest.mark.skipif(not cpu.available(), reason=f"no CPU kernels: {cpu.why_unavailable()}")

SHAPES = {
    "the paper's": {},
    "odd width": {"layer_width": 20, "num_layers": 4},
    "narrow": {"layer_width": 3, "num_layers": 3},
    "wide": {"layer_width": 100, "num_layers": 3},
    "encoded, 3 channels": {"num_frequencies": 7, "out_features": 3, "num_layers": 5},
    "many channels": {"out_features": 19, "layer_width": 16, "num_layers": 3},
    "8 experts in 3D": {"dim": 3, "num_layers": 5, "pattern": "quad_tree", "num_frequencies": 2},
    "64 experts": {"dim": 3, "tile_size": 4, "layer_width": 16, "num_layers": 4},
    "27 experts": {"dim": 3, "tile_size": 3, "layer_width": 16, "num_layers": 3},
    "one coordinate, shifted": {"dim": 1, "pattern": "gray_code", "num_layers": 4},
    "dense": {"tile_size": 1, "num_layers": 4},
    "leaky_relu": {"activation": "leaky_relu", "num_layers": 4},
    "relu": {"activation": "relu", "num_layers": 4},
    "omega_0": {"omega_0": 30.0, "initialization": "siren", "num_layers": 4},
    "two layers": {"num_layers": 2, "layer_width": 24},
    "tiles of several sizes": {"tile_size": [1, 3, 2, 1], "num_layers": 5, "layer_width": 20, "num_frequencies": 2},
    "bias tiles": {"bias_tile_size": 8, "num_layers": 4, "num_frequencies": 2},
    "bias tiles, odd": {
        "tile_size": [2, 1, 3],
        "bias_tile_size": [5, 1, 3],
        "bias_pattern": [(3.7, 0.3), (1, 0), (2, -5.5)],
        "layer_width": 20,
        "num_layers": 4,
    },
    "hashed bias tiles in 3D": {"dim": 3, "bias_tile_size": 6, "bias_table_size": 64, "num_layers": 3},
    "bias tiles in 1D": {"dim": 1, "bias_tile_size": 7, "layer_width": 3, "num_layers": 3, "activation": "relu"},
    "bias tiles in 4D": {"dim": 4, "bias_tile_size": 3, "layer_width": 100, "num_layers": 3},
    "nearest bias tiles": {"bias_tile_size": [4, 3], "bias_blending": "nearest", "num_layers": 3},
}


def make(implementation="cpu", dtype=torch.float32, **options):
    torch.manual_seed(0)
    return spread(LoEMLP(implementation=implementation, **options)).to(dtype)


def results(field, points, cotangent):
    """Output and gradients of points and all parameters."""
    points = points.detach().requires_grad_()
    out = field(points)
    return [out, *torch.autograd.grad(out, [points, *field.parameters()], cotangent)]


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("points", [1, 37, 1500])
def test_error_budget(options, points):
    """Output and every gradient against fp64: mean error at most twice that of eager fp32, largest four times.

    Plus a floor of a few units in the last place; a single point may owe a tiny error of eager's to luck.
    """
    torch.manual_seed(1)
    coords = torch.rand(points, options.get("dim", 2)) * 3 - 1
    cotangent = torch.randn(points, options.get("out_features", 1))
    truth = results(make("reference", torch.float64, **options), coords.double(), cotangent.double())
    eager = results(make("reference", **options), coords, cotangent)
    ours = results(make(**options), coords, cotangent)
    for true, plain, fast in zip(truth, eager, ours):
        assert fast.shape == true.shape
        scale = true.abs().max().clamp_min(0.1 if points == 1 else 0)
        floor = scale * (1e-5 if points == 1 else 5e-7)
        error, budget = (got.double() - true for got in (fast, plain))
        assert error.square().mean().sqrt() <= 2 * budget.square().mean().sqrt() + floor
        assert error.abs().max() <= 4 * budget.abs().max() + 2 * floor


def test_experts_are_those_of_the_definition():
    """Same cells to the last bit, also on borders, left of zero and far out."""
    for pattern, tile_size in (("fine_to_coarse", 2), ("gray_code", 3), ([(1 / 3, 0.1), (1e4, -0.7)], 5)):
        field = make(pattern=pattern, tile_size=tile_size, num_layers=3, layer_width=16)
        points = torch.cat(
            [torch.arange(-64, 64)[:, None].expand(-1, 2) / 8, torch.rand(3000, 2) * 9 - 4, torch.randn(500, 2) * 1e6]
        )
        weights, biases = ([t.detach() for t in tensors] for tensors in field._weights_and_biases)
        _, index, _ = cpu.Call(field.shape, points, weights, biases).forward(points, keep=False)
        assert torch.equal(index.long(), expert_index(points, field.levels, tile_size))


def test_vectors_are_those_of_the_definition():
    """The same vectors of a bias tile, also on borders, left of zero and far out; NaN and infinity stay in the tile."""
    points = torch.cat(
        [torch.arange(-64, 64)[:, None].expand(-1, 2) / 8, torch.rand(3000, 2) * 9 - 4, torch.randn(500, 2) * 1e6]
    )
    for size, table, level in (
        (4, None, (4, 0)),
        (7, None, (1 / 3, 0.1)),
        (100, 64, (16, 0.5)),
        (3, None, (1e4, -0.7)),
    ):
        options = {"tile_size": 1, "bias_tile_size": size, "bias_table_size": table, "bias_pattern": [level]}
        nets = [make(name, num_layers=2, layer_width=1, **options) for name in ("cpu", "reference")]
        with torch.no_grad():
            for net in nets:
                net.layers[0].weight.zero_()
                net.layers[0].bias.uniform_(-9, 9, generator=torch.Generator().manual_seed(0))
            out, expected = (net(points) for net in nets)
            torch.testing.assert_close(out, expected, atol=2e-6, rtol=2e-6)
            wild = torch.tensor([[float("nan"), 0], [float("inf"), -float("inf")], [1e30, 1e12]])
            assert not nets[0](wild)[:2].isfinite().any()
            assert nets[0](wild)[2].isfinite()


def test_any_phase():
    """Beyond the fast sine's range, infinite and not a number: as torch has them."""
    field, plain = (make(name, num_layers=2, layer_width=16) for name in ("cpu", "reference"))
    with torch.no_grad():
        for net in (field, plain):
            net.layers[0].weight.copy_(torch.eye(16, 2).expand(4, 16, 2))
            net.layers[0].bias.zero_()
            net.head.weight.copy_(torch.eye(1, 16))
    x = torch.tensor([0.0, 1e-20, 3.14159, -700.0, 4.9e4, 5.1e4, -3e6, 1e12, float("inf"), float("nan")])
    points = torch.stack([x, torch.zeros_like(x)], 1)
    (out, grad), (expected, expected_grad) = (results(net, points, torch.ones(10, 1))[:2] for net in (field, plain))
    torch.testing.assert_close(out, expected, atol=2e-7, rtol=1e-6, equal_nan=True)
    torch.testing.assert_close(grad, expected_grad, atol=2e-7, rtol=1e-6, equal_nan=True)


@pytest.mark.parametrize("where", [0.1, 0.9])
def test_all_points_in_one_cell(where):
    points = torch.full((600, 2), where) + torch.rand(600, 2) * 1e-4
    options = {"pattern": [(1.0, 0.0), (2.0, 0.0), (1.0, 0.5)], "num_layers": 4, "layer_width": 32}
    cotangent = torch.randn(600, 1)
    for got, expected in zip(*(results(make(name, **options), points, cotangent) for name in ("cpu", "reference"))):
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(
    "options", [{}, {"bias_tile_size": 8}, {"bias_tile_size": 40, "bias_table_size": 512}], ids=str
)
def test_threads_do_not_change_the_result_and_runs_repeat(options):
    points, cotangent = torch.rand(5000, 2), torch.randn(5000, 1)
    field = make(num_layers=4, **options)
    runs = []
    for threads in (1, 2, 2, 3):
        torch.set_num_threads(threads)
        runs.append(results(field, points, cotangent))
    assert all(torch.equal(a, b) for a, b in zip(runs[1], runs[2]))
    for run in runs[1:]:
        for got, expected in zip(run, runs[0]):
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_large_bias_tiles_are_summed_by_fewer_threads(monkeypatch):
    field, points = make(num_layers=3, bias_tile_size=100), torch.rand(3000, 2)
    encoded = field.encoding(points)
    weights, biases = ([p.detach() for p in parameters] for parameters in field._weights_and_biases)
    torch.set_num_threads(3)

    def gradients():
        call = cpu.Call(field.shape, encoded, weights, biases)
        _, index, z = call.forward(points, keep=True)
        needs = {"need_coords": False, "need_x": False, "need_parameters": True}
        return call._network, call.backward(points, index, z, torch.ones(3000, 1), **needs)[3]

    plain, expected = gradients()
    monkeypatch.setattr(cpu, "_MOST_SUMS", 2 * 2 * 100 * 100 * 64)
    fewer, got = gradients()
    assert (plain.threads, fewer.threads) == (3, 2)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"bias_tile_size": 9}, {"tile_size": [1, 2]}], ids=str)
def test_inputs_stay_and_outputs_are_written_whole(options):
    """With NaN in all memory that torch hands out; strided inputs; backward twice."""
    field = make(num_frequencies=2, out_features=3, num_layers=3, layer_width=20, **options)
    field.layers[1].weight = torch.nn.Parameter(field.layers[1].weight.detach().mT.contiguous().mT)
    points = torch.rand(2, 300).t().requires_grad_()
    cotangent = torch.randn(3, 300).t()
    before = [t.detach().clone() for t in (points, cotangent, *field.parameters())]
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        out = field(points)
        inputs = [points, *field.parameters()]
        first = torch.autograd.grad(out, inputs, cotangent, retain_graph=True)
        second = torch.autograd.grad(out, inputs, cotangent)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(t.isfinite().all() for t in (out, *first))
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    assert all(torch.equal(a, b) for a, b in zip(before, (points, cotangent, *field.parameters())))


def test_only_what_is_asked_for():
    field = make(num_layers=3, layer_width=16)
    points = torch.rand(50, 2)
    assert not field.requires_grad_(False)(points).requires_grad
    moving = points.clone().requires_grad_()
    (grad,) = torch.autograd.grad(field(moving).sum(), moving)
    plain = make("reference", num_layers=3, layer_width=16)
    torch.testing.assert_close(grad, torch.autograd.grad(plain(moving).sum(), moving)[0], atol=1e-6, rtol=1e-5)
    field.head.bias.requires_grad_(True)
    field(points).sum().backward()
    assert field.head.bias.grad.item() == 50
    assert field.head.weight.grad is None


@pytest.mark.parametrize("tiles", [{}, {"bias_tile_size": 3, "tile_size": [1, 2]}], ids=str)
def test_second_derivatives_are_right(tiles):
    """A Laplacian and its gradient for a weight: through create_graph, as a physics loss needs them."""

    def loss_and_gradient(field, points):
        points = points.detach().requires_grad_()
        (slope,) = torch.autograd.grad(field(points).sum(), points, create_graph=True)
        laplacian = sum(
            torch.autograd.grad(slope[:, axis].sum(), points, create_graph=True)[0][:, axis] for axis in (0, 1)
        )
        loss = laplacian.square().mean()
        return loss, *torch.autograd.grad(loss, field.layers[1].weight)

    options = {"num_layers": 3, "layer_width": 8, "omega_0": 2.0, "num_frequencies": 1, **tiles}
    points = torch.rand(40, 2, dtype=torch.float64)
    truth = loss_and_gradient(make("reference", torch.float64, **options), points)
    for got, true in zip(loss_and_gradient(make(**options), points.float()), truth):
        torch.testing.assert_close(got.double(), true, rtol=1e-4, atol=1e-5 * true.abs().max().item())


needs_bf16 = pytest.mark.skipif(not cpu.has_bf16(), reason="a processor without bf16 products")


@needs_bf16
@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
def test_bf16_under_autocast(options):
    """Nearer to fp64 than twice torch's own autocast, which rounds in the same places and more."""
    torch.manual_seed(1)
    coords = torch.rand(1001, options.get("dim", 2))
    cotangent = torch.randn(1001, options.get("out_features", 1))
    truth = results(make("reference", torch.float64, **options), coords.double(), cotangent.double())
    fields = {name: make(name, **options) for name in ("cpu", "torch")}
    found = {}
    for name, field in fields.items():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found[name] = results(field, coords, cotangent)
    for true, plain, fast in zip(truth, found["torch"], found["cpu"]):
        assert fast.dtype == torch.float32
        error, budget = (got.double() - true for got in (fast, plain))
        assert error.square().mean().sqrt() <= 2 * budget.square().mean().sqrt() + 1e-5 * true.abs().max()


@needs_bf16
def test_bf16_with_phases_beyond_the_fast_sine():
    options = {"num_layers": 4, "layer_width": 20}
    coords, cotangent = torch.rand(300, 2) * 1e6, torch.randn(300, 1)
    field = make(**options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = results(field, coords, cotangent)
    exact = results(field, coords, cotangent)
    assert (rough[0] - exact[0]).square().mean() < 1e-3 * exact[0].var()
    assert all(t.isfinite().all() for t in rough)


def test_asked_for_where_it_cannot_serve():
    with pytest.raises(RuntimeError, match=r"float64.*choose 'auto' or 'torch'"):
        make(dtype=torch.float64)(torch.rand(3, 2, dtype=torch.float64))
    with torch.autocast("cpu", dtype=torch.float16), pytest.raises(RuntimeError, match="autocast wants float16"):
        make()(torch.rand(3, 2))
    with pytest.raises(ValueError, match="nearest blending only"):
        make(blending="linear")
    field = make(num_layers=3, layer_width=16)
    field.layers[1].double()
    with pytest.raises(ValueError, match="all must be float32 on the CPU"):
        field(torch.rand(3, 2))
    many = make("auto", dim=4, tile_size=16, num_layers=2, layer_width=1)
    assert "65536 experts" in many.obstacle
    assert make("auto").resolved_implementation == "cpu"
    assert make("auto").group(torch.rand(3, 2)) is None
    assert make("auto", torch.float64).resolved_implementation == "torch"
    assert make("auto", blending="linear").resolved_implementation == "torch"
    field = make("auto", torch.float64, num_layers=3, layer_width=3)
    assert gradgradcheck(field, torch.rand(4, 2, dtype=torch.float64).requires_grad_())


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"CC": "/no/such/compiler"}, "which is not there"),
        ({"CC": "false"}, "false"),
        ({"PATH": ""}, "no C compiler"),
    ],
)
def test_without_a_compiler_auto_is_torch_and_the_reason_is_told(environment, words, tmp_path):
    code = """
import torch
from loe_field import LoEMLP
from loe_field.network.kernels import cpu
field = LoEMLP(num_layers=2)
print(field.resolved_implementation, field(torch.rand(3, 2)).shape, cpu.why_unavailable())
"""
    environment = {k: v for k, v in os.environ.items() if k != "CC"} | {"XDG_CACHE_HOME": str(tmp_path)} | environment
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.startswith("torch torch.Size([3, 1])")
    assert words in done.stdout
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.slow
def test_compiled_once(tmp_path):
    code = "from loe_field.network.kernels import cpu; cpu.library()"
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    caches = set()
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
        caches.add(tuple((p.name, p.stat().st_mtime_ns) for p in tmp_path.rglob("*.so")))
    assert len(caches) == 1
    assert all(caches)
