"""The Triton kernel of a whole network: on a CUDA GPU where there is one, otherwise in Triton's interpreter, which a
process of its own turns on. Judged by the error budget of test_kernels.py, level by level.
"""

import copy

import pytest
import torch
from on_triton import (
    DEVICE,
    DTYPES,
    INTERPRETED,
    kernels,
    needs_triton,
    once,
    only_gpu,
    skip_what_triton_cannot_compile,
)
from support import run_tests

from loe_field import LoEMLP
from loe_field.network import fused_triton
from loe_field.network.rows import expert_rows
from loe_field.network.shape import activate, encode
from loe_field.network.tiling import expert_index

pytestmark = pytest.mark.usefixtures("poisoned")

PRECISIONS = ["ieee", "fp16", *(pytest.param(name, marks=only_gpu) for name in ("tf32", "bf16"))]


@pytest.mark.slow
@needs_triton
@once
def test_in_the_interpreter():
    run_tests(__file__, TRITON_INTERPRET="1")


@pytest.mark.slow
@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize("architecture", [80, 89, 90, 120])
def test_compiles_without_spills(architecture):
    """The default network with seven octaves, for evaluation in bf16 and TF32. No GPU is needed."""
    from benchmarks.compile_table import CARDS, rows_for

    skip_what_triton_cannot_compile(architecture)
    rows = list(rows_for([architecture], lambda settings: settings["level"] == "whole"))
    assert [row["precision"] for row in rows] == ["bf16", "tf32"]
    for row in rows:
        assert row["spilled_bytes"] == 0, row
        assert row["shared_bytes"] <= CARDS[architecture].largest_kib * 1024, row
        assert row["warps_per_sm"] >= 8, row
        assert row["tensor_cores"], row


def make_field(**options):
    torch.manual_seed(0)
    options = {"num_layers": 4, "layer_width": 16} | options
    return LoEMLP(implementation="reference", **options).to(DEVICE)


def points_for(field, rows):
    """Half at random, half within some last bits of a border of a cell, where a rounding chooses the expert."""
    generator = torch.Generator().manual_seed(1)
    points = 4 * torch.rand(rows, field.dim, generator=generator) - 2
    alpha, beta = field.levels[0]
    border = ((alpha * points[::2]).round() - beta) / alpha
    points[::2] = torch.nextafter(border, torch.randn(border.shape, generator=generator))
    return points.to(DEVICE)


def results(field, points, dtype=None, index=None):
    """Every level's result and the network's; with `dtype` in torch operations as autocast would have them."""
    wide = points.dtype
    x, index = encode(points, field.encoding.num_frequencies), index or expert_index
    index = index(points.float(), field.levels, field.tile_size)
    found = []
    for i, layer in enumerate(field.layers):
        here = dtype if dtype and i else wide
        z = torch.zeros(len(x), layer.weight.shape[1], dtype=here, device=x.device)
        for e, matrix in enumerate(layer.weight):
            y = torch.nn.functional.linear(x.to(here), matrix.to(here), layer.bias.to(here))
            z = torch.where((index[i] == e)[:, None], y, z)
        x = activate(z.to(wide), field.activation, field.omega_0).to(dtype or wide)
        found.append(x)
    return torch.stack(found), field.head(x.to(wide))


def worst(got, exact):
    assert got.isfinite().all()
    return (got.double() - exact).abs().max().item() if got.numel() else 0.0


NETWORKS = [
    (97, {"layer_width": 64, "num_layers": 6, "num_frequencies": 7}),
    (129, {"layer_width": 20, "num_frequencies": 1, "pattern": [(3.3, 0.7), (7.1, -0.2), (11.0, 0.5)]}),
    (61, {"dim": 1, "tile_size": 3, "omega_0": 2.0, "out_features": 2, "num_frequencies": 10}),
    (70, {"dim": 3, "num_frequencies": 2, "activation": "leaky_relu", "pattern": "quad_tree", "out_features": 3}),
    (50, {"dim": 4, "activation": "relu", "pattern": "gray_code", "out_features": 4}),
    (40, {"dim": 2, "tile_size": 5, "num_frequencies": 3}),
    (33, {"tile_size": 1, "layer_width": 72, "omega_0": 3.0, "initialization": "siren", "dim": 3}),
    (65, {"num_layers": 2, "layer_width": 128}),
    (1, {"num_frequencies": 4}),
    (0, {"num_frequencies": 4}),
]


