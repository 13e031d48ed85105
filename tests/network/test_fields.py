"""Many fields computed together: each is what it is alone, in value, derivatives and training."""

import pytest
import torch
from support import spread
from torch.autograd import gradcheck, gradgradcheck

from loe_field import LoEMLP
from loe_field.network.kernels import cpu
from loe_field.network.optim import Muon
from loe_field.network.tiling import FeatureGrid

SMALL = {"num_layers": 4, "layer_width": 8, "out_features": 3}
SHAPES = {
    "nearest": {},
    "odd sizes": {"layer_width": 5, "tile_size": [3, 1, 2], "pattern": "gray_code", "num_frequencies": 2},
    "dense": {"tile_size": 1},
    "linear": {"blending": "linear"},
    "linear, 3 experts an axis": {"blending": "linear", "tile_size": 3, "dim": 1},
    "3D": {"dim": 3, "activation": "relu", "num_layers": 3},
    "bias tiles": {"bias_tile_size": [4, 1, 3], "tile_size": [1, 2, 2]},
    "hashed bias tiles": {"bias_tile_size": 6, "bias_table_size": 16},
    "grid": {"grid": FeatureGrid(num_levels=3, max_resolution=64, table_size=64), "num_frequencies": 1},
}


def together(fields=3, implementation="torch", dtype=torch.float64, **options):
    torch.manual_seed(0)
    return spread(LoEMLP(**(SMALL | options), num_fields=fields, implementation=implementation)).to(dtype)


def results(network, coords, cotangent):
    """Output and the gradients of coords and all parameters."""
    coords = coords.detach().requires_grad_()
    out = network(coords)
    return [out, *torch.autograd.grad(out, [coords, *network.parameters()], cotangent, materialize_grads=True)]


def results_apart(network, coords, cotangent):
    """The same of its fields one by one, the gradient of points that they share added up."""
    fields = [network.field(i) for i in range(network.num_fields)]
    coords = coords.detach().requires_grad_()
    out = torch.stack([f(coords if coords.dim() == 2 else coords[i]) for i, f in enumerate(fields)])
    inputs = [coords, *(p for f in fields for p in f.parameters())]
    grad, *grads = torch.autograd.grad(out, inputs, cotangent, materialize_grads=True)
    count = len(grads) // len(fields)
    return [out, grad, *(torch.stack(grads[i::count]) for i in range(count))]


def points(network, count, own, dtype=torch.float64):
    shape = (network.num_fields, count, network.dim) if own else (count, network.dim)
    return torch.rand(shape, dtype=torch.float64).to(dtype) * 3 - 1


@pytest.mark.parametrize("own", [False, True], ids=["shared points", "own points"])
@pytest.mark.parametrize("implementation", ["reference", "torch"])
@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
def test_fields_give_what_each_gives_alone(options, implementation, own):
    network = together(implementation=implementation, **options)
    for count in (0, 1, 3, 40):
        coords = points(network, count, own)
        cotangent = torch.randn(3, count, 3, dtype=torch.float64)
        found, expected = (f(network, coords, cotangent) for f in (results, results_apart))
        for got, alone in zip(found, expected):
            torch.testing.assert_close(got, alone, atol=1e-11, rtol=1e-9)


needs_kernels = pytest.mark.skipif(not cpu.available(), reason=f"no CPU kernels: {cpu.why_unavailable()}")
IN_C = {
    **{name: options for name, options in SHAPES.items() if not name.startswith("linear")},
    "a thumbnail's": {"layer_width": 12, "num_frequencies": 2},
    "16": {"layer_width": 16, "num_layers": 3},
    "20": {"layer_width": 20, "omega_0": 5.0},
    "45": {"layer_width": 45, "activation": "leaky_relu"},
    "100, many channels": {"layer_width": 100, "out_features": 19, "num_layers": 3},
    "64 experts": {"dim": 3, "tile_size": 4, "num_layers": 3},
    "tiles in 4D": {"dim": 4, "bias_tile_size": 3, "tile_size": 1, "num_layers": 3, "bias_blending": "nearest"},
}


