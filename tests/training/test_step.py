"""One step: as the host's Trainer takes it, and as a CUDA graph takes it."""

import pytest
import torch
from recording import Launches, Rehearsal

from loe_field import LoEMLP
from loe_field.network.optim import Muon, decay
from loe_field.training.step import TrainStep, _recordable


class Wave:
    """A pipeline that fits a product of sines; its batches have sizes in turn."""

    capturable, metrics = True, {}

    def __init__(self, device="cpu", sizes=(500,), steps=12, fused=False):
        torch.manual_seed(0)
        self.field = LoEMLP(num_layers=4, layer_width=64, num_frequencies=4).to(device)
        generator = torch.Generator().manual_seed(1)
        self.points, self.sizes = torch.rand(steps, max(sizes), 2, generator=generator).to(device), sizes
        groups = self.field.param_groups()
        fields = torch.optim.Adam(groups["fields"], lr=1e-2, fused=fused or device == "cuda")
        self.optimizers = {"experts": Muon(groups["experts"], lr=0.02), "fields": fields}
        self.schedulers = {name: decay(optimizer, steps) for name, optimizer in self.optimizers.items()}

    def draw(self, step):
        return (self.points[step, : self.sizes[step % len(self.sizes)]],)

    def losses(self, batch):
        return {"rgb_loss": (self.field(batch)[:, 0] - (9 * batch).sin().prod(-1)).square().mean()}

    def variant(self, step):
        return None

    def rates(self):
        return [group["lr"] for o in self.optimizers.values() for group in o.param_groups]


def train(wave, steps=12, **options):
    """Losses of a run and the parameters that it ends with."""
    step = TrainStep(wave, wave.optimizers, wave.schedulers, device=wave.points.device, **options)
    losses = [step(number)[0]["rgb_loss"].clone() for number in range(steps)]
    return torch.stack(losses), [p.detach().clone() for p in wave.field.parameters()]


def by_hand(wave, steps=12):
    """The same in four lines."""
    for number in range(steps):
        for optimizer in wave.optimizers.values():
            optimizer.zero_grad()
        wave.losses(*wave.draw(number))["rgb_loss"].backward()
        for each in (*wave.optimizers.values(), *wave.schedulers.values()):
            each.step()
    return [p.detach() for p in wave.field.parameters()]


def equal(got, expected):
    return all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_a_step_is_what_it_says():
    losses, parameters = train(Wave())
    assert losses[-1] < 0.5 * losses[0]
    assert equal(parameters, by_hand(Wave()))


def test_accumulated_gradients_are_stepped_together():
    wave = Wave()
    before = wave.field.head.weight.detach().clone()
    step = TrainStep(wave, wave.optimizers, device="cpu", accumulate={"fields": 3})
    hidden = []
    for number in range(3):
        assert torch.equal(wave.field.head.weight, before)
        step(number)
        hidden.append(wave.field.layers[1].weight.detach().clone())
    assert not torch.equal(wave.field.head.weight, before)
    assert not torch.equal(hidden[0], hidden[1])


def test_gradients_are_clipped_for_the_optimizer_that_asks():
    wave = Wave()
    TrainStep(wave, wave.optimizers, device="cpu", max_norm={"fields": 1e-3})(0)
    norms = {
        name: torch.stack([p.grad.norm() for group in o.param_groups for p in group["params"]]).norm()
        for name, o in wave.optimizers.items()
    }
    assert norms["fields"] == pytest.approx(1e-3, rel=1e-2)
    assert norms["experts"] > 2e-3


def test_a_step_that_the_scaler_skips_leaves_the_schedules():
    """A scaler on a CPU, told of an infinite gradient."""
    wave = Wave()
    wave.losses = lambda batch: {"rgb_loss": wave.field(batch).mean() * float("inf")}
    scaler = torch.amp.GradScaler("cpu")
    before, rates = wave.field.head.weight.detach().clone(), wave.rates()
    TrainStep(wave, wave.optimizers, wave.schedulers, device="cpu", scaler=scaler)(0)
    assert torch.equal(wave.field.head.weight, before)
    assert wave.rates() == rates
    assert scaler.get_scale() < 65536


def test_no_graph_on_a_cpu():
    wave = Wave()
    assert not TrainStep(wave, wave.optimizers, device="cpu").captures


@pytest.mark.parametrize("sizes", [(500,), (500, 499)])
def test_a_replay_reads_what_is_drawn_and_the_rates_of_its_step(sizes):
    wave = Wave(sizes=sizes, fused=True)
    step = Rehearsal(wave, wave.optimizers, wave.schedulers, device="cpu")
    for number in range(12):
        step(number)
    assert step.recordings == len(sizes)
    assert all(isinstance(rate, float) for rate in wave.rates())
    assert not any(group["capturable"] for group in wave.optimizers["fields"].param_groups)
    found = [p.detach() for p in wave.field.parameters()]
    for got, wanted in zip(found, by_hand(Wave(sizes=sizes, fused=True)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "launches"), [("linear", 3), ("constant", 1)])
def test_a_replayed_step_is_a_handful_of_launches(kind, launches):
    """One copy of what is drawn, and one number for each rate that changes."""
    wave = Wave(fused=True)
    wave.schedulers = {name: decay(optimizer, 12, kind=kind) for name, optimizer in wave.optimizers.items()}
    step = Rehearsal(wave, wave.optimizers, wave.schedulers, device="cpu")
    for number in range(5):
        step(number)
    with Launches() as step.launches:
        for number in range(5, 8):
            step(number)
    assert step.launches.count == 3 * launches


def test_only_optimizers_whose_state_is_on_the_device_are_recorded():
    params = [torch.zeros(2, 2, requires_grad=True)]
    assert _recordable(Muon(params))
    assert _recordable(torch.optim.Adam(params, fused=True))
    assert _recordable(torch.optim.RAdam(params, capturable=True))
    assert not _recordable(torch.optim.Adam(params))
    assert not _recordable(torch.optim.SGD(params, lr=0.1, fused=True))


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", [(500,), (500, 499)])
def test_a_graph_takes_the_same_steps(sizes):
    wave = Wave("cuda", sizes)
    losses, parameters = train(wave)
    expected_losses, expected_parameters = train(Wave("cuda", sizes), capture=False)
    assert all(isinstance(rate, float) for rate in wave.rates())
    torch.testing.assert_close(losses, expected_losses, rtol=1e-4, atol=1e-6)
    for got, expected in zip(parameters, expected_parameters):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
def test_what_cannot_be_recorded_goes_on_eagerly():
    class Waits(Wave):
        def losses(self, batch):
            loss = super().losses(batch)["rgb_loss"]
            return {"rgb_loss": loss * (1 + 0 * float(loss.detach()) + 0 * torch.rand((), device="cuda"))}

    said = []
    _, parameters = train(Waits("cuda"), say=said.append)
    expected = train(Wave("cuda"), capture=False)[1]
    assert len(said) == 1
    assert "cannot be recorded" in said[0]
    for got, wanted in zip(parameters, expected):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)
