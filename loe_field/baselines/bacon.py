"""BACON: Lindell et al., "Band-limited Coordinate Networks for Multiscale Scene Representation" (CVPR 2022).

A multiplicative filter network: `h_0 = g_0(p)`, `h_i = g_i(p) * (W_i h_{i-1} + b_i)` with sine filters
`g_i(p) = sin(2 pi F_i p + phi_i)`, and a linear output after every hidden layer (section 3). The frequencies F_i are
not trained: whole numbers of periods per picture, uniform within +-B_i per axis, so that everything has period 1 and an
output after layer i holds no frequency above B_0 + .. + B_i.

From the repository computational-imaging/bacon: B_i is resolution / 2 times 1/8, 1/8, 1/4, 1/4, 1/4, which add up to
the picture's Nyquist limit (experiments/train_img.py), phases are uniform within +-pi, weights within sqrt(6 / in),
biases those of torch's linear layer (modules.py); 4 hidden layers of 256 and the output (config/img/bacon.ini).
Targets are in [0, 1]. The authors' coordinates run over [-0.5, 0.5), which with random phases and period 1 is the same.
"""

import dataclasses
import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from loe_field.baselines.base import Baseline
from loe_field.network.protocol import Recipe
from loe_field.network.rows import ExpertRows

_SCALES_OF_FIVE = (1 / 8, 1 / 8, 1 / 4, 1 / 4, 1 / 4)


@dataclasses.dataclass(frozen=True)
class BaconOptions:
    """BACON: sine filters multiplied, outputs of known bandwidth (Lindell et al., CVPR 2022)."""

    resolution: tuple[int, ...] | None = None
    """Pixels along each axis of the unit square (one number for all axes): the last output's band is half of it. None:
    the picture's; 512 where there is no picture."""
    scales: tuple[float, ...] | None = None
    """Part of the band that each filter adds, first to last: num_layers numbers > 0 with a sum of at most 1. None: the
    authors' 1/8, 1/8, 1/4, 1/4, 1/4 for 5 layers, else equal parts."""
    intermediate_outputs: bool = True
    """An output after every hidden layer; without them only the last, and fewer parameters."""


class BandOutput(NamedTuple):
    """An output of BACON."""

    value: Tensor
    """[..., out_features]."""
    bandwidth: tuple[int, ...]
    """Highest frequency that it can hold along each axis, in periods per unit of length."""


def _bands(dim: int, num_layers: int, options: BaconOptions) -> list[tuple[int, ...]]:
    """B_i of each filter, per axis."""
    resolution, scales = options.resolution or (512,), options.scales
    if len(resolution) not in (1, dim) or min(resolution) < 1:
        raise ValueError(f"resolution is {resolution}: one positive number is wanted, or one for each of {dim} axes")
    if scales is None:
        scales = _SCALES_OF_FIVE if num_layers == 5 else (1 / num_layers,) * num_layers
    if len(scales) != num_layers or min(scales) <= 0 or sum(scales) > 1 + 1e-9:
        raise ValueError(f"scales is {scales}: {num_layers} positive numbers with a sum of at most 1 are wanted")
    per_axis = resolution * dim if len(resolution) == 1 else resolution
    return [tuple(round(pixels * scale / 2) for pixels in per_axis) for scale in scales]


class SineFilter(nn.Module):
    """`sin(2 pi F p + phi)` with fixed whole F, at most `band` along each axis, and trained phi.

    Attributes:
        frequencies: F [layer_width, dim], periods per unit of length, not trained.
        phase: phi [layer_width] in radians.
    """

    frequencies: Tensor

    def __init__(self, band: tuple[int, ...], layer_width: int) -> None:
        super().__init__()
        columns = [torch.randint(-b, b + 1, (layer_width,)) for b in band]
        self.register_buffer("frequencies", torch.stack(columns, -1).to(torch.get_default_dtype()))
        self.phase = nn.Parameter(torch.empty(layer_width).uniform_(-math.pi, math.pi))

    def forward(self, coords: Tensor) -> Tensor:
        """Points [n, dim] to [n, layer_width]."""
        return torch.sin(2 * math.pi * (coords @ self.frequencies.mT) + self.phase)


class Bacon(Baseline):
    """A multiplicative filter network with band-limited outputs.

    Its recipe is that of computational-imaging/bacon, experiments/config/img/bacon.ini and training.py: 5,001 steps on
    256x256, the loss being the mean over all outputs.

    Attributes:
        bandwidths: highest frequency after each hidden layer, per axis, in periods per unit of length.
    """

    own_options: BaconOptions
    options_type = BaconOptions
    default_size = (5, 256)
    recipe = Recipe(lr=5e-3, amsgrad=True)

    @property
    def macs_per_point(self) -> int:
        """Real multiply-adds for one point in `forward`, the last output alone; a filter's product is one a channel."""
        hidden, head = (self.num_layers - 1) * self.layer_width**2, self.layer_width * self.out_features
        return hidden + head + (self.num_layers * (self.dim + 1) - 1) * self.layer_width

    def _build(self) -> None:
        bands = _bands(self.dim, self.num_layers, self.own_options)
        sums = itertools.accumulate(bands, lambda a, b: tuple(x + y for x, y in zip(a, b)))
        self.bandwidths = list(sums)[1:]
        self.filters = nn.ModuleList(SineFilter(band, self.layer_width) for band in bands)
        self.hidden = nn.ModuleList(
            _wide_linear(self.layer_width, self.layer_width) for _ in range(self.num_layers - 1)
        )
        num_heads = self.num_layers - 1 if self.own_options.intermediate_outputs else 1
        self.heads = nn.ModuleList(_wide_linear(self.layer_width, self.out_features) for _ in range(num_heads))

    def _hidden_states(self, coords: Tensor) -> list[Tensor]:
        x = self.filters[0](coords)
        states = []
        for layer, filter_ in zip(self.hidden, list(self.filters)[1:]):
            x = filter_(coords) * layer(x)
            states.append(x)
        return states

    def _evaluate(self, coords: Tensor) -> Tensor:
        return self.heads[-1](self._hidden_states(coords)[-1])

    def outputs(self, coords: Tensor) -> list[BandOutput]:
        """All outputs at coords [..., dim], coarsest first; the last is that of `forward`."""
        flat = self._flat(coords)
        with torch.autocast(flat.device.type, enabled=False):
            states = self._hidden_states(flat)[-len(self.heads) :]
            values = [head(state) for head, state in zip(self.heads, states)]
        shape = (*coords.shape[:-1], self.out_features)
        return [BandOutput(v.view(shape), b) for v, b in zip(values, self.bandwidths[-len(values) :])]

    def outputs_to_fit(self, coords: Tensor, rows: ExpertRows | None = None) -> list[Tensor]:
        """All outputs, as the authors have it."""
        return [output.value for output in self.outputs(coords)]


def _wide_linear(in_features: int, out_features: int) -> nn.Linear:
    linear = nn.Linear(in_features, out_features)
    bound = math.sqrt(6 / in_features)
    nn.init.uniform_(linear.weight, -bound, bound)
    return linear
