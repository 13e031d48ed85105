"""nerfstudio's pipeline, with checkpoints that fit or are refused."""

from typing import Any

from nerfstudio.pipelines.base_pipeline import VanillaPipeline

from loe_field.training.checkpoints import require_same_shapes


class LoEPipeline(VanillaPipeline):
    """The host's pipeline, which would take of a checkpoint what fits and go on with the rest untrained."""

    def load_pipeline(self, loaded_state: dict[str, Any], step: int) -> None:
        """Load a checkpoint's weights.

        Raises:
            InputError: they belong to a network of another shape, or to another number of training views.
        """
        require_same_shapes(loaded_state, self.state_dict())
        super().load_pipeline(loaded_state, step)