@needs_kernels
@pytest.mark.parametrize("own", [False, True], ids=["shared points", "own points"])
@pytest.mark.parametrize("options", IN_C.values(), ids=IN_C)
def test_error_budget_of_the_kernels(options, own, poisoned):
    """Output, losses and every gradient against fp64: error at most twice that of eager fp32, largest four times.

    Plus a floor of a few units in the last place.
    """
    nets = [together(4, *how, **options) for how in (("reference", torch.float64), ("torch", torch.float32))]
    ours = together(4, "cpu", torch.float32, **options)
    for count in (1, 37, 700):
        coords = points(ours, count, own, torch.float32)
        cotangent = torch.randn(4, count, ours.out_features)
        found = []
        for net in (*nets, ours):
            at, to = coords.to(net.head.bias.dtype), cotangent.to(net.head.bias.dtype)
            losses = net.mean_squared_errors(at, to)
            weights = torch.arange(1, 5, dtype=to.dtype)
            found.append([*results(net, at, to), losses, *torch.autograd.grad(losses @ weights, [*net.parameters()])])
        for true, plain, fast in zip(*found):
            assert fast.shape == true.shape
            scale = true.abs().max().clamp_min(0.1 if count == 1 else 0)
            floor = scale * (1e-5 if count == 1 else 5e-7)
            error, budget = (got.double() - true for got in (fast, plain))
            assert error.square().mean().sqrt() <= 2 * budget.square().mean().sqrt() + floor
            assert error.abs().max() <= 4 * budget.abs().max() + 2 * floor


@needs_kernels
def test_kernels_keep_fields_apart():
    """A field of NaN leaves the others as they were, whoever computes them, and no thread changes a number."""
    runs = []
    for threads, broken in ((1, False), (2, True), (1, True)):
        torch.set_num_threads(threads)
        network = together(5, "cpu", torch.float32, num_frequencies=1)
        if broken:
            with torch.no_grad():
                network.layers[1].weight[2, 0, 0, 0] = float("nan")
        coords, target = points(network, 600, False, torch.float32), torch.rand(5, 600, 3)
        torch.manual_seed(1)
        losses = network.mean_squared_errors(torch.rand(600, 2), torch.rand(5, 600, 3))
        runs.append([losses, *torch.autograd.grad(losses.sum(), network.parameters())])
    del coords, target
    others = [0, 1, 3, 4]
    for before, *broken in zip(*runs):
        for run in broken:
            assert torch.equal(run[others], before[others])
    assert runs[1][0][2].isnan()


@needs_kernels
def test_phases_beyond_the_fast_sine():
    ours, plain = (together(2, name, torch.float32, num_layers=2, out_features=1) for name in ("cpu", "torch"))
    with torch.no_grad():
        for net in (ours, plain):
            net.layers[0].weight.zero_()[..., 0, 0] = 1
            net.layers[0].bias.zero_()
    x = torch.tensor([0.0, 1e-20, -700.0, 4.9e4, 5.1e4, -3e6, 1e12, float("inf"), float("nan")])
    coords = torch.stack([x, torch.zeros_like(x)], 1)
    for got, expected in zip(*(results(net, coords, torch.ones(2, 9, 1)) for net in (ours, plain))):
        torch.testing.assert_close(got, expected, atol=2e-6, rtol=1e-5, equal_nan=True)