@kernels
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("rows", "options"), NETWORKS, ids=str)
def test_error_budget(rows, options, precision):
    from loe_field.network.kernels.network import network_forward

    field = make_field(**options)
    points = points_for(field, rows)
    dtype = DTYPES.get(precision, torch.float32)
    with torch.no_grad():
        before = [t.clone() for t in (points, *field.parameters())]
        y, kept = network_forward(points, *field._weights_and_biases, field.shape, precision, keep=dtype)
        for t, old in zip((points, *field.parameters()), before):
            assert torch.equal(t, old)
        assert kept.dtype == dtype
        again, nothing = network_forward(points, *field._weights_and_biases, field.shape, precision)
        assert nothing is None
        assert torch.equal(y, again)
        allow_tf32 = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        plain = results(field, points, DTYPES.get(precision))
        torch.backends.cuda.matmul.allow_tf32 = allow_tf32
        rounded = copy.deepcopy(field)
        for layer in list(rounded.layers)[1:]:  # that 16 bits hold a weight no better is not the kernel's error
            layer.weight.copy_(layer.weight.to(dtype))
        exact = results(rounded.double(), points.double())
    for name, a, b, c in zip(("levels", "y"), (kept, y), plain, exact):
        assert a.shape == c.shape, name
        floor = (2e-6 if precision == "ieee" else 1e-3) * max(1.0, c.abs().max().item() if c.numel() else 0.0)
        assert worst(a, c) <= 2 * worst(b, c) + floor, name


