"""The host's own radiance fields, trained and measured by this package's Trainer so that figures compare.

Their models are the host's, with their authors' optimizers and rates. What differs from `ns-train nerfacto` and
`ns-train vanilla-nerf`: rays from this package's table, schedules that fall over the run, and no LPIPS, for which the
host would download AlexNet.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from nerfstudio.models.nerfacto import NerfactoModel, NerfactoModelConfig
from nerfstudio.models.vanilla_nerf import NeRFModel, VanillaModelConfig
from torch import Tensor, nn


class _NoLPIPS(nn.Module):
    """Stands where the host's models want LPIPS, and gives NaN."""

    def __init__(self, **_: Any) -> None:
        super().__init__()

    def forward(self, *_: Tensor) -> Tensor:
        return torch.tensor(float("nan"))


class _WithoutLPIPS:
    """A model of the host that is built without LPIPS."""

    def populate_modules(self) -> None:
        """As the host does."""
        from torchmetrics.image import lpip

        original = lpip.LearnedPerceptualImagePatchSimilarity
        lpip.LearnedPerceptualImagePatchSimilarity = _NoLPIPS
        try:
            super().populate_modules()  # type: ignore[misc]
        finally:
            lpip.LearnedPerceptualImagePatchSimilarity = original


@dataclass
class BaselineNerfactoConfig(NerfactoModelConfig):
    """The host's nerfacto."""

    _target: type = field(default_factory=lambda: BaselineNerfacto)
    implementation: Any = "torch"
    """"torch", or "tcnn" where tinycudann is installed."""
    average_init_density: float = 0.01
    """As in the host's method."""


class BaselineNerfacto(_WithoutLPIPS, NerfactoModel):
    """The host's nerfacto, measured without LPIPS."""

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Psnr and ssim of a view; the view beside the picture."""
        metrics, images = super().get_image_metrics_and_images(outputs, batch)
        del metrics["lpips"]
        return metrics, images


@dataclass
class BaselineVanillaNerfConfig(VanillaModelConfig):
    """The host's vanilla-nerf."""

    _target: type = field(default_factory=lambda: BaselineVanillaNerf)
    collider_params: dict[str, float] | None = field(default_factory=lambda: {"near_plane": 0.05, "far_plane": 6.0})
    """Beginning and end of the rays; the host's 2 to 6 is for blender scenes, and cuts off what is near in others."""


class BaselineVanillaNerf(_WithoutLPIPS, NeRFModel):
    """The host's vanilla-nerf, measured without LPIPS, and with the outputs that the host's tools ask for."""

    config: BaselineVanillaNerfConfig

    def get_outputs(self, ray_bundle: Any) -> dict[str, Tensor]:
        """The host's outputs, the fine ones also as rgb, depth and accumulation."""
        outputs = super().get_outputs(ray_bundle)
        return outputs | {name: outputs[f"{name}_fine"] for name in ("rgb", "depth", "accumulation")}

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Psnr and ssim of the fine network's view; the view beside the picture."""
        metrics, images = super().get_image_metrics_and_images(outputs, batch)
        return {"psnr": metrics["fine_psnr"], "ssim": metrics["fine_ssim"]}, images
