import io

import pytest
import torch

from loe_field import LoEMLP
from loe_field.network.kernels import cpu
from loe_field.network.optim import Muon, decay, orthogonalize

needs_kernel = pytest.mark.skipif(not cpu.available(), reason=f"no CPU kernels: {cpu.why_unavailable()}")
SHAPES = [
    *[(3, 1, 1), (4, 3, 5), (4, 5, 3), (2, 1, 40), (2, 40, 1), (20, 16, 16), (9, 32, 32), (7, 64, 64), (3, 30, 64)],
    *[(3, 100, 64), (2, 64, 100), (2, 17, 33), (2, 128, 128), (1, 128, 7), (2, 3, 20, 12), (48, 48)],
]
"""Of stacks, on both sides of every multiple of a kernel's block."""


@pytest.mark.parametrize("shape", [(64, 64), (5, 16, 48), (2, 3, 48, 16), (4, 1, 7)])
def test_orthogonalize_brings_singular_values_near_one_and_keeps_the_directions(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape, dtype=torch.float64)
    result = orthogonalize(matrices)
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    # In the basis of the input's singular vectors the result is diagonal: only the singular values have changed.
    core = u.mT @ result @ vh.mT
    values = torch.diagonal(core, dim1=-2, dim2=-1)
    torch.testing.assert_close(core, torch.diag_embed(values), atol=1e-9, rtol=0)
    large = values[s > 0.05 * s.amax(-1, keepdim=True)]
    assert 0.6 < large.min() <= large.max() < 1.25


def test_a_stack_is_orthogonalized_matrix_by_matrix():
    torch.manual_seed(0)
    stack = torch.randn(3, 2, 8, 12, dtype=torch.float64)
    single = torch.stack([orthogonalize(m) for m in stack.flatten(0, 1)]).view_as(stack)
    torch.testing.assert_close(orthogonalize(stack), single)
    assert orthogonalize(torch.zeros(2, 4, 4)).abs().max() == 0


def without_kernel(monkeypatch):
    monkeypatch.setattr("loe_field.network.optim._fits_cpu_kernel", lambda _: False)


def rms(error):
    return error.square().mean().sqrt()


@needs_kernel
@pytest.mark.parametrize("num_iterations", [1, 4, 5])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_in_fp32(shape, num_iterations, monkeypatch):
    """Against fp64: mean error at most twice that of torch in fp32, plus a few units in the last place."""
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    before = matrices.clone()
    truth = orthogonalize(matrices.double(), num_iterations)
    fast = orthogonalize(matrices, num_iterations)
    assert torch.equal(matrices, before)
    assert fast.shape == shape
    strided = matrices.mT.contiguous().mT
    assert torch.equal(orthogonalize(strided, num_iterations), fast)
    without_kernel(monkeypatch)
    plain = orthogonalize(matrices, num_iterations)
    assert rms(fast - truth) <= 2 * rms(plain - truth) + 2e-7


@pytest.mark.skipif(not cpu.has_bf16(), reason="a processor without bf16 products")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_in_bf16(shape):
    """As near to fp64 as torch with all matrices in bf16, which rounds the same ones: X, G and S."""
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    truth = orthogonalize(matrices.double())
    fast, plain = orthogonalize(matrices, dtype=torch.bfloat16), orthogonalize(matrices.bfloat16())
    assert fast.dtype == torch.float32
    assert not torch.equal(fast, orthogonalize(matrices))
    assert rms(fast - truth) <= 1.2 * rms(plain - truth) + 2**-9


@needs_kernel
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_kernel_with_odd_inputs(dtype):
    """Zeros, NaN, infinities and nothing at all; each matrix by itself; the same bits with any number of threads."""
    torch.manual_seed(0)
    matrices = torch.randn(7, 20, 33)
    whole = orthogonalize(matrices, dtype=dtype)
    odd = matrices.clone()
    odd[1] = 0
    odd[2, 4, 5] = torch.nan
    odd[3, 0, 0] = torch.inf
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(orthogonalize(odd, dtype=dtype))
    assert torch.equal(results[0][[0, 4, 5, 6]], whole[[0, 4, 5, 6]])
    assert results[0][1].abs().max() == 0
    assert results[0][2:4].isnan().all()
    for result in results[1:]:
        assert torch.equal(result.nan_to_num(5.0), results[0].nan_to_num(5.0))
    for shape in ((0, 4, 4), (2, 0, 4), (2, 4, 0)):
        assert orthogonalize(torch.zeros(shape), dtype=dtype).shape == shape
    large = torch.randn(1, 3, cpu.LARGEST_MATRIX + 1)
    torch.testing.assert_close(
        orthogonalize(large, dtype=dtype), orthogonalize(large.double()).float(), atol=1e-5, rtol=0
    )
    with pytest.raises(ValueError, match="float16"):
        orthogonalize(matrices, dtype=torch.float16)


