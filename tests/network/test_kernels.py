"""The Triton kernels: on a CUDA GPU where there is one, otherwise in Triton's interpreter, which a process of its own
turns on, since it must be on before Triton is imported and stays on.

A kernel is judged by an error budget. Its error against fp64 on the same rounded inputs is at most twice that of eager
PyTorch where its products are fp32 to the last bits. Where their operands are shorter it is at most 1.25 times that of
the same products in fp64, whose operands are cut as the hardware cuts them: the errors are the same ones then, and all
that is left to differ are the order of sums and the operands that these push over the edge to the next short number.
A small floor is added for fp32's own rounding.
"""

import re

import numpy as np
import pytest
import torch
from on_triton import (
    DEVICE,
    DTYPES,
    INTERPRETED,
    TRITON,
    kernels,
    needs_triton,
    once,
    only_gpu,
)
from support import run_tests
from torch.autograd import gradcheck, gradgradcheck

from loe_field import Level, LoEMLP, PositionalEncoding, position_dependent_linear
from loe_field.network.fused_triton import evaluate, expert_linear
from loe_field.network.optim import orthogonalize
from loe_field.network.rows import expert_rows
from loe_field.network.shape import Arithmetic
from loe_field.network.tiling import expert_index

pytestmark = pytest.mark.usefixtures("poisoned")

PRECISIONS = [
    "ieee",
    "fp16",
    # The interpreter multiplies fp32 whatever the precision, and bf16 wrongly.
    *(pytest.param(name, marks=only_gpu) for name in ("tf32", "tf32x3", "bf16")),
]


