"""The host's config classes for this package's optimizers and schedule."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from nerfstudio.engine.optimizers import OptimizerConfig
from nerfstudio.engine.schedulers import Scheduler, SchedulerConfig
from torch import Tensor
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from loe_field.optim import Muon, linear_decay


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


@dataclass
class AdamConfig(OptimizerConfig):
    """Adam with both betas to choose (the host's own config has them fixed)."""

    _target: type = Adam
    lr: float = 1e-2
    """The learning rate."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.99
    """Decay of the second moment."""

    def setup(self, params: Iterable[Tensor]) -> Optimizer:
        """The optimizer over params; on a GPU one kernel, which keeps its step count there and fits a CUDA graph."""
        params = list(params)
        on_gpu = all(p.is_cuda for p in params)
        options = {"fused": True, "capturable": True} if on_gpu else {}
        return Adam(params, lr=self.lr, eps=self.eps, betas=(self.beta1, self.beta2), **options)


@dataclass
class LinearDecayConfig(SchedulerConfig):
    """Learning rate falling linearly over the run."""

    _target: type = field(default_factory=lambda: LinearDecayScheduler)
    max_steps: int | None = None
    """Step at which the learning rate reaches its end. None: the run's own --max-num-iterations."""
    warmup_steps: int = 0
    """Steps over which it rises from nearly 0 first."""
    final_factor: float = 0.0
    """The end, as a part of the learning rate."""


class LinearDecayScheduler(Scheduler):
    """Builds optim.linear_decay for the host."""

    config: LinearDecayConfig

    def get_scheduler(self, optimizer: Optimizer, lr_init: float) -> LRScheduler:
        """The schedule over an optimizer's groups; max_steps must be known by now (the Trainer fills it in)."""
        assert self.config.max_steps is not None
        return linear_decay(
            optimizer,
            self.config.max_steps,
            warmup_steps=self.config.warmup_steps,
            final_factor=self.config.final_factor,
        )
