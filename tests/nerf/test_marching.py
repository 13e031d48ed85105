"""Samples along rays by the C kernels, against the host's operations in fp64."""

import copy

import pytest
import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.configs.method_configs import method_configs  # noqa: F401  (the host's modules import each other)
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.field_components.activations import trunc_exp
from nerfstudio.model_components import losses as host_losses
from nerfstudio.model_components.ray_samplers import PDFSampler, UniformLinDispPiecewiseSampler, UniformSampler

from loe_field.adapter.network import LoEConfig
from loe_field.nerf import marching
from loe_field.nerf.colour import ColourMLP
from loe_field.nerf.model import LoENerfModelConfig
from loe_field.network.kernels import cpu

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not cpu.available(), reason=f"no CPU kernels: {cpu.why_unavailable()}"),
]


def rays(count=37, seed=0):
    torch.manual_seed(seed)
    origins = 2 * torch.nn.functional.normalize(torch.randn(count, 3), dim=-1)
    directions = torch.nn.functional.normalize(0.4 * torch.randn(count, 3) - origins, dim=-1)
    near, far = torch.full((count, 1), 0.2), torch.full((count, 1), 4.0)
    cameras = torch.arange(count)[:, None] % 2
    area = torch.full((count, 1), 1e-4)
    return RayBundle(
        origins=origins, directions=directions, pixel_area=area, camera_indices=cameras, nears=near, fars=far
    )


def in_fp64(samples):
    """The same samples in double precision."""
    twin = copy.deepcopy(samples)
    for part, names in ((twin, ("deltas", "spacing_starts", "spacing_ends")), (twin.frustums, ("starts", "ends"))):
        for name in names:
            setattr(part, name, getattr(part, name).double())
    twin.deltas = twin.frustums.ends - twin.frustums.starts
    return twin


def model(**options):
    torch.manual_seed(0)
    loe = LoEConfig(num_layers=2, layer_width=16, tile_size=1, grid_levels=4, grid_table_size=512, num_frequencies=0)
    sizes = {"loe": loe, "num_proposal_samples": (24,), "num_samples": 12, "num_features": 5}
    box = SceneBox(torch.tensor([[-1.0, -1.2, -1.0], [1.0, 1.1, 1.3]]))
    config = LoENerfModelConfig(**({"scene": "box", "background_color": "white"} | sizes | options))
    built = config.setup(scene_box=box, num_train_data=2, metadata={})
    with torch.no_grad():
        for network in built.networks:
            network.grid_table.uniform_(-1, 1)
    return built.train()


@pytest.mark.parametrize("count", [1, 16, 45])
@pytest.mark.parametrize("wide", [False, True])
def test_weights_and_their_gradient(count, wide):
    """Densities from nothing to opaque, some samples outside of the scene; beyond e^15 the host's slope is cut."""
    samples = UniformSampler(single_jitter=True).train()(rays(), num_samples=count)
    shape = (37, count, 6)
    encoded = (3 * torch.randn(shape) * (8 if wide else 1)).requires_grad_()
    inside, prefix = torch.rand(shape[:2]) > 0.2, torch.randn(37, 4)
    weights, x = marching.weights_of(samples, encoded, inside, prefix)
    exact = encoded.detach().double().requires_grad_()
    density = trunc_exp(exact[..., :1]) * inside[..., None]
    wanted = in_fp64(samples).get_weights(density)
    assert torch.equal(x, torch.cat([prefix[:, None].expand(-1, count, -1), encoded[..., 1:]], -1))
    torch.testing.assert_close(weights.double(), wanted, atol=3e-7, rtol=1e-5)
    cotangent, other = torch.randn(weights.shape), torch.randn(x.shape)
    (found,) = torch.autograd.grad((weights, x), encoded, (cotangent, other), retain_graph=True)
    (true,) = torch.autograd.grad((wanted, exact[..., 1:]), exact, (cotangent.double(), other[..., 4:].double()))
    scale = true.abs().max().clamp(min=1)
    assert (found - true).abs().max() < 3e-6 * scale
    assert not found[..., 0][~inside].any()
    (alone,) = torch.autograd.grad(weights, encoded, cotangent)
    assert not alone[..., 1:].any()
    torch.testing.assert_close(alone[..., 0], found[..., 0])


def test_densities_without_end():
    """No NaN in a picture: an infinite density is opaque, and what is no number counts for nothing."""
    samples = UniformSampler().eval()(rays(2), num_samples=5)
    encoded = torch.tensor([-200.0, 100, 3, float("nan"), 1]).repeat(2, 1)[..., None]
    inside = torch.tensor([[True] * 5, [True, False, True, False, True]])
    weights = marching.weights_of(samples, encoded, inside)[0][..., 0]
    assert torch.equal(weights[0], torch.tensor([0.0, 1, 0, 0, 0]))
    assert weights[1, [0, 1, 3]].eq(0).all()
    assert weights[1, [2, 4]].gt(0).all()


@pytest.mark.parametrize("scene", ["box", "unbounded"])
def test_places_are_the_hosts(scene):
    built, bundle = model(scene=scene), rays()
    samples = built.proposal_sampler.initial_sampler(bundle, num_samples=20)
    seen = []
    field = built.field
    field.encoding.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    density, _ = field.get_density(samples)
    _, inside = field.encoded(bundle, samples)
    torch.testing.assert_close(seen[1], seen[0], atol=2e-7, rtol=0)
    assert torch.equal(inside, density[..., 0] > 0)
    assert inside.any()
    assert scene == "unbounded" or not inside.all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [UniformSampler, UniformLinDispPiecewiseSampler])
