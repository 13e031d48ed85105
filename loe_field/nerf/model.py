"""nerfstudio's Model: rays, samples along them, and what a camera sees."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from nerfstudio.cameras.camera_optimizers import CameraOptimizer, CameraOptimizerConfig
from nerfstudio.cameras.rays import RayBundle, RaySamples
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.model_components import losses as host_losses
from nerfstudio.model_components.ray_samplers import UniformSampler
from nerfstudio.model_components.renderers import AccumulationRenderer, DepthRenderer, RGBRenderer
from nerfstudio.model_components.scene_colliders import AABBBoxCollider, NearFarCollider
from nerfstudio.models.base_model import Model, ModelConfig
from nerfstudio.utils import colormaps
from nerfstudio.utils.colors import COLORS_DICT
from nerfstudio.utils.external import TCNN_EXISTS
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor, nn
from torch.nn import Parameter

from loe_field.adapter.network import LoEConfig, built, check_one_network
from loe_field.baselines import build
from loe_field.baselines.choice import SCENE_GRID, HashGridChoice
from loe_field.errors import InputError
from loe_field.nerf import marching, skipping
from loe_field.nerf.colour import HostImplementation
from loe_field.nerf.fields import Contraction, LoEDensityField, LoEEncoding, LoEField
from loe_field.network.layers import LoEMLP
from loe_field.network.protocol import Network
from loe_field.pictures.metrics import colour_corrected, psnr, ssim
from loe_field.training.config import require_at_least
from loe_field.words import say

ALEXNET = "alexnet-owt-7be5be79.pth"
"""The file that torchvision keeps AlexNet's weights in."""


