"""nerfstudio's Model for one picture: a LoE field over the plane."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.model_components.renderers import RGBRenderer
from nerfstudio.models.base_model import Model, ModelConfig
from torch import Tensor
from torch.nn import Parameter

from loe_field.baselines import (
    BaconOptions,
    Baseline,
    FinerOptions,
    FourierOptions,
    GaussOptions,
    HashGridOptions,
    Peer,
    Recipe,
    ReluPeOptions,
    SirenOptions,
    WireOptions,
    build,
    recipe,
)
from loe_field.errors import InputError
from loe_field.image.pixels import as_seen, pixel_centers
from loe_field.image.sizes import levels_for, tile_size_for
from loe_field.image.view import BACKGROUND, FAR, WholePicture, hits
from loe_field.layers import Activation, Initialization, LoEMLP
from loe_field.ops import Implementation, Resolved
from loe_field.segments import ExpertRows
from loe_field.tiling import Blending, Pattern, make_levels


@dataclass
class LoEImageModelConfig(ModelConfig):
    """The field that is fitted to the picture; defaults are the recipe that measured best."""

    _target: type = field(default_factory=lambda: LoEImageModel)
    enable_collider: bool = False
    """Host option without a meaning here: there are no rays to clip."""
    eval_num_rays_per_chunk: int = 65536
    """Pixels evaluated at once when the whole picture is rendered."""
    network: Literal["loe", Baseline] = "loe"
    """Levels of experts, or one of the peers with its authors' initialisation and learning rate (see baselines/). The
    options below up to `implementation` are those of loe; a peer has num_layers, layer_width and its own."""
    num_layers: int | None = None
    """Linear layers in all: num_layers - 1 position-dependent ones and the final one. None: 10, and more where the
    finest cells would be larger than a pixel (see `levels_for`); for a peer its authors' number."""
    layer_width: int | None = None
    """Channels of the hidden layers. None: 64; for a peer its authors' number."""
    tile_size: int | None = None
    """Experts per axis; 1 is a plain MLP. None: 2, and 4 or 8 for large pictures (see `tile_size_for`)."""
    pattern: Pattern = "fine_to_coarse"
    """How the cells' size goes from layer to layer. With tiles of more than 2x2 all cells are smaller by tile_size / 2,
    so that the largest tile still covers the picture once, and none of its experts goes without pixels."""
    levels: tuple[tuple[float, float], ...] | None = None
    """A pattern of your own: alpha and beta for each position-dependent layer (coordinates run over [0, 1))."""
    blending: Blending = "nearest"
    """One expert per point, or a cyclic linear blend of the four around it (four times the arithmetic)."""
    activation: Activation = "sine"
    """sine is sin(omega_0 y); leaky_relu has slope 0.2."""
    omega_0: float = 1.0
    """Frequency of the sine."""
    initialization: Initialization = "default"
    """torch's linear layer, or SIREN's scheme for this omega_0."""
    num_frequencies: int = 7
    """Octaves of positional encoding of the coordinates; 0 gives the network raw coordinates."""
    implementation: Implementation = "auto"
    """How the position-dependent layers are computed."""
    siren: SirenOptions = field(default_factory=SirenOptions)
    """Options of the network siren."""
    relu_pe: ReluPeOptions = field(default_factory=ReluPeOptions)
    """Options of the network relu-pe."""
    fourier: FourierOptions = field(default_factory=FourierOptions)
    """Options of the network fourier."""
    finer: FinerOptions = field(default_factory=FinerOptions)
    """Options of the network finer."""
    wire: WireOptions = field(default_factory=WireOptions)
    """Options of the network wire."""
    gauss: GaussOptions = field(default_factory=GaussOptions)
    """Options of the network gauss."""
    bacon: BaconOptions = field(default_factory=BaconOptions)
    """Options of the network bacon."""
    hash_grid: HashGridOptions = field(default_factory=HashGridOptions)
    """Options of the network hash-grid."""