def test_new_samples_are_the_hosts(kind, training):
    built, bundle = model(), rays()
    coarse = kind(single_jitter=True).train(training)(bundle, num_samples=24)
    weights = torch.rand(37, 24) ** 8
    weights[:5] = 0
    weights[5:9, 3] = 50.0
    sampler = built.proposal_sampler.train(training)
    torch.manual_seed(1)
    found = sampler._resampled(bundle, coarse, weights, 12)
    torch.manual_seed(1)
    host = PDFSampler(include_original=False, single_jitter=True).train(training)
    wanted = host(bundle, coarse, weights[..., None], num_samples=12)
    for name in ("spacing_starts", "spacing_ends", "deltas"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), atol=3e-5, rtol=1e-4)
    assert found.deltas.min() >= 0


@pytest.mark.parametrize("trained", [True, False])
def test_losses_are_the_hosts_in_fp64(trained):
    """With the field's samples where proposed ones are, edges in common and weights of 0 among them."""
    built, bundle = model(), rays()
    coarse = built.proposal_sampler.initial_sampler(bundle, num_samples=24)
    proposed, weights = torch.rand(37, 24, 1) / 24, torch.rand(37, 12, 1) / 6
    weights[::3, 2:6] = 0
    fine = built.proposal_sampler._resampled(bundle, coarse, proposed[..., 0] ** 4, 12)
    fine.spacing_ends[:, 4] = fine.spacing_starts[:, 5] = coarse.spacing_starts[:, 9]
    edges = marching.edges_of(fine).sort(-1).values
    fine.spacing_starts, fine.spacing_ends = edges[:, :-1, None], edges[:, 1:, None]
    ours = [proposed.clone().requires_grad_(trained), weights.clone().requires_grad_()]
    exact = [t.detach().double().requires_grad_(t.requires_grad) for t in ours]
    twins = [in_fp64(coarse), in_fp64(fine)]
    for name in ("interlevel_loss", "distortion_loss"):
        found, wanted = getattr(marching, name)(ours, [coarse, fine]), getattr(host_losses, name)(exact, twins)
        torch.testing.assert_close(found.double(), wanted, atol=1e-9, rtol=1e-5)
        leaf = 0 if name == "interlevel_loss" else 1
        if not exact[leaf].requires_grad:
            assert not found.requires_grad
            continue
        (got,), (true,) = (torch.autograd.grad(3 * loss, each[leaf]) for loss, each in ((found, ours), (wanted, exact)))
        assert true.any()
        torch.testing.assert_close(got.double(), true, atol=1e-8, rtol=1e-5)


@pytest.mark.parametrize("rows", [0, 1, 333])
def test_the_colours_are_the_hosts(rows):
    """Within twice the error of the host's fp32 against its fp64, gradients too."""
    torch.manual_seed(0)
    kernel, plain = ColourMLP(31), ColourMLP(31, implementation="torch")
    plain.load_state_dict(kernel.state_dict())
    exact = copy.deepcopy(plain).double()
    x, cotangent = torch.randn(rows, 31), torch.randn(rows, 3)
    results = []
    for mlp in (kernel, plain, exact):
        given = x.to(mlp.layers[0].weight.dtype).requires_grad_()
        out = mlp(given)
        results.append([out, *torch.autograd.grad(out, [given, *mlp.parameters()], cotangent.to(given.dtype))])
    assert "Network" in type(results[0][0].grad_fn.next_functions[0][0]).__name__
    for got, host, true in zip(*results):
        budget = (host - true).abs().max() if true.numel() else 0.0
        assert ((got - true).abs() <= 2 * budget + 2e-6).all()


@pytest.mark.parametrize(
    "options", [{}, {"appearance_dim": 3}, {"scene": "unbounded", "background_color": "last_sample"}]
)
@pytest.mark.parametrize("training", [True, False])
def test_a_step_is_the_hosts(options, training, monkeypatch):
    """All outputs, losses and gradients, with the same random numbers; and the kernels are what computed them."""
    found, used = [], []
    for how in ("auto", "torch"):
        built = model(host_implementation=how, **options).train(training)
        call = built.field.encoded
        monkeypatch.setattr(built.field, "encoded", lambda *a, c=call: used.append(1) or c(*a))
        torch.manual_seed(3)
        out = built(rays())
        values = {name: out[name] for name in ("rgb", "accumulation")}
        if training:
            losses = built.get_loss_dict(out, {"image": torch.rand(37, 3, generator=torch.Generator().manual_seed(0))})
            sum(losses.values()).backward()
            values |= losses | {name: p.grad for name, p in built.named_parameters() if p.grad is not None}
        found.append(values)
    assert len(used) == 1
    assert set(found[0]) == set(found[1])
    for name, wanted in found[1].items():
        # New samples differ by rounding, and so does now and then the cell of a grid or a proposal that one lies in.
        error = (found[0][name] - wanted).detach().norm()
        assert error < 1e-2 * wanted.detach().norm().clamp(min=1e-12), name


def test_no_number_of_threads_changes_a_bit():
    built, before, found = model(), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            bundle = rays()
            samples = built.proposal_sampler.initial_sampler(bundle, num_samples=24)
            encoded = torch.randn(37, 24, 3).requires_grad_()
            _, inside = marching.coords_of(bundle, samples, None)
            weights, _ = marching.weights_of(samples, encoded, inside)
            fine = built.proposal_sampler._resampled(bundle, samples, weights[..., 0].detach(), 24)
            loss = marching.distortion_loss([weights], [fine])
            loss = loss + marching.interlevel_loss([weights, weights.detach()], [samples, fine])
            found.append([weights, loss, *torch.autograd.grad(loss, encoded)])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(one, same) for one, same in zip(found[0], other))
