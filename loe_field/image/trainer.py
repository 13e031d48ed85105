"""The Trainer of a picture: cheap evaluation, and a report at the end."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.utils.rich_utils import CONSOLE

from loe_field.image.datamanager import ImageDataManagerConfig, default_picture
from loe_field.image.pipeline import ImagePipeline, ImagePipelineConfig
from loe_field.image.report import environment, write_report
from loe_field.training.trainer import LoETrainer, LoETrainerConfig


@dataclass
class ImageTrainerConfig(LoETrainerConfig):
    """How to fit a picture."""

    _target: type = field(default_factory=lambda: ImageTrainer)
    pipeline: VanillaPipelineConfig = field(default_factory=ImagePipelineConfig)
    """The picture and the field."""
    steps_per_eval_all_images: int | None = None
    """Steps between evaluations of the whole picture; the run ends with one in any case. None: about 24 in a run, or
    as many fewer as keep them below a tenth of the time where the picture is large."""

    def set_experiment_name(self) -> None:
        """Name the experiment after the picture."""
        assert isinstance(self.pipeline.datamanager, ImageDataManagerConfig)
        if self.experiment_name is None:
            self.experiment_name = Path(self.pipeline.datamanager.data or default_picture()).stem


class ImageTrainer(LoETrainer):
    """Fits a field to one picture."""

    config: ImageTrainerConfig
    pipeline: ImagePipeline  # type: ignore[assignment]
    unit = "pixels"

    @property
    def steps_per_evaluation(self) -> int:
        """Steps between evaluations; one costs a forward pass over all pixels, a step three of them over a batch."""
        if self.config.steps_per_eval_all_images is not None:
            return self.config.steps_per_eval_all_images
        passes = self.pipeline.datamanager.pixels.batches_per_pass
        return max(6 * passes, self.config.max_num_iterations // 24, 1)

    def evaluate(self) -> float:
        """PSNR in dB over the whole picture."""
        self._rendered = self.pipeline.model.render().numpy()
        return self.pipeline.evaluate(self._rendered)

    def write_results(self) -> None:
        """Reconstruct, measure, write the report, and say where it lies."""
        fit = self.pipeline.fit(self._rendered)  # every run ends with an evaluation
        metrics = self._metrics(fit.psnr, fit.psnr_unrounded, fit.ssim)
        paths = write_report(self.base_dir, fit, self.pipeline.datamanager.picture, self.record, metrics)
        exact = " (not one value differs)" if fit.psnr == float("inf") else ""
        ssim = "" if fit.ssim is None else f", SSIM {fit.ssim:.4f}"
        CONSOLE.print(
            f"PSNR {fit.psnr:.2f} dB{exact}{ssim} after {self.step + 1} steps and {metrics['train_seconds']:.0f} s, "
            f"{metrics['num_parameters']:,} parameters ({metrics['parameters_per_target']:.3f} per target)",
            soft_wrap=True,
        )
        lines = {"config": self.base_dir / "config.yml", "checkpoints": self.checkpoint_dir, **paths}
        for name, path in lines.items():
            CONSOLE.print(f"  {name:<14} {path}", soft_wrap=True, highlight=False)

    def _metrics(self, psnr: float, psnr_unrounded: float, ssim: float | None) -> dict[str, Any]:
        """The content of metrics.json."""
        picture, field_ = self.pipeline.datamanager.picture, self.pipeline.model.field
        targets = picture.values.size
        return {
            "method": self.config.method_name,
            "data": str(self.pipeline.datamanager.path),
            "width": picture.width,
            "height": picture.height,
            "channels": picture.channels,
            "psnr": psnr,
            "psnr_best": max(psnr, self.record.psnr_best),
            "psnr_unrounded": psnr_unrounded,
            "ssim": ssim,
            "num_parameters": field_.num_parameters,
            "num_targets": targets,
            "parameters_per_target": field_.num_parameters / targets,
            "macs_per_pixel": field_.macs_per_point,
            "num_steps": self.step + 1,
            "train_seconds": self.record.curve[-1].seconds,
            "target_psnr": self.config.target_psnr,
            "seconds_to_target": self.record.seconds_to(self.config.target_psnr),
            "seed": self.config.machine.seed,
            **environment(self.device),
        }
