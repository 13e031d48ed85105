"""nerfstudio's pipeline as a TrainStep takes it, with checkpoints that fit or are refused."""

from collections.abc import Sequence
from typing import Any

from nerfstudio.pipelines.base_pipeline import VanillaPipeline
from torch import Tensor

from loe_field.network.protocol import Network
from loe_field.training.checkpoints import require_same_shapes
from loe_field.training.step import Steppable


class LoEPipeline(VanillaPipeline, Steppable):
    """Subclasses draw and compute the losses; they may be capturable, and have steps of several variants."""

    metrics: dict[str, Tensor] = {}  # noqa: RUF012  (replaced, never changed)

    @property
    def networks(self) -> Sequence[Network]:
        """The networks that are trained."""
        return ()

    def network_options(self) -> list[dict[str, Any]]:
        """Options of the networks, which a checkpoint holds beside their weights and compares."""
        return [network.options for network in self.networks if network.options is not None]

    def load_pipeline(self, loaded_state: dict[str, Any], step: int) -> None:
        """Load weights, all of them: the host would take what fits and go on with the rest untrained."""
        require_same_shapes(loaded_state, self.state_dict())
        super().load_pipeline(loaded_state, step)