@needs_kernels
def test_strided_and_frozen_tensors():
    network = together(3, "cpu", torch.float32)
    expected = network.field(1)
    coords = torch.rand(2, 50).t()
    network.layers[2].weight = torch.nn.Parameter(network.layers[2].weight.detach().mT.contiguous().mT)
    torch.testing.assert_close(network(coords)[1], expected(coords), atol=1e-6, rtol=1e-5)
    network.requires_grad_(False)
    target = torch.rand(3, 50, 3)
    assert not network(coords).requires_grad
    assert not network.mean_squared_errors(coords, target).requires_grad
    network.head.bias.requires_grad_(True)
    network.mean_squared_errors(coords, target).sum().backward()
    assert network.head.weight.grad is None
    expected = 2 * (network(coords) - target).mean(1) / 3
    torch.testing.assert_close(network.head.bias.grad, expected, atol=1e-6, rtol=1e-5)
    moving = coords.clone().requires_grad_()
    network.requires_grad_(False)
    (grad,) = torch.autograd.grad(network.mean_squared_errors(moving, target).sum(), moving)
    torch.testing.assert_close(
        grad,
        torch.autograd.grad((network(moving) - target).square().mean((1, 2)).sum(), moving)[0],
        atol=1e-6,
        rtol=1e-4,
    )


@pytest.mark.parametrize("implementation", ["reference", "torch"])
@pytest.mark.parametrize("options", [{}, {"tile_size": [1, 2], "bias_tile_size": [3, 2]}], ids=str)
def test_derivatives(options, implementation):
    network = together(2, implementation, num_layers=3, layer_width=3, omega_0=3.0, num_frequencies=1, **options)
    coords = torch.rand(2, 2, dtype=torch.float64).requires_grad_()
    assert gradcheck(network, coords, fast_mode=True)
    assert gradgradcheck(network, coords, fast_mode=True)
    for p in network.parameters():
        assert gradcheck(lambda _: network(coords), p, fast_mode=True)
        assert gradgradcheck(lambda _: network(coords), p, fast_mode=True)


@needs_kernels
@pytest.mark.parametrize("losses", [False, True])
@pytest.mark.parametrize("options", [{}, {"bias_tile_size": 3, "tile_size": [1, 2]}], ids=str)
def test_second_derivatives_beside_kernels(options, losses):
    """The gradient of a squared gradient, as a physics loss needs it."""
    found = []
    for implementation, dtype in (("reference", torch.float64), ("cpu", torch.float32)):
        network = together(2, implementation, dtype, num_layers=3, num_frequencies=1, **options)
        coords = torch.linspace(0, 1, 60, dtype=dtype).view(30, 2).requires_grad_()
        value = network.mean_squared_errors(coords, torch.ones(2, 30, 3, dtype=dtype)) if losses else network(coords)
        slope, of_weight = torch.autograd.grad(value.sum(), [coords, network.layers[1].weight], create_graph=True)
        inputs = [*network.parameters()][:4]
        found.append(torch.autograd.grad(slope.square().sum() + of_weight.square().sum(), inputs))
    for true, got in zip(*found):
        torch.testing.assert_close(got.double(), true, rtol=1e-3, atol=1e-5 * true.abs().max().item())


def train(network, coords, target, steps):
    groups = network.param_groups()
    muon, adam = Muon(groups["experts"], lr=0.003), torch.optim.Adam(groups["fields"], lr=1e-3)
    for _ in range(steps):
        muon.zero_grad(), adam.zero_grad()
        network.mean_squared_errors(coords, target).sum().backward()
        muon.step(), adam.step()
    return network


@pytest.mark.parametrize("implementation", ["torch", pytest.param("cpu", marks=needs_kernels)])
def test_training_together_is_training_alone(implementation):
    """From the same seeds, after 200 steps; in C also to the last bit, where alone has an axis of one field."""
    dtype = torch.float64 if implementation == "torch" else torch.float32
    options = {**SMALL, "num_frequencies": 2, "implementation": implementation}
    torch.manual_seed(3)
    coords, target = torch.rand(30, 2, dtype=dtype), torch.rand(2, 30, 3, dtype=dtype)
    network = LoEMLP(**options, num_fields=2).to(dtype)
    network.init_fields_([5, 6])
    train(network, coords, target, 200)
    torch.manual_seed(6)
    single = LoEMLP(**options).to(dtype)
    one = train(LoEMLP.stack([single]), coords, target[1:], 200) if implementation == "cpu" else network
    train(single, coords, target[1], 200)
    for got, same, alone in zip(network.parameters(), one.parameters(), single.parameters()):
        assert torch.equal(got[-1], same[-1])
        torch.testing.assert_close(got[-1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"bias_tile_size": 3, "initialization": "siren", "omega_0": 9.0}], ids=str)
