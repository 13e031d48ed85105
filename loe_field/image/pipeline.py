"""nerfstudio's Pipeline for one picture: what is measured, and what is written at the end."""

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nerfstudio.data.datamanagers.base_datamanager import DataManagerConfig
from nerfstudio.models.base_model import ModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from skimage.metrics import structural_similarity

from loe_field.errors import InputError
from loe_field.files import write_whole
from loe_field.image.between import BetweenPixels, between_pixels
from loe_field.image.datamanager import ImageDataManager, ImageDataManagerConfig
from loe_field.image.model import LoEImageModel, LoEImageModelConfig
from loe_field.image.picture import Picture, available_memory, decode_picture
from loe_field.image.pixels import checkerboard
from loe_field.image.spline import CubicSpline
from loe_field.training.checkpoints import require_same_shapes

_SSIM_SIGMA, _SSIM_WINDOW = 1.5, 11


@dataclass
class ImagePipelineConfig(VanillaPipelineConfig):
    """A picture and the field that is fitted to it."""

    _target: type = field(default_factory=lambda: ImagePipeline)
    datamanager: DataManagerConfig = field(default_factory=ImageDataManagerConfig)
    """The picture."""
    model: ModelConfig = field(default_factory=LoEImageModelConfig)
    """The field."""


@dataclass(frozen=True)
class Fit:
    """A fit as its file holds it, and how good it is.

    Attributes:
        reconstruction: the picture as it reads back from its file.
        content: the file.
        psnr: dB over all values on [0, 1] of `reconstruction`; infinite if not one value differs.
        psnr_unrounded: dB of the field's own floats, clamped to [0, 1], before rounding to the file's depth.
        ssim: of `reconstruction`, mean over the channels; None if a side is shorter than the window of 11.
        between: how the field does between the pixels.
        psnr_held_out: dB of the field's own floats over the pixels that were held out; None if there are none.
    """

    reconstruction: Picture
    content: bytes
    psnr: float
    psnr_unrounded: float
    ssim: float | None
    between: BetweenPixels
    psnr_held_out: float | None


