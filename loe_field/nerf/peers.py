"""The host's own radiance fields, trained and measured by this package's Trainer so that figures compare.

Their models are the host's, with their authors' optimizers and rates. What differs from `ns-train nerfacto` and
`ns-train vanilla-nerf`: rays from this package's table, schedules that fall over the run, and no LPIPS, for which the
host would download AlexNet.
"""

from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def _without_lpips() -> Iterator[None]:
    """Within it the host's models are built without LPIPS."""
    from torchmetrics.image import lpip

    name = "LearnedPerceptualImagePatchSimilarity"
    original = getattr(lpip, name)
    setattr(lpip, name, _NoLPIPS)
    try:
        yield
    finally:
        setattr(lpip, name, original)


@dataclass
class PeerNerfactoConfig(NerfactoModelConfig):
    """The host's nerfacto."""

    _target: type = field(default_factory=lambda: PeerNerfacto)
    implementation: Any = "torch"
    """"torch", or "tcnn" where tinycudann is installed."""
    average_init_density: float = 0.01
    """As in the host's method."""


class PeerNerfacto(NerfactoModel):
    """The host's nerfacto, measured without LPIPS."""

    def populate_modules(self) -> None:
        """As the host does."""
        with _without_lpips():
            super().populate_modules()

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Psnr and ssim of a view; the view beside the picture."""
        metrics, images = super().get_image_metrics_and_images(outputs, batch)
        del metrics["lpips"]
        return metrics, images


@dataclass
class PeerVanillaNerfConfig(VanillaModelConfig):
    """The host's vanilla-nerf."""

    _target: type = field(default_factory=lambda: PeerVanillaNerf)
    collider_params: dict[str, float] | None = field(default_factory=lambda: {"near_plane": 0.05, "far_plane": 6.0})
    """Where rays begin and end; the host's 2 to 6 is for blender scenes, and cuts off what is near in others."""


class PeerVanillaNerf(NeRFModel):
    """The host's vanilla-nerf, measured without LPIPS, and with the outputs that the host's tools ask for."""

    config: PeerVanillaNerfConfig

    def populate_modules(self) -> None:
        """As the host does."""
        with _without_lpips():
            super().populate_modules()

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