@pytest.mark.slow
@needs_triton
@once
def test_in_the_interpreter():
    run_tests(__file__, TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.skipif(TRITON < (3, 6), reason="older versions of Triton spill fp32 products")
@pytest.mark.parametrize(
    ("architecture", "experts"),
    [(90, [4]), (120, [4]), *(pytest.param(sm, [1, 4, 8, 16], marks=pytest.mark.slow) for sm in (80, 89, 90, 100))],
)
def test_compiles_for_every_family_without_spills(architecture, experts):
    """What the interpreter does not see: types, layouts, registers, shared memory. No GPU is needed to compile."""
    from benchmarks.compile_table import CARDS, rows_for

    def chosen(settings):
        hidden = settings["level"] == "hidden" and settings["precision"] in ("bf16", "tf32")
        if settings["level"].startswith("bias tile"):  # test_tile_kernels has them
            return False
        return settings["width"] == 64 and settings["experts"] in experts and (hidden or len(experts) > 1)

    rows = [row for row in rows_for([architecture], chosen) if row["kernel"] != "sum_partials"]
    assert {row["kernel"] for row in rows} == {"level", "fused_backward"}
    for row in rows:
        # At the limit of 255 registers Triton 3.8 spills some bytes of the first level's backward pass, and 3.6 none.
        few = 128 if row["kernel"] == "fused_backward" and row["precision"] == "tf32x3" else 0
        assert row["spilled_bytes"] <= few, row
        assert row["shared_bytes"] <= CARDS[architecture].largest_kib * 1024, row
        assert row["warps_per_sm"] >= 8, row
        assert row["tensor_cores"] or row["precision"] == "ieee", row


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
def test_rows_of_the_first_level_are_read_in_pieces_of_16_bytes():
    from benchmarks.compile_table import compiling_for, launch_level

    with compiling_for(80) as compiled:
        launch_level(32, (30, 64), 4, "tf32x3", (torch.float32, torch.bfloat16), need_x=False)
    for kernel in compiled[:2]:
        pieces = re.findall(r"cp\.async\.c[ag][^;]*, (0x\w+)", kernel.asm["ptx"])
        assert "0x10" in pieces, kernel.metadata.name
        assert set(pieces) <= {"0x10", "0x4"}, kernel.metadata.name  # 4 bytes: the row numbers


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
def test_one_compilation_serves_all_batches():
    """Any number of rows, any level's lists, any place where a batch of coords begins."""
    from benchmarks.compile_table import compiling_for
    from loe_field.network.kernels import encoding, level

    how, weight, bias = Arithmetic("sine", 1.0, "bf16", torch.bfloat16), torch.zeros(4, 16, 16), torch.zeros(16)
    with compiling_for(90) as compiled:
        for rows, offset in ((1, 0), (16, 1), (37, 2)):
            x, order = torch.zeros(rows, 16, dtype=torch.bfloat16), torch.zeros(rows + 4, dtype=torch.int32)
            lists = order[offset : offset + rows], torch.zeros(12, dtype=torch.int32)[offset : offset + 5]
            level.level_backward(x, x, weight, bias, None, *lists, how)
            level.level_forward(x, weight, bias, None, *lists, how)
            encoding.encode(torch.zeros(rows + 4, 2)[offset : offset + rows], 2)
    assert len(compiled) == 3 * 4
    assert len(set(compiled)) == 4


def activate(z, activation, omega_0):
    if activation == "sine":
        return torch.sin(omega_0 * z)
    if activation == "leaky_relu":
        return torch.nn.functional.leaky_relu(z, 0.2)
    return torch.relu(z) if activation == "relu" else z


def eager(x, weight, bias, index, activation, omega_0):
    """One product per expert in the dtype of x, phases in fp32 or wider."""
    z = torch.zeros(len(x), weight.shape[1], dtype=x.dtype, device=x.device)
    for e, matrix in enumerate(weight):
        z = torch.where((index == e)[:, None], torch.nn.functional.linear(x, matrix, bias), z)
    return activate(z.to(torch.promote_types(x.dtype, torch.float32)), activation, omega_0).to(x.dtype)


def make_case(rows, in_features, out_features, experts, precision, seed=0):
    """x, weight, bias, the expert of every row, and a random cotangent."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    dtype = DTYPES.get(precision, torch.float32)
    index = torch.randint(experts, (rows,), generator=generator)
    x, grad = normal(rows, in_features).to(dtype), normal(rows, out_features).to(dtype)
    weight = normal(experts, out_features, in_features) / in_features**0.5
    return [t.to(DEVICE) for t in (x, weight, normal(out_features), index, grad)]


def rows_of(index, experts):
    if experts == 1:
        return None, None
    order, starts = expert_rows(index[None], experts)
    return order[0], starts[0]


def with_gradients(function, x, weight, bias, grad):
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
    y = function(*leaves)
    return y.detach(), *torch.autograd.grad(y, leaves, grad.to(y.dtype))


def worst(got, exact):
    assert torch.isfinite(got).all()
    return (got.double() - exact).abs().max().item() if got.numel() else 0.0


def truncated(bits):
    """What tensor cores do to fp32 operands: they take no notice of the low bits, 13 in TF32."""
    return lambda t: (t.float().view(torch.int32) & -(1 << bits)).view(torch.float32)


def nearest_tf32(t):
    """Operands rounded to TF32, as torch's own products may have them."""
    return ((t.float().view(torch.int32) + 4096) & -8192).view(torch.float32)


def operands(precision):
    """Operands of a product as the hardware takes them."""
    if precision == "tf32":
        return truncated(13)
    return lambda t: t.to(DTYPES.get(precision, t.dtype))


def by_products(x, weight, bias, index, grad, *, activation, omega_0, cut, dtype=torch.float64):
    """Result and gradients as the kernels compute them, from products of operands that `cut` makes, summed in dtype."""
    take = lambda t: cut(t).to(dtype)  # noqa: E731
    groups = [(index == e).nonzero()[:, 0] for e in range(len(weight))]
    z = torch.zeros(len(x), weight.shape[1], dtype=dtype, device=x.device)
    grad_x, grad_weight = torch.zeros_like(x, dtype=dtype), torch.zeros_like(weight, dtype=dtype)
    for rows, matrix in zip(groups, weight):
        z[rows] = take(x[rows]) @ take(matrix).T + bias.to(dtype)
    z.requires_grad_()
    y = activate(z, activation, omega_0)
    (grad_z,) = torch.autograd.grad(y, z, grad.to(dtype))
    for e, rows in enumerate(groups):
        grad_x[rows] = take(grad_z[rows]) @ take(weight[e])
        grad_weight[e] = take(grad_z[rows]).T @ take(x[rows])
    # Wide levels keep grad_z as operands of 16 bits, whose sum is the bias' gradient.
    grad_bias = (take(grad_z) if x.dtype != torch.float32 else grad_z).sum(0)
    return y.detach().to(x.dtype), grad_x.to(x.dtype), grad_weight, grad_bias


def budget(x, weight, bias, index, grad, *, activation="sine", omega_0=1.0, precision="ieee"):
    """The true result and gradients, and the largest error that each may have."""
    how = {"activation": activation, "omega_0": omega_0}
    # Weights are rounded on the way into 16-bit products, as autocast does it: that is not the kernel's error.
    rounded = x.double(), weight.to(x.dtype).double()
    exact = by_products(*rounded, bias.double(), index, grad.double(), **how, cut=lambda t: t)
    if precision in ("ieee", "tf32x3"):

        def by_torch(x, weight, bias):
            return eager(x, weight, bias, index, activation, omega_0)

        allowed, floor = with_gradients(by_torch, x, weight, bias, grad), 2e-6 if precision == "ieee" else 5e-6
        allowance = 2.0
    else:
        allowed = by_products(x, weight, bias, index, grad, **how, cut=operands(precision))
        allowance, floor = 1.25, 1e-5
    scales = (max(1.0, c.abs().max().item()) if c.numel() else 1.0 for c in exact)
    return exact, [allowance * worst(b, c) + floor * scale for b, c, scale in zip(allowed, exact, scales)]


def judge(got, exact, errors):
    """Hold a result and its gradients to their budget."""
    for name, a, b, error in zip(("y", "grad x", "grad weight", "grad bias"), got, exact, errors):
        assert a.shape == b.shape
        assert worst(a, b) <= error, name


def check_budget(x, weight, bias, index, grad, *, activation="sine", omega_0=1.0, precision="ieee"):
    """The kernel's errors for y and all gradients against the budget; returns the kernel's results."""
    experts = len(weight)

    def kernel(x, weight, bias):
        order, starts = rows_of(index, experts)
        return expert_linear(
            x, weight, bias, order, starts, activation=activation, omega_0=omega_0, precision=precision
        )

    before = [t.clone() for t in (x, weight, bias, grad)]
    got = with_gradients(kernel, x, weight, bias, grad)
    for t, old in zip((x, weight, bias, grad), before):
        assert torch.equal(t, old)
    how = {"activation": activation, "omega_0": omega_0, "precision": precision}
    judge(got, *budget(x, weight, bias, index, grad, **how))
    return got


SHAPES = [  # rows, in_features, out_features, experts
    (300, 64, 64, 4),
    (1, 30, 16, 4),
    (37, 2, 20, 8),
    (90, 20, 16, 27),
    (70, 64, 3, 1),
    (40, 16, 100, 2),
    pytest.param((50, 136, 144, 2), marks=only_gpu),
    pytest.param((5000, 256, 256, 8), marks=only_gpu),
    pytest.param((40000, 64, 64, 64), marks=only_gpu),
]


@pytest.mark.skipif(INTERPRETED, reason="takes no kernel")
@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
@pytest.mark.parametrize("shape", [getattr(shape, "values", [shape])[0] for shape in SHAPES], ids=str)
def test_the_budget_takes_the_hardware_and_no_less(shape, precision):
    """On every shape: operands as tensor cores take them and sums in fp32; no shorter operands, no wrong kernel."""
    rows, *sizes = shape
    case = [t.cpu() for t in make_case(min(rows, 3000), *sizes, precision)]
    _, weight, bias, index, _ = case
    how = {"activation": "sine", "omega_0": 1.5}
    right = {"as the hardware": operands(precision)}
    shorter = truncated({"tf32": 14, "bf16": 17, "fp16": 14}[precision])
    if precision == "tf32":
        right["rounded"] = nearest_tf32
    allowed = budget(*case, **how, precision=precision)
    for cut in right.values():
        judge(by_products(*case, **how, cut=cut, dtype=torch.float32), *allowed)
    wrong = [{"cut": shorter}, {"bias": torch.zeros_like(bias)}, {"omega_0": 1.45}]
    if len(weight) > 1:
        wrong.append({"index": (index + 1) % len(weight)})
    for change in wrong:
        tensors = dict(zip(("x", "weight", "bias", "index", "grad"), case))
        got = by_products(**tensors | how | {"cut": operands(precision), "dtype": torch.float32} | change)
        with pytest.raises(AssertionError):
            judge(got, *allowed)


@kernels
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_budget(shape, precision):
    check_budget(*make_case(*shape, precision), omega_0=1.5, precision=precision)


@kernels
@pytest.mark.parametrize("activation", ["leaky_relu", "relu", "none"])
def test_activations(activation):
    check_budget(*make_case(37, 20, 24, 3, "ieee"), activation=activation)


@kernels
@pytest.mark.parametrize(("shape", "precision"), [((40, 70, 66, 2), "ieee"), ((20, 132, 130, 1), "fp16")], ids=str)
def test_wide_matrices(shape, precision):
    """Beyond the fused backward: column blocks, several steps over the input features, a product with the transpose."""
    check_budget(*make_case(*shape, precision), precision=precision)


@kernels
def test_empty_and_full_experts():
    x, weight, bias, index, grad = make_case(60, 16, 16, 4, "ieee")
    for only in (0, 2, 3):
        got = check_budget(x, weight, bias, torch.full_like(index, only), grad)
        others = [e for e in range(4) if e != only]
        assert got[2][others].abs().max() == 0


@kernels
@pytest.mark.parametrize("experts", [1, 4])
def test_no_rows(experts):
    x, weight, bias, index, grad = make_case(0, 16, 24, experts, "ieee")
    y, grad_x, grad_weight, grad_bias = check_budget(x, weight, bias, index, grad)
    assert y.shape == (0, 24)
    assert grad_x.shape == (0, 16)
    assert grad_weight.abs().max() == grad_bias.abs().max() == 0


@kernels
def test_strides():
    x, weight, bias, index, grad = make_case(50, 20, 24, 3, "ieee")
    expected = check_budget(x, weight, bias, index, grad)
    strided = x.t().contiguous().t(), weight.mT.contiguous().mT, bias.repeat_interleave(2)[::2]
    assert not any(t.is_contiguous() for t in strided)
    got = check_budget(*strided, index, grad.t().contiguous().t())
    for a, b in zip(got, expected):
        torch.testing.assert_close(a, b)
    # A cotangent without strides of its own.
    check_budget(x, weight, bias, index, grad[:1, :1].expand(50, 24))


@kernels
def test_backward_twice_and_the_same_every_time():
    x, weight, bias, index, grad = make_case(150, 16, 16, 4, "ieee")
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    y = expert_linear(*leaves, *rows_of(index, 4), activation="sine", precision="ieee")
    first = torch.autograd.grad(y, leaves, grad, retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(y, leaves, grad)):
        assert torch.equal(a, b)


@kernels
def test_only_what_is_needed():
    x, weight, bias, index, grad = make_case(40, 16, 20, 3, "ieee")
    everything = check_budget(x, weight, bias, index, grad)[1:]
    for needed in range(3):
        leaves = [t.detach().requires_grad_(i == needed) for i, t in enumerate((x, weight, bias))]
        y = expert_linear(*leaves, *rows_of(index, 3), activation="sine", precision="ieee")
        (got,) = torch.autograd.grad(y, leaves[needed], grad)
        torch.testing.assert_close(got, everything[needed])
    without = expert_linear(x, weight, None, *rows_of(index, 3), precision="ieee")
    with_zero = expert_linear(x, weight, torch.zeros_like(bias), *rows_of(index, 3), precision="ieee")
    assert torch.equal(without, with_zero)


@kernels
def test_the_sine_is_right_for_large_phases_and_keeps_nan():
    for span in (1.0, 100.0, 3000.0):
        phase = torch.linspace(-span, span, 601, device=DEVICE)[:, None].requires_grad_()
        one = torch.ones(1, 1, 1, device=DEVICE)
        y = expert_linear(phase, one, None, None, None, activation="sine", precision="ieee")
        slope = torch.autograd.grad(y.sum(), phase)[0]
        exact = phase.detach().double()
        assert worst(y.detach(), exact.sin()) < 2e-7
        assert worst(slope, exact.cos()) < 2e-7
    odd_ones = torch.tensor([[torch.nan], [torch.inf], [-torch.inf], [1e30], [0.0]], device=DEVICE)
    y = expert_linear(odd_ones, one, None, None, None, activation="sine", precision="ieee")[:, 0]
    assert y[:3].isnan().all()
    assert y[3].abs() <= 1
    assert y[4] == 0


@kernels
@pytest.mark.parametrize("experts", [1, 3])
@pytest.mark.parametrize("activation", ["sine", "leaky_relu"])
def test_second_derivatives(experts, activation):
    """The gradient of a gradient penalty, against torch in fp64."""
    x, weight, bias, index, grad = make_case(20, 5, 6, experts, "ieee")

    def penalty(level, *tensors):
        x, weight, bias, grad = (t.detach().requires_grad_() for t in tensors)
        y = level(x * weight.mean(), weight, bias)  # x depends on weight: no way may be counted twice
        slopes = torch.autograd.grad(y, (x, weight, bias), grad, create_graph=True)
        return torch.autograd.grad(sum(s.square().sum() for s in slopes), (x, weight, bias, grad), allow_unused=True)

    def kernel(x, weight, bias):
        order, starts = rows_of(index, experts)
        return expert_linear(x, weight, bias, order, starts, activation=activation, omega_0=2.0, precision="ieee")

    got = penalty(kernel, x, weight, bias, grad)
    exact = penalty(
        lambda *a: eager(*a, index, activation, 2.0), x.double(), weight.double(), bias.double(), grad.double()
    )
    for a, b in zip(got, exact):
        if b is None:  # the bias of a piecewise linear activation
            assert a is None or a.abs().max() == 0
        else:
            torch.testing.assert_close(a.double(), b, rtol=2e-5, atol=2e-5 * b.abs().max().item())


@kernels
def test_encoding():
    from loe_field.network.kernels.encoding import encode

    for dim, frequencies, rows in ((2, 10, 211), (2, 7, 90), (3, 6, 40), (3, 4, 1), (1, 1, 50), (4, 10, 0), (2, 0, 5)):
        coords = torch.rand(rows, dim, generator=torch.Generator().manual_seed(dim)).to(DEVICE)
        for points in (coords, 20 * coords - 10):
            points = points.requires_grad_()
            exact_points = points.detach().double().requires_grad_()
            module = PositionalEncoding(dim, frequencies)
            got, exact = encode(points, frequencies), module(exact_points)
            width = module.out_features
            assert got.shape[1] in range(width, width + 4)
            assert frequencies == 0 or got.shape[1] % 4 == 0  # rows of whole pieces of 16 bytes
            assert not got[:, width:].any()
            got = got[:, :width]
            assert got.shape == exact.shape
            assert worst(got.detach(), exact.detach()) < 2e-7
            cotangent = torch.randn(got.shape, device=DEVICE)
            slope = torch.autograd.grad(got, points, cotangent, create_graph=frequencies > 0)[0]
            exact_slope = torch.autograd.grad(exact, exact_points, cotangent.double(), create_graph=True)[0]
            assert worst(slope.detach(), exact_slope.detach()) <= 1e-6 * 2**frequencies * 10
            if frequencies and rows:
                second = torch.autograd.grad(slope.square().sum(), points)[0].double()
                exact_second = torch.autograd.grad(exact_slope.square().sum(), exact_points)[0]
                torch.testing.assert_close(second, exact_second, rtol=1e-4, atol=1e-5 * exact_second.abs().max().item())


@kernels
@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 16, 48), (2, 48, 16), (2, 20, 7), (0, 8, 8)], ids=str)
def test_newton_schulz(shape):
    from loe_field.network.kernels.newton_schulz import newton_schulz

    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    torch.testing.assert_close(newton_schulz(matrices), orthogonalize(matrices.double()).float(), atol=1e-4, rtol=0)
    strided = matrices.mT.contiguous().mT
    assert torch.equal(newton_schulz(strided), newton_schulz(matrices))
    assert newton_schulz(torch.zeros(2, 4, 4, device=DEVICE)).abs().max() == 0


