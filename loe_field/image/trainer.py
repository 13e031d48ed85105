"""The Trainer of a picture: cheap evaluation, and a report at the end."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from loe_field.baselines import recipe
from loe_field.errors import InputError
from loe_field.image.datamanager import ImageDataManagerConfig, default_picture
from loe_field.image.model import LoEImageModelConfig
from loe_field.image.pipeline import Fit, ImagePipeline, ImagePipelineConfig
from loe_field.image.report import write_report
from loe_field.image.series import PictureSeries, is_series, series_name
from loe_field.layers import LoEMLP
from loe_field.optim import orthogonalize
from loe_field.segments import ExpertRows
from loe_field.training.graphed import GraphedStep
from loe_field.training.optimizers import AdamConfig, DecayConfig, MuonConfig
from loe_field.training.trainer import LoETrainer, LoETrainerConfig, training_precision


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
        """Name the experiment after the picture, or the folder of several."""
        assert isinstance(self.pipeline.datamanager, ImageDataManagerConfig)
        if self.experiment_name is None:
            data = Path(self.pipeline.datamanager.data or default_picture())
            self.experiment_name = series_name(data) if is_series(data) else data.stem

    def setup(self, **kwargs: Any) -> Any:
        """The picture's Trainer, or of a folder or a pattern what runs one for each."""
        if is_series(self.pipeline.datamanager.data):
            return PictureSeries(self, **kwargs)
        return super().setup(**kwargs)


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

    def setup(self, test_mode: Literal["test", "val", "inference"] = "val") -> None:
        """Build everything, and say what computes it."""
        self.config.optimizers = self._filled_optimizers()
        super().setup(test_mode)
        CONSOLE.print(f"{self.pipeline.model.field.num_parameters:,} parameters, {self._computed_by}", soft_wrap=True)
        self._graphed = GraphedStep(self._loss, list(self.optimizers.optimizers.values())) if self._can_graph else None

    def _filled_optimizers(self) -> dict[str, Any]:
        """The optimizers' configs with a peer's authors' numbers where none are given."""
        model = self.config.pipeline.model
        assert isinstance(model, LoEImageModelConfig)
        if model.network == "loe":
            return self.config.optimizers
        authors = recipe(model.network)
        optimizer, scheduler = (self.config.optimizers["fields"][name] for name in ("optimizer", "scheduler"))
        if isinstance(optimizer, AdamConfig):
            beta1, beta2 = authors.betas
            optimizer = optimizer.filled(
                lr=authors.lr, eps=authors.eps, beta1=beta1, beta2=beta2, amsgrad=authors.amsgrad
            )
        if isinstance(scheduler, DecayConfig) and scheduler.kind is None:
            factor = authors.final_factor if scheduler.final_factor is None else scheduler.final_factor
            scheduler = replace(scheduler, kind=authors.schedule, final_factor=factor)
        groups = {"fields": {"optimizer": optimizer, "scheduler": scheduler}}
        if authors.weight_decay and isinstance(optimizer, AdamConfig):
            decayed = replace(optimizer, weight_decay=authors.weight_decay)
            groups["decayed"] = {"optimizer": decayed, "scheduler": scheduler}
        return groups

    def setup_optimizers(self) -> Optimizers:
        """The optimizers; before them, and before anything is written, a look at whether the field can be trained."""
        with torch.autocast(self.device.split(":")[0], enabled=self.mixed_precision):
            self.pipeline.check_implementation()
        if self.precision == "bf16" and self.pipeline.model.recipe is not None:
            raise InputError("--precision bf16 is for levels of experts: peers are trained in fp32, leave it out")
        return super().setup_optimizers()

    @property
    def _computed_by(self) -> str:
        """The implementation and precision of training, for people."""
        model = self.pipeline.model
        with torch.autocast(self.device.split(":")[0], enabled=self.mixed_precision):
            used = f"implementation {model.implementation}, {self.precision}"
            reason = model.obstacle
        return used if reason is None else f"{used} ({reason})"

    @property
    def _can_graph(self) -> bool:
        """Whether a step can be recorded: on a GPU, with nothing in it that waits for the device or changes shape."""
        config, groups = self.config, self.config.optimizers.values()
        return (
            self.device.startswith("cuda")
            and self.world_size == 1
            and self.pipeline.model.never_waits
            and not (self.grad_scaler.is_enabled() or config.log_gradients or config.gradient_accumulation_steps)
            and all(isinstance(group["optimizer"], MuonConfig | AdamConfig) for group in groups)
            and all(group["optimizer"].max_norm is None for group in groups)
        )

    @cached_property
    def _whole_rows(self) -> ExpertRows | None:
        """The whole picture's pixels by expert: grouped once, and kept for as long as a graph may read them."""
        model = self.pipeline.model
        if model.implementation != "triton" or not isinstance(model.field, LoEMLP):
            return None
        return model.field.expert_rows(self.pipeline.datamanager.pixels.batch(0)[0] / model.picture_size)

    def _loss(self, *drawn: Tensor) -> Tensor:
        """The loss over what PixelBatches.draw gave; nothing stands for the batch that is always the same."""
        pixels, model = self.pipeline.datamanager.pixels, self.pipeline.model
        places, colours = pixels.at(*drawn) if drawn else pixels.batch(0)
        rows = None if drawn else self._whole_rows
        with torch.autocast(self.device.split(":")[0], enabled=self.mixed_precision):
            losses = model.get_loss_dict(model.get_outputs(places, rows), {"image": colours})
        return sum(losses.values(), torch.zeros((), device=places.device))

    def _drawn(self, step: int) -> tuple[Tensor, ...]:
        """What _loss takes at a step."""
        pixels = self.pipeline.datamanager.pixels
        return () if pixels.always_the_same else pixels.draw(step)

    def prepare(self) -> None:
        """Compile the kernels of training and evaluation, at the sizes they will have."""
        if self._graphed is None:
            return
        with training_precision(self.precision, self.device):
            self._loss(*self._drawn(self._start_step)).backward()
        self.optimizers.zero_grad_all()
        for weight in self.pipeline.model.get_param_groups().get("experts", [])[:1]:
            orthogonalize(weight.detach())
        with torch.no_grad():
            pixels = self.pipeline.datamanager.pixels
            self.pipeline.model(pixels.at(torch.zeros(1, dtype=torch.int64, device=self.device))[0])

    def train_steps(self, first: int, count: int) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Take optimizer steps first .. first + count - 1, as replays of a CUDA graph where that can be."""
        if self._graphed is None:
            return super().train_steps(first, count)
        loss = torch.empty(0)
        for step in range(first, first + count):
            loss = self._graphed(*self._drawn(step))
            self.optimizers.scheduler_step_all(step)
        return loss, {"rgb_loss": loss}, {}

    def evaluate(self) -> float:
        """PSNR in dB over the whole picture."""
        self._rendering = self.pipeline.render()
        return self.pipeline.evaluate(self._rendering)

    def more_state(self) -> dict[str, Any]:
        """What kind of picture it is: the field can be rendered without the picture."""
        return {"picture": self.pipeline.datamanager.picture.kind}

    def write_results(self) -> None:
        """Reconstruct, measure, write the report, and say where it lies."""
        fit = self.pipeline.fit(self._rendering)  # every run ends with an evaluation
        metrics = self._metrics(fit)
        paths = write_report(self.base_dir, fit, self.pipeline.datamanager.picture, self.record, metrics)
        exact = " (not one value differs)" if fit.psnr == float("inf") else ""
        ssim = "" if fit.ssim is None else f", SSIM {fit.ssim:.4f}"
        CONSOLE.print(
            f"PSNR {fit.psnr:.2f} dB{exact}{ssim} after {self.step + 1} steps and {metrics['train_seconds']:.0f} s, "
            f"{metrics['num_parameters']:,} parameters ({metrics['parameters_per_target']:.3f} per target)",
            soft_wrap=True,
        )
        self.say_where(paths)

    def _metrics(self, fit: Fit) -> dict[str, Any]:
        """The content of metrics.json."""
        picture, field_ = self.pipeline.datamanager.picture, self.pipeline.model.field
        targets = picture.values.size
        return {
            "method": self.config.method_name,
            "data": str(self.pipeline.datamanager.path),
            "width": picture.width,
            "height": picture.height,
            "channels": picture.channels,
            "psnr": fit.psnr,
            "psnr_best": max(fit.psnr, self.record.psnr_best),
            "psnr_unrounded": fit.psnr_unrounded,
            "ssim": fit.ssim,
            **fit.between._asdict(),
            "psnr_held_out": fit.psnr_held_out,
            "num_parameters": field_.num_parameters,
            "num_targets": targets,
            "parameters_per_target": field_.num_parameters / targets,
            "macs_per_pixel": field_.macs_per_point,
            "radiance_peak": picture.peak,
            "network": self.pipeline.model.config.network,
            "implementation": self.pipeline.model.implementation,
            **self.run_figures(),
        }
