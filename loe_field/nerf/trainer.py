"""The Trainer of a radiance field: held-out views are measured, and the figures are left in the run's folder."""

import json
from dataclasses import dataclass, field
from typing import Any

from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.utils.rich_utils import CONSOLE

from loe_field.files import write_whole
from loe_field.image.report import environment
from loe_field.nerf.datamanager import SceneDataManagerConfig
from loe_field.nerf.model import LoENerfModelConfig
from loe_field.training.trainer import LoETrainer, LoETrainerConfig


@dataclass
class NerfTrainerConfig(LoETrainerConfig):
    """How to train a radiance field."""

    _target: type = field(default_factory=lambda: NerfTrainer)
    pipeline: VanillaPipelineConfig = field(
        default_factory=lambda: VanillaPipelineConfig(datamanager=SceneDataManagerConfig(), model=LoENerfModelConfig())
    )
    """The scene and the field."""
    max_num_iterations: int = 6000
    """Steps of the whole run, those before a resume included."""
    steps_per_eval_all_images: int = 1000
    """Steps between evaluations of all held-out views; the run ends with one in any case."""


class NerfTrainer(LoETrainer):
    """Trains a radiance field."""

    config: NerfTrainerConfig
    unit = "rays"

    def evaluate(self) -> float:
        """Mean PSNR in dB over the held-out views."""
        self._measured = self.pipeline.get_average_eval_image_metrics(step=self.step)
        return self._measured["psnr"]

    def write_results(self) -> None:
        """metrics.json and curve.csv, and say where."""
        model = self.pipeline.model
        seconds = self.record.curve[-1].seconds
        metrics: dict[str, Any] = {
            "method": self.config.method_name,
            "data": str(self.config.pipeline.datamanager.data),
            "psnr": self._measured["psnr"],
            "psnr_best": self.record.psnr_best,
            "ssim": self._measured["ssim"],
            "num_parameters": sum(p.numel() for group in model.get_param_groups().values() for p in group),
            "num_steps": self.step + 1,
            "train_seconds": seconds,
            "rays_per_second": (self.step + 1)
            * self.pipeline.datamanager.get_train_rays_per_batch()
            / max(seconds, 1e-9),
            "seed": self.config.machine.seed,
            "precision": self.precision,
            **environment(self.device),
        }
        with write_whole(self.base_dir / "metrics.json") as path:
            path.write_text(json.dumps(metrics, indent=2) + "\n", "utf8")
        with write_whole(self.base_dir / "curve.csv") as path:
            path.write_text(self.record.to_csv(), "utf8")
        CONSOLE.print(
            f"PSNR {metrics['psnr']:.2f} dB, SSIM {metrics['ssim']:.4f} on held-out views after {self.step + 1} steps "
            f"and {seconds:.0f} s, {metrics['num_parameters']:,} parameters",
            soft_wrap=True,
        )
        super().write_results()