def psnr(values: np.ndarray, target: np.ndarray, white: float) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(white^2 / mean squared error), over all values; infinite if equal."""
    error = np.subtract(values, target, dtype=np.float32)
    mean_square = float(np.mean(np.square(error, out=error), dtype=np.float64)) / white**2
    return math.inf if mean_square == 0 else -10 * math.log10(mean_square)


def ssim(picture: Picture, target: Picture) -> float | None:
    """Structural similarity (Wang et al., 2004: Gaussian window, sigma 1.5) on [0, 1], mean over the channels."""
    if min(picture.height, picture.width) < _SSIM_WINDOW:
        return None
    channels = [
        structural_similarity(
            picture.values[..., c] / picture.white,
            target.values[..., c] / target.white,
            data_range=1.0,
            gaussian_weights=True,
            sigma=_SSIM_SIGMA,
            use_sample_covariance=False,
        )
        for c in range(picture.channels)
    ]
    return float(np.mean(channels))


class ImagePipeline(VanillaPipeline):
    """One picture, one field, and the measurements between them."""

    datamanager: ImageDataManager

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.check_implementation()
        if self.test_mode != "inference":
            self._check_step_memory()

    def check_implementation(self) -> None:
        """Refuse an implementation that cannot serve here, under the autocast that is on.

        Raises:
            InputError: with the reason, and what to choose.
        """
        try:
            _ = self.model.implementation
        except RuntimeError as error:
            raise InputError(f"{error} (--pipeline.model.implementation)") from None

    def _check_step_memory(self) -> None:
        """Refuse batches whose activations cannot fit, instead of being killed for them at the first step.

        Raises:
            InputError: with the sizes, and what helps.
        """
        pixels = self.datamanager.pixels.pixels_per_batch
        needed = 4 * pixels * self.model.floats_per_point
        cuda = self.device.type == "cuda"
        free = torch.cuda.mem_get_info(self.device)[0] if cuda else available_memory()
        if needed > free:
            raise InputError(
                f"one step on {pixels:,} pixels takes about {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are "
                f"free on {self.device}: give --pipeline.datamanager.pixels-per-batch 8192"
            )

    @property
    def model(self) -> LoEImageModel:
        """The model, also when it is wrapped for several processes."""
        model = super().model
        assert isinstance(model, LoEImageModel)
        return model

    def evaluate(self, rendered: np.ndarray) -> float:
        """PSNR in dB over the whole picture of what model.render() gave, rounded to the picture's depth.

        The quick measure during training; it equals that of `fit` where the format is lossless.
        """
        target = self.datamanager.picture
        return psnr(target.like(rendered).values, target.values, target.white)

    def fit(self, rendered: np.ndarray) -> Fit:
        """Put what model.render() gave into the picture's own format, and measure what one gets back from that file.

        Between the pixels it is the field itself that is measured, as it is now.
        """
        target = self.datamanager.picture
        content = target.like(rendered).encode()
        reconstruction = decode_picture(content, name="the reconstruction")
        seen, wanted = np.clip(rendered, 0, 1), target.values / np.float32(target.white)
        held_out = None
        if self.datamanager.config.hold_out == "checkerboard":
            unseen = ~checkerboard(target.height, target.width)
            held_out = psnr(seen[unseen], wanted[unseen], 1.0) if unseen.any() else None
        return Fit(
            reconstruction=reconstruction,
            content=content,
            psnr=psnr(reconstruction.values, target.values, target.white),
            psnr_unrounded=psnr(seen, wanted, 1.0),
            ssim=ssim(reconstruction, target),
            between=self._between_pixels(),
            psnr_held_out=held_out,
        )

    @torch.no_grad()
    def _between_pixels(self) -> BetweenPixels:
        picture, model = self.datamanager.picture, self.model
        return between_pixels(
            lambda places: model.get_outputs(places)["rgb"].float(),
            CubicSpline(picture.values / picture.white, model.device),
            chunk=model.config.eval_num_rays_per_chunk,
        )

    def get_average_eval_image_metrics(
        self, step: int | None = None, output_path: Path | None = None, get_std: bool = False
    ) -> dict[str, float]:
        """The host's evaluation (ns-eval): psnr, ssim and speed of the one picture.

        Args:
            step: unused, there is one picture at every step.
            output_path: where to write the reconstruction, in the picture's own format; None writes none.
            get_std: adds the spread over the pictures, 0 for one.
        """
        start = time.perf_counter()
        rendered = self.model.render().numpy()
        seconds = time.perf_counter() - start
        fit = self.fit(rendered)
        pixels = self.model.height * self.model.width
        metrics = {"psnr": fit.psnr, "psnr_unrounded": fit.psnr_unrounded}
        if fit.ssim is not None:
            metrics["ssim"] = fit.ssim
        metrics["psnr_half_pixel"] = fit.between.psnr_half_pixel
        metrics |= {"num_rays_per_sec": pixels / seconds, "fps": 1 / seconds}
        if get_std:
            metrics |= {f"{name}_std": 0.0 for name in tuple(metrics)}
        if output_path is not None:
            output_path.mkdir(parents=True, exist_ok=True)
            with write_whole(output_path / f"reconstruction{fit.reconstruction.suffix}") as path:
                path.write_bytes(fit.content)
        return metrics

    @torch.no_grad()
    def get_eval_image_metrics_and_images(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """The host's evaluation of one picture, for its loggers."""
        camera, batch = self.datamanager.next_eval_image(step)
        metrics, images = self.model.get_image_metrics_and_images(self.model.get_outputs_for_camera(camera), batch)
        return {**metrics, "num_rays": self.model.height * self.model.width}, images

    def load_pipeline(self, loaded_state: dict[str, Any], step: int) -> None:
        """Load a checkpoint's weights.

        Raises:
            InputError: they belong to a network of another shape.
        """
        require_same_shapes(loaded_state, self.state_dict())
        super().load_pipeline(loaded_state, step)
