"""nerfstudio's Model for a signal: a field over the unit cube."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
import tyro
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.models.base_model import Model, ModelConfig
from torch import Tensor
from torch.nn import Parameter

from loe_field.adapter.network import LoEConfig, build_network, check_one_network
from loe_field.adapter.view import NO_VIEW
from loe_field.baselines import BaselineName, name_of
from loe_field.baselines.choice import BaselineChoice
from loe_field.errors import InputError
from loe_field.network.protocol import Network
from loe_field.network.rows import ExpertRows


@dataclass
class SignalModelConfig(ModelConfig):
    """The field that is fitted; defaults are the recipe that measured best."""

    _target: type = field(default_factory=lambda: SignalModel)
    enable_collider: bool = False
    """Host option without a meaning here: there are no rays to clip."""
    eval_num_rays_per_chunk: int = 65536
    """Samples evaluated at once when the whole signal is reconstructed."""
    network: Literal["loe", BaselineName] = "loe"
    """Levels of experts, or a baseline with its authors' initialisation, batch and learning rate (see baselines/). The
    options from num_layers to implementation are those of loe; a baseline has num_layers and layer_width of them. Its
    name at the end of the command opens its own options: siren --omega-0 20."""
    loe: Annotated[LoEConfig, tyro.conf.arg(name="")] = field(default_factory=LoEConfig)
    """Levels of experts."""
    baseline: BaselineChoice = None
    """A baseline, for its own options."""
    recipe: Annotated[Any, tyro.conf.Fixed, tyro.conf.Suppress] = None
    """`loe` as the method has it, before the command's options."""

    def __post_init__(self) -> None:
        if self.recipe is None:
            self.recipe = copy.copy(self.loe)
        if self.baseline is not None and self.network == "loe":
            self.network = name_of(self.baseline)

    def build(self, resolution: Sequence[int], channels: int) -> Network:
        """The network for a signal; sizes of `loe` that are None become numbers, for config.yml.

        Args:
            resolution: samples along each coordinate.
            channels: numbers per sample.

        Raises:
            ValueError: an option is out of range.
        """
        taken = ("num_layers", "layer_width", "implementation")
        check_one_network(self.network, self.baseline, self.loe, self.recipe, taken)
        if self.network == "loe":
            self.loe = self.loe.sized(resolution, channels)
        return build_network(self.network, self.loe, self.baseline, resolution=resolution, channels=channels)


class SignalModel(Model):
    """A field that maps coordinates to values."""

    config: SignalModelConfig
    field: Network

    def populate_modules(self) -> None:
        """Build the field for the signal that the metadata tells of.

        Raises:
            InputError: an option is out of range.
        """
        super().populate_modules()
        if self.config.eval_num_rays_per_chunk < 1:
            raise InputError(f"eval_num_rays_per_chunk is {self.config.eval_num_rays_per_chunk}: give 1 or more")
        metadata = self.kwargs["metadata"]
        try:
            self.field = self.config.build(metadata["resolution"], metadata["channels"])
        except ValueError as error:
            raise InputError(f"{error} (an option of --pipeline.model)") from None
        self.view = metadata["view"]
        for name, control in {} if self.view is None else self.view.controls.items():
            setattr(self, name, control)

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """See Network.param_groups."""
        return self.field.param_groups()

    def forward(self, ray_bundle: Tensor, rows: ExpertRows | None = None) -> dict[str, Any]:  # type: ignore[override]
        """See get_outputs."""
        return self.get_outputs(ray_bundle, rows)

    def get_outputs(self, ray_bundle: Tensor, rows: ExpertRows | None = None) -> dict[str, Any]:  # type: ignore[override]
        """Coordinates [..., dim] in [0, 1) to {"values": [..., channels]}, not clamped; see LoEMLP for rows."""
        if not self.training:
            return {"values": self.field(ray_bundle, rows)}
        fitted = self.field.outputs_to_fit(ray_bundle, rows)
        return {"values": fitted[-1], "fitted": fitted}

    def get_loss_dict(
        self, outputs: dict[str, Any], batch: dict[str, Tensor], metrics_dict: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Mean squared error; where a baseline's authors have it so, over all outputs of the network."""
        fitted = outputs.get("fitted", [outputs["values"]])
        values = fitted[0] if len(fitted) == 1 else torch.stack(fitted)
        return {"rgb_loss": (values - batch["image"]).square().mean()}

    @torch.no_grad()
    def values(self, coords: Tensor) -> Tensor:
        """The field without gradients: coordinates [N, dim] in [0, 1) to values [N, channels], not clamped."""
        return self.field(coords)

    @torch.no_grad()
    def get_outputs_for_camera(self, camera: Cameras, obb_box: OrientedBox | None = None) -> dict[str, Tensor]:
        """See SignalView.outputs.

        Raises:
            InputError: the signal has no view in space.
        """
        if self.view is None:
            raise InputError(NO_VIEW)
        chunk = self.config.eval_num_rays_per_chunk
        return self.view.outputs(camera.to(self.device), self.values, obb_box=obb_box, chunk=chunk)

    def get_rgba_image(self, outputs: dict[str, Tensor], output_name: str = "rgb") -> Tensor:
        """An output of get_outputs_for_camera [H, W, 4], transparent beside the signal, for the host's tools."""
        return torch.cat([outputs[output_name], outputs["accumulation"]], -1)

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """The signal beside the fit, as the host logs it: metrics {"psnr"} of what is seen, images {"img"}."""
        target = batch["image"].to(self.device)
        error = (outputs["rgb"] - target).square().mean()
        return {"psnr": float(-10 * torch.log10(error))}, {"img": torch.cat([target, outputs["rgb"]], 1)}
