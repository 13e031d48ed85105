"""nerfstudio's Model: rays, samples along them, and what a camera sees."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from nerfstudio.cameras.camera_optimizers import CameraOptimizer, CameraOptimizerConfig
from nerfstudio.cameras.rays import RayBundle, RaySamples
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.model_components.losses import distortion_loss, interlevel_loss
from nerfstudio.model_components.ray_samplers import ProposalNetworkSampler, UniformSampler
from nerfstudio.model_components.renderers import AccumulationRenderer, DepthRenderer, RGBRenderer
from nerfstudio.model_components.scene_colliders import AABBBoxCollider, NearFarCollider
from nerfstudio.models.base_model import Model, ModelConfig
from nerfstudio.utils import colormaps
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor, nn
from torch.nn import Parameter
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from loe_field.baselines import HashGridOptions, build
from loe_field.errors import InputError
from loe_field.layers import Activation, LoEMLP
from loe_field.nerf.fields import Contraction, LoEDensityField, LoEEncoding, LoEField, NetworkEncoding
from loe_field.ops import Implementation
from loe_field.tiling import Blending, Pattern

ALEXNET = "alexnet-owt-7be5be79.pth"
"""The file that torchvision keeps AlexNet's weights in."""
_SSIM_WINDOW = 11


@dataclass
class LoENerfModelConfig(ModelConfig):
    """The radiance field and how it is rendered."""

    _target: type = field(default_factory=lambda: LoENerfModel)
    eval_num_rays_per_chunk: int = 4096
    """Rays rendered at once in an evaluation."""
    network: Literal["loe", "hash-grid"] = "loe"
    """What stands for the scene: levels of experts, or the hash grid of Instant-NGP with its small MLP, as a peer."""
    hash_grid: HashGridOptions = field(
        default_factory=lambda: HashGridOptions(log2_hashmap_size=15, max_resolution=512)
    )
    """The hash grid, where it is the network."""
    num_layers: int = 6
    """Linear layers of the field: num_layers - 1 levels and the final one."""
    layer_width: int = 64
    """Channels of the field."""
    tile_size: int = 4
    """Experts per axis; 1 is a plain MLP. 4 beside 2, on a scene of 45 views: 25.97 and 25.60 dB after 120 s, 29.89 and
    29.13 after 600 s on one core, at 7 % fewer rays per second."""
    pattern: Pattern = "quad_tree"
    """How the cells' size goes from layer to layer."""
    levels: tuple[tuple[float, float], ...] | None = None
    """A pattern of your own: alpha and beta for each level (the contracted scene is the unit cube)."""
    blending: Blending = "nearest"
    """One expert per point, or a blend of the eight around it."""
    activation: Activation = "sine"
    """Activation between the levels."""
    num_frequencies: int = 6
    """Octaves of positional encoding."""
    implementation: Implementation = "auto"
    """How the position-dependent layers are computed."""
    host_implementation: Literal["torch", "tcnn"] = "torch"
    """How the host's own parts are computed: direction encoding and colour MLP."""
    num_features: int = 15
    """Numbers that the colour is made of besides the direction."""
    appearance_dim: int = 0
    """Numbers of an embedding for each training picture, against changing exposure; 0 for none."""
    scene: Literal["auto", "unbounded", "box"] = "auto"
    """All of space, contracted, or the scene's box alone. "auto": the box where pictures have alpha, so that there is
    nothing behind the object."""
    near_plane: float = 0.05
    """Where rays begin, in unbounded scenes."""
    far_plane: float = 1000.0
    """Where they end."""
    num_proposal_samples: tuple[int, ...] = (64,)
    """Samples along a ray for each proposal network."""
    num_samples: int = 32
    """Samples along a ray for the field."""
    proposal_layers: int = 5
    """Linear layers of the proposal networks."""
    proposal_width: int = 16
    """Channels of the proposal networks."""
    interlevel_loss_mult: float = 1.0
    """Weight of the loss that teaches the proposal networks."""
    distortion_loss_mult: float = 0.002
    """Weight of the loss against spread-out density."""
    background_color: Literal["auto", "random", "last_sample", "black", "white"] = "auto"
    """Behind everything. "auto": white or black where the dataparser says so, random where they
    stay transparent, last_sample where they have no alpha."""
    camera_optimizer: CameraOptimizerConfig = field(default_factory=lambda: CameraOptimizerConfig(mode="off"))
    """Corrections of the poses while training."""