@dataclass
class LoENerfModelConfig(ModelConfig):
    """The radiance field and how it is rendered."""

    _target: type = field(default_factory=lambda: LoENerfModel)
    eval_num_rays_per_chunk: int = 4096
    """Rays rendered at once in an evaluation."""
    network: Literal["loe", "hash-grid"] = "loe"
    """Network of the scene: a grid of features and sine layers, which experts can have, or as a baseline the hash grid
    of Instant-NGP with its small MLP. Its name at the end of the command opens its options: hash-grid
    --log2-hashmap-size 14."""
    # No experts: on hash features they were 0.8 dB behind one matrix after 700 steps of an object on white.
    loe: Annotated[LoEConfig, tyro.conf.arg(name="")] = field(
        default_factory=lambda: LoEConfig(
            num_layers=3,
            layer_width=64,
            tile_size=1,
            pattern="quad_tree",
            num_frequencies=0,
            grid_levels=16,
            grid_max_resolution=512,
        )
    )
    """Levels of experts; the proposal networks have what has no option proposal_... from them, and no levels."""
    baseline: HashGridChoice = None
    """The hash grid, for its options."""
    host_implementation: HostImplementation = "auto"
    """How the host's own parts are computed: samples along rays, their losses and the colour MLP. "auto": in fp32 on
    a CPU by this package's C kernels, elsewhere as with "torch", the host's way. "tcnn": encoding of directions and
    MLP by tinycudann, which must be installed, the rest the host's way."""
    num_features: int = 15
    """Numbers that the colour is made of besides the direction."""
    appearance_dim: int = 0
    """Numbers of an embedding for each training picture, against changing exposure; 0 for none."""
    scene: Literal["auto", "unbounded", "box"] = "auto"
    """All of space, contracted, or the scene's box alone. "auto": the box where pictures have alpha, so that there is
    nothing behind the object."""
    near_plane: float = 0.05
    """Beginning of the rays; the host's readers put the cameras into a cube of half side 1. A fifth of the distance to
    what all cameras look at, 0.2, made a scene 0.5 dB worse: people stand near to what is beside their subject."""
    far_plane: float = 1000.0
    """Their end, in unbounded scenes. Half of the proposals' samples lie beyond 1, evenly in 1 / distance: what is
    behind the scene costs a thousandth of them."""
    num_proposal_samples: tuple[int, ...] = (64,)
    """Samples along a ray for each proposal network."""
    num_samples: int = 32
    """Samples along a ray for the field."""
    skip_below: float = 0.001
    """Evaluations, renderings and the viewer take three quarters of the samples, closer to the proposals. Rays whose
    proposed weights add up to less than this see the background at once, unless that is last_sample, which the field
    colours. 0: all are made as in training."""
    proposal_layers: int = 2
    """Linear layers of the proposal networks."""
    proposal_width: int = 16
    """Channels of the proposal networks."""
    proposal_tile_size: int | None = None
    """Their experts per axis; None: the field's."""
    proposal_frequencies: int | None = None
    """Their octaves of positional encoding; None: the field's."""
    proposal_grid_levels: int | None = None
    """Levels of their own grid of features; 0: no grid. None: 5 where the field has a grid, else none."""
    proposal_grid_features: int = 2
    """Numbers per vector of that grid."""
    proposal_grid_max_resolution: int = 128
    """Cells per axis of its finest level; the coarsest is the field's."""
    proposal_grid_table_size: int | None = None
    """Most vectors of its levels, a power of two. None: the field's."""
    grid_gain: float = 4.0
    """Factor on the field's first matrix at the start where a grid is before it: features begin at nearly 0, and the
    sines with them."""
    initial_density: float | None = None
    """Density that field and proposal networks begin with, about, per unit of the scene's length. None: behind a
    grid 0.02 in a box, which is empty for the most part, and 0.3 in all of space, where fog right before the cameras
    can take the background's colour for good; else 1."""
    faint: float | None = None
    """Weight below which a sample is black in training, and not asked for its colour; 0: all have one. None: 0.0001 on
    a CPU, where that saves time, and 0 on a GPU, whose graphs cannot choose."""
    muon: Literal["hidden", "all"] | None = None
    """Matrices that the optimizer "experts" has: those of the field's hidden levels, or also the first one behind a
    grid and the colour MLP's. The optimizer "fields" has the others. None: all where the field has a grid."""
    interlevel_loss_mult: float = 1.0
    """Weight of the loss that teaches the proposal networks."""
    distortion_loss_mult: float = 0.002
    """Weight of the loss against spread-out density."""
    background_color: Literal["auto", "random", "last_sample", "black", "white"] = "auto"
    """Behind everything. "auto": white or black where the dataparser says so, random where they
    stay transparent, last_sample where they have no alpha."""
    camera_optimizer: CameraOptimizerConfig = field(default_factory=lambda: CameraOptimizerConfig(mode="off"))
    """Corrections of the poses while training."""
    recipe: Annotated[Any, tyro.conf.Fixed, tyro.conf.Suppress] = None
    """`loe` as the method has it, before the command's options."""

    def __post_init__(self) -> None:
        if self.recipe is None:
            self.recipe = replace(self.loe)
        if self.baseline is not None:
            self.network = "hash-grid"

    @property
    def proposal(self) -> LoEConfig:
        """The proposal networks."""
        loe, table, levels = self.loe, self.proposal_grid_table_size, self.proposal_grid_levels
        return replace(
            loe,
            num_layers=self.proposal_layers,
            layer_width=self.proposal_width,
            levels=None,
            tile_size=loe.tile_size if self.proposal_tile_size is None else self.proposal_tile_size,
            num_frequencies=loe.num_frequencies if self.proposal_frequencies is None else self.proposal_frequencies,
            grid_levels=(5 if loe.grid_levels else 0) if levels is None else levels,
            grid_features=self.proposal_grid_features,
            grid_max_resolution=self.proposal_grid_max_resolution,
            grid_table_size=loe.grid_table_size if table is None else table,
        )


