"""Many small pictures fitted together: one network of many fields, full steps, and an early end for each field."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from loe_field.network.layers import LoEMLP
from loe_field.network.optim import Muon, decay_factor
from loe_field.signals.seeds import seeded_generator
from loe_field.signals.signal import grid_coords
from loe_field.signals.sizes import SmallNetwork

PIXELS_PER_BATCH = 16384
"""Pixels of a step; smaller pictures are taken whole."""
STEPS_PER_BATCH = 300
"""Steps for every batch that a picture has."""
_STEPS_PER_LOOK = 10
"""Steps from one look at which fields have reached the target to the next."""


@dataclass(frozen=True)
class ManyRecipe:
    """How each field is fitted; windows of 32x32 and 128x128 pixels of photographs were the measure."""

    num_steps: int | None = None
    """Steps, over which the learning rates fall linearly to 0. None: 300 for every 16,384 pixels of the picture."""
    target_psnr: float | None = None
    """A field is done as soon as it has this PSNR, dB."""
    experts_lr: float = 0.06
    """Learning rate of Muon, which has the matrices of all levels; 0.03 for 1,000 steps or more. With 32x32 pixels and
    200 steps 0.015 gave 32, 0.05 and more 42 dB."""
    fields_lr: float = 0.03
    """Learning rate of Adam, which has biases and last layers."""

    def steps_for(self, num_pixels: int) -> int:
        """Steps for a picture of so many pixels."""
        return self.num_steps or STEPS_PER_BATCH * batches_of(num_pixels)


def batches_of(num_pixels: int) -> int:
    """Steps in which every pixel is seen once."""
    return -(-num_pixels // PIXELS_PER_BATCH)


class Depth(NamedTuple):
    """What becomes of a fitted number when it is measured as its picture holds it."""

    white: float | None
    """The whole number that stands for 1; None for floats."""
    hdr: bool
    """Whether there is no upper end."""


class FittedFields(NamedTuple):
    """Fields that were fitted together.

    Attributes:
        network: all of them, on the CPU.
        psnr: dB of each, as its picture holds the numbers; NaN of one that came to nothing.
        num_steps: of each.
    """

    network: LoEMLP
    psnr: list[float]
    num_steps: list[int]


class Stopped(Exception):
    """The fit was asked to end before it was done."""


def fit_fields(
    targets: Tensor,
    size: SmallNetwork,
    *,
    seeds: Sequence[int],
    recipe: ManyRecipe,
    depth: Depth,
    start: LoEMLP | None = None,
    watch: Callable[[float], None] = lambda done: None,
) -> FittedFields:
    """Fit a field to each of F pictures of one size; each becomes what it would alone, with its seed.

    Args:
        targets: float32 [F, height, width, channels], as fitted, on the device to fit on.
        size: of every network.
        seeds: of the initial weights, one for each.
        recipe: steps and learning rates.
        depth: of the pictures' numbers.
        start: a field with which all begin instead.
        watch: told before each step how many fields are done, parts of fields included; what it raises ends the fit.
    """
    count, height, width, channels = targets.shape
    num_pixels, device = height * width, targets.device
    options = size.options((width, height), channels)
    with torch.random.fork_rng(devices=[]):
        network = LoEMLP(**options, num_fields=count).to(device)
        result = LoEMLP(**options, num_fields=count)
    if start is None:
        network.init_fields_(seeds)
    else:
        with torch.no_grad():
            for of_all, own in zip(network.parameters(), start.parameters()):
                of_all.copy_(own.expand_as(of_all))
    every = torch.arange(num_pixels, device=device)
    coords = grid_coords(every, (height, width)) / torch.tensor([width, height], dtype=torch.float32, device=device)
    targets = targets.reshape(count, num_pixels, channels)
    psnr, taken = [math.nan] * count, [0] * count
    alive = torch.arange(count)
    num_steps, batches = recipe.steps_for(num_pixels), batches_of(num_pixels)
    optimizers, order = _optimizers(network, recipe), every

    def keep(which: Tensor, values: Tensor, step: int) -> None:
        """Take fields of the network, by their numbers in it, for the result."""
        with torch.no_grad():
            for to, of in zip(result.parameters(), network.parameters()):
                to[alive[which]] = of[which.to(device)].to("cpu")
        for i, value in zip(alive[which].tolist(), values.tolist()):
            psnr[i], taken[i] = value, step

    for step in range(num_steps):
        watch(count - len(alive) * (1 - step / num_steps))
        if batches > 1 and step % batches == 0:
            order = torch.randperm(num_pixels, generator=seeded_generator(device, step // batches), device=device)
        if batches == 1:
            losses = network.mean_squared_errors(coords, targets)
        else:
            first, last = (i * num_pixels // batches for i in (step % batches, step % batches + 1))
            part = order[first:last]
            losses = network.mean_squared_errors(coords[part], targets[:, part])
        losses.sum().backward()
        factor = decay_factor(step, num_steps, kind="linear", final_factor=0.0)
        for optimizer, lr in zip(optimizers, (recipe.experts_lr, recipe.fields_lr)):
            optimizer.param_groups[0]["lr"] = factor * lr
            optimizer.step()
            optimizer.zero_grad()
        if recipe.target_psnr is None or (step + 1) % _STEPS_PER_LOOK or step + 1 == num_steps:
            continue
        near = (losses.detach() <= 10 ** (-recipe.target_psnr / 10)).nonzero()[:, 0].cpu()
        if len(near):
            values = measured(network.select(near), coords, targets[near.to(device)], depth)
            done = values >= recipe.target_psnr
            keep(near[done], values[done], step + 1)
            left = torch.ones(len(alive), dtype=torch.bool)
            left[near[done]] = False
            if not left.any():
                alive = alive[:0]
                break
            if not left.all():
                network, optimizers = _selected(network, optimizers, recipe, left)
                targets, alive = targets[left.to(device)], alive[left]
    if len(alive):
        keep(torch.arange(len(alive)), measured(network, coords, targets, depth), num_steps)
    return FittedFields(result, psnr, taken)


@torch.no_grad()
def measured(network: LoEMLP, coords: Tensor, targets: Tensor, depth: Depth) -> Tensor:
    """PSNR in dB of every field at coords [N, 2], float64 [F] on the CPU; infinite where nothing differs."""
    square = torch.zeros(len(targets), dtype=torch.float64)
    for first in range(0, len(coords), PIXELS_PER_BATCH):
        part = slice(first, first + PIXELS_PER_BATCH)
        seen, wanted = network(coords[part]).clamp(min=0, max=math.inf if depth.hdr else 1), targets[:, part]
        if depth.white is not None:
            seen, wanted = ((numbers * depth.white).round() / depth.white for numbers in (seen, wanted))
        square += (seen - wanted).double().square().sum((1, 2)).cpu()
    return -10 * torch.log10(square / targets[0].numel())


def _optimizers(network: LoEMLP, recipe: ManyRecipe) -> tuple[Optimizer, Optimizer]:
    """Muon for the matrices of all levels, Adam for the rest.

    Steps take the whole picture, so that moments over 10 and 20 steps are enough. At 200 steps and 32x32 pixels: the
    first level's matrices in Muon too +1.1 dB, momentum 0.9 for 0.95 +1.1, beta2 0.95 for 0.99 +0.5.
    """
    matrices: list[Tensor] = [layer.weight for layer in network.layers]  # type: ignore[misc]
    others = [p for p in network.parameters() if all(p is not matrix for matrix in matrices)]
    muon = Muon(matrices, recipe.experts_lr, momentum=0.9, beta2=0.95)
    return muon, Adam(others, recipe.fields_lr, betas=(0.9, 0.95))


def _selected(
    network: LoEMLP, optimizers: tuple[Optimizer, Optimizer], recipe: ManyRecipe, left: Tensor
) -> tuple[LoEMLP, tuple[Optimizer, Optimizer]]:
    """The chosen fields, bool [F], and what the optimizers know of them."""
    smaller = network.select(left)
    others = _optimizers(smaller, recipe)
    for before, after in zip(optimizers, others):
        for old, new in zip(before.param_groups[0]["params"], after.param_groups[0]["params"]):
            state = before.state[old]
            after.state[new] = {key: v[left.to(v.device)] if v.dim() else v.clone() for key, v in state.items()}
    return smaller, others
