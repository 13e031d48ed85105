import io

import pytest
import torch

from loe_field import LoEMLP
from loe_field.optim import Muon, decay, orthogonalize


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


def test_muon_agrees_with_torchs_on_a_single_matrix():
    torch_muon = getattr(torch.optim, "Muon", None)
    assert torch_muon is not None, "torch is older than 2.9"
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
