"""nerfstudio's Pipeline for one picture: what is measured, and what is written at the end."""

import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nerfstudio.data.datamanagers.base_datamanager import DataManagerConfig
from nerfstudio.models.base_model import ModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from skimage.metrics import structural_similarity

from loe_field.errors import InputError
from loe_field.files import write_whole
from loe_field.image.between import BetweenPixels, between_pixels
from loe_field.image.datamanager import ImageDataManager, ImageDataManagerConfig
from loe_field.image.model import LoEImageModel, LoEImageModelConfig
from loe_field.image.picture import Picture, available_memory, decode_picture
from loe_field.image.pixels import HoldOut, checkerboard
from loe_field.image.spline import CubicSpline
from loe_field.training.pipeline import LoEPipeline

_SSIM_SIGMA, _SSIM_WINDOW = 1.5, 11
_WINDOW = 4096
"""Pixels along a side of the middle part of a larger picture in which the places between the pixels are measured."""
_STRIP = 512
"""Rows that are measured at once, so that a large picture takes no more memory than its own."""


@dataclass
class ImagePipelineConfig(VanillaPipelineConfig):
    """A picture and the field that is fitted to it."""

    _target: type = field(default_factory=lambda: ImagePipeline)
    datamanager: DataManagerConfig = field(default_factory=ImageDataManagerConfig)
    """The picture."""
    model: ModelConfig = field(default_factory=LoEImageModelConfig)
    """The field."""


@dataclass(frozen=True)
class Rendering:
    """The field at the picture's own pixels.

    Attributes:
        picture: what it shows, rounded to what the picture's kind can hold.
        psnr_unrounded: dB of the field's own floats.
        psnr_held_out: the same over the pixels that were held out; None if there are none.
    """

    picture: Picture
    psnr_unrounded: float
    psnr_held_out: float | None


@dataclass(frozen=True)
class Fit:
    """A fit as its file holds it, and how good it is.

    Attributes:
        reconstruction: the picture as it reads back from its file.
        content: the file.
        psnr: dB over all values on [0, 1] of `reconstruction`, of radiance on its curve (see Picture.peak); infinite
            if not one value differs.
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
    total = 0.0
    for first in range(0, len(values), _STRIP):
        total += _square(values[first : first + _STRIP], target[first : first + _STRIP])
    return _decibels(total / white**2, values.size)


def _square(values: np.ndarray, target: np.ndarray) -> float:
    """Sum of squared differences."""
    error = np.subtract(values, target, dtype=np.float32)
    return float(np.sum(np.square(error, out=error), dtype=np.float64))


def _decibels(square: float, count: int) -> float:
    """PSNR of a sum of squared errors over so many values on [0, 1]."""
    return math.inf if square == 0 else -10 * math.log10(square / count)


def ssim(picture: Picture, target: Picture) -> float | None:
    """Structural similarity (Wang et al., 2004: Gaussian window, sigma 1.5) as fitted, mean over the channels."""
    if min(picture.height, picture.width) < _SSIM_WINDOW:
        return None
    total, margin = 0.0, _SSIM_WINDOW - 1
    windows = picture.height - margin  # rows that a whole window fits around; each strip has as many as are its own
    for first in range(0, windows, _STRIP):
        rows = slice(first, min(first + _STRIP, windows) + margin)
        seen, wanted = (target.to_unit(p.values[rows]).astype(np.float64) for p in (picture, target))
        for c in range(picture.channels):
            mean = structural_similarity(
                seen[..., c],
                wanted[..., c],
                data_range=1.0,
                gaussian_weights=True,
                sigma=_SSIM_SIGMA,
                use_sample_covariance=False,
            )
            total += float(np.mean(mean)) * (rows.stop - rows.start - margin)
    return total / (windows * picture.channels)


def picture_psnr(picture: Picture, target: Picture) -> float:
    """PSNR in dB between two pictures of one kind; of radiance on its curve, where the target's peak is 1."""
    if target.peak is None:
        return psnr(picture.values, target.values, target.white)
    square = 0.0
    for first in range(0, target.height, _STRIP):
        seen, wanted = (target.to_unit(p.values[first : first + _STRIP]) for p in (picture, target))
        square += _square(seen, wanted)
    return _decibels(square, target.values.size)


def render(model: LoEImageModel, target: Picture, *, hold_out: HoldOut = "none") -> Rendering:
    """A field at the pixels of its picture, strip by strip: of floats there is never more than a strip."""
    values = np.empty(target.values.shape, target.values.dtype)
    square = square_held_out = 0.0
    count_held_out = 0
    for rows, colours in model.render_strips():
        values[rows] = target.like(colours.numpy()).values
        seen, wanted = np.clip(colours.numpy(), 0, target.ceiling), target.to_unit(target.values[rows])
        square += _square(seen, wanted)
        if hold_out == "checkerboard":
            unseen = ~checkerboard(len(seen), target.width, rows.start)
            square_held_out += _square(seen[unseen], wanted[unseen])
            count_held_out += int(unseen.sum()) * target.channels
    return Rendering(
        picture=replace(target, values=values),
        psnr_unrounded=_decibels(square, values.size),
        psnr_held_out=_decibels(square_held_out, count_held_out) if count_held_out else None,
    )


class ImagePipeline(LoEPipeline):
    """One picture, one field, and the measurements between them."""

    datamanager: ImageDataManager

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.check_implementation()
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

    def render(self) -> Rendering:
        """The field at the picture's own pixels."""
        return render(self.model, self.datamanager.picture, hold_out=self.datamanager.config.hold_out)

    def evaluate(self, rendering: Rendering) -> float:
        """PSNR in dB over the whole picture, as rounded to the picture's depth.

        The quick measure during training; it equals that of `fit` where the format is lossless.
        """
        return picture_psnr(rendering.picture, self.datamanager.picture)

    def fit(self, rendering: Rendering) -> Fit:
        """Put a rendering into the picture's own format, and measure what one gets back from that file.

        Between the pixels it is the field itself that is measured, as it is now.
        """
        target = self.datamanager.picture
        content = rendering.picture.encode()
        reconstruction = decode_picture(content, name="the reconstruction")
        return Fit(
            reconstruction=reconstruction,
            content=content,
            psnr=picture_psnr(reconstruction, target),
            psnr_unrounded=rendering.psnr_unrounded,
            ssim=ssim(reconstruction, target),
            between=self._between_pixels(),
            psnr_held_out=rendering.psnr_held_out,
        )

    @torch.no_grad()
    def _between_pixels(self) -> BetweenPixels:
        picture, model = self.datamanager.picture, self.model
        top, left = (max(0, (side - _WINDOW) // 2) for side in (picture.height, picture.width))
        window = picture.to_unit(picture.values[top : top + _WINDOW, left : left + _WINDOW])
        corner = torch.tensor([left, top], device=model.device)
        return between_pixels(
            lambda places: model.get_outputs(places + corner)["rgb"].float(),
            CubicSpline(window, model.device),
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
        rendering = self.render()
        seconds = time.perf_counter() - start
        fit = self.fit(rendering)
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