@kernels
def test_experts_that_a_block_does_not_meet_are_skipped():
    """Their matrices are not even read; a row does not depend on its neighbours."""
    from loe_field.network.kernels.network import network_forward

    field = make_field(num_frequencies=2)
    points = torch.rand(150, 2, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    with torch.no_grad():
        mixed, _ = network_forward(points, *field._weights_and_biases, field.shape, "ieee")
        index = expert_index(points, field.levels, 2)
        for e in range(4):
            mine = points[index[0] == e]
            weights, biases = field._weights_and_biases
            lone = torch.full_like(weights[0], torch.nan)
            lone[e] = weights[0][e]
            got, _ = network_forward(mine, [lone, *weights[1:]], biases, field.shape, "ieee")
            torch.testing.assert_close(got, mixed[index[0] == e], rtol=0, atol=1e-6)


@kernels
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
def test_a_point_that_is_no_number_spoils_its_own_row_alone():
    from loe_field.network.kernels.network import network_forward

    field = make_field(num_frequencies=2)
    points = torch.rand(40, 2, device=DEVICE)
    points[7, 1] = torch.nan
    with torch.no_grad():
        for precision in ("ieee", "fp16") if INTERPRETED else ("ieee", "fp16", "tf32", "bf16"):
            y, _ = network_forward(points, *field._weights_and_biases, field.shape, precision)
            assert y.isnan().flatten().nonzero().tolist() == [[7]]


def whole(field, coords, rows=None):
    return fused_triton.evaluate(coords, *field._weights_and_biases, field.shape, rows=rows, whole=True)


def gradients(y, inputs, cotangent):
    return [y.detach(), *torch.autograd.grad(y, inputs, cotangent.to(y.dtype))]


@kernels
@pytest.mark.parametrize(
    ("rows", "options"),
    [
        (60, {"num_frequencies": 4, "out_features": 3}),
        (45, {"dim": 3, "activation": "leaky_relu", "pattern": "quad_tree"}),
        (33, {"tile_size": 1, "omega_0": 3.0, "initialization": "siren"}),
        (0, {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("given", [False, True], ids=["", "rows given"])
def test_gradients(rows, options, given):
    """Of points and parameters, from the levels' results that the forward pass keeps, against fp64."""
    field = make_field(**options)
    points = torch.rand(rows, field.dim, device=DEVICE).requires_grad_()
    cotangent = torch.randn(rows, field.out_features, device=DEVICE)
    lists = None
    if given and field.tile_size > 1:
        lists = expert_rows(expert_index(points, field.levels, field.tile_size), field.shape.experts)
    y = whole(field, points, lists)
    got = gradients(y, [points, *field.parameters()], cotangent)
    field.double()
    exact_points = points.detach().double().requires_grad_()
    exact = gradients(field(exact_points), [exact_points, *field.parameters()], cotangent)
    for a, b in zip(got, exact):
        assert a.dtype == torch.float32
        largest = b.abs().max().item() if b.numel() else 0.0
        torch.testing.assert_close(a.double(), b, atol=3e-5 * max(1, largest), rtol=1e-4)


@kernels
@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.bfloat16, marks=only_gpu)])
def test_gradients_under_autocast(dtype):
    """As those of one kernel per level, to the rounding of 16 bits."""
    field = make_field(num_frequencies=2)
    points, cotangent = torch.rand(60, 2, device=DEVICE), torch.randn(60, 1, device=DEVICE)
    exact = gradients(field(points), list(field.parameters()), cotangent)
    with torch.autocast(DEVICE, dtype=dtype):
        eager, got = field(points), whole(field, points)
    assert got.dtype == torch.float32
    eager, got = (gradients(y, list(field.parameters()), cotangent) for y in (eager, got))
    for a, b, c in zip(got, eager, exact):
        assert worst(a, c.double()) <= 2 * worst(b, c.double()) + 1e-3 * c.abs().max().item()


@kernels
def test_only_what_is_needed_and_second_derivatives():
    field = make_field(num_layers=3, num_frequencies=1)
    points = torch.rand(20, 2, device=DEVICE).requires_grad_()
    field.layers[0].weight.requires_grad_(False)
    inputs = [points, field.layers[1].weight, field.head.bias]

    def penalty(y, points, inputs):
        (slope,) = torch.autograd.grad(y.sum(), points, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), inputs, allow_unused=True)

    got = penalty(whole(field, points), points, inputs)
    assert torch.autograd.grad(whole(field, points).sum(), inputs)[1].isfinite().all()
    field.double()
    exact_points = points.detach().double().requires_grad_()
    exact = penalty(field(exact_points), exact_points, [exact_points, *inputs[1:]])
    for a, b in zip(got, exact):
        if b is None:
            assert a is None or a.abs().max() == 0
        else:
            torch.testing.assert_close(a.double(), b.double(), rtol=1e-4, atol=1e-4 * b.abs().max().item())


@kernels
def test_strides():
    field = make_field(num_frequencies=2, out_features=2)
    points = torch.rand(50, 2, device=DEVICE)
    expected = whole(field, points)
    weights, biases = field._weights_and_biases
    strided = [w.mT.contiguous().mT for w in weights]
    assert not any(w.is_contiguous() for w in strided)
    biases = [b.repeat_interleave(2)[::2] for b in biases]
    points = points.t().contiguous().t()
    torch.testing.assert_close(
        fused_triton.evaluate(points, strided, biases, field.shape, whole=True), expected, atol=1e-6, rtol=1e-6
    )


@kernels
@pytest.mark.parametrize(
    ("options", "words"), [({"tile_size": 6}, "36 experts"), ({"layer_width": 130}, "130 wide")], ids=str
)
def test_refuses_what_does_not_fit(options, words):
    field = make_field(**options)
    with pytest.raises(ValueError, match=words):
        whole(field, torch.rand(3, 2, device=DEVICE))


@kernels
def test_serves_where_the_table_says_so(monkeypatch):
    """Nowhere yet; then in evaluation or in training, as the entry says, behind LoEMLP."""
    from loe_field.network.kernels import level, network

    calls = []

    def spy(*arguments):
        calls.append(arguments)
        return forward(*arguments)

    forward = network.network_forward
    monkeypatch.setattr(network, "network_forward", spy)
    field, plain = make_field(num_layers=3), make_field(num_layers=3)
    field.implementation = "triton"
    points = torch.rand(2, 5, 2, device=DEVICE)

    def called(evaluation):
        calls.clear()
        with torch.set_grad_enabled(not evaluation):
            torch.testing.assert_close(field(points), plain(points), atol=1e-5, rtol=1e-5)
        assert all((len(call) < 6) == evaluation for call in calls)  # what no gradient needs is not kept
        return len(calls)

    assert (called(True), called(False)) == (0, 0)
    card = level.capability(points.device)
    monkeypatch.setattr(fused_triton, "_WHOLE", frozenset({(card, "ieee", False)}))
    assert (called(True), called(False)) == (1, 0)
    monkeypatch.setattr(fused_triton, "_WHOLE", frozenset({(card, "ieee", True), (card, "fp16", False)}))
    assert (called(True), called(False)) == (0, 1)
    monkeypatch.setattr(fused_triton, "_MOST_EXPERTS", 3)
    assert (called(True), called(False)) == (0, 0)


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="takes a GPU")
def test_is_captured_in_a_graph():
    """Forward and backward launch without waiting for the device, and replay with new points."""
    field = make_field(layer_width=64, num_frequencies=4)
    points = torch.rand(1000, 2, device="cuda")

    def step():
        with torch.autocast("cuda", dtype=torch.bfloat16):
            y = whole(field, points)
        return [y.detach(), *torch.autograd.grad(y.square().sum(), field.parameters())]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    points.copy_(torch.rand(1000, 2, device="cuda"))
    graph.replay()
    for a, b in zip(captured, step()):
        assert torch.equal(a, b)
