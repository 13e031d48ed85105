"""nerfstudio's pipeline as a TrainStep takes it, with checkpoints that fit or are refused."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from torch import Tensor

from loe_field.errors import InputError
from loe_field.network.protocol import Network
from loe_field.training.checkpoints import require_same_shapes
from loe_field.training.step import Steppable


@dataclass
class LoEPipelineConfig(VanillaPipelineConfig):
    """A pipeline's config, which stays as it is: options that were left open become numbers in the pipeline's copy."""

    def setup(self, **kwargs: Any) -> Any:
        """The pipeline of a copy of this config."""
        config = copy.deepcopy(self)
        return config._target(config, **kwargs)


class LoEPipeline(VanillaPipeline, Steppable):
    """Subclasses draw and compute the losses; they may be capturable, and have steps of several variants.

    Attributes:
        rank: of several processes, this one's number: it draws its part of each step.
        size: how many processes take each step together.
        weight: this process's part of the last draw, 0 to 1.
    """

    weight = 1.0
    metrics: dict[str, Tensor] = {}  # noqa: RUF012  (replaced, never changed)

    def __init__(self, *args: Any, world_size: int = 1, local_rank: int = 0, **kwargs: Any) -> None:
        self.rank, self.size = local_rank, world_size
        super().__init__(*args, **kwargs)  # as of one process: the host would let another module average the gradients

    @property
    def networks(self) -> Sequence[Network]:
        """The networks that are trained."""
        return ()

    def implementations(self) -> list[str]:
        """The implementation of each network, under the autocast that is on.

        Raises:
            InputError: one that was asked for cannot serve here.
        """
        try:
            return [network.resolved_implementation for network in self.networks]
        except RuntimeError as error:
            raise InputError(f"{error} (--pipeline.model.implementation)") from None

    def network_options(self) -> list[dict[str, Any]]:
        """Options of the networks, which a checkpoint holds beside their weights and compares."""
        return [network.options for network in self.networks if network.options is not None]

    def require_parts(self, count: int, unit: str, option: str) -> None:
        """Refuse steps of so few samples that a process would have none.

        Raises:
            InputError: with the option that they come from.
        """
        if count < 2 * self.size > 2:
            few = f"a step takes {count} {unit}, too few for {self.size} processes"
            raise InputError(f"{few}: give {option} {2 * self.size}, or more")

    def counts(self) -> dict[str, int]:
        """What a run counts besides its steps, for its checkpoints. Subclasses may have some."""
        return {}

    def load_counts(self, counts: dict[str, int]) -> None:
        """Go on counting where a checkpoint did; {} of checkpoints that have none."""

    def load_pipeline(self, loaded_state: dict[str, Any], step: int) -> None:
        """Load weights, all of them: the host would take what fits and go on with the rest untrained."""
        require_same_shapes(loaded_state, self.state_dict())
        super().load_pipeline(loaded_state, step)
