"""Multiresolution hash grid: Mueller et al., "Instant Neural Graphics Primitives" (SIGGRAPH 2022).

Level l is a grid of resolution N_l = floor(min_resolution b^l) whose vertices hold trained features; a point gets the
multilinear interpolation of its cell's corners at every level, and a ReLU MLP without biases turns them into the
result. Where a level has more vertices than 2^log2_hashmap_size, they share entries by a spatial hash (Eq. 2 to 4).

Constants: 16 levels of 2 features, coarsest resolution 16, finest half the picture's longer side, features uniform
within 1e-4, two hidden layers of 64, Glorot's uniform initialisation (section 4; repository NVlabs/instant-ngp,
configs/image/base.json and src/testbed.cu). Targets are in [0, 1].

Three implementations. "paper" is the grid as the paper has it: as many axes as coordinates, coarse levels stored vertex
by vertex. "torch" and "tcnn" are nerfstudio's HashEncoding, made for three coordinates: missing ones are 0, and
"torch" gives every level, however coarse, a hashed table of full size, so that at equal parameters it fits less.
"""

import dataclasses
import itertools
import math
from typing import Literal

import torch
from torch import Tensor, nn

from loe_field.baselines.base import Baseline
from loe_field.network.checks import check_at_least, check_between, check_choice
from loe_field.network.protocol import Recipe

Implementation = Literal["paper", "torch", "tcnn"]

_PRIMES = (1, 2654435761, 805459861)
_LARGEST_HOST_TABLE = 2**28
"""Numbers, 1 GiB in fp32: more is a slip, not a wish."""
_MOST_LEVELS = 1000
_FINEST = 2**24
"""Cells per axis: floats of 32 bits number no more."""


@dataclasses.dataclass(frozen=True)
class HashGridOptions:
    """A multiresolution hash grid with a small MLP (Mueller et al., Instant-NGP, SIGGRAPH 2022)."""

    num_levels: int = 16
    """Grids, 1 to 1,000."""
    features_per_level: int = 2
    """Numbers per vertex, >= 1."""
    log2_hashmap_size: int = 24
    """Levels with more vertices than 2^log2_hashmap_size share entries; 1 to 30. Lower it for a smaller network."""
    min_resolution: int = 16
    """Cells per axis of the coarsest level, >= 1."""
    max_resolution: int | None = None
    """Cells per axis of the finest level. None: half the picture's longer side, as the authors have it; 256 where there
    is no picture."""
    implementation: Implementation = "paper"
    """The paper's grid in plain PyTorch, or nerfstudio's encoding in PyTorch or tiny-cuda-nn (a GPU is needed)."""

    @property
    def finest(self) -> int:
        """Cells per axis of the finest level."""
        return 256 if self.max_resolution is None else self.max_resolution


def resolutions(options: HashGridOptions) -> list[int]:
    """Cells per axis of each level, coarsest first."""
    if options.num_levels == 1:
        return [options.min_resolution]
    growth = (options.finest / options.min_resolution) ** (1 / (options.num_levels - 1))
    # The slack keeps whole numbers whole whichever way the power rounds; of large ones it would not be enough.
    coarser = [math.floor(options.min_resolution * growth**level + 1e-9) for level in range(options.num_levels - 1)]
    return [*coarser, options.finest]


