"""The state of a run: into a checkpoint, and back out of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.utils.rich_utils import CONSOLE
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from loe_field.errors import InputError
from loe_field.training.checkpoints import find_checkpoint, read_checkpoint, require_same_networks
from loe_field.training.config import LoETrainerConfig
from loe_field.training.pipeline import LoEPipeline
from loe_field.training.record import RunRecord
from loe_field.words import say


@dataclass
class RunState:
    """The state of a run, besides its number of steps."""

    pipeline: LoEPipeline
    optimizers: Optimizers
    scaler: GradScaler
    record: RunRecord
    _random: dict[str, torch.Tensor] = field(default_factory=dict, init=False)

    def state_dict(self) -> dict[str, Any]:
        """Tensors, plain numbers and text, for torch.load(weights_only=True)."""
        return {
            "pipeline": self.pipeline.state_dict(),
            "optimizers": {name: o.state_dict() for name, o in self.optimizers.optimizers.items()},
            "schedulers": {name: s.state_dict() for name, s in self.optimizers.schedulers.items()},
            "scalers": self.scaler.state_dict(),
            "record": self.record.state_dict(),
            "networks": self.pipeline.network_options(),
            "random": self._random_numbers(),
            "counts": self.pipeline.counts(),
        }

    def _random_numbers(self) -> dict[str, torch.Tensor]:
        """States of torch's generators, which samplers and backgrounds draw from."""
        device = self.pipeline.device
        states = {"cpu": torch.get_rng_state()}
        return states | ({"cuda": torch.cuda.get_rng_state(device)} if torch.device(device).type == "cuda" else {})

    def go_on(self) -> None:
        """Draw the random numbers that the run of the checkpoint would have drawn next; before the first step."""
        if "cpu" in self._random:
            torch.set_rng_state(self._random["cpu"])
        if "cuda" in self._random and torch.device(self.pipeline.device).type == "cuda":
            torch.cuda.set_rng_state(self._random["cuda"], self.pipeline.device)

    def resume(self, config: LoETrainerConfig, check: Callable[[dict[str, Any], Path], None]) -> int:
        """Load --load-checkpoint, or the latest (or --load-step) of --load-dir; returns the first step, or 0.

        Args:
            config: with these options.
            check: refuses a checkpoint, given with its path, that is of something else.
        """
        if config.load_checkpoint is not None:
            path = config.load_checkpoint.expanduser()
        elif config.load_dir is not None:
            path = find_checkpoint(config.load_dir.expanduser(), config.load_step)
        else:
            return 0
        state = read_checkpoint(path)
        check(state, path)
        self.pipeline.load_pipeline(state["pipeline"], state["step"])
        require_same_networks(state.get("networks", []), self.pipeline.network_options())
        for name, saved in state["optimizers"].items():
            if name in self.optimizers.optimizers:
                _keep_ways(saved, self.optimizers.optimizers[name])
        try:
            self.optimizers.load_optimizers(state["optimizers"])
            if config.load_scheduler:
                self.optimizers.load_schedulers(state["schedulers"])
        except (KeyError, ValueError) as error:
            message = (
                f"{path} was trained with other optimizers ({error}): give the options of its run, --optimizers and, "
                "of a scene, --pipeline.model.muon (hidden: as before that option)"
            )
            raise InputError(message) from None
        self.scaler.load_state_dict(state["scalers"])
        if "record" in state:
            self.record.load_state_dict(state["record"])
        self._random = state.get("random", {})
        self.pipeline.load_counts(state.get("counts", {}))
        say(f"going on after step {state['step'] + 1} of {path}", CONSOLE)
        return state["step"] + 1


def _keep_ways(saved: dict[str, Any], optimizer: Optimizer) -> None:
    """Put this device's and this run's ways of computing into a saved state: they may have been others."""
    for group, mine in zip(saved["param_groups"], optimizer.param_groups):
        group |= {name: mine[name] for name in ("fused", "capturable", "foreach", "dtype") if name in mine}