def test_orthogonalize_can_be_differentiated_and_compiled():
    torch.manual_seed(0)
    matrices, tangent = torch.randn(2, 4, 6), torch.randn(2, 4, 6)
    truth = torch.func.jvp(orthogonalize, (matrices.double(),), (tangent.double(),))[1]
    torch.testing.assert_close(
        torch.func.jvp(orthogonalize, (matrices,), (tangent,))[1].double(), truth, atol=1e-4, rtol=0
    )
    leaf = matrices.clone().requires_grad_()
    (orthogonalize(leaf) * tangent).sum().backward()
    expected = torch.func.grad(lambda m: (orthogonalize(m) * tangent.double()).sum())(matrices.double())
    torch.testing.assert_close(leaf.grad.double(), expected, atol=1e-4, rtol=0)
    compiled = torch.compile(orthogonalize, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(matrices), orthogonalize(matrices))


def muon_by_hand(weight, grads, lr, momentum, beta2):
    """The update of the docstring, one matrix at a time, in loops."""
    weight, m, v = weight.clone(), torch.zeros_like(weight), torch.zeros_like(weight[..., :1])
    for grad in grads:
        for e in range(len(weight)):
            m[e] = momentum * m[e] + (1 - momentum) * grad[e]
            update = orthogonalize(momentum * m[e] + (1 - momentum) * grad[e])
            if beta2:
                v[e] = beta2 * v[e] + (1 - beta2) * update.square().mean(1, keepdim=True)
                scaled = update / v[e].sqrt()
                update = scaled * update.norm() / scaled.norm()
            rows, columns = update.shape
            weight[e] -= lr * max(1, rows / columns) ** 0.5 * update
    return weight


@pytest.mark.parametrize("beta2", [0.0, 0.95])
@pytest.mark.parametrize("shape", [(4, 8, 8), (2, 12, 6), (3, 6, 12)])
def test_muon_is_its_formula(shape, beta2):
    torch.manual_seed(0)
    start = torch.randn(shape, dtype=torch.float64)
    grads = [torch.randn(shape, dtype=torch.float64) for _ in range(3)]
    weight = torch.nn.Parameter(start.clone())
    optimizer = Muon([weight], lr=0.1, momentum=0.9, beta2=beta2, eps=1e-12)
    for grad in grads:
        weight.grad = grad.clone()
        optimizer.step()
        assert torch.equal(weight.grad, grad)
    torch.testing.assert_close(weight.data, muon_by_hand(start, grads, 0.1, 0.9, beta2), atol=1e-8, rtol=1e-8)


STACKS = [(4, 24, 24), (2, 24, 24), (24, 24), (3, 20, 7), (2, 5, 40), (0, 24, 24), (2, 2, 5, 40)]