@kernels
def test_newton_schulz_refuses_large_matrices():
    from loe_field.network.kernels.newton_schulz import newton_schulz

    with pytest.raises(ValueError, match="70 x 4"):
        newton_schulz(torch.zeros(1, 70, 4, device=DEVICE))


def network(field, coords, index=None):
    if index is None:
        index = expert_index(coords, field.levels, field.tile_size)
    rows = expert_rows(index, field.shape.experts) if field.tile_size > 1 else None
    return evaluate(coords, *field._weights_and_biases, field.shape, rows=rows)


@kernels
@pytest.mark.parametrize(
    "options",
    [
        {"num_frequencies": 4, "out_features": 3},
        {"dim": 3, "activation": "leaky_relu", "pattern": "quad_tree"},
        {"tile_size": 1, "omega_0": 3.0, "initialization": "siren"},
    ],
    ids=str,
)
def test_network(options):
    torch.manual_seed(0)
    field = LoEMLP(num_layers=4, layer_width=16, implementation="reference", **options).to(DEVICE)
    points = torch.rand(60, field.dim, device=DEVICE)
    cotangent = torch.randn(60, field.head.out_features, device=DEVICE)
    parameters = list(field.parameters())
    y, exact = network(field, points), field.double()(points.double())
    exact_grads = torch.autograd.grad(exact, field.parameters(), cotangent.double())
    torch.testing.assert_close(y.double(), exact, atol=3e-5, rtol=1e-5)
    field.float()
    grads = torch.autograd.grad(network(field, points), parameters, cotangent)
    for a, b in zip(grads, exact_grads):
        torch.testing.assert_close(a.double(), b, atol=3e-5 * max(1, b.abs().max().item()), rtol=1e-4)


