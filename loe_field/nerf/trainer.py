"""The Trainer of a radiance field: held-out views are measured, and figures and views are left in the run's folder."""

from dataclasses import dataclass, field
from typing import Any, Literal

import imageio.v3 as iio
import numpy as np
import torch
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.utils.rich_utils import CONSOLE

from loe_field.errors import InputError
from loe_field.files import write_whole
from loe_field.nerf.datamanager import SceneDataManager, SceneDataManagerConfig
from loe_field.nerf.model import LoENerfModel
from loe_field.nerf.pipeline import NerfPipelineConfig
from loe_field.training.results import write_results
from loe_field.training.trainer import LoETrainer, LoETrainerConfig


@dataclass
class NerfTrainerConfig(LoETrainerConfig):
    """How to train a radiance field."""

    _target: type = field(default_factory=lambda: NerfTrainer)
    pipeline: VanillaPipelineConfig = field(default_factory=NerfPipelineConfig)
    """The scene and the field."""
    max_num_iterations: int = 6000
    """Steps of the whole run, those before a resume included."""
    steps_per_eval_all_images: int = 1000
    """Steps between evaluations of all held-out views; the run ends with one in any case."""

    def set_experiment_name(self) -> None:
        """Name the experiment after the scene, also where only the dataparser was told where it is."""
        datamanager = self.pipeline.datamanager
        assert isinstance(datamanager, SceneDataManagerConfig)
        data = datamanager.data or datamanager.dataparser.data
        if self.experiment_name is None:
            data = data.expanduser().resolve()
            if data.name == "transforms.json":
                data = data.parent
            self.experiment_name = data.stem if data.is_file() else data.name


class NerfTrainer(LoETrainer):
    """Trains a radiance field."""

    config: NerfTrainerConfig
    unit = "rays"

    def setup(self, test_mode: Literal["test", "val", "inference"] = "val") -> None:
        """Build everything, and say what is fitted to what."""
        super().setup(test_mode)
        views, table = len(self._datamanager.train_dataset), self._datamanager.train_pixel_sampler
        assert table is not None
        CONSOLE.print(
            f"{self._num_parameters:,} parameters{self._computed_by}, {views} training views of {table.num_pixels:,} "
            "pixels in all",
            soft_wrap=True,
        )

    def setup_optimizers(self) -> Optimizers:
        """The optimizers; before them, and before anything is written, a look at whether the fields can be trained."""
        try:
            _ = self._computed_by
        except RuntimeError as error:
            raise InputError(f"{error} (--pipeline.model.implementation)") from None
        return super().setup_optimizers()

    def network_options(self) -> list[dict[str, Any]]:
        """Also whether the coordinates are those of all space, contracted, or of the scene's box."""
        model = self.pipeline.model
        scene = {"scene": model.config.scene} if isinstance(model, LoENerfModel) else {}
        return [options | scene for options in super().network_options()]

    @property
    def _computed_by(self) -> str:
        """The implementation and precision of training, for people; nothing for the host's own fields."""
        model = self.pipeline.model
        if not isinstance(model, LoENerfModel):
            return ""
        with torch.autocast(self.device.split(":")[0], enabled=self.mixed_precision):
            network = model.networks[0]
            used = f", implementation {network.resolved_implementation}, {self.precision}"
            reason = network.obstacle
        return used if reason is None else f"{used} ({reason})"

    @property
    def _num_parameters(self) -> int:
        return sum(p.numel() for group in self.pipeline.model.get_param_groups().values() for p in group)

    @property
    def _datamanager(self) -> SceneDataManager:
        datamanager = self.pipeline.datamanager
        assert isinstance(datamanager, SceneDataManager)
        return datamanager

    @torch.no_grad()
    def evaluate(self) -> float:
        """Mean PSNR in dB over the held-out views."""
        model = self.pipeline.model
        measured: list[dict[str, float]] = []
        self._views: list[np.ndarray] = []
        for camera, batch in self._datamanager.fixed_indices_eval_dataloader:
            metrics, images = model.get_image_metrics_and_images(model.get_outputs_for_camera(camera), batch)
            measured.append(metrics)
            self._views.append((images["img"].clamp(0, 1) * 255).round().byte().cpu().numpy())
        names = [name for name in ("psnr", "ssim", "lpips") if all(name in metrics for metrics in measured)]
        self._measured = {name: float(np.mean([metrics[name] for metrics in measured])) for name in names}
        return self._measured["psnr"]

    def write_results(self) -> None:
        """metrics.json, the curve and the held-out views beside their pictures; and say where."""
        datamanager = self._datamanager
        seconds, steps = self.record.curve[-1].seconds, self.step + 1
        metrics: dict[str, Any] = {
            "method": self.config.method_name,
            "data": str(datamanager.config.data),
            **self._measured,
            "psnr_best": self.record.psnr_best,
            "measured_on": "held-out views" if datamanager.held_out else "training views",
            "num_views": len(self._views),
            "num_parameters": self._num_parameters,
            "rays_per_second": steps * datamanager.get_train_rays_per_batch() / max(seconds, 1e-9),
            **self.run_figures(),
        }
        folder = self.base_dir / "views"
        folder.mkdir(exist_ok=True)
        for number, view in enumerate(self._views):
            with write_whole(folder / f"{number:03d}.png") as path:
                iio.imwrite(path, view, extension=".png")
        written = write_results(self.base_dir, self.record, metrics)
        ssim = f", SSIM {metrics['ssim']:.4f}" if "ssim" in metrics else ""
        CONSOLE.print(
            f"PSNR {metrics['psnr']:.2f} dB{ssim} on {metrics['num_views']} {metrics['measured_on']} after {steps} "
            f"steps and {seconds:.0f} s, {metrics['num_parameters']:,} parameters",
            soft_wrap=True,
        )
        self.say_where({"views": folder, **written})
