"""nerfstudio's Pipeline for a signal: one training step, and the measures."""

import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from nerfstudio.data.datamanagers.base_datamanager import DataManagerConfig
from nerfstudio.models.base_model import ModelConfig
from torch import Tensor

from loe_field.adapter.datamanager import SignalDataManager, SignalDataManagerConfig
from loe_field.adapter.model import SignalModel, SignalModelConfig
from loe_field.errors import InputError
from loe_field.files import make_folder
from loe_field.network.protocol import Network
from loe_field.network.rows import ExpertRows
from loe_field.pictures.memory import free_memory
from loe_field.signals.signal import Reconstruction, Signal
from loe_field.training.pipeline import LoEPipeline, LoEPipelineConfig


@dataclass
class SignalPipelineConfig(LoEPipelineConfig):
    """A signal and the field that is fitted to it."""

    _target: type = field(default_factory=lambda: SignalPipeline)
    datamanager: DataManagerConfig = field(default_factory=SignalDataManagerConfig)
    """The signal."""
    model: ModelConfig = field(default_factory=SignalModelConfig)
    """The field."""


class SignalPipeline(LoEPipeline):
    """One signal, one field, and the measures between them."""

    datamanager: SignalDataManager

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.implementations()
        self._check_step_memory()
        signal = self.signal
        option = f"--pipeline.datamanager.{signal.unit}-per-batch"
        self.require_parts(signal.num_samples // signal.batches_per_pass, signal.unit, option)

    @property
    def signal(self) -> Signal:
        """The signal that is fitted."""
        return self.datamanager.signal

    @property
    def model(self) -> SignalModel:
        """The model, also when it is wrapped for several processes."""
        model = super().model
        assert isinstance(model, SignalModel)
        return model

    @property
    def networks(self) -> list[Network]:
        """The one network."""
        return [self.model.field]

    def _check_step_memory(self) -> None:
        """Refuse batches whose activations cannot fit, instead of being killed for them at the first step.

        Raises:
            InputError: with the sizes, and a remedy.
        """
        samples, unit = self.signal.samples_per_batch, self.signal.unit
        if self.device.type == "cuda":
            samples = -(-samples // self.size)  # each process has a GPU; on a CPU they share its memory
        needed = 4 * samples * self.model.field.floats_per_point
        free = free_memory(self.device)
        if needed > free:
            raise InputError(
                f"one step on {samples:,} {unit} takes about {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are "
                f"free on {self.device}: give --pipeline.datamanager.{unit}-per-batch 8192"
            )

    @property
    def capturable(self) -> bool:
        """Whether a step on a GPU waits for nothing."""
        return self.model.field.capturable

    def draw(self, step: int) -> tuple[Tensor, ...]:
        """See Signal.draw; of several processes this one's part."""
        drawn = self.signal.draw(step)
        if self.size == 1:
            return drawn
        mine = self.signal.part(drawn, self.rank, self.size)
        self.weight = len(mine[0]) / (len(drawn[0]) if drawn else self.signal.num_samples)
        return mine

    @cached_property
    def _whole_rows(self) -> ExpertRows | None:
        """The rows of the whole signal: grouped once, and kept for as long as a graph may read them."""
        return self.model.field.group(self.signal.at()[0])

    def losses(self, *drawn: Tensor) -> dict[str, Tensor]:
        """The losses over the batch of a draw."""
        coords, targets = self.signal.at(*drawn)
        outputs = self._model(coords, None if drawn else self._whole_rows)
        return self.model.get_loss_dict(outputs, {"image": targets})

    def reconstruct(self) -> Reconstruction:
        """The field at the signal's own samples."""
        return self.signal.reconstruct(self.model.values, chunk=self.model.config.eval_num_rays_per_chunk)

    def get_average_eval_image_metrics(
        self, step: int | None = None, output_path: Path | None = None, get_std: bool = False
    ) -> dict[str, float]:
        """The host's evaluation (ns-eval): the measures, and speed; the spread over one signal is 0."""
        start = time.perf_counter()
        reconstruction = self.reconstruct()
        seconds = time.perf_counter() - start
        metrics = {name: value for name, value in reconstruction.figures().items() if value is not None}
        metrics |= {"num_rays_per_sec": self.signal.num_samples / seconds, "fps": 1 / seconds}
        if get_std:
            metrics |= {f"{name}_std": 0.0 for name in tuple(metrics)}
        if output_path is not None:
            make_folder(output_path)
            reconstruction.write(output_path)
        return metrics

    @torch.no_grad()
    def get_eval_image_metrics_and_images(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """The host's evaluation of one view, for its loggers."""
        camera, batch = self.datamanager.next_eval_image(step)
        metrics, images = self.model.get_image_metrics_and_images(self.model.get_outputs_for_camera(camera), batch)
        return {**metrics, "num_rays": self.signal.num_samples}, images