def test_every_field_starts_from_its_own_seed(options):
    grid = FeatureGrid(num_levels=2, max_resolution=32)
    torch.manual_seed(1)
    network, before = LoEMLP(**SMALL, **options, grid=grid, num_fields=2), torch.get_rng_state()
    assert not torch.equal(network.layers[1].weight[0], network.layers[1].weight[1])
    network.init_fields_([3, 2**40])
    assert torch.equal(torch.get_rng_state(), before)
    for i, seed in enumerate((3, 2**40)):
        torch.manual_seed(seed)
        alone = LoEMLP(**SMALL, **options, grid=grid)
        for (name, one), (same, of_all) in zip(alone.named_parameters(), network.named_parameters()):
            assert name == same
            assert torch.equal(one, of_all[i])


def test_fields_come_and_go():
    network = together(4, "auto", torch.float32, bias_tile_size=3)
    coords = torch.rand(20, 2)
    out = network(coords)
    single = network.field(2)
    assert single.num_fields is None
    assert single.options == {k: v for k, v in network.options.items() if k != "num_fields"}
    torch.testing.assert_close(single(coords), out[2], atol=1e-6, rtol=1e-5)
    for chosen in ([3, 1], torch.tensor([3, 1])):
        torch.testing.assert_close(network.select(chosen)(coords), out[[3, 1]], atol=1e-6, rtol=1e-5)
    few = network.select(torch.tensor([True, False, False, True]))
    assert few.num_fields == 2
    again = LoEMLP.stack([network.field(i) for i in range(4)])
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters()))
    with torch.no_grad():
        for p in single.parameters():
            p.add_(1)
    few.set_field_(1, single)
    assert torch.equal(few.layers[0].bias[1], single.layers[0].bias)
    assert torch.equal(network(coords), out), "what was taken out is a copy"
    loaded = LoEMLP(**network.options)
    loaded.load_state_dict(network.state_dict())
    torch.testing.assert_close(loaded(coords), out)


