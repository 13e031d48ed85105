"""nerfstudio's pipeline of a scene."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nerfstudio.data.datamanagers.base_datamanager import DataManagerConfig
from nerfstudio.models.base_model import ModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig

from loe_field.nerf.datamanager import SceneDataManagerConfig
from loe_field.nerf.model import LoENerfModelConfig
from loe_field.training.pipeline import LoEPipeline


@dataclass
class NerfPipelineConfig(VanillaPipelineConfig):
    """A scene and the field that is fitted to it."""

    _target: type = field(default_factory=lambda: NerfPipeline)
    datamanager: DataManagerConfig = field(default_factory=SceneDataManagerConfig)
    """The scene."""
    model: ModelConfig = field(default_factory=LoENerfModelConfig)
    """The field."""


class NerfPipeline(LoEPipeline):
    """The host's pipeline."""

    def get_average_eval_image_metrics(
        self, step: int | None = None, output_path: Path | None = None, get_std: bool = False
    ) -> dict[str, Any]:
        """The host's evaluation (ns-eval); the spread over one single view is 0, not NaN, which JSON has not."""
        metrics = super().get_average_eval_image_metrics(step=step, output_path=output_path, get_std=get_std)
        return {k: 0.0 if k.endswith("_std") and math.isnan(v) else v for k, v in metrics.items()}