@kernels
@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.bfloat16, marks=only_gpu)])
def test_network_under_autocast(dtype):
    torch.manual_seed(0)
    field = LoEMLP(num_layers=4, layer_width=16, num_frequencies=2, implementation="reference").to(DEVICE)
    points, cotangent = torch.rand(60, 2, device=DEVICE), torch.randn(60, 1, device=DEVICE)
    results = {}
    for name, run in (("kernel", network), ("eager", lambda f, p: f(p))):
        with torch.autocast(DEVICE, dtype=dtype):
            y = run(field, points)
        assert y.dtype == torch.float32
        results[name] = [y.detach(), *torch.autograd.grad(y, field.parameters(), cotangent)]
    y = field(points)
    exact = [y.detach(), *torch.autograd.grad(y, field.parameters(), cotangent)]
    for a, b, c in zip(results["kernel"], results["eager"], exact):
        assert a.dtype == torch.float32
        assert worst(a, c.double()) <= 2 * worst(b, c.double()) + 1e-3 * c.abs().max().item()


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="takes a GPU")
def test_a_step_is_captured_in_a_graph():
    """Grouping, forward and backward launch without waiting for the device, and replay with new points."""
    torch.manual_seed(0)
    field = LoEMLP(num_layers=4, layer_width=64, num_frequencies=4).cuda()
    points = torch.rand(1000, 2, device="cuda")
    index = expert_index(points, field.levels, 2)

    def step():
        with torch.autocast("cuda", dtype=torch.bfloat16):
            y = network(field, points, index)
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
    index.copy_(expert_index(points, field.levels, 2))
    graph.replay()
    for a, b in zip(captured, step()):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("levels", "rows", "experts"), [(3, 50, 4), (9, 40, 64), (200, 7, 200), (2, 1, 3), (2, 0, 3)])