def test_sizes_are_told_of_all_and_of_each():
    network, single = (LoEMLP(**SMALL, bias_tile_size=[2, 1, 3], num_fields=n) for n in (6, None))
    assert network.num_parameters == 6 * single.num_parameters
    assert network.macs_per_point == single.macs_per_point
    assert all(p.shape == (6, *q.shape) for p, q in zip(network.parameters(), single.parameters()))
    names = {id(p): name for net in (network, single) for name, p in net.named_parameters()}
    groups, of_one = (
        {k: [names[id(p)] for p in g] for k, g in net.param_groups().items()} for net in (network, single)
    )
    assert groups == of_one
    assert "fields=6" in repr(network)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda net: LoEMLP(num_fields=0), "num_fields is 0"),
        (lambda net: net(torch.rand(3, 5, 2)), r"coords is \(3, 5, 2\): \[N, 2\] is wanted.*or \[2, N, 2\]"),
        (lambda net: net(torch.rand(2)), r"\[N, 2\] is wanted"),
        (lambda net: net.mean_squared_errors(torch.rand(5, 2), torch.rand(5, 3)), r"target is \(5, 3\): \[2, 5, 3\]"),
        (lambda net: net.field(0).mean_squared_errors(torch.rand(5, 2), torch.rand(2, 5, 3)), r"\[5, 3\] is wanted"),
        (lambda net: net.field(2), "no field 2: 0 to 1"),
        (lambda net: net.field(0).field(0), "this network is one field"),
        (lambda net: net.set_field_(0, net), "has num_fields=2"),
        (lambda net: net.set_field_(0, LoEMLP()), "differ in out_features: 3 and 1"),
        (lambda net: net.select([]), "numbers of one field or more"),
        (lambda net: net.select([-1]), "no field -1"),
        (lambda net: net.init_fields_([1]), "1 seeds came for num_fields=2"),
        (lambda net: LoEMLP.stack([]), "no networks to stack"),
        (lambda net: LoEMLP.stack([net.field(0), LoEMLP()]), "differ in out_features"),
    ],
)
def test_what_does_not_fit_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(LoEMLP(**SMALL, num_fields=2))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("implementation", ["auto", "torch"])
@pytest.mark.parametrize("options", [{}, {"bias_tile_size": 3}, {"blending": "linear"}], ids=str)
def test_what_torch_wants_beside_numbers(options, implementation):
    """Traces, tensors without content, torch.func, forward-mode derivatives: as the network itself gives them."""
    network = together(2, implementation, torch.float32, num_layers=3, **options)
    coords = torch.rand(9, 2)
    out = network(coords).detach()
    traced = torch.jit.trace(network, (torch.rand(4, 2),), check_trace=False)
    torch.testing.assert_close(traced(coords), out, atol=1e-5, rtol=1e-4)
    parameters = dict(network.named_parameters())
    call = lambda p, x: torch.func.functional_call(network, p, (x,))  # noqa: E731
    grads = torch.func.grad(lambda p: call(p, coords).square().sum())(parameters)
    network(coords).square().sum().backward()
    for name, p in network.named_parameters():
        torch.testing.assert_close(grads[name], p.grad, atol=1e-4, rtol=1e-3)
    _, slope = torch.func.jvp(lambda p: call(p, coords), (parameters,), (parameters,))
    assert slope.shape == out.shape
    assert network.to("meta")(coords.to("meta")).shape == (2, 9, 3)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["auto", "torch"])
def test_compiled(implementation):
    network = together(2, implementation, torch.float32, num_layers=3)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    coords, cotangent = torch.rand(33, 2), torch.randn(2, 33, 3)
    for got, expected in zip(*(results(net, coords, cotangent) for net in (compiled, network))):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_auto_says_why_it_is_torch():
    network = LoEMLP(**SMALL, num_fields=2)
    assert network.resolved_implementation == ("cpu" if cpu.available() else "torch")
    with torch.autocast("cpu", torch.bfloat16):
        assert "16 bits" in (network.obstacle or "") or not cpu.available()
        assert network(torch.rand(5, 2)).dtype == torch.float32
    assert "float64" in (LoEMLP(**SMALL, num_fields=2).double().obstacle or "")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_muon_updates_every_field_alone(dtype):
    torch.manual_seed(0)
    stacks = [torch.randn(3, 4, 12, 9, dtype=dtype), torch.randn(3, 2, 12, 9, dtype=dtype)]
    grads = [[torch.randn_like(s) * 10.0**k for s in stacks] for k in (-2, 0, 1)]
    fields = [torch.nn.Parameter(s.clone()) for s in stacks]
    alone = [[torch.nn.Parameter(s[i].clone()) for s in stacks] for i in range(3)]
    optimizers = [Muon(fields), *(Muon(own) for own in alone)]
    for step in grads:
        for p, g in zip(fields, step):
            p.grad = g
        for i, own in enumerate(alone):
            for p, g in zip(own, step):
                p.grad = g[i].clone()
        for optimizer in optimizers:
            optimizer.step()
    for k, p in enumerate(fields):
        for i, own in enumerate(alone):
            torch.testing.assert_close(p[i], own[k], atol=1e-6 if dtype == torch.float32 else 1e-12, rtol=1e-6)
