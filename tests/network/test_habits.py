"""What torch's users do with a module besides calling it: each gives the numbers of a plain call, or one clear line."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from support import spread
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from loe_field import BiasTile, Level, LoEMLP, PositionDependentLinear
from loe_field.network.kernels import cpu
from loe_field.network.optim import orthogonalize

KINDS = {
    "auto": {},
    "torch": {"implementation": "torch", "tile_size": 3, "pattern": "gray_code"},
    "linear": {"blending": "linear"},
    "linear, wide tile": {"blending": "linear", "tile_size": 3},
    "dense": {"tile_size": 1},
    "tiles": {"tile_size": [1, 3], "bias_tile_size": [3, 2]},
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def make(kind="auto", dtype=torch.float32, **options):
    torch.manual_seed(0)
    options = {"num_layers": 3, "layer_width": 8, "out_features": 2, "num_frequencies": 1} | KINDS[kind] | options
    field = spread(LoEMLP(**options))
    return field if dtype == torch.float32 else field.to(dtype)


def make_true(kind):
    return make(kind, torch.float64, implementation="reference")


def coords(count=12, reach=1.0):
    return reach * torch.rand(count, 2, generator=torch.Generator().manual_seed(1))


def close(got, expected, tolerance=1e-4):
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(got.double(), expected.double(), atol=tolerance * scale, rtol=0)


TRANSFORMS = {
    "grad": lambda field: grad(lambda p: field(p).square().sum()),
    "vmap": lambda field: vmap(field),
    "jacrev": lambda field: vmap(jacrev(field)),
    "jacfwd": lambda field: vmap(jacfwd(field)),
    "hessian": lambda field: vmap(hessian(lambda p: field(p).sum())),
    "jvp": lambda field: lambda p: jvp(field, (p,), (torch.ones_like(p),))[1],
}


@each_kind
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms(kind, transform):
    field, exact, points = make(kind), make_true(kind), coords()
    plain = field(points)
    close(TRANSFORMS[transform](field)(points), TRANSFORMS[transform](exact)(points.double()), 1e-3)
    assert torch.equal(field(points), plain), "nothing of the transform is left"


@each_kind
def test_functional_call_and_an_ensemble(kind):
    fields, points = [make(kind) for _ in range(3)], coords()
    with torch.no_grad():
        for i, field in enumerate(fields):
            for p in field.parameters():
                p += 0.1 * i
    parameters, buffers = stack_module_state(fields)
    empty = copy.deepcopy(fields[0]).to("meta")
    out = vmap(lambda p, b: functional_call(empty, (p, b), (points,)))(parameters, buffers)
    close(out, torch.stack([field(points) for field in fields]))
    named = dict(fields[1].named_parameters())
    found = grad(lambda p: functional_call(fields[0], p, (points,)).square().mean())(named)
    expected = torch.autograd.grad(fields[1](points).square().mean(), list(named.values()))
    for got, true in zip(found.values(), expected):
        close(got, true)


@each_kind
def test_batched_gradients(kind):
    field, points = make(kind), coords().requires_grad_()
    out = field(points)
    cotangents = torch.randn(3, *out.shape)
    inputs = [points, *field.parameters()]
    found = torch.autograd.grad(out, inputs, cotangents, is_grads_batched=True, retain_graph=True)
    one_by_one = [torch.autograd.grad(out, inputs, c, retain_graph=True) for c in cotangents]
    for got, true in zip(found, zip(*one_by_one)):
        close(got, torch.stack(true))
    options = [{"vectorize": True}, {"vectorize": True, "strategy": "forward-mode"}]
    for jacobian in (torch.autograd.functional.jacobian(field, coords(), **o) for o in options):
        close(jacobian, torch.autograd.functional.jacobian(field, coords()))


@each_kind
def test_forward_mode_in_points_and_parameters(kind):
    field, exact, points = make(kind), make_true(kind), coords()
    found = []
    for network, here in ((field, points), (exact, points.double())):
        with forward_ad.dual_level():
            duals = {n: forward_ad.make_dual(p, torch.ones_like(p)) for n, p in network.named_parameters()}
            in_points = network(forward_ad.make_dual(here, torch.ones_like(here)))
            in_parameters = functional_call(network, duals, (here,))
            found.append([forward_ad.unpack_dual(t).tangent for t in (in_points, in_parameters)])
    for got, true in zip(*found):
        close(got, true, 1e-3)


@each_kind
def test_shapes_alone(kind):
    with FakeTensorMode():
        field = make(kind)
        out = field(torch.rand(7, 2))
        assert out.shape == (7, 2)
        out.sum().backward()
        assert field.head.weight.grad.shape == (2, 8)
    field = make(kind)
    assert type(field(coords())) is torch.Tensor, "nothing fake is kept"
    out = field.to("meta")(torch.rand(5, 3, 2, device="meta"))
    assert out.is_meta
    assert out.shape == (5, 3, 2)


@each_kind
def test_a_trace_is_right_at_other_points(kind):
    field = make(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about traces
        traced = torch.jit.trace(field, coords())
    stored = io.BytesIO()
    torch.jit.save(traced, stored)
    stored.seek(0)
    for points in (coords(50, 3.0) - 1, coords(1)):
        close(traced(points), field(points))
        close(torch.jit.load(stored)(points), field(points))
        stored.seek(0)


def test_a_script_is_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"torch.jit.script cannot take a LoEMLP: use torch.jit.trace"):
        torch.jit.script(nn.Sequential(make()))


@each_kind
def test_an_exported_program_is_torchs_own_and_right_at_other_points(kind):
    field, points = make(kind), coords(50, 3.0)
    sizes = {"coords": {0: torch.export.Dim("N")}}
    program = torch.export.export(field, (coords(),), dynamic_shapes=sizes, strict=False)
    assert not [node for node in program.graph.nodes if "loe_field" in str(node.target)]
    close(program.module()(points), field(points))


@each_kind
def test_a_mode_sees_the_operations(kind):
    field = make(kind)
    graph = make_fx(field)(coords())
    points = coords(12, 3.0)
    close(graph(points), field(points))


class Larger(nn.Module):
    """A network that contains one."""

    def __init__(self, kind, **options):
        super().__init__()
        self.field = make(kind, **options)
        self.before, self.after = nn.Linear(2, 2), nn.Linear(2, 3)

    def forward(self, points):
        return self.after(torch.relu(self.field(torch.sigmoid(self.before(points)))))


@pytest.mark.parametrize("kind", ["auto", "tiles", pytest.param("linear, wide tile", marks=pytest.mark.slow)])
def test_torch_compile_sees_one_graph(kind):
    """Numbers, gradients and sizes that change, without a break: the kernels are operators of torch."""
    torch._dynamo.reset()
    torch.manual_seed(1)
    network = Larger(kind)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    for count in (12, 7, 9):
        points = coords(count).requires_grad_()
        out, expected = compiled(points), network(points)
        close(out, expected, 1e-5)
        cotangent = torch.randn_like(out)
        inputs = [points, *network.parameters()]
        for got, true in zip(*(torch.autograd.grad(y, inputs, cotangent) for y in (out, expected))):
            close(got, true, 1e-5)


@pytest.mark.skipif(not cpu.available(), reason=f"no CPU kernels: {cpu.why_unavailable()}")
def test_torch_compile_keeps_the_kernels():
    torch._dynamo.reset()
    seen = []

    def backend(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    close(torch.compile(make("auto"), fullgraph=True, backend=backend)(coords()), make("auto")(coords()))
    assert any("loe_field" in name and "network" in name for name in seen)


CHANGES = {
    "a forward hook": lambda field: field.layers[1].register_forward_hook(lambda m, i, o: 2 * o),
    "a forward pre-hook": lambda field: field.head.register_forward_pre_hook(lambda m, i: (2 * i[0],)),
    "a hook of the encoding": lambda field: field.encoding.register_forward_hook(lambda m, i, o: 2 * o),
    "a head without a bias": lambda field: setattr(field, "head", nn.Linear(8, 2, bias=False)),
    "a head of several": lambda field: setattr(field, "head", nn.Sequential(nn.Linear(8, 4), nn.Tanh())),
    "a linear layer": lambda field: field.layers.__setitem__(1, nn.Linear(8, 8)),
    "weight_norm": lambda field: parametrizations.weight_norm(field.layers[1]),
    "spectral_norm of the head": lambda field: parametrizations.spectral_norm(field.head),
    "a forward of its own": lambda field: setattr(field.head, "forward", lambda x: x.sum(1, keepdim=True)),
    "one layer less": lambda field: field.layers.pop(1),
    "a bias tile": lambda field: setattr(
        field.layers, "1", PositionDependentLinear(8, 8, level=Level(4.0), bias_tile=BiasTile(Level(4.0), 3))
    ),
    "another level": lambda field: setattr(field.layers[1], "level", field.layers[0].level),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_network_computes_what_it_says(change):
    """Layer by layer, which is said; kernels that were asked for by name refuse."""
    field, plain = make(), make(implementation="reference")
    for network in (field, plain):
        torch.manual_seed(2)
        CHANGES[change](network)
        network.eval()
    with pytest.warns(UserWarning, match="computed layer by layer, without kernels"):
        out = field(coords())
    assert field.obstacle is not None
    close(out, plain(coords()))
    out.sum().backward()
    assert all(p.grad is not None for p in field.layers[0].parameters())
    field.implementation = "cpu"
    with pytest.raises(RuntimeError, match="implementation 'cpu' cannot be used: "):
        field(coords())


def test_backward_hooks_run_and_a_hook_that_is_gone_leaves_the_kernels():
    field, called = make(), []
    handle = field.layers[1].register_full_backward_hook(lambda *_: called.append(1))
    with pytest.warns(UserWarning, match="layers.1 has a hook"):
        field(coords()).sum().backward()
    assert called == [1]
    handle.remove()
    assert field.obstacle is None or not cpu.available()
    hook = nn.modules.module.register_module_forward_hook(lambda m, i, o: called.append(type(m).__name__))
    with hook, pytest.warns(UserWarning, match="all modules have a hook"):
        field(coords())
    assert called[1:] == [
        "PositionalEncoding",
        "PositionDependentLinear",
        "PositionDependentLinear",
        "Linear",
        "LoEMLP",
    ]


def test_a_head_and_a_parameter_that_were_put_in_place_are_used():
    field, plain = make(), make(implementation="reference")
    for network in (field, plain):
        torch.manual_seed(2)
        network.head = nn.Linear(8, 5)
        network.layers[1].weight = nn.Parameter(torch.ones_like(network.layers[1].weight))
    close(field(coords()), plain(coords()))
    assert field.obstacle is None or not cpu.available()


@each_kind
def test_copies_and_checkpointing(kind):
    field, points = make(kind), coords()
    expected = field(points)
    stored = io.BytesIO()
    torch.save(field, stored)
    stored.seek(0)
    copies = [copy.deepcopy(field), pickle.loads(pickle.dumps(field)), torch.load(stored, weights_only=False)]
    for other in (*copies, copy.deepcopy(field).share_memory(), nn.DataParallel(field)):
        assert torch.equal(other(points), expected)
    expected.sum().backward()
    kept = field.head.weight.grad.clone()
    field.zero_grad()
    checkpoint(field, points, use_reentrant=False).sum().backward()
    assert torch.equal(field.head.weight.grad, kept)
    nn.utils.clip_grad_norm_(field.parameters(), 1.0)


@pytest.mark.parametrize("change", ["float64", "meta"])
def test_the_defaults_of_new_tensors_do_not_matter(change):
    field, points = make(), coords().requires_grad_()
    cotangent = torch.randn(12, 2)

    def run():
        out = field(points)
        return [out, *torch.autograd.grad(out, [points, *field.parameters()], cotangent)]

    expected = run()
    try:
        if change == "meta":
            torch.set_default_device("meta")
        else:
            torch.set_default_dtype(torch.float64)
        found = run()
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_inference_mode_anomaly_mode_and_frozen_parameters():
    field, points = make(), coords()
    expected = field(points)
    with torch.inference_mode():
        assert torch.equal(field(points), expected)
    assert torch.equal(field(points.expand(2, 12, 2))[1], expected)
    field.layers.requires_grad_(False)
    with torch.autograd.set_detect_anomaly(True):
        field(points).sum().backward()
    assert field.layers[0].weight.grad is None
    close(field.head.bias.grad, torch.full((2,), 12.0))


def test_the_orthogonal_matrices_of_a_batch():
    matrices = torch.randn(3, 4, 5)
    close(vmap(orthogonalize)(matrices), orthogonalize(matrices))