def test_expert_rows(levels, rows, experts):
    """One byte, two bytes and four per key; against numpy."""
    index = torch.randint(experts, (levels, rows), generator=torch.Generator().manual_seed(0))
    order, starts = expert_rows(index, experts)
    assert order.dtype == starts.dtype == torch.int32
    assert order.shape == (levels, rows)
    for i, here in enumerate(index.numpy()):
        assert np.array_equal(order[i].numpy(), here.argsort(kind="stable"))
        assert np.array_equal(starts[i].numpy(), np.searchsorted(np.sort(here), np.arange(experts + 1)))


@pytest.mark.skipif(INTERPRETED, reason="the interpreter takes CPU tensors")
def test_cpu_tensors_are_refused_with_the_remedy():
    with pytest.raises(RuntimeError, match="need a CUDA GPU"):
        expert_linear(torch.zeros(2, 4), torch.zeros(1, 3, 4), None, None, None, precision="ieee")


@kernels
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(3, 4, dtype=torch.float64)}, "x is torch.float64"),
        ({"weight": torch.zeros(2, 5, 4)}, "weight holds 2 experts"),
        ({"x": torch.zeros(3, 3)}, "x has rows of 3 features and the matrices take 4"),
        ({"x": torch.zeros(3, 8)}, "x has rows of 8 features and the matrices take 4"),
    ],
)
def test_wrong_arguments(change, words):
    arguments = {"x": torch.zeros(3, 4), "weight": torch.zeros(1, 5, 4), "bias": None, "order": None, "starts": None}
    arguments |= change
    with pytest.raises(ValueError, match=words):
        expert_linear(**{k: v if v is None else v.to(DEVICE) for k, v in arguments.items()}, precision="ieee")


