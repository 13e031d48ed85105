"""The Trainer of a signal: its network's recipe, cheap evaluation, and a report at the end."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.utils.rich_utils import CONSOLE

from loe_field.adapter.model import SignalModelConfig
from loe_field.adapter.pipeline import SignalPipeline, SignalPipelineConfig
from loe_field.baselines import recipe
from loe_field.errors import InputError
from loe_field.signals.signal import Reconstruction
from loe_field.signals.sizes import seconds_for
from loe_field.training.config import LoETrainerConfig
from loe_field.training.loop import LoETrainer
from loe_field.training.optimizers import AdamConfig, DecayConfig
from loe_field.training.results import write_results
from loe_field.words import say

_PREVIEW_SAMPLES = 2**18
"""Samples of the first preview, some 0.3 s on one core."""


@dataclass
class SignalTrainerConfig(LoETrainerConfig):
    """How to fit a signal."""

    _target: type = field(default_factory=lambda: SignalTrainer)
    pipeline: VanillaPipelineConfig = field(default_factory=SignalPipelineConfig)
    """The signal and the field."""
    steps_per_eval_all_images: int | None = None  # type: ignore[assignment]
    """Steps between evaluations of the whole signal; the run ends with one in any case. None: about 24 in a run, or as
    many fewer as keep them below a tenth of the time; on a GPU by its clock."""


class SignalFit(NamedTuple):
    """The result of a run."""

    reconstruction: Reconstruction
    metrics: dict[str, Any]
    """The content of metrics.json."""


class SignalTrainer(LoETrainer):
    """Fits a field to one signal."""

    config: SignalTrainerConfig
    pipeline: SignalPipeline  # type: ignore[assignment]
    first_preview = 10.0

    @property
    def unit(self) -> str:  # type: ignore[override]
        """The word for the samples."""
        return self.pipeline.signal.unit

    @property
    def usual_steps_per_evaluation(self) -> int:
        """Steps between evaluations; one costs a forward pass over what is measured, a step three over a batch."""
        signal = self.pipeline.signal
        measured = signal.num_measured or signal.num_samples
        return max(6 * -(-measured // signal.samples_per_batch), self.num_steps // 24, 1)

    @property
    def usual_seconds(self) -> float | None:
        """By the signal's size; None on a GPU, whose 6,000 steps are soon over."""
        return seconds_for(self.pipeline.signal.resolution) if self.device == "cpu" else None

    def setup(self, test_mode: Literal["test", "val", "inference"] = "val") -> None:
        """Build everything, and say what computes it."""
        self._follow_the_authors()
        super().setup(test_mode)
        say(f"{self.pipeline.model.field.num_parameters:,} parameters{self.computed_by}; {self.pace}", CONSOLE)

    def _follow_the_authors(self) -> None:
        """Give a baseline its authors' optimizer, schedule and batch where the config has none."""
        model, datamanager = self.config.pipeline.model, self.config.pipeline.datamanager
        assert isinstance(model, SignalModelConfig)
        if model.network == "loe":
            return
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
        self.config.optimizers = {"fields": {"optimizer": optimizer, "scheduler": scheduler}}
        if authors.weight_decay and isinstance(optimizer, AdamConfig):
            decayed = replace(optimizer, weight_decay=authors.weight_decay)
            self.config.optimizers["decayed"] = {"optimizer": decayed, "scheduler": scheduler}
        for name, value in vars(datamanager).items():
            if name.endswith("_per_batch") and value == "auto":
                setattr(datamanager, name, authors.batch)

    @property
    def measures_samples(self) -> bool:  # type: ignore[override]
        """Of a large signal."""
        return self.pipeline.signal.num_measured is not None

    def evaluate(self, *, whole: bool = True) -> float:
        """PSNR in dB over the whole signal, or over samples."""
        if not whole and self.measures_samples:
            return self.pipeline.signal.quick_psnr(self.pipeline.model.values, chunk=self._chunk)
        self._reconstruction = self.pipeline.reconstruct()
        return self._reconstruction.psnr

    @property
    def _chunk(self) -> int:
        return self.pipeline.model.config.eval_num_rays_per_chunk

    def preview(self, times: int) -> np.ndarray | None:
        """See Signal.preview."""
        return self.pipeline.signal.preview(self.pipeline.model.values, times * _PREVIEW_SAMPLES, chunk=self._chunk)

    def more_state(self) -> dict[str, Any]:
        """The signal's kind: the field can be evaluated without the signal."""
        return {"signal": self.pipeline.signal.kind}

    def check_state(self, state: dict[str, Any], path: Path) -> None:
        """Refuse a checkpoint of a signal of another size."""
        signal = self.pipeline.signal
        was, now = (list(kind.get("shape", [])) for kind in (state.get("signal", {}), signal.kind))
        if was and was != now:
            there, here = (
                f"{' x '.join(map(str, [*s[-2::-1]]))} {signal.unit} of {s[-1]} channels" for s in (was, now)
            )
            data = self.pipeline.datamanager.get_datapath()
            raise InputError(f"{path} was trained on {there}, and {data} has {here}: give the --data of that run")

    def result(self) -> SignalFit:
        """The last reconstruction and all figures."""
        return SignalFit(self._reconstruction, self._metrics(self._reconstruction.figures()))

    def write_results(self, result: SignalFit) -> dict[str, Path]:
        """Print the figures; write figures, curve and reconstruction."""
        metrics = result.metrics
        exact = " (not one value differs)" if metrics["psnr"] == float("inf") else ""
        ssim = "" if metrics.get("ssim") is None else f", SSIM {metrics['ssim']:.4f}"
        CONSOLE.print(
            f"PSNR {metrics['psnr']:.2f} dB{exact}{ssim} after {self.step + 1} steps and "
            f"{metrics['train_seconds']:.0f} s, {metrics['num_parameters']:,} parameters "
            f"({metrics['parameters_per_target']:.3f} per target)",
            soft_wrap=True,
        )
        figures: dict[str, Path] = {}
        reconstruction: dict[str, Path] = {}
        with self.going_on():
            figures = write_results(self.base_dir, self.record, metrics)
        with self.going_on():
            reconstruction = result.reconstruction.write(self.base_dir)
        return reconstruction | figures

    def _metrics(self, figures: dict[str, Any]) -> dict[str, Any]:
        """The content of metrics.json."""
        datamanager, network = self.pipeline.datamanager, self.pipeline.model.field
        signal = datamanager.signal
        targets = signal.num_targets
        return {
            "method": self.config.method_name,
            "data": str(datamanager.get_datapath()),
            **signal.description,
            **figures,
            "psnr_best": figures["psnr"] if self.measures_samples else max(figures["psnr"], self.record.psnr_best),
            "num_parameters": network.num_parameters,
            "num_targets": targets,
            "parameters_per_target": network.num_parameters / targets,
            f"macs_per_{signal.unit.removesuffix('s')}": network.macs_per_point,
            f"{signal.unit}_per_batch": signal.samples_per_batch,
            "network": self.pipeline.model.config.network,
            "implementation": network.resolved_implementation,
            **self.run_figures(),
        }
