"""The Trainer of a radiance field: held-out views are measured, and figures and views are left in the run's folder."""

import copy
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.utils.rich_utils import CONSOLE
from nerfstudio.utils.writer import GLOBAL_BUFFER, EventName
from PIL import Image

from loe_field.files import make_folder, write_each, write_whole
from loe_field.nerf.datamanager import SceneDataManagerConfig
from loe_field.nerf.pipeline import NerfPipeline, NerfPipelineConfig
from loe_field.pictures.picture import codes
from loe_field.training.config import LoETrainerConfig
from loe_field.training.loop import LoETrainer
from loe_field.training.results import write_results
from loe_field.words import say

_VIEW_SIDE_ON_CPU = 264
"""Pixels of the longer side of the viewer's still picture on a CPU, a stop of the host's slider: 39,000 rays at 16:9,
which two cores render in about a second. The host's 512 stop training four times as long."""
_PREVIEW_RAYS = 4096
"""Rays of the first preview, about 0.4 s on one core; each further one has twice as many, up to the whole view."""


@dataclass
class NerfTrainerConfig(LoETrainerConfig):
    """How to train a radiance field."""

    _target: type = field(default_factory=lambda: NerfTrainer)
    pipeline: VanillaPipelineConfig = field(default_factory=NerfPipelineConfig)
    """The scene and the field."""
    steps_per_eval_all_images: int | None = None  # type: ignore[assignment]
    """Steps between evaluations of all held-out views; the run ends with one in any case. None: 1,000 on a CPU; on a
    GPU about 24 in a run, or as many fewer as keep them below a tenth of the time."""

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
    pipeline: NerfPipeline  # type: ignore[assignment]
    first_preview = 20.0

    def setup(self, test_mode: Literal["test", "val", "inference"] = "val") -> None:
        """Build everything, and say what is fitted to what."""
        super().setup(test_mode)
        datamanager = self.pipeline.datamanager
        if self.local_rank == 0 and self.leaves_files:
            with write_whole(self.base_dir / "dataparser_transforms.json") as path:  # as the host's Trainer leaves it
                datamanager.train_dataparser_outputs.save_dataparser_transform(path)
        views, pixels = len(datamanager.train_dataset), datamanager.train_pixel_sampler.num_pixels
        seen = f"{views} training views of {pixels:,} pixels in all"
        say(f"{self._num_parameters:,} parameters{self.computed_by}, {seen}; {self.pace}", CONSOLE)

    @property
    def usual_steps_per_evaluation(self) -> int:
        """Steps between evaluations, which take all rays of some views."""
        return 1000

    @property
    def _num_parameters(self) -> int:
        return sum(p.numel() for group in self.pipeline.model.get_param_groups().values() for p in group)

    def _init_viewer_state(self) -> None:
        super()._init_viewer_state()
        if self.viewer_state is not None and torch.device(self.device).type == "cpu":
            self.viewer_state.control_panel._max_res.value = _VIEW_SIDE_ON_CPU

    def _iterate(self, first: int, count: int) -> None:
        began = time.perf_counter()
        super()._iterate(first, count)
        rays = count * self.pipeline.datamanager.get_train_rays_per_batch()
        self._rays_per_second = rays / (time.perf_counter() - began)

    def _update_viewer_state(self, step: int) -> None:
        """Tell the host how fast training is where somebody looks on: so it shares time between that and pictures.

        Untold, it makes a still picture every 30 steps, however long that takes. A thread that waits for the lock gets
        it only if training pauses: a lock goes to whoever asks first, and training asks at once.
        """
        if getattr(self.viewer_state, "render_statemachines", None):
            speed = {"buffer": [], "avg": self._rays_per_second}
            GLOBAL_BUFFER["events"][EventName.TRAIN_RAYS_PER_SEC.value] = speed
            time.sleep(0.002)
        super()._update_viewer_state(step)

    def preview(self, times: int) -> np.ndarray | None:
        """The first view that is measured, at most at its own size."""
        if not self.pipeline.networks:
            return None  # the host's own fields do not all give one picture
        camera = copy.deepcopy(self.pipeline.datamanager.eval_dataset.cameras[0:1])
        scale = (times * _PREVIEW_RAYS / int(camera.width * camera.height)) ** 0.5
        if scale < 1:
            camera.rescale_output_resolution(max(scale, 1 / int(min(camera.width, camera.height))))
        rgb = self.pipeline.model.get_outputs_for_camera(camera.to(self.device))["rgb"]
        return codes(rgb.float().cpu().numpy(), np.uint8)

    @torch.no_grad()
    def evaluate(self, *, whole: bool = True) -> float:
        """Mean PSNR in dB over the held-out views."""
        model = self.pipeline.model
        measured: list[dict[str, float]] = []
        self._views: list[np.ndarray] = []
        for camera, batch in self.pipeline.datamanager.fixed_indices_eval_dataloader:
            metrics, images = model.get_image_metrics_and_images(model.get_outputs_for_camera(camera), batch)
            measured.append(metrics)
            self._views.append(codes(images["img"].float().cpu().numpy(), np.uint8))
        names = [name for name in ("psnr", "cc_psnr", "ssim", "lpips") if all(name in metrics for metrics in measured)]
        self._measured = {name: float(np.mean([metrics[name] for metrics in measured])) for name in names}
        return self._measured["psnr"]

    def result(self) -> dict[str, Any]:
        """The content of metrics.json."""
        datamanager, seconds = self.pipeline.datamanager, self.record.curve[-1].seconds
        return {
            "method": self.config.method_name,
            "data": str(datamanager.config.data),
            **self._measured,
            "psnr_best": self.record.psnr_best,
            "measured_on": "held-out views" if datamanager.held_out else "training views",
            "num_views": len(self._views),
            "num_parameters": self._num_parameters,
            "rays_per_batch": datamanager.get_train_rays_per_batch(),
            "rays_per_second": (self.step + 1) * datamanager.get_train_rays_per_batch() / max(seconds, 1e-9),
            **self.run_figures(),
        }

    def write_results(self, result: dict[str, Any]) -> dict[str, Path]:
        """Write metrics.json, the curve and the held-out views beside their pictures; print the figures."""
        folder = self.base_dir / "views"
        ssim = f", SSIM {result['ssim']:.4f}" if "ssim" in result else ""
        corrected = f" ({result['cc_psnr']:.2f} dB with colours corrected)" if "cc_psnr" in result else ""
        CONSOLE.print(
            f"PSNR {result['psnr']:.2f} dB{corrected}{ssim} on {result['num_views']} {result['measured_on']} after "
            f"{result['num_steps']} steps and {result['train_seconds']:.0f} s, {result['num_parameters']:,} parameters",
            soft_wrap=True,
        )
        paths: dict[str, Path] = {"views": folder}
        with self.going_on():
            paths |= write_results(self.base_dir, self.record, result)
        with self.going_on():
            make_folder(folder)
            pictures = {folder / f"{number:03d}.png": Image.fromarray(view) for number, view in enumerate(self._views)}
            write_each({path: partial(picture.save, format="PNG") for path, picture in pictures.items()})
        return paths
