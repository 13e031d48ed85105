"""A training step as a CUDA graph: some hundred kernels for one launch."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_WARM_UP = 3
"""Steps taken without a graph first: optimizers make their state and libraries their workspaces in them."""


class GraphedStep:
    """Forward, backward and optimizer step, recorded at the fourth call with inputs of one shape, then replayed.

    Every call is one real step, the first ones too. Learning rates stay numbers in the optimizers' groups, where
    schedulers change them; the graph reads copies on the device, which each call brings up to date.

    Args:
        loss: the loss of inputs on the GPU. It must never wait for the device.
        optimizers: stepped in this order. They must accept a tensor as learning rate and keep all state on the device.
    """

    def __init__(self, loss: Callable[..., Tensor], optimizers: Sequence[Optimizer]) -> None:
        self._loss, self._optimizers = loss, optimizers
        self._groups: list[dict[str, Any]] = [group for o in optimizers for group in o.param_groups]
        self._rates: list[Tensor] = []
        self._taken: dict[tuple[torch.Size, ...], int] = {}
        self._recorded: dict[tuple[torch.Size, ...], tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Take a step; returns its loss, a tensor that the next step of the same shape overwrites."""
        key = tuple(t.shape for t in inputs)
        if key not in self._recorded:
            taken = self._taken[key] = self._taken.get(key, 0) + 1
            if taken <= _WARM_UP:
                return self._warm_up(inputs)
            self._recorded[key] = self._record(inputs)
        graph, static, loss = self._recorded[key]
        for mine, given in zip(static, inputs):
            mine.copy_(given)
        for group, rate in zip(self._groups, self._rates):
            rate.fill_(group["lr"])
        graph.replay()
        return loss

    def _step(self, inputs: Sequence[Tensor]) -> Tensor:
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss = self._loss(*inputs)
        loss.backward()
        for optimizer in self._optimizers:
            optimizer.step()
        return loss.detach()

    def _warm_up(self, inputs: Sequence[Tensor]) -> Tensor:
        """A step on a stream of its own, as recording asks of the steps before it."""
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            loss = self._step(inputs)
        current.wait_stream(side)
        return loss

    def _record(self, inputs: Sequence[Tensor]) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]:
        """Record a step without taking it."""
        static = [t.clone() for t in inputs]
        numbers = [group["lr"] for group in self._groups]
        if not self._rates:
            self._rates = [torch.tensor(float(lr), device=static[0].device) for lr in numbers]
        graph = torch.cuda.CUDAGraph()
        for optimizer in self._optimizers:  # gradients of the warm-up lie outside the graph's memory
            optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        for group, rate in zip(self._groups, self._rates):
            group["lr"] = rate
        try:
            with torch.cuda.graph(graph):
                loss = self._step(static)
        finally:
            for group, number in zip(self._groups, numbers):
                group["lr"] = number
        return graph, static, loss
