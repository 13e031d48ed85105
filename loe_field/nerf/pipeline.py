"""nerfstudio's pipeline of a scene."""

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nerfstudio.data.datamanagers.base_datamanager import DataManagerConfig
from nerfstudio.models.base_model import ModelConfig
from torch import Tensor

from loe_field.nerf.datamanager import SceneDataManager, SceneDataManagerConfig
from loe_field.nerf.model import LoENerfModel, LoENerfModelConfig
from loe_field.network.protocol import Network
from loe_field.signals.signal import part_of
from loe_field.training.pipeline import LoEPipeline, LoEPipelineConfig

_SAMPLER_COUNTS = {"_step", "_steps_since_update"}


@dataclass
class NerfPipelineConfig(LoEPipelineConfig):
    """A scene and the field that is fitted to it."""

    _target: type = field(default_factory=lambda: NerfPipeline)
    datamanager: DataManagerConfig = field(default_factory=SceneDataManagerConfig)
    """The scene."""
    model: ModelConfig = field(default_factory=LoENerfModelConfig)
    """The field."""


class NerfPipeline(LoEPipeline):
    """A scene, and a radiance field of this package's or the host's."""

    datamanager: SceneDataManager

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        option = "train-num-rays-per-batch"
        self.require_parts(self.datamanager.get_train_rays_per_batch(), "rays", f"--pipeline.datamanager.{option}")

    @property
    def networks(self) -> list[Network]:
        """Those of this package; none in the host's own fields."""
        return self.model.networks if isinstance(self.model, LoENerfModel) else []

    def network_options(self) -> list[dict[str, Any]]:
        """Also whether the coordinates are those of all space, contracted, or of the scene's box."""
        scene = {"scene": getattr(self.model.config, "scene", None)}
        return [options | scene for options in super().network_options()]

    def counts(self) -> dict[str, int]:
        """Steps since the proposal networks were trained, by which the host's sampler decides when they are again."""
        sampler = getattr(self.model, "proposal_sampler", None)
        return {name: getattr(sampler, name) for name in _SAMPLER_COUNTS} if sampler is not None else {}

    def load_counts(self, counts: dict[str, int]) -> None:
        """As counts gave them."""
        for name in _SAMPLER_COUNTS & counts.keys():
            setattr(self.model.proposal_sampler, name, counts[name])

    @property
    def capturable(self) -> bool:
        """Whether a step on a GPU waits for nothing; the host's own fields do not say."""
        return isinstance(self.model, LoENerfModel) and self.model.capturable

    def variant(self, step: int) -> Hashable:
        """Whether the proposal networks are trained."""
        return isinstance(self.model, LoENerfModel) and self.model.trains_proposals(step)

    def draw(self, step: int) -> tuple[Tensor, ...]:
        """Pixels of the scene, [N]; of several processes this one's part."""
        drawn = self.datamanager.train_pixel_sampler.draw(step)
        mine = drawn[part_of(len(drawn), self.rank, self.size)]
        self.weight = len(mine) / len(drawn)
        return (mine,)

    def losses(self, *drawn: Tensor) -> dict[str, Tensor]:
        """The model's losses over the rays through these pixels."""
        rays, batch = self.datamanager.train_pixel_sampler.rays(*drawn)
        outputs = self._model(rays)
        self.metrics = self.model.get_metrics_dict(outputs, batch)
        return self.model.get_loss_dict(outputs, batch, self.metrics)

    def get_average_eval_image_metrics(
        self, step: int | None = None, output_path: Path | None = None, get_std: bool = False
    ) -> dict[str, Any]:
        """The host's evaluation (ns-eval); the spread over one single view is 0, not NaN, which JSON has not."""
        metrics = super().get_average_eval_image_metrics(step=step, output_path=output_path, get_std=get_std)
        return {k: 0.0 if k.endswith("_std") and math.isnan(v) else v for k, v in metrics.items()}
