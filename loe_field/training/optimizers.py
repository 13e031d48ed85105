"""The host's config classes for this package's optimizers and schedule."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from nerfstudio.engine.optimizers import OptimizerConfig
from nerfstudio.engine.schedulers import Scheduler, SchedulerConfig
from torch import Tensor
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from loe_field.network.optim import Decay, Muon, decay


@dataclass
class MuonConfig(OptimizerConfig):
    """Muon for stacks of expert matrices."""

    _target: type = Muon
    lr: float = 0.015
    """The learning rate: how far each singular direction of a matrix moves in one step."""
    eps: float = 1e-8
    """Added to the root of the per-row scale."""
    momentum: float = 0.95
    """Decay of the Nesterov momentum."""
    beta2: float = 0.95
    """Decay of the per-row second moment of the update; 0 turns the per-row scaling off."""
    num_iterations: int = 5
    """Newton-Schulz iterations."""
    precision: Literal["fp32", "bf16"] | None = None
    """Type of their products; sums, momentum and weights stay fp32. bf16 is for CPUs with AVX-512 BF16 and means
    fp32 elsewhere. None: bf16 if --precision is, else fp32."""

    def setup(self, params: Iterable[Tensor]) -> Optimizer:
        """The optimizer over params."""
        values = {name: getattr(self, name) for name in ("lr", "eps", "momentum", "beta2", "num_iterations")}
        return Muon(params, **values, dtype=torch.bfloat16 if self.precision == "bf16" else None)


@dataclass
class AdamConfig(OptimizerConfig):
    """Adam with everything to choose (the host's own config has the betas fixed)."""

    _target: type = Adam
    lr: float | None = None  # type: ignore[assignment]
    """The learning rate. None: 1e-2, or that of the authors of --pipeline.model.network."""
    eps: float | None = None  # type: ignore[assignment]
    """Added to the root of the second moment. None: 1e-8, or the authors'."""
    beta1: float | None = None
    """Decay of the first moment. None: 0.9, or the authors'."""
    beta2: float | None = None
    """Decay of the second moment. None: 0.99, or the authors'."""
    amsgrad: bool | None = None
    """Divide by the root of the largest second moment so far. None: False, or the authors'."""
    weight_decay: float = 0.0
    """L2 term on the parameters."""

    def filled(self, **values: Any) -> "AdamConfig":
        """This config with values where it has None."""
        return replace(self, **{name: value for name, value in values.items() if getattr(self, name) is None})

    def setup(self, params: Iterable[Tensor]) -> Optimizer:
        """The optimizer over params: one kernel, which on a GPU keeps its count of steps there, as a graph wants it."""
        params = list(params)
        full = self.filled(lr=1e-2, eps=1e-8, beta1=0.9, beta2=0.99, amsgrad=False)
        values: dict[str, Any] = {name: getattr(full, name) for name in ("lr", "eps", "amsgrad", "weight_decay")}
        # A fifth of the time of torch's operations one by one, for a table of a million numbers on a core.
        fused = all(p.is_cuda or p.is_cpu for p in params)
        return Adam(params, betas=(full.beta1, full.beta2), fused=fused, **values)  # type: ignore[arg-type]


def grid_config(lr: float | None = None) -> AdamConfig:
    """For the vectors of grids and bias tiles: few points of a step touch one, so that its moments are small (eps)."""
    return AdamConfig(lr=lr, eps=1e-15)


@dataclass
class DecayConfig(SchedulerConfig):
    """Learning rate falling over the run."""

    _target: type = field(default_factory=lambda: DecayScheduler)
    kind: Decay | None = None
    """How it falls. None: linear, or as the authors of --pipeline.model.network have it."""
    max_steps: int | None = None
    """Step at which the learning rate reaches its end. None: the run's own --max-num-iterations."""
    warmup_steps: int = 0
    """Steps over which it rises from nearly 0 first."""
    final_factor: float | None = None
    """The end, as a part of the learning rate. None: 0, or the authors'."""


class DecayScheduler(Scheduler):
    """Builds optim.decay for the host."""

    config: DecayConfig

    def get_scheduler(self, optimizer: Optimizer, lr_init: float) -> LRScheduler:
        """The schedule over an optimizer's groups; max_steps must be known by now (the Trainer fills it in)."""
        config = self.config
        assert config.max_steps is not None
        kind, factor = config.kind or "linear", config.final_factor or 0.0
        return decay(optimizer, config.max_steps, kind=kind, warmup_steps=config.warmup_steps, final_factor=factor)