@kernels
@pytest.mark.parametrize("tile_size", [1, 2])
def test_behind_the_public_names(tile_size):
    """LoEMLP and position_dependent_linear with implementation="triton", any batch shape, rows given or not."""
    torch.manual_seed(0)
    options = {"num_layers": 3, "layer_width": 16, "num_frequencies": 2, "tile_size": tile_size}
    field, plain = (LoEMLP(implementation=name, **options).to(DEVICE) for name in ("triton", "reference"))
    plain.load_state_dict(field.state_dict())
    assert field.resolved_implementation == "triton"
    points = torch.rand(3, 15, 2, device=DEVICE)
    for rows in (None, field.group(points)):
        torch.testing.assert_close(field(points, rows), plain(points), atol=1e-5, rtol=1e-5)
    assert field(points[:0]).shape == (0, 15, 1)

    x = torch.randn(3, 15, 5, device=DEVICE)
    weight, bias = torch.randn(tile_size**2, 4, 5, device=DEVICE), torch.randn(4, device=DEVICE)
    out, expected = (
        position_dependent_linear(x, points, weight, bias, Level(4.0), tile_size=tile_size, implementation=name)
        for name in ("triton", "reference")
    )
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


@kernels
@pytest.mark.filterwarnings("ignore:Input #:UserWarning")  # that it is not fp64: the kernels are not
def test_gradcheck():
    """Numerical derivatives with steps that fp32 can tell; the error budget above is the sharper test."""
    x, weight, bias, index, _ = make_case(6, 3, 4, 2, "ieee")
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    order, starts = rows_of(index, 2)

    def level(x, weight, bias):
        return expert_linear(x, weight, bias, order, starts, activation="sine", omega_0=1.5, precision="ieee")

    assert gradcheck(level, leaves, eps=1e-2, atol=2e-3, rtol=2e-3)
    assert gradgradcheck(level, leaves, eps=1e-2, atol=5e-3, rtol=5e-3)


@kernels
def test_torch_compile_and_batches_of_gradients():
    """The kernels are operators of torch: one graph, with their derivatives; a batch of gradients goes around them."""
    torch.manual_seed(0)
    field = LoEMLP(num_layers=2, layer_width=16, out_features=2, num_frequencies=1, implementation="triton").to(DEVICE)
    points = torch.rand(20, 2, device=DEVICE, requires_grad=True)
    inputs = [points, *field.parameters()]
    cotangents = torch.randn(2, 20, 2, device=DEVICE)
    out, compiled = (call(points) for call in (field, torch.compile(field, fullgraph=True, backend="aot_eager")))
    torch.testing.assert_close(compiled, out)
    expected = [torch.autograd.grad(out, inputs, c, retain_graph=True) for c in cotangents]
    for got, true in zip(torch.autograd.grad(compiled, inputs, cotangents[0]), expected[0]):
        torch.testing.assert_close(got, true, atol=1e-5, rtol=1e-4)
    for got, *true in zip(torch.autograd.grad(out, inputs, cotangents, is_grads_batched=True), *expected):
        torch.testing.assert_close(got, torch.stack(true), atol=1e-5, rtol=1e-4)
