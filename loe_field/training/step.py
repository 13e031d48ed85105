"""One optimizer step, the same for CPU, GPU, pictures and scenes; on a GPU as the replay of a CUDA graph."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from functools import reduce
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from loe_field.network.optim import Muon, orthogonalize

_WARM_UP = 3
"""Steps of each kind without a graph first: optimizers make their state in them, and libraries their workspaces."""


class Steppable(Protocol):
    """A pipeline as the step sees it."""

    metrics: dict[str, Tensor]
    """Figures of the last `losses`, for loggers."""

    weight: float
    """See TrainStep.sum_gradients."""

    @property
    def capturable(self) -> bool:
        """Whether nothing in `losses` and its backward pass waits for the device or copies from the host."""
        return False

    def draw(self, step: int) -> tuple[Tensor, ...]:
        """The random choice of a step >= 0, on the device. It is made outside a CUDA graph."""
        ...

    def losses(self, *drawn: Tensor) -> dict[str, Tensor]:
        """Forward pass and losses; their sum is minimised."""
        ...

    def variant(self, step: int) -> Hashable:
        """Steps of one variant run the same operations; each variant has a graph of its own."""
        return None


_Figures = tuple[dict[str, Tensor], dict[str, Tensor]]
"""Losses and metrics."""


class _Recorded(NamedTuple):
    graph: torch.cuda.CUDAGraph
    drawn: list[Tensor]
    losses: dict[str, Tensor]
    metrics: dict[str, Tensor]


def _recordable(optimizer: Optimizer) -> bool:
    """Whether an optimizer's state lies on the device, where a graph finds it."""
    fused = isinstance(optimizer, Adam) and optimizer.defaults["fused"]
    return isinstance(optimizer, Muon) or bool(fused or optimizer.defaults.get("capturable"))