class LoENerfModel(Model):
    """A LoE radiance field, sampled by LoE proposal networks (Barron et al., Mip-NeRF 360, 2022)."""

    config: LoENerfModelConfig

    def populate_modules(self) -> None:
        """Build fields, samplers and renderers.

        Raises:
            InputError: an option is out of range.
        """
        super().populate_modules()
        config = self.config
        _check_options(config)
        self._choose_by_background(self.kwargs.get("metadata", {}).get("background"))
        unbounded = config.scene == "unbounded"
        contraction = Contraction() if unbounded else None
        try:
            pattern = config.pattern if config.levels is None else config.levels
            if config.network == "loe":
                encoding = self._encoding(1 + config.num_features, config.num_layers, config.layer_width, pattern)
            else:
                grid = build("hash-grid", dim=3, out_features=1 + config.num_features, options=config.hash_grid)
                encoding = NetworkEncoding(grid, in_dim=3, out_dim=1 + config.num_features)
            proposals = [
                self._encoding(1, config.proposal_layers, config.proposal_width, config.pattern)
                for _ in config.num_proposal_samples
            ]
        except ValueError as error:
            raise InputError(f"{error} (an option of --pipeline.model)") from None
        aabb = self.scene_box.aabb
        self.field = LoEField(
            aabb,
            encoding,
            num_images=self.num_train_data,
            appearance_dim=config.appearance_dim,
            spatial_distortion=contraction,
            implementation=config.host_implementation,
        )
        self.proposal_networks = nn.ModuleList(
            LoEDensityField(aabb, e, spatial_distortion=contraction) for e in proposals
        )
        self.camera_optimizer: CameraOptimizer = config.camera_optimizer.setup(
            num_cameras=self.num_train_data, device="cpu"
        )
        self.proposal_sampler = ProposalNetworkSampler(
            num_nerf_samples_per_ray=config.num_samples,
            num_proposal_samples_per_ray=config.num_proposal_samples,
            num_proposal_network_iterations=len(config.num_proposal_samples),
            single_jitter=True,
            initial_sampler=None if unbounded else UniformSampler(single_jitter=True),
            update_sched=lambda step: 1,
        )
        self._anneal = 1.0
        if unbounded:
            self.collider = NearFarCollider(near_plane=config.near_plane, far_plane=config.far_plane)
        else:
            self.collider = AABBBoxCollider(self.scene_box, near_plane=config.near_plane)
        settled: Any = config.background_color
        self.renderer_rgb = RGBRenderer(background_color=settled)
        self.renderer_accumulation = AccumulationRenderer()
        self.renderer_depth = DepthRenderer(method="median")
        self.renderer_expected_depth = DepthRenderer(method="expected")

    def _choose_by_background(self, background: list[float] | Literal["transparent"] | None) -> None:
        """Settle what is "auto"; the run's config.yml then says what it was."""
        config = self.config
        if config.scene == "auto":
            config.scene = "unbounded" if background is None else "box"
        if config.background_color == "auto":
            plain = {(1.0, 1.0, 1.0): "white", (0.0, 0.0, 0.0): "black"}
            if isinstance(background, list):
                config.background_color = plain.get(tuple(background), "last_sample")  # type: ignore[assignment]
            else:
                config.background_color = "last_sample" if background is None else "random"

    def _encoding(
        self, out_dim: int, num_layers: int, layer_width: int, pattern: Pattern | Sequence[tuple[float, float]]
    ) -> LoEEncoding:
        config = self.config
        network = LoEMLP(
            dim=3,
            out_features=out_dim,
            num_layers=num_layers,
            layer_width=layer_width,
            tile_size=config.tile_size,
            pattern=pattern,
            blending=config.blending,
            activation=config.activation,
            num_frequencies=config.num_frequencies,
            implementation=config.implementation,
        )
        return LoEEncoding(network)

    @property
    def networks(self) -> list[LoEMLP]:
        """The networks with levels of experts: the field's, unless it is a hash grid, and those that propose."""
        fields: list[LoEDensityField] = [self.field, *self.proposal_networks]  # type: ignore[list-item]
        return [f.encoding.network for f in fields if isinstance(f.encoding.network, LoEMLP)]

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """The hidden stacks of matrices as "experts", all else of the fields as "fields", poses as "camera_opt"."""
        experts: list[Parameter] = [w for network in self.networks for w in network.hidden_weights]
        chosen = {id(p) for p in experts}
        rest = [p for part in (self.field, self.proposal_networks) for p in part.parameters() if id(p) not in chosen]
        groups = {"experts": experts, "fields": rest}
        self.camera_optimizer.get_param_groups(param_groups=groups)
        return groups

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """The sampler counts steps, and trusts the proposal networks little by little (Mip-NeRF 360, Eq. 18)."""

        def anneal(step: int) -> None:
            done = min(1.0, step / 1000)
            self._anneal = 10 * done / (9 * done + 1)

        where = TrainingCallbackLocation
        return [
            TrainingCallback([where.BEFORE_TRAIN_ITERATION], anneal, update_every_num_iters=1),
            TrainingCallback([where.AFTER_TRAIN_ITERATION], self.proposal_sampler.step_cb, update_every_num_iters=1),
        ]

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Any]:  # type: ignore[override]
        """Rgb [N, 3], accumulation, depth (median) and expected_depth [N, 1]; while training also the samples."""
        if self.training:
            self.camera_optimizer.apply_to_raybundle(ray_bundle)
        # In full when measured, whatever the step: as whoever loads the checkpoint will see it.
        self.proposal_sampler.set_anneal(self._anneal if self.training else 1.0)
        density_fns = [network.density_fn for network in self.proposal_networks]
        samples: RaySamples
        samples, weights_list, samples_list = self.proposal_sampler(ray_bundle, density_fns=density_fns)
        outputs = self.field(samples)
        weights = samples.get_weights(outputs[FieldHeadNames.DENSITY])
        rendered: dict[str, Any] = {
            "rgb": self.renderer_rgb(rgb=outputs[FieldHeadNames.RGB], weights=weights),
            "accumulation": self.renderer_accumulation(weights=weights),
        }
        with torch.no_grad():
            rendered["depth"] = self.renderer_depth(weights=weights, ray_samples=samples)
            rendered["expected_depth"] = self.renderer_expected_depth(weights=weights, ray_samples=samples)
        if self.training:
            rendered |= {"weights_list": [*weights_list, weights], "ray_samples_list": [*samples_list, samples]}
        return rendered

    def get_loss_dict(
        self, outputs: dict[str, Any], batch: dict[str, Tensor], metrics_dict: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Mean squared error of the colours, and the samplers' losses."""
        predicted, target = self.renderer_rgb.blend_background_for_loss_computation(
            pred_image=outputs["rgb"],
            pred_accumulation=outputs["accumulation"],
            gt_image=batch["image"].to(self.device),
        )
        losses = {"rgb_loss": (predicted - target).square().mean()}
        if self.training:
            weights, samples = outputs["weights_list"], outputs["ray_samples_list"]
            losses["interlevel_loss"] = self.config.interlevel_loss_mult * interlevel_loss(weights, samples)
            losses["distortion_loss"] = self.config.distortion_loss_mult * distortion_loss(weights, samples)
            self.camera_optimizer.get_loss_dict(losses)
        return losses

    def get_metrics_dict(self, outputs: dict[str, Any], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The poses' corrections; the PSNR is measured on held-out views."""
        metrics: dict[str, Tensor] = {}
        self.camera_optimizer.get_metrics_dict(metrics)
        return metrics

    @cached_property
    def _lpips(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """LPIPS (Zhang et al., 2018) on pictures [1, 3, height, width], or None where AlexNet's weights are not."""
        weights = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET
        if not weights.is_file():
            CONSOLE.print(f"LPIPS is left out: its weights {weights} are not there", soft_wrap=True)
            return None
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        # Not a submodule: it would follow train() at every step and be saved in every checkpoint.
        return LearnedPerceptualImagePatchSimilarity(normalize=True).to(self.device).requires_grad_(False).__call__

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Psnr, ssim and, where its weights are, lpips of a view; the view beside the picture, opacity and depth.

        Nothing is downloaded: without the weights of LPIPS it is left out. So is ssim where a side is shorter than 11.
        """
        target = self.renderer_rgb.blend_background(batch["image"].to(self.device))
        rgb = outputs["rgb"].clamp(0, 1)
        wanted, seen = (x.movedim(-1, 0)[None] for x in (target, rgb))
        metrics = {"psnr": float(peak_signal_noise_ratio(seen, wanted, data_range=1.0))}
        if min(wanted.shape[2:]) >= _SSIM_WINDOW:
            metrics["ssim"] = float(structural_similarity_index_measure(seen, wanted, data_range=1.0))  # type: ignore[arg-type]
        if self._lpips is not None:
            metrics["lpips"] = float(self._lpips(seen, wanted))
        images = {
            "img": torch.cat([target, rgb], 1),
            "accumulation": colormaps.apply_colormap(outputs["accumulation"]),
            "depth": colormaps.apply_depth_colormap(outputs["depth"], accumulation=outputs["accumulation"]),
        }
        return metrics, images


def _check_options(config: LoENerfModelConfig) -> None:
    """Refuse counts that are too small, and a far plane that is not behind the near one."""
    counts = ("eval_num_rays_per_chunk", "num_features", "num_samples")
    least = [(name, getattr(config, name), 1) for name in counts] + [("appearance_dim", config.appearance_dim, 0)]
    least += [("num_proposal_samples", min(config.num_proposal_samples, default=0), 1)]
    for name, value, lowest in least:
        if value < lowest:
            raise InputError(f"--pipeline.model.{name.replace('_', '-')} is {value}: it must be at least {lowest}")
    if not 0 <= config.near_plane < config.far_plane:
        raise InputError(
            f"--pipeline.model.near-plane is {config.near_plane:g} and far-plane {config.far_plane:g}: rays begin at 0 "
            "or beyond, and end behind that"
        )