def muon_run(steps, **options):
    """Weights and states after some steps on a quadratic loss, from the same start; lr 0.02."""
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape)) for shape in STACKS]
    targets = [torch.randn(shape) for shape in STACKS]
    optimizer = Muon(weights, lr=0.02, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        sum((w - t).square().sum() for w, t in zip(weights, targets)).backward()
        optimizer.step()
    states = [optimizer.state[w] for w in weights]
    return [*[w.detach() for w in weights], *[s[name] for s in states for name in ("momentum", "row_scale")]]


@needs_kernel
@pytest.mark.parametrize("options", [{}, {"beta2": 0.0}, {"momentum": 0.0, "num_iterations": 3}], ids=str)
def test_muon_with_and_without_its_kernel(options, monkeypatch):
    calls, muon_step = [], cpu.muon_step
    monkeypatch.setattr(cpu, "muon_step", lambda *a, **k: (calls.append(len(a[0])), muon_step(*a, **k)))
    fast = muon_run(20, **options)
    assert calls == 20 * [4, 1, 2]
    torch.set_num_threads(2)
    assert all(torch.equal(a, b) for a, b in zip(fast, muon_run(20, **options)))
    without_kernel(monkeypatch)
    for got, expected in zip(fast, muon_run(20, **options)):
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_muon_in_bf16():
    """20 steps go where those in fp32 go, within the rounding of 8 bits."""
    for rough, exact in zip(muon_run(20, dtype=torch.bfloat16)[: len(STACKS)], muon_run(20)):
        assert rms(rough - exact) <= 2**-8 * 20 * 0.02 or exact.numel() == 0
    with pytest.raises(ValueError, match="float64"):
        Muon([torch.nn.Parameter(torch.zeros(2, 2))], dtype=torch.float64)


def test_muon_takes_any_layout_and_is_seen_by_autograd():
    """Strided parameters and gradients go to torch; a graph from before the step refuses its backward pass."""
    torch.manual_seed(0)
    start, grad = torch.randn(2, 6, 9), torch.randn(2, 6, 9)
    ends = []
    for strided in (False, True):
        weight = torch.nn.Parameter(start.mT.contiguous().mT if strided else start.clone())
        weight.grad = grad.mT.contiguous().mT if strided else grad.clone()
        before = weight.square().sum()
        Muon([weight], lr=0.1).step()
        ends.append(weight.detach())
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            before.backward()
    torch.testing.assert_close(*ends, atol=1e-5, rtol=1e-5)


def test_muon_takes_a_state_from_before_it_had_a_dtype():
    weight = torch.nn.Parameter(torch.randn(2, 4, 4))
    weight.grad = torch.randn(2, 4, 4)
    optimizer = Muon([weight])
    optimizer.step()
    state = optimizer.state_dict()
    del state["param_groups"][0]["dtype"]
    optimizer.load_state_dict(state)
    optimizer.step()


def test_muon_agrees_with_torchs_on_a_single_matrix():
    torch_muon = getattr(torch.optim, "Muon", None)
    if torch_muon is None:
        pytest.skip("torch has it from 2.9 on")
    torch.manual_seed(0)
    start, grad = torch.randn(32, 32), torch.randn(32, 32)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    ours.grad, theirs.grad = grad.clone(), grad.clone()
    Muon([ours], lr=0.1, beta2=0.0).step()
    torch_muon([theirs], lr=0.1, weight_decay=0.0).step()
    a, b = (ours.data - start).flatten(), (theirs.data - start).flatten()
    assert torch.cosine_similarity(a, b, dim=0) > 0.999  # torch's runs in bf16
    assert 0.98 < a.norm() / b.norm() < 1.02


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": -1.0}, "lr is -1"),
        ({"momentum": 1.0}, "momentum is 1"),
        ({"beta2": -0.1}, "beta2 is -0.1"),
        ({"num_iterations": 0}, "num_iterations is 0"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(ValueError, match=words):
        Muon([torch.nn.Parameter(torch.zeros(2, 2))], **options)


def test_muon_refuses_vectors():
    with pytest.raises(ValueError, match="give biases to Adam"):
        Muon([torch.nn.Parameter(torch.zeros(3))])


def test_decay():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = decay(optimizer, 10, warmup_steps=2, final_factor=0.5)
    seen = []
    for _ in range(12):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert seen[:3] == pytest.approx([2 / 3, 4 / 3, 2.0])
    assert seen[6] == pytest.approx(1.5)
    assert seen[10:] == pytest.approx([1.0, 1.0])
    with pytest.raises(ValueError, match="max_steps is 0"):
        decay(optimizer, 0)


def train(field, optimizers, schedulers, steps):
    points = torch.rand(256, 2, generator=torch.Generator().manual_seed(1))
    target = (6 * points).sin().prod(1, keepdim=True)
    for _ in range(steps):
        loss = (field(points) - target).square().mean()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        for scheduler in schedulers:
            scheduler.step()
    return loss.item()


def build():
    torch.manual_seed(0)
    field = LoEMLP(num_layers=4, layer_width=16)
    experts = [layer.weight for layer in field.layers[1:]]
    others = [p for p in field.parameters() if all(p is not e for e in experts)]
    optimizers = [Muon(experts), torch.optim.Adam(others, lr=1e-2)]
    return field, optimizers, [decay(o, 60) for o in optimizers]


def test_a_resumed_run_is_the_undisturbed_run_and_loads_with_weights_only():
    whole = build()
    train(*whole, 60)
    first = build()
    train(*first, 30)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in (first[0], *first[1], *first[2])], file)
    file.seek(0)
    second = build()
    for part, state in zip((second[0], *second[1], *second[2]), torch.load(file, weights_only=True)):
        part.load_state_dict(state)
    train(*second, 30)
    for a, b in zip(whole[0].parameters(), second[0].parameters()):
        assert torch.equal(a, b)


def test_muon_fits():
    field, optimizers, schedulers = build()
    assert train(field, optimizers, schedulers, 60) < 0.1 * train(*build(), 1)