@dataclass
class TrainStep:
    """Draw, losses, backward, optimizers, schedulers.

    On a GPU the fourth step of each kind (variant, and shapes of what is drawn) is recorded as a CUDA graph and
    replayed from then on, where pipeline and optimizers are capturable and no option stands against it. Outside of the
    graph, which has everything from the rays on, the host launches one copy for each tensor that is drawn and one
    number for each learning rate that has changed; they stay numbers in the optimizers' groups, where schedulers change
    them. What is drawn is chosen by seed and step alone, so that a resumed run draws the same. All graphs share one
    pool of memory: one step runs at a time, and nothing of it outlasts the next. Optimizers are stepped in their order,
    then the schedulers.
    """

    pipeline: Steppable
    optimizers: Mapping[str, Optimizer]
    schedulers: Mapping[str, LRScheduler] = field(default_factory=dict)
    _: KW_ONLY
    device: torch.device | str
    autocast: bool = False
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler(enabled=False))
    accumulate: Mapping[str, int] = field(default_factory=dict)
    """Steps over which an optimizer's gradients are summed up; 1 where it is not named."""
    max_norm: Mapping[str, float | None] = field(default_factory=dict)
    """Norm that an optimizer's gradients are clipped to; None or not named: they are not."""
    capture: bool = True
    """Whether CUDA graphs may be recorded."""
    sum_gradients: Callable[[Sequence[Tensor]], None] | None = None
    """Of several processes that take each step together, each its part of the batch: adds up their gradients of these
    parameters. The pipeline's `weight` is this one's part; None of one process."""
    say: Callable[[str], Any] = print
    """Told, in one line, that a graph could not be recorded; the run then goes on without."""

    def __post_init__(self) -> None:
        self._device = torch.device(self.device)
        self._groups: list[dict[str, Any]] = [g for o in self.optimizers.values() for g in o.param_groups]
        self.captures = (
            self.capture
            and self._device.type == "cuda"
            and self.pipeline.capturable
            and not self.scaler.is_enabled()
            and all(self.accumulate.get(name, 1) == 1 and self.max_norm.get(name) is None for name in self.optimizers)
            and all(map(_recordable, self.optimizers.values()))
        )
        self._rates: list[Tensor] = []
        self._numbers: list[float] = []
        self._side: torch.cuda.Stream | None = None
        self._pool: Any = None
        self._taken: Counter[Hashable] = Counter()
        self._recorded: dict[Hashable, _Recorded] = {}

    def __call__(self, step: int) -> _Figures:
        """Take a step; returns its losses and metrics, which the next step may overwrite."""
        drawn, scale = self.pipeline.draw(step), self.scaler.get_scale()
        figures = self._capture_or_replay(step, drawn) if self.captures else self._take(step, drawn)
        if self.scaler.get_scale() >= scale:  # a smaller scale means that the optimizers were not stepped
            for scheduler in self.schedulers.values():
                scheduler.step()
        return figures

    def prepare(self, step: int) -> None:
        """Compile on a GPU what a step compiles at its first use; nothing is trained."""
        with torch.device(self._device):
            self._loss(self.pipeline.draw(step))[0].backward()
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
            if isinstance(optimizer, Muon):
                for matrix in {p.shape[-2:]: p for group in optimizer.param_groups for p in group["params"]}.values():
                    orthogonalize(matrix.detach())

    def _loss(self, drawn: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast(self._device.type, enabled=self.autocast):
            losses = self.pipeline.losses(*drawn)
            return reduce(torch.add, losses.values()), losses

    def _take(self, step: int, drawn: tuple[Tensor, ...]) -> _Figures:
        """The step itself, without draw and schedulers."""
        for name, optimizer in self.optimizers.items():
            if step % self.accumulate.get(name, 1) == 0:
                optimizer.zero_grad(set_to_none=True)
        loss, losses = self._loss(drawn)
        if self.sum_gradients is not None:
            loss = loss * self.pipeline.weight
        self.scaler.scale(loss).backward()
        stepped = {
            name: [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            for name, optimizer in self.optimizers.items()
            if (step + 1) % self.accumulate.get(name, 1) == 0
        }
        if self.sum_gradients is not None:
            self.sum_gradients([p for params in stepped.values() for p in params])
        for name, optimizer in self.optimizers.items():
            if params := stepped.get(name):
                if (max_norm := self.max_norm.get(name)) is not None:
                    self.scaler.unscale_(optimizer)
                    torch.nn.utils.clip_grad_norm_(params, max_norm)
                self.scaler.step(optimizer)
        self.scaler.update()
        return {name: value.detach() for name, value in losses.items()}, self.pipeline.metrics

    def _capture_or_replay(self, step: int, drawn: tuple[Tensor, ...]) -> _Figures:
        key = (self.pipeline.variant(step), *(t.shape for t in drawn))
        if key not in self._recorded:
            self._taken[key] += 1
            if self._taken[key] <= _WARM_UP:
                return self._warm_up(step, drawn)
            offset = self._generator.get_offset()
            try:
                self._recorded[key] = self._record(step, drawn)
            except RuntimeError as error:
                self._give_up(error, offset)
                return self._take(step, drawn)
        recorded = self._recorded[key]
        for mine, given in zip(recorded.drawn, drawn):
            mine.copy_(given)
        numbers = [float(group["lr"]) for group in self._groups]
        for rate, number, before in zip(self._rates, numbers, self._numbers):
            if number != before:
                rate.fill_(number)
        self._numbers = numbers
        recorded.graph.replay()
        return recorded.losses, recorded.metrics

    def _warm_up(self, step: int, drawn: tuple[Tensor, ...]) -> _Figures:
        """A step on another stream, as recording asks of the steps before it."""
        self._side = self._side or torch.cuda.Stream(self._device)
        current = torch.cuda.current_stream(self._device)
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side), torch.device(self._device):
            figures = self._take(step, drawn)
        current.wait_stream(self._side)
        return figures

    def _record(self, step: int, drawn: tuple[Tensor, ...]) -> _Recorded:
        """Record a step without taking it; torch.device places the host's tensors that name no device.

        What other threads do meanwhile, the viewer's for one, does not break the recording off: "thread_local".
        """
        static = [t.clone() for t in drawn]
        graph = torch.cuda.CUDAGraph()
        for optimizer in self.optimizers.values():  # gradients of the warm-up lie outside the graph's memory
            optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize(self._device)
        self._side = None
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        current = torch.cuda.current_stream(self._device)
        with (
            self._as_recorded(),
            torch.cuda.stream(current),  # torch leaves the stream of a recording that broke off the current one
            torch.device(self._device),
            torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
        ):
            losses, metrics = self._take(step, tuple(static))
        return _Recorded(graph, static, losses, dict(metrics))

    @contextmanager
    def _as_recorded(self) -> Iterator[None]:
        """Put the optimizers into the state that a recording wants: rates on the device, and "capturable".

        That is set here alone, for torch warns of optimizers that have it and are stepped without a recording, as in
        the warm-up; the state of one with one kernel ("fused") lies on the device anyway.
        """
        if not self._rates:
            self._numbers = [float(group["lr"]) for group in self._groups]
            self._rates = [torch.tensor(number, device=self._device) for number in self._numbers]
        before = [{name: group[name] for name in ("lr", "capturable") if name in group} for group in self._groups]
        for group, rate, values in zip(self._groups, self._rates, before):
            group |= dict.fromkeys(values, True) | {"lr": rate}
        try:
            yield
        finally:
            for group, values in zip(self._groups, before):
                group |= values

    @property
    def _generator(self) -> torch.Generator:
        """Of the device's random numbers."""
        return torch.cuda.default_generators[self._device.index or 0]

    def _give_up(self, error: RuntimeError, offset: int) -> None:
        """Record no graphs from here on; random numbers go on from an offset, freed of the recording that broke off."""
        self.captures = False
        self._recorded.clear()
        self.say(f"a step cannot be recorded as a CUDA graph, going on without ({str(error).split(chr(10))[0]})")
        fresh = torch.Generator(self._device).manual_seed(self._generator.initial_seed())
        fresh.set_offset(offset)
        self._generator.graphsafe_set_state(fresh.graphsafe_get_state())
