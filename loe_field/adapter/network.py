"""The network of a fit as options: levels of experts, or a baseline."""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from loe_field.baselines import BaconOptions, BaselineName, HashGridOptions, Options, build, name_of
from loe_field.network.checks import check_at_least, check_between
from loe_field.network.implementation import Implementation
from loe_field.network.layers import Activation, Initialization, LoEMLP
from loe_field.network.protocol import Network
from loe_field.network.tiling import Blending, FeatureGrid, Pattern, make_levels
from loe_field.pictures.memory import available_memory
from loe_field.signals.sizes import bias_tile_size_for, fine_bias_levels, levels_for, tile_size_for

N = TypeVar("N", bound=nn.Module)
_MOST_LAYERS = 128
"""The finest cells of the named patterns are 2^-num_layers wide, and floats of 32 bits have no 2^128."""


@dataclass
class LoEConfig:
    """Levels of experts."""

    num_layers: int | None = None
    """Linear layers in all: num_layers - 1 position-dependent ones and the final one. None: 10, and more where the
    finest cells would be larger than a sample's; a baseline's own number."""
    layer_width: int | None = None
    """Channels of the hidden layers. None: 64; a baseline's own number."""
    tile_size: int | tuple[int, ...] | None = None
    """Experts per axis, of all levels or of each, first layer first; 1 is a plain layer. None: 2, and 4 or 8 for large
    pictures."""
    expert_levels: int | None = None
    """Coarsest levels that have experts, the finer ones being plain layers. None: all."""
    pattern: Pattern = "fine_to_coarse"
    """Size of the cells from layer to layer. With tiles of more than 2x2 all cells of a picture are smaller by
    tile_size / 2, so that the largest tile covers the picture once and every expert has pixels."""
    levels: tuple[tuple[float, float], ...] | None = None
    """A pattern of your own: alpha and beta for each position-dependent layer (coordinates run over [0, 1))."""
    blending: Blending = "nearest"
    """One expert per point, or a cyclic linear blend of the 2^dim around it (2^dim times the arithmetic)."""
    bias_tile_size: int | tuple[int, ...] | None = 1
    """Vectors per axis of the bias, of all levels or of each: a tile that is blended between its vectors at the cost of
    reading them. 1 is the bias that all points share. None: as many as make 0.55 parameters per target, 11 to 32."""
    bias_levels: tuple[tuple[float, float], ...] | Literal["fine"] | None = None
    """Alpha and beta of each level's bias tile. None: those of its experts. fine: scales in equal ratios, from one
    vector per sample along the longest side to one per 8 samples, first layer finest."""
    bias_blending: Blending = "linear"
    """Between the 2^dim vectors around a point, which is continuous, or none."""
    bias_table_size: int | None = None
    """A power of two: bias tiles of more vectors keep as many, shared by a hash. None: all."""
    activation: Activation = "sine"
    """sine is sin(omega_0 y); leaky_relu has slope 0.2."""
    omega_0: float = 1.0
    """Frequency of the sine."""
    initialization: Initialization = "default"
    """torch's linear layer, or SIREN's scheme for this omega_0."""
    num_frequencies: int = 7
    """Octaves of positional encoding of the coordinates; 0 gives the network raw coordinates."""
    grid_levels: int = 0
    """Levels of a grid of features, blended linearly, which go into the first layer beside the encoding; 0: no grid."""
    grid_features: int = 2
    """Numbers per vector of the grid."""
    grid_min_resolution: int = 16
    """Cells per axis of its coarsest level."""
    grid_max_resolution: int | None = None
    """Cells per axis of its finest level. None: half the picture's longer side; 512 where there is no picture."""
    grid_table_size: int | None = None
    """A power of two: levels of more vectors keep as many, shared by a hash. None: 2^15."""
    grid_tile_size: int | None = None
    """Vectors per axis, after which they repeat. None: nothing repeats."""
    implementation: Implementation = "auto"
    """Kernels, plain PyTorch, or the readable reference."""

    def sized(self, resolution: Sequence[int], channels: int) -> "LoEConfig":
        """A copy with numbers where sizes are None, expert_levels told by tile_size, and bias_levels as numbers.

        Args:
            resolution: samples along each coordinate.
            channels: numbers per sample.

        Raises:
            ValueError: tile_size has a size for each level, and expert_levels says which have experts too.
        """
        tile_size = tile_size_for(resolution, channels) if self.tile_size is None else self.tile_size
        layers = levels_for(resolution, _largest(tile_size)) + 1 if self.num_layers is None else self.num_layers
        width = 64 if self.layer_width is None else self.layer_width
        finest = self.grid_max_resolution
        if self.grid_levels and finest is None:
            finest = max(self.grid_min_resolution, max(resolution) // 2)
        sized = replace(self, tile_size=tile_size, num_layers=layers, layer_width=width, grid_max_resolution=finest)
        if self.expert_levels is not None:
            sized = replace(sized, tile_size=sized._tiles_of_coarsest(self.expert_levels), expert_levels=None)
        if self.bias_tile_size is None:
            # Its size depends on what the other parameters leave.
            with torch.device("meta"):
                alone = replace(sized, bias_tile_size=1, bias_levels=None).build(len(resolution), channels)
            sizes = (alone.num_parameters, (layers - 1) * width)
            sized = replace(sized, bias_tile_size=bias_tile_size_for(resolution, channels, *sizes))
        if self.bias_levels == "fine":
            tiled = sized.bias_tile_size is not None and _largest(sized.bias_tile_size) > 1
            sized = replace(sized, bias_levels=fine_bias_levels(resolution, layers - 1) if tiled else None)
        return sized

    def _tiles_of_coarsest(self, number: int) -> int | tuple[int, ...]:
        """tile_size of each level where only the coarsest have experts."""
        assert self.num_layers is not None
        if not isinstance(self.tile_size, int):
            raise ValueError("tile_size has a size for each level already: leave expert_levels out")
        check_at_least(0, expert_levels=number)
        check_between(2, _MOST_LAYERS, num_layers=self.num_layers)
        levels = make_levels(self.pattern if self.levels is None else self.levels, self.num_layers - 1)
        coarsest = sorted(range(len(levels)), key=lambda i: levels[i].alpha)[:number]
        return tuple(self.tile_size if i in coarsest else 1 for i in range(len(levels)))

    @property
    def grid(self) -> FeatureGrid | None:
        """The options of the grid; None: there is none.

        Raises:
            ValueError: one is out of range.
        """
        check_between(0, 64, grid_levels=self.grid_levels)
        if self.grid_levels == 0:
            return None
        finest = max(512, self.grid_min_resolution) if self.grid_max_resolution is None else self.grid_max_resolution
        return FeatureGrid(
            num_levels=self.grid_levels,
            features_per_level=self.grid_features,
            min_resolution=self.grid_min_resolution,
            max_resolution=finest,
            table_size=2**15 if self.grid_table_size is None else self.grid_table_size,
            tile_size=self.grid_tile_size,
        )

    def build(self, dim: int, out_features: int, *, refinement: float = 1.0) -> LoEMLP:
        """The network.

        Args:
            dim: coordinates per point, 1 to 4.
            out_features: width of the result.
            refinement: factor on every alpha of a named pattern.

        Raises:
            ValueError: a size is out of range, or two options contradict each other.
        """
        assert self.num_layers is not None
        assert self.layer_width is not None
        assert self.tile_size is not None
        assert self.bias_tile_size is not None
        assert self.bias_levels != "fine"
        check_between(2, _MOST_LAYERS, num_layers=self.num_layers)
        levels = make_levels(self.pattern, self.num_layers - 1)
        return LoEMLP(
            dim=dim,
            out_features=out_features,
            num_layers=self.num_layers,
            layer_width=self.layer_width,
            tile_size=self.tile_size if self.expert_levels is None else self._tiles_of_coarsest(self.expert_levels),
            pattern=[(refinement * a, b) for a, b in levels] if self.levels is None else self.levels,
            blending=self.blending,
            bias_tile_size=self.bias_tile_size,
            bias_pattern=self.bias_levels,
            bias_blending=self.bias_blending,
            bias_table_size=self.bias_table_size,
            activation=self.activation,
            omega_0=self.omega_0,
            initialization=self.initialization,
            num_frequencies=self.num_frequencies,
            grid=self.grid,
            implementation=self.implementation,
        )


def _largest(tile_size: int | tuple[int, ...]) -> int:
    return tile_size if isinstance(tile_size, int) else max(tile_size, default=1)


def check_one_network(
    name: str, baseline: Options | None, loe: LoEConfig, recipe: LoEConfig | None, taken: Container[str]
) -> None:
    """Refuse options that contradict each other or would do nothing.

    Args:
        name: --pipeline.model.network.
        baseline: the options of the network that the command's end names; None: it names none.
        loe: the options of levels of experts, of which a baseline has those of `taken`.
        recipe: what they were before the command changed them; None: unknown.
        taken: names of fields.

    Raises:
        ValueError: the two name different networks, or an option is none of the baseline's.
    """
    if baseline is not None and name != name_of(baseline):
        raise ValueError(f"--pipeline.model.network is {name} and the command ends with {name_of(baseline)}: give one")
    if name == "loe" or recipe is None:
        return
    for field in fields(loe):
        if field.name not in taken and getattr(loe, field.name) != getattr(recipe, field.name):
            option = f"--pipeline.model.{field.name.replace('_', '-')}"
            raise ValueError(f"{option} is for levels of experts and the network is {name}: leave it out")


def built(make: Callable[[], N]) -> N:
    """The network that `make` builds, once it is sure that memory holds it and its training.

    Raises:
        ValueError: memory does not hold it; with the sizes.
    """
    try:
        with torch.device("meta"):  # shapes alone, which take no memory and no random number
            network = make()
            needed = 16 * sum(tensor.numel() for tensor in network.state_dict().values())
            if isinstance(network, LoEMLP) and not torch.cuda.is_available():
                needed += 4 * network.workspace_numbers
    except (RuntimeError, OverflowError, TypeError):  # torch and Python have these for sizes beyond all memory
        needed = None
    free = available_memory()
    if needed is None or needed > free:  # weight, gradient and two moments, in fp32, and what the CPU's kernels need
        size = "more than any machine has" if needed is None else f"about {needed / 2**30:,.1f} GiB"
        raise ValueError(
            f"the network takes {size} to train and {free / 2**30:.1f} GiB are free: make it smaller ("
            "layers, width, tile sizes, tables)"
        )
    return make()


def build_network(
    name: Literal["loe", BaselineName],
    loe: LoEConfig,
    options: Options | None,
    *,
    resolution: Sequence[int],
    channels: int,
) -> Network:
    """The network for a signal.

    Args:
        name: "loe" or a baseline's.
        loe: levels of experts, with numbers for all sizes; a baseline takes num_layers, layer_width and implementation.
        options: the baseline's own; None: its authors'.
        resolution: samples along each coordinate.
        channels: numbers per sample.

    Raises:
        ValueError: an option is out of range.
    """
    if name == "loe":
        assert loe.tile_size is not None
        for tile_size in (loe.tile_size,) if isinstance(loe.tile_size, int) else loe.tile_size:
            check_between(1, max(8, *resolution), tile_size=tile_size)
        # The largest tile covers the signal once: with smaller cells, none of its experts goes without samples.
        refinement = max(1.0, _largest(loe.tile_size) / 2)
        return built(lambda: loe.build(len(resolution), channels, refinement=refinement))
    if loe.implementation not in ("auto", "torch"):
        raise ValueError(f"implementation is {loe.implementation!r}: {name} is computed by torch")
    if name == "bacon":
        options = options or BaconOptions()
        assert isinstance(options, BaconOptions)
        if options.resolution is None:
            options = replace(options, resolution=tuple(resolution))
    if name == "hash-grid":
        options = options or HashGridOptions()
        assert isinstance(options, HashGridOptions)
        if options.max_resolution is None:
            options = replace(options, max_resolution=max(options.min_resolution, max(resolution) // 2))
    sizes: Any = {"num_layers": loe.num_layers, "layer_width": loe.layer_width}
    return built(lambda: build(name, dim=len(resolution), out_features=channels, **sizes, options=options))