class LoENerfModel(Model):
    """A LoE radiance field, sampled by LoE proposal networks (Barron et al., Mip-NeRF 360, 2022)."""

    config: LoENerfModelConfig

    def populate_modules(self) -> None:
        """Build fields, samplers and renderers; an InputError if an option is out of range."""
        super().populate_modules()
        config = self.config
        _check_options(config)
        self._choose_by_background(self.kwargs.get("metadata", {}).get("background"))
        unbounded = config.scene == "unbounded"
        contraction = Contraction() if unbounded else None
        options = "--pipeline.model"
        try:
            taken = {option.name for option in fields(config.loe)} - {"num_layers", "layer_width", "levels"}
            check_one_network(config.network, config.baseline, config.loe, config.recipe, taken)
            if config.network == "loe":
                network = built(lambda: config.loe.build(3, 1 + config.num_features))
            else:
                grid = config.baseline or SCENE_GRID
                network = built(lambda: build("hash-grid", dim=3, out_features=1 + config.num_features, options=grid))
            options, proposal = "--pipeline.model.proposal-...", config.proposal
            proposals = [built(lambda: proposal.build(3, 1)) for _ in config.num_proposal_samples]
        except ValueError as error:
            raise InputError(f"{error} (an option of {options})") from None
        aabb = self.scene_box.aabb
        self.field = LoEField(
            aabb,
            LoEEncoding(network),
            num_images=self.num_train_data,
            appearance_dim=config.appearance_dim,
            spatial_distortion=contraction,
            implementation=config.host_implementation,
        )
        self.proposal_networks = nn.ModuleList(
            LoEDensityField(aabb, LoEEncoding(p), spatial_distortion=contraction) for p in proposals
        )
        first = self._behind_grid
        if first is not None:
            with torch.no_grad():
                first *= config.grid_gain
        density = 1.0 if first is None else 0.02 if config.scene == "box" else 0.3
        for network in self.networks:
            _begin_with(density if config.initial_density is None else config.initial_density, network)
        self.camera_optimizer: CameraOptimizer = config.camera_optimizer.setup(
            num_cameras=self.num_train_data, device="cpu"
        )
        self.proposal_sampler = marching.KernelSampler(
            num_nerf_samples_per_ray=config.num_samples,
            num_proposal_samples_per_ray=config.num_proposal_samples,
            num_proposal_network_iterations=len(config.num_proposal_samples),
            single_jitter=True,
            initial_sampler=None if unbounded else UniformSampler(single_jitter=True),
            update_sched=lambda step: 1,
        )
        self.anneal: Tensor
        self.register_buffer("anneal", torch.ones(()), persistent=False)  # a CUDA graph reads it there
        self._anneal_number = 1.0
        if unbounded:
            self.collider = NearFarCollider(near_plane=config.near_plane, far_plane=config.far_plane)
        else:
            self.collider = AABBBoxCollider(self.scene_box, near_plane=config.near_plane)
        self.renderer_rgb = _rgb_renderer(config.background_color)
        self.renderer_accumulation = AccumulationRenderer()
        self.renderer_depth = DepthRenderer(method="median")
        self.renderer_expected_depth = DepthRenderer(method="expected")

    def _choose_by_background(self, background: list[float] | Literal["transparent"] | None) -> None:
        """Settle what is "auto"; the run's config.yml then says what it was."""
        config = self.config
        if config.scene == "auto":
            config.scene = "unbounded" if background is None else "box"
        if config.background_color == "auto":
            plain: dict[tuple[float, ...], str] = {(1.0, 1.0, 1.0): "white", (0.0, 0.0, 0.0): "black"}
            colour = "random" if background == "transparent" else plain.get(tuple(background or ()), "last_sample")
            config.background_color = colour  # type: ignore[assignment]

    @property
    def networks(self) -> list[Network]:
        """The field's network, and those of the proposal networks."""
        fields: list[LoEDensityField] = [self.field, *self.proposal_networks]  # type: ignore[list-item]
        return [f.encoding.network for f in fields]

    @property
    def _behind_grid(self) -> Parameter | None:
        """The field's first matrix where a grid is before it; None: there is no grid."""
        network = self.networks[0]
        if not isinstance(network, LoEMLP) or network.grid is None:
            return None
        return network.layers[0].weight  # type: ignore[return-value]

    @property
    def capturable(self) -> bool:
        """Whether a step on a GPU waits for nothing."""
        whole = self.config.host_implementation != "tcnn" and not self._faint
        return whole and all(network.capturable for network in self.networks)

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """Matrices as `muon` has it are "experts", tables "grid", poses "camera_opt"; all else is "fields"."""
        of_networks = [network.param_groups() for network in self.networks]
        experts, tables = ([p for groups in of_networks for p in groups.get(name, [])] for name in ("experts", "grid"))
        first = self._behind_grid
        if self.config.muon == "all" or (self.config.muon is None and first is not None):
            experts += [] if first is None else [first]
            experts += [p for p in self.field.color.parameters() if p.dim() == 2][:-1]
        chosen = {id(p) for p in experts + tables}
        rest = [p for part in (self.field, self.proposal_networks) for p in part.parameters() if id(p) not in chosen]
        groups = {name: p for name, p in {"experts": experts, "fields": rest, "grid": tables}.items() if p}
        self.camera_optimizer.get_param_groups(param_groups=groups)
        return groups

    @staticmethod
    def trains_proposals(step: int) -> bool:
        """Whether the proposal networks are trained in a step: in the first eleven, then in every second one."""
        return step <= 10 or step % 2 == 0

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """The proposal networks are trained as the step has it, and trusted little by little (Mip-NeRF 360, Eq. 18)."""

        def before(step: int) -> None:
            done = min(1.0, step / 1000)
            anneal = 10 * done / (9 * done + 1)
            if anneal != self._anneal_number:
                self.anneal.fill_(anneal)
                self._anneal_number = anneal
            sampler = self.proposal_sampler  # its own count would change with every evaluation
            sampler._step, sampler._steps_since_update = 10, 2 if self.trains_proposals(step) else 0

        return [TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], before)]

    def _by_kernels(self, *tensors: Tensor | None) -> bool:
        """Whether the host's parts along rays are computed by `marching`."""
        most = max(*self.config.num_proposal_samples, self.config.num_samples)
        return self.config.host_implementation == "auto" and marching.kernels_serve(*tensors, samples=most)

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Any]:  # type: ignore[override]
        """Rgb [N, 3] and accumulation [N, 1]; in training the samples, else depth (median), expected_depth [N, 1]."""
        if self.training:
            self.camera_optimizer.apply_to_raybundle(ray_bundle)
        rays = ray_bundle.origins, ray_bundle.directions, ray_bundle.nears, ray_bundle.fars
        moved = any(t is not None and t.requires_grad for t in rays)  # by poses that are learned
        by_kernels = not moved and self._by_kernels(*rays)
        threshold = 0 if self.training else self.config.skip_below
        with skipping.fewer_samples(self.proposal_sampler) if threshold else nullcontext():
            samples, weights_list, samples_list = self._proposed(ray_bundle, by_kernels)
        behind = self.renderer_rgb.background_color == "last_sample"  # the field's own colour, of every ray
        hit = skipping.with_weight(weights_list[-1], threshold) if threshold and not behind else None
        bundle, asked = (ray_bundle, samples) if hit is None else (ray_bundle[hit], samples[hit])
        weights, colours = self.field.weights_and_colours(asked, bundle if by_kernels else None, seen=self._seen)
        if hit is not None:
            weights, colours = (skipping.spread(values, hit, len(ray_bundle)) for values in (weights, colours))
        rgb = self.renderer_rgb(rgb=colours, weights=weights)
        rendered: dict[str, Any] = {"rgb": rgb, "accumulation": self.renderer_accumulation(weights=weights)}
        if self.training:
            return rendered | {"weights_list": [*weights_list, weights], "ray_samples_list": [*samples_list, samples]}
        for name, renderer in (("depth", self.renderer_depth), ("expected_depth", self.renderer_expected_depth)):
            rendered[name] = renderer(weights=weights, ray_samples=samples)
        return rendered

    def _proposed(self, bundle: RayBundle, by_kernels: bool) -> tuple[RaySamples, list[Tensor], list[RaySamples]]:
        """The field's samples on a bundle's rays, and each proposal network's weights [N, P, 1] and samples."""
        sampler = self.proposal_sampler
        # In full when measured, at any step: a checkpoint does not hold it.
        anneal: Any = 1.0 if not self.training else self._anneal_number if by_kernels else self.anneal
        sampler.set_anneal(anneal)
        if by_kernels:
            return sampler.proposals(bundle, self.proposal_networks)
        return sampler(bundle, density_fns=[network.density_fn for network in self.proposal_networks])

    @property
    def _faint(self) -> float:
        """The option, settled."""
        faint = self.config.faint
        return (1e-4 if self.device.type == "cpu" else 0.0) if faint is None else faint

    def _seen(self, weights: Tensor) -> Tensor | None:
        """Which samples get a colour by their weights [N, S, 1], bool [N, S]: in training no faint one. None: all."""
        if not (self.training and self._faint):
            return None
        seen = weights[..., 0] >= self._faint
        if self.config.background_color == "last_sample":
            seen[:, -1] = True
        return seen if seen.float().mean() <= skipping.MOST_CHOSEN else None

    def get_loss_dict(
        self, outputs: dict[str, Any], batch: dict[str, Tensor], metrics_dict: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Mean squared error of the colours, and the samplers' losses."""
        image = batch["image"].to(self.device)
        if self.config.background_color == "last_sample" and image.shape[-1] == 4:
            image = image[..., :3] * image[..., 3:]  # the host does the same with a black that lies on the CPU
        predicted, target = self.renderer_rgb.blend_background_for_loss_computation(
            pred_image=outputs["rgb"], pred_accumulation=outputs["accumulation"], gt_image=image
        )
        losses = {"rgb_loss": (predicted - target).square().mean()}
        if self.training:
            weights, samples = outputs["weights_list"], outputs["ray_samples_list"]
            by = marching if self._by_kernels(*weights) else host_losses
            losses["interlevel_loss"] = self.config.interlevel_loss_mult * by.interlevel_loss(weights, samples)
            losses["distortion_loss"] = self.config.distortion_loss_mult * by.distortion_loss(weights, samples)
            self.camera_optimizer.get_loss_dict(losses)
        return losses

    def get_metrics_dict(self, outputs: dict[str, Any], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sizes of the poses' corrections, in the scene's length and in degrees; the host's own wait for the device."""
        if self.config.camera_optimizer.mode == "off":
            return {}
        shift, turn = (part.norm(dim=-1) for part in self.camera_optimizer.pose_adjustment.detach().split(3, -1))
        sizes = {"translation": shift, "rotation": torch.rad2deg(turn)}
        measures = {"max": Tensor.max, "mean": Tensor.mean}
        return {f"camera_opt_{n}_{m}": measure(size) for n, size in sizes.items() for m, measure in measures.items()}

    @cached_property
    def _lpips(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        """LPIPS (Zhang et al., 2018) on pictures [1, 3, height, width], or None where AlexNet's weights are not."""
        weights = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET
        if not weights.is_file():
            say(f"LPIPS is left out: its weights {weights} are not there", CONSOLE)
            return None
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        # Not a submodule: it would follow train() at every step and be saved in every checkpoint.
        return LearnedPerceptualImagePatchSimilarity(normalize=True).to(self.device).requires_grad_(False).__call__

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Psnr, ssim and, where its weights are, lpips of a view; the view beside the picture, opacity and depth.

        Where pictures have an appearance of their own, views have the mean of the training pictures'; a held-out
        picture has its own, and cc_psnr forgives that.
        Nothing is downloaded: without the weights of LPIPS it is left out. So is ssim where a side is shorter than 11.
        """
        target = self.renderer_rgb.blend_background(batch["image"].to(self.device))
        rgb = outputs["rgb"].clamp(0, 1)
        seen, wanted = (x.float().cpu().numpy() for x in (rgb, target))
        metrics = {"psnr": psnr(seen, wanted)}
        if (structure := ssim(seen, wanted, mirrored=True)) is not None:
            metrics["ssim"] = structure
        if self.config.appearance_dim:
            metrics["cc_psnr"] = psnr(colour_corrected(seen, wanted), wanted)
        if self._lpips is not None:
            metrics["lpips"] = float(self._lpips(*(x.movedim(-1, 0)[None] for x in (rgb, target))))
        images = {
            "img": torch.cat([target, rgb], 1),
            "accumulation": colormaps.apply_colormap(outputs["accumulation"]),
            "depth": colormaps.apply_depth_colormap(outputs["depth"], accumulation=outputs["accumulation"]),
        }
        return metrics, images


def _begin_with(density: float, network: Network) -> None:
    """Have a network of levels begin with this density instead of 1; a baseline begins as its authors have it."""
    if isinstance(network, LoEMLP):
        with torch.no_grad():
            network.head.bias[0] += math.log(density)


def _rgb_renderer(background_color: Any) -> RGBRenderer:
    """The host's renderer, with a plain background that moves to the device: it would copy it at every step."""
    renderer = RGBRenderer(background_color)
    if background_color in COLORS_DICT:
        del renderer.background_color
        renderer.register_buffer("background_color", COLORS_DICT[background_color].clone(), persistent=False)
    return renderer


def _check_options(config: LoENerfModelConfig) -> None:
    """Refuse what is too small or not here, and a far plane that is not behind the near one."""
    for name in ("num_layers", "layer_width", "tile_size", "bias_tile_size"):
        if getattr(config.loe, name) is None:
            raise InputError(f"--pipeline.model.{name.replace('_', '-')} is None: a scene needs a number")
    if config.loe.bias_levels == "fine":
        raise InputError(
            "--pipeline.model.bias-levels is fine, which counts pixels: a scene needs alpha and beta pairs"
        )
    counts = ("eval_num_rays_per_chunk", "num_features", "num_samples")
    require_at_least(1, config, *counts, prefix="pipeline.model.")
    require_at_least(0, config, "appearance_dim", prefix="pipeline.model.")
    if (fewest := min(config.num_proposal_samples, default=0)) < 1:
        raise InputError(f"--pipeline.model.num-proposal-samples is {fewest}: it must be at least 1")
    if not 0 <= config.skip_below < 1:
        raise InputError(f"--pipeline.model.skip-below is {config.skip_below:g}: it must be at least 0, and below 1")
    if config.faint is not None and not 0 <= config.faint < 1:
        raise InputError(f"--pipeline.model.faint is {config.faint:g}: it must be at least 0, and below 1")
    if config.host_implementation == "tcnn" and not TCNN_EXISTS:
        raise InputError(
            "--pipeline.model.host-implementation is tcnn, and tinycudann is not installed here: leave it out, or "
            "choose torch"
        )
    if config.initial_density is not None and not 1e-6 <= config.initial_density <= 1e6:
        raise InputError(  # beyond, e^15 and its inverse, the gradient of a density is cut off
            f"--pipeline.model.initial-density is {config.initial_density:g}: it must be 1e-6 to 1e6"
        )
    if not 0 < config.grid_gain < math.inf:
        raise InputError(f"--pipeline.model.grid-gain is {config.grid_gain:g}: it must be above 0, and finite")
    for name in ("interlevel_loss_mult", "distortion_loss_mult"):
        if not 0 <= (weight := getattr(config, name)) < math.inf:
            option = f"--pipeline.model.{name.replace('_', '-')}"
            raise InputError(f"{option} is {weight:g}: it must be at least 0, and finite")
    if not 0 <= config.near_plane < config.far_plane:
        raise InputError(
            f"--pipeline.model.near-plane is {config.near_plane:g} and far-plane {config.far_plane:g}: rays begin at 0 "
            "or beyond, and end behind that"
        )
