"""A step as a CUDA graph takes the very steps that it would take without one."""

import pytest
import torch

from loe_field import LoEMLP
from loe_field.optim import Muon, decay
from loe_field.training.graphed import GraphedStep

pytestmark = pytest.mark.gpu


def train(graphed, sizes, steps=12):
    """Losses of a run whose batches have sizes in turn, and the parameters it ends with."""
    torch.manual_seed(0)
    field = LoEMLP(num_layers=4, layer_width=64, num_frequencies=4).cuda()
    experts = [layer.weight for layer in list(field.layers)[1:]]
    rest = [p for p in field.parameters() if all(p is not e for e in experts)]
    optimizers = [Muon(experts, lr=0.02), torch.optim.Adam(rest, lr=1e-2, fused=True, capturable=True)]
    schedules = [decay(optimizer, steps) for optimizer in optimizers]
    points = torch.rand(steps, max(sizes), 2, generator=torch.Generator().manual_seed(1)).cuda()

    def loss(batch):
        return (field(batch)[:, 0] - (9 * batch).sin().prod(-1)).square().mean()

    graph = GraphedStep(loss, optimizers)
    losses = []
    for step in range(steps):
        batch = points[step, : sizes[step % len(sizes)]]
        if graphed:
            losses.append(graph(batch).clone())
        else:
            for optimizer in optimizers:
                optimizer.zero_grad()
            losses.append(loss(batch))
            losses[-1].backward()
            for optimizer in optimizers:
                optimizer.step()
        for schedule in schedules:
            schedule.step()
    assert all(isinstance(group["lr"], float) for optimizer in optimizers for group in optimizer.param_groups)
    return torch.stack(losses).detach(), [p.detach() for p in field.parameters()]


@pytest.mark.parametrize("sizes", [(500,), (500, 499)])
def test_same_steps(sizes):
    losses, parameters = train(True, sizes)
    expected_losses, expected_parameters = train(False, sizes)
    torch.testing.assert_close(losses, expected_losses, rtol=1e-4, atol=1e-6)
    for got, expected in zip(parameters, expected_parameters):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