def table_sizes(dim: int, options: HashGridOptions) -> list[int]:
    """Entries of each level's table, of features_per_level numbers each."""
    most = 2**options.log2_hashmap_size
    if options.implementation == "paper":
        return [min((n + 1) ** dim, most) for n in resolutions(options)]
    if options.implementation == "torch":
        return [most] * options.num_levels
    # tiny-cuda-nn: three axes, whole multiples of 8 entries, ceil(N b^l - 1) + 1 vertices along an axis.
    growth = (options.finest / options.min_resolution) ** (1 / max(1, options.num_levels - 1))
    vertices = [math.ceil(options.min_resolution * growth**level - 1) + 1 for level in range(options.num_levels)]
    return [min(-(-(n**3) // 8) * 8, most) for n in vertices]


class Grid(nn.Module):
    """The paper's encoding: 1 to 3 coordinates to features of all levels.

    Attributes:
        table: [entries of all levels, features_per_level], coarsest level first; within a level stored vertex by vertex
            the first axis runs fastest.
    """

    scale: Tensor
    strides: Tensor
    offset: Tensor
    corners: Tensor

    def __init__(self, dim: int, options: HashGridOptions) -> None:
        super().__init__()
        cells, sizes = resolutions(options), table_sizes(dim, options)
        self.dim, self.size = dim, 2**options.log2_hashmap_size
        self.num_dense = sum((n + 1) ** dim <= self.size for n in cells)
        self.table = nn.Parameter(torch.empty(sum(sizes), options.features_per_level).uniform_(-1e-4, 1e-4))
        strides = [[(n + 1) ** axis for axis in range(dim)] for n in cells]
        self.register_buffer("scale", torch.tensor(cells), persistent=False)
        self.register_buffer("strides", torch.tensor(strides), persistent=False)
        self.register_buffer("offset", torch.tensor([0, *itertools.accumulate(sizes)][:-1]), persistent=False)
        self.register_buffer("corners", torch.tensor([*itertools.product((0, 1), repeat=dim)]), persistent=False)

    def entries(self, vertex: Tensor) -> Tensor:
        """Rows of the table for vertices [n, levels, dim], whole numbers 0 .. resolution; int64 [n, levels]."""
        dense = (vertex[:, : self.num_dense] * self.strides[: self.num_dense]).sum(-1)
        fine = vertex[:, self.num_dense :]
        hashed = fine[..., 0] * _PRIMES[0]
        for axis in range(1, self.dim):
            hashed = hashed ^ (fine[..., axis] * _PRIMES[axis])
        return torch.cat([dense, hashed & (self.size - 1)], -1) + self.offset

    def forward(self, coords: Tensor) -> Tensor:
        """Points [n, dim] in [0, 1] to features [n, levels * features_per_level], coarsest level first."""
        scaled = coords[:, None] * self.scale[:, None]
        # Beyond the border the outermost cell goes on: the last cell also serves the coordinate 1.
        cell = scaled.detach().floor().clamp(min=0).minimum((self.scale - 1)[:, None].to(scaled.dtype))
        fraction = scaled - cell
        cell = cell.to(torch.int64)
        total = None
        for i, corner in enumerate(itertools.product(*[(0, 1)] * self.dim)):
            weight = torch.ones_like(fraction[..., 0])
            for axis, step in enumerate(corner):
                weight = weight * (fraction[..., axis] if step else 1 - fraction[..., axis])
            rows = self.entries(cell + self.corners[i])
            features = self.table.index_select(0, rows.flatten()).view(*rows.shape, self.table.shape[1])
            term = weight[..., None] * features
            total = term if total is None else total + term
        assert total is not None
        return total.flatten(1)


class HostGrid(nn.Module):
    """nerfstudio's encoding, implementation "torch" or "tcnn", for 1 to 3 coordinates, the missing ones 0."""

    def __init__(self, dim: int, options: HashGridOptions) -> None:
        super().__init__()
        from nerfstudio.field_components.encodings import TCNN_EXISTS, HashEncoding

        assert options.implementation != "paper"
        if options.implementation == "tcnn" and not TCNN_EXISTS:
            raise ValueError('implementation is "tcnn", which is not installed here: choose "paper" or "torch"')
        numbers = sum(table_sizes(dim, options)) * options.features_per_level
        if options.implementation == "torch" and numbers > _LARGEST_HOST_TABLE:
            raise ValueError(
                f'log2_hashmap_size is {options.log2_hashmap_size}: with implementation "torch" every level has that '
                f"many entries, {numbers:,} numbers in all; give 19 or less"
            )
        self.encoding = HashEncoding(
            num_levels=options.num_levels,
            min_res=options.min_resolution,
            max_res=options.finest,
            log2_hashmap_size=options.log2_hashmap_size,
            features_per_level=options.features_per_level,
            hash_init_scale=1e-4,
            implementation=options.implementation,
        )
        self.missing = 3 - dim

    def forward(self, coords: Tensor) -> Tensor:
        """Points [n, dim] in [0, 1] to features [n, levels * features_per_level], coarsest level first."""
        if coords.shape[0] == 0:
            return coords.new_zeros(0, self.encoding.get_out_dim())
        return self.encoding(nn.functional.pad(coords, (0, self.missing))).to(coords.dtype)


class HashGrid(Baseline):
    """A ReLU MLP on a multiresolution hash grid.

    Its recipe is that of NVlabs/instant-ngp, configs/image/base.json, for the 20,000 steps before its rate first falls.

    Raises:
        ValueError: a size or option is out of range, or an implementation is not installed.
    """

    own_options: HashGridOptions
    options_type = HashGridOptions
    default_size = (3, 64)
    recipe = Recipe(lr=1e-2, betas=(0.9, 0.99), eps=1e-15, weight_decay=1e-6, batch=2**18)
    capturable = False
    piecewise_linear = True

    @property
    def macs_per_point(self) -> int:
        """Real multiply-adds for one point, one for every feature of a corner included."""
        features = self.own_options.num_levels * self.own_options.features_per_level
        corners = 2 ** (self.dim if self.own_options.implementation == "paper" else 3)
        return corners * features + super().macs_per_point

    def _build(self) -> None:
        _check(self.own_options)
        self.grid = (Grid if self.own_options.implementation == "paper" else HostGrid)(self.dim, self.own_options)
        sizes = self._widths(self.own_options.num_levels * self.own_options.features_per_level)
        self.layers = nn.ModuleList(nn.Linear(*size, bias=False) for size in sizes)
        for layer in self.layers:
            nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type]

    def _evaluate(self, coords: Tensor) -> Tensor:
        return self._mlp(self.grid(coords), torch.relu)


def _check(options: HashGridOptions) -> None:
    check_choice("implementation", options.implementation, Implementation)
    check_between(1, _MOST_LEVELS, num_levels=options.num_levels)
    check_at_least(1, features_per_level=options.features_per_level)
    check_between(1, _FINEST, min_resolution=options.min_resolution, max_resolution=options.finest)
    check_between(1, 30, log2_hashmap_size=options.log2_hashmap_size)
    if options.finest < options.min_resolution:
        raise ValueError(
            f"max_resolution is {options.finest}: it must be at least min_resolution, {options.min_resolution}"
        )
