"""A network's shape, and its parts that are no products: the encoding, and the activation between products."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from loe_field.network.tiling import BiasTile, Level, num_experts

Activation = Literal["sine", "leaky_relu", "relu"]
Precision = Literal["ieee", "tf32", "tf32x3", "bf16", "fp16"]
"""Operands of the Triton kernels' products: fp32 numbers as they are, rounded to TF32 or split into three TF32
products; or 16 bits. Sums and phases are fp32 throughout."""


class Arithmetic(NamedTuple):
    """How the Triton kernels compute one level, act(omega_0 * (W_e x + b))."""

    activation: str
    """"sine", "leaky_relu" (slope 0.2), "relu" or "none"."""
    omega_0: float
    """Frequency of the sine; no other activation has it."""
    precision: Precision
    dtype: torch.dtype
    """Dtype of the result."""
    tile: BiasTile | None = None
    """Where the vectors of the bias lie; None: it has one, for all rows."""


class NetworkShape(NamedTuple):
    """All that an implementation knows of a network besides its parameters."""

    levels: tuple[Level, ...]
    dim: int
    tile_size: int | tuple[int, ...]
    """Experts per axis; one number for each level only where they differ."""
    activation: Activation
    omega_0: float
    num_frequencies: int = 0
    bias_tiles: tuple[BiasTile | None, ...] = ()
    """Of each level, None being the bias that all points share; empty: that of all levels."""
    grid: tuple[BiasTile, ...] = ()
    """The tiles of the features that stand beside the encoding (`grid.grid_features`), coarsest first; empty: none."""

    @property
    def tile_sizes(self) -> tuple[int, ...]:
        """Experts per axis of each level."""
        return (self.tile_size,) * len(self.levels) if isinstance(self.tile_size, int) else self.tile_size

    @property
    def experts(self) -> int:
        """Experts of the level that has most."""
        return max(num_experts(size, self.dim) for size in self.tile_sizes)

    @property
    def blends_bias(self) -> bool:
        """Whether a level's bias changes with coords within a cell, so that coords have a gradient."""
        return any(tile is not None and tile.blending == "linear" for tile in self.bias_tiles)


def encode(coords: Tensor, num_frequencies: int) -> Tensor:
    """`layers.PositionalEncoding` of coords [..., dim]: [..., dim * (1 + 2 * num_frequencies)]."""
    if num_frequencies == 0:
        return coords
    octaves = 2.0 ** torch.arange(num_frequencies, dtype=coords.dtype, device=coords.device)
    phase = (math.pi * (2 * coords - 1)[..., None] * octaves).flatten(-2)
    return torch.cat([coords, phase.sin(), phase.cos()], -1)


def activate(y: Tensor, activation: str, omega_0: float, *, phase_dtype: torch.dtype | None = None) -> Tensor:
    """sin(omega_0 y) for "sine", slope 0.2 for "leaky_relu", "relu", and y itself for any other name.

    A sine's phase is computed in phase_dtype, None being that of y.
    """
    if activation == "sine":
        y = y if phase_dtype is None else y.to(phase_dtype)
        return torch.sin(y if omega_0 == 1 else omega_0 * y)
    if activation == "leaky_relu":
        return torch.nn.functional.leaky_relu(y, 0.2)
    return torch.relu(y) if activation == "relu" else y