class LoEImageModel(Model):
    """A LoE field that maps a place in the picture to a colour.

    Takes places in pixels; the field sees them divided by the picture's width and height, so that every picture fills
    the unit square and every expert of every level has its share of it. As a scene the picture is a rectangle (see
    loe_field/image/view.py).
    """

    config: LoEImageModelConfig
    picture_size: Tensor
    """[2]: width and height in pixels."""

    def populate_modules(self) -> None:
        """Build the field for this picture's channels.

        Raises:
            InputError: an option is out of range.
        """
        super().populate_modules()
        metadata = self.kwargs["metadata"]
        self.height, self.width, self.channels = (int(metadata[key]) for key in ("height", "width", "channels"))
        config = self.config
        if config.eval_num_rays_per_chunk < 1:
            raise InputError(f"eval_num_rays_per_chunk is {config.eval_num_rays_per_chunk}: give 1 or more")
        try:
            self.field = self._loe() if config.network == "loe" else self._peer()
        except ValueError as error:
            raise InputError(f"{error} (an option of --pipeline.model)") from None
        size = torch.tensor([self.width, self.height], dtype=torch.float32)
        self.register_buffer("picture_size", size, persistent=False)
        self.whole_picture = WholePicture(self.width, self.height)
        self.whole_picture_button = self.whole_picture.button

    def _loe(self) -> LoEMLP:
        config = self.config
        if config.tile_size is None:  # the run's config.yml then says what it was
            config.tile_size = tile_size_for(self.height, self.width, self.channels)
        if config.num_layers is None:
            config.num_layers = levels_for(self.height, self.width, config.tile_size) + 1
        finer = max(1.0, config.tile_size / 2)
        levels = make_levels(config.pattern, config.num_layers - 1)
        return LoEMLP(
            dim=2,
            out_features=self.channels,
            num_layers=config.num_layers,
            layer_width=64 if config.layer_width is None else config.layer_width,
            tile_size=config.tile_size,
            pattern=[(finer * alpha, beta) for alpha, beta in levels] if config.levels is None else config.levels,
            blending=config.blending,
            activation=config.activation,
            omega_0=config.omega_0,
            initialization=config.initialization,
            num_frequencies=config.num_frequencies,
            implementation=config.implementation,
        )

    def _peer(self) -> Peer:
        config = self.config
        assert config.network != "loe"
        if config.implementation not in ("auto", "torch"):
            raise ValueError(f"implementation is {config.implementation!r}: {config.network} is computed by torch")
        options = getattr(config, config.network.replace("-", "_"))
        if isinstance(options, BaconOptions) and options.resolution is None:
            options = replace(options, resolution=(self.width, self.height))
        if isinstance(options, HashGridOptions) and options.max_resolution is None:
            finest = max(options.min_resolution, max(self.width, self.height) // 2)
            options = replace(options, max_resolution=finest)
        return build(
            config.network,
            dim=2,
            out_features=self.channels,
            num_layers=config.num_layers,
            layer_width=config.layer_width,
            options=options,
        )

    @property
    def implementation(self) -> Resolved:
        """What computes the field where its parameters are now; the peers are plain PyTorch."""
        return self.field.resolved_implementation if isinstance(self.field, LoEMLP) else "torch"

    @property
    def obstacle(self) -> str | None:
        """Why levels of experts are computed by plain PyTorch; None if they are not."""
        return self.field.obstacle if isinstance(self.field, LoEMLP) else None

    @property
    def never_waits(self) -> bool:
        """Whether a step on a GPU goes without waiting for it, as a CUDA graph needs."""
        return self.field.never_waits if isinstance(self.field, LoEMLP) else self.config.network != "hash-grid"

    @property
    def floats_per_point(self) -> float:
        """Numbers that a training step keeps for every point, about."""
        if not isinstance(self.field, LoEMLP):
            return 8 * self.field.num_layers * self.field.layer_width
        # In copies of a level's activations; measured on the CPU: 3.9 (nearest), 4.8 (linear) and 1.1 with its kernels.
        copies = 6 if self.field.blending == "linear" else 1.5 if self.implementation == "cpu" else 4
        return copies * len(self.field.layers) * self.field.head.in_features

    @property
    def recipe(self) -> Recipe | None:
        """How the peer's authors train it; None for levels of experts."""
        return None if self.config.network == "loe" else recipe(self.config.network)

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """What the optimizers get.

        Of levels of experts the stacks of hidden matrices as "experts", and first layer, biases and final layer as
        "fields". Of a peer everything as "fields", or what its authors put a weight decay on as "decayed".
        """
        if self.recipe is not None:
            decayed, rest = self.recipe.split(self.field)
            return {name: params for name, params in (("fields", rest), ("decayed", decayed)) if params}
        assert isinstance(self.field, LoEMLP)
        experts = self.field.hidden_weights
        chosen = {id(p) for p in experts}
        groups = {"experts": experts, "fields": [p for p in self.field.parameters() if id(p) not in chosen]}
        return {name: params for name, params in groups.items() if params}  # type: ignore[return-value]

    def get_outputs(self, ray_bundle: Tensor, rows: ExpertRows | None = None) -> dict[str, Tensor]:  # type: ignore[override]
        """Pixel positions [..., 2] in pixels to {"rgb": colours [..., channels]}, not clamped; see LoEMLP for rows."""
        places = ray_bundle / self.picture_size
        if isinstance(self.field, LoEMLP):
            return {"rgb": self.field(places, rows)}
        if self.training and self.recipe is not None and self.recipe.loss_on == "all":
            bands = [band.value for band in self.field.outputs(places)]  # type: ignore[operator]
            return {"rgb": bands[-1], "bands": torch.stack(bands)}
        return {"rgb": self.field(places)}

    def get_loss_dict(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor], metrics_dict: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Mean squared error of the colours; where the authors have it so, of all of a network's outputs."""
        error = (outputs.get("bands", outputs["rgb"]) - batch["image"]).square().mean()
        return {"rgb_loss": error}

    def render(self) -> Tensor:
        """The whole picture at its own pixels, float32 [height, width, channels] on the CPU, not clamped."""
        return torch.cat([colours for _, colours in self.render_strips()])

    @torch.no_grad()
    def render_strips(self) -> Iterator[tuple[slice, Tensor]]:
        """The picture from top to bottom: which rows, and `render` of them; eval_num_rays_per_chunk pixels each."""
        rows = max(1, self.config.eval_num_rays_per_chunk // self.width)
        for first in range(0, self.height, rows):
            last = min(first + rows, self.height)
            pixels = torch.arange(first * self.width, last * self.width, device=self.device)
            chunks = [
                self.get_outputs(pixel_centers(index, self.width))["rgb"].float().cpu()
                for index in pixels.split(self.config.eval_num_rays_per_chunk)
            ]
            yield slice(first, last), torch.cat(chunks).view(last - first, self.width, self.channels)

    @torch.no_grad()
    def get_outputs_for_camera(self, camera: Cameras, obb_box: OrientedBox | None = None) -> dict[str, Tensor]:
        """What a camera sees of the picture as it stands in space, for the host's viewer and ns-render.

        Returns:
            rgb [H, W, 3] in [0, 1]: the field where a ray meets the picture (grey repeated, alpha over black).
            target [H, W, 3]: the pixel that it meets. error [H, W, 1] in [0, 1]: how far they are from each other, the
            largest over the three. depth [H, W, 1] along the ray. accumulation [H, W, 1]: 1. Beside the picture, and
            outside obb_box, these are a neutral colour, that colour, 0, FAR and 0.
        """
        rays = camera.to(self.device).generate_rays(camera_indices=0, keep_shape=True, obb_box=obb_box)
        places, distance, inside = hits(
            rays.origins.flatten(0, 1), rays.directions.flatten(0, 1), self.width, self.height
        )
        if rays.nears is not None and rays.fars is not None:
            inside = inside & (distance >= rays.nears.flatten()) & (distance <= rays.fars.flatten())
        background = RGBRenderer.get_background_color(
            distance.new_tensor(BACKGROUND), shape=(len(distance), 3), device=distance.device
        )
        rgb, target = background.clone(), background.clone()
        for rows in inside.nonzero().squeeze(1).split(self.config.eval_num_rays_per_chunk):
            rgb[rows] = as_seen(self.get_outputs(places[rows])["rgb"].float())
            pixel = places[rows].long()
            target[rows] = as_seen(self.kwargs["metadata"]["colours"](pixel[:, 1] * self.width + pixel[:, 0]))
        outputs = {
            "rgb": rgb,
            "target": target,
            "error": (rgb - target).abs().amax(-1, keepdim=True),
            "depth": torch.where(inside, distance, FAR)[:, None],
            "accumulation": inside[:, None].to(rgb.dtype),
        }
        return {name: value.unflatten(0, rays.origins.shape[:2]) for name, value in outputs.items()}

    def get_rgba_image(self, outputs: dict[str, Tensor], output_name: str = "rgb") -> Tensor:
        """An output of get_outputs_for_camera [H, W, 4], transparent beside the picture, for the host's tools."""
        return torch.cat([outputs[output_name], outputs["accumulation"]], -1)

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """The picture beside the fit, as the host logs it: metrics {"psnr"} of what is seen, images {"img"}."""
        target = as_seen(batch["image"].to(self.device))
        error = (outputs["rgb"] - target).square().mean()
        return {"psnr": float(-10 * torch.log10(error))}, {"img": torch.cat([target, outputs["rgb"]], 1)}
