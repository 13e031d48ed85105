"""The layers and the network: they own the parameters, and other files do the arithmetic."""

import math
import operator
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from loe_field.network import fused_cpu, fused_triton, grouped
from loe_field.network.checks import check_at_least, check_choice
from loe_field.network.grid import features_by_torch, grid_features
from loe_field.network.implementation import (
    Implementation,
    Resolved,
    check_implementation,
    obstacle,
    resolve_implementation,
)
from loe_field.network.modes import needs_operators, needs_plain
from loe_field.network.ops import position_dependent_linear
from loe_field.network.rows import ExpertRows, expert_rows
from loe_field.network.shape import Activation, NetworkShape, activate, encode
from loe_field.network.tiling import (
    MAX_DIM,
    BiasTile,
    Blending,
    FeatureGrid,
    Level,
    Pattern,
    check_bias_tile,
    expert_index,
    make_levels,
    num_bias_vectors,
    num_experts,
)

Initialization = Literal["default", "siren"]


_GRID_INIT = 1e-4
"""Bound of a grid's vectors at the start: Mueller et al. (SIGGRAPH 2022), section 4."""
_GLOBAL_HOOKS = (
    torch_module._global_forward_pre_hooks,
    torch_module._global_forward_hooks,
    torch_module._global_backward_pre_hooks,
    torch_module._global_backward_hooks,
)


def _field_axis(num_fields: int | None) -> tuple[int, ...]:
    """The first axis of the parameters of so many fields; of one alone there is none."""
    if num_fields is None:
        return ()
    check_at_least(1, num_fields=num_fields)
    return (num_fields,)


def _init_linear_(
    weight: Tensor,
    bias: Tensor | None,
    initialization: Initialization,
    omega_0: float,
    first: bool,
    fields: tuple[int, ...] = (),
) -> None:
    """Fill weight [..., out, in] and bias [..., out] uniformly within +-bound; a field's bias tile has one vector.

    "default" is torch's linear layer: bound 1 / sqrt(in) for both. "siren" (Sitzmann et al., 2020, section 3.2):
    weight bound 1 / in for the first layer and sqrt(6 / in) / omega_0 for the others.
    """
    fan_in = weight.shape[-1]
    bias_bound = 1 / math.sqrt(fan_in)
    bound = bias_bound
    if initialization == "siren":
        bound = 1 / fan_in if first else math.sqrt(6 / fan_in) / omega_0
    with torch.no_grad():
        weight.uniform_(-bound, bound)
        if bias is not None:
            vectors = (1,) * (bias.dim() - 1 - len(fields))
            bias.copy_(bias.new_empty(*fields, *vectors, bias.shape[-1]).uniform_(-bias_bound, bias_bound))


def _sizes(name: str, given: int | Sequence[int], num_levels: int) -> tuple[int, ...]:
    """One size per level, each at least 1."""
    try:
        sizes = tuple(map(operator.index, given if isinstance(given, Sequence) else (given,) * num_levels))
    except TypeError:
        raise TypeError(f"{name} is {given!r}: a whole number is wanted, or one per layer") from None
    if len(sizes) != num_levels:
        raise ValueError(
            f"{name} lists {len(sizes)} sizes and the network has {num_levels} position-dependent layers: give one, or "
            "one per layer"
        )
    for size in sizes:
        check_at_least(1, **{name: size})
    return sizes


def _one_or_all(sizes: tuple[int, ...]) -> int | tuple[int, ...]:
    """The size of all levels, or those of each where they differ."""
    return sizes[0] if len(set(sizes)) == 1 else sizes


def _bias_tiles(
    levels: tuple[Level, ...],
    tile_size: int | Sequence[int],
    pattern: Sequence[tuple[float, float]] | None,
    blending: Blending,
    table_size: int | None,
    dim: int,
) -> tuple[BiasTile | None, ...]:
    """The tile of every level, None where it has one vector; arguments as LoEMLP has them."""
    sizes = _sizes("bias_tile_size", tile_size, len(levels))
    if max(sizes) == 1 and (pattern is not None or blending != "linear" or table_size is not None):
        raise ValueError("bias_tile_size is 1, and one vector has no pattern, blending or table: leave them out")
    where = levels if pattern is None else make_levels(pattern, len(levels))
    tiles = tuple(
        BiasTile(level, size, blending, table_size) if size > 1 else None for level, size in zip(where, sizes)
    )
    for tile in tiles:
        if tile is not None:
            check_bias_tile(tile, dim)
    return tiles


def _changed(module: nn.Module, kind: type[nn.Module]) -> str | None:
    """How a module differs from what its class makes: hooks, parameters, the class itself; None if it does not."""
    if type(module) is not kind or "forward" in module.__dict__:
        return "was replaced"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return "has a hook"
    parameters = module._parameters
    if kind is not PositionalEncoding and (parameters.get("weight") is None or parameters.get("bias") is None):
        return "lacks a parameter"
    return None


def _check_alike(fields: "LoEMLP", single: "LoEMLP") -> None:
    """The single network must have the shape of each of the fields."""
    expected, found = ({k: v for k, v in net.options.items() if k != "num_fields"} for net in (fields, single))
    if single.num_fields is not None:
        raise ValueError(f"a network of one field is wanted, and this has num_fields={single.num_fields}")
    if expected != found:
        name = next(k for k in {**expected, **found} if expected.get(k) != found.get(k))
        raise ValueError(f"the networks differ in {name}: {expected.get(name)} and {found.get(name)}")


class PositionDependentLinear(nn.Module):
    """A linear layer whose matrix depends on where the point lies: `h(x, p) = W(p) x + b(p)` (Eq. 1 of the paper).

    With tile_size 1 and no bias_tile it is an ordinary linear layer. Arguments not listed are those of
    `position_dependent_linear`.

    Args:
        in_features: width of x.
        out_features: width of the result.
        dim: coordinates per point, 1 to 4.
        bias: whether there is a bias, shared by the experts unless there is a bias_tile.
        num_fields: so many layers side by side, for x [num_fields, N, in_features]; None: one.

    Attributes:
        weight: experts [tile_size ** dim, out_features, in_features]; with num_fields it comes first, as in bias.
        bias: [out_features], the vectors of bias_tile [num_bias_vectors, out_features], or None.

    Raises:
        ValueError: a size is out of range, a choice unknown, or there is a tile for no bias.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        level: Level,
        dim: int = 2,
        tile_size: int = 2,
        blending: Blending = "nearest",
        bias: bool = True,
        bias_tile: BiasTile | None = None,
        implementation: Implementation = "auto",
        num_fields: int | None = None,
    ) -> None:
        super().__init__()
        check_at_least(1, in_features=in_features, out_features=out_features, tile_size=tile_size)
        fields = _field_axis(num_fields)
        if not 1 <= dim <= MAX_DIM:
            raise ValueError(f"dim is {dim}: 1 to {MAX_DIM} coordinates per point are supported")
        check_implementation(implementation, blending)
        make_levels([level], 1)
        if bias_tile is not None:
            make_levels([bias_tile.level], 1)
            check_bias_tile(bias_tile, dim)
            if not bias:
                raise ValueError("there is a bias_tile and no bias: leave one of them out")
        self.level, self.dim, self.tile_size, self.bias_tile = level, dim, tile_size, bias_tile
        self.blending: Blending = blending
        self.implementation: Implementation = implementation
        vectors = () if bias_tile is None else (num_bias_vectors(bias_tile, dim),)
        self.weight = nn.Parameter(torch.empty(*fields, num_experts(tile_size, dim), out_features, in_features))
        self.bias = nn.Parameter(torch.empty(*fields, *vectors, out_features)) if bias else None
        _init_linear_(self.weight, self.bias, "default", 1.0, False, fields)

    def forward(self, x: Tensor, coords: Tensor) -> Tensor:
        """Apply it to x [..., in_features] at coords [..., dim]; returns [..., out_features].

        With num_fields x is [num_fields, N, in_features], and coords are of all fields [N, dim] or of each.
        """
        choices = {"tile_size": self.tile_size, "blending": self.blending, "implementation": self.implementation}
        choices["bias_tile"] = self.bias_tile
        return position_dependent_linear(x, coords, self.weight, self.bias, self.level, **choices)

    def extra_repr(self) -> str:
        """Sizes and choices, for print(module)."""
        *fields, experts, out_features, in_features = self.weight.shape
        many = "".join(f"fields={number}, " for number in fields)
        return many + (
            f"{in_features}, {out_features}, experts={experts}, alpha={self.level.alpha:g}, beta={self.level.beta:g}, "
            f"tile_size={self.tile_size}, blending={self.blending}, bias={self.bias is not None}"
            + ("" if self.bias_tile is None else f", bias_tile={self.bias_tile}")
        )


class PositionalEncoding(nn.Module):
    """`p -> (p, sin(2^j pi (2p - 1)), cos(2^j pi (2p - 1)))` for j = 0 .. num_frequencies - 1.

    The encoding of Mildenhall et al. (NeRF, Eq. 4) on coordinates stretched from [0, 1] to [-1, 1], with p itself kept.

    Args:
        dim: coordinates per point.
        num_frequencies: octaves, >= 0; 0 passes p through.

    Attributes:
        out_features: dim * (1 + 2 * num_frequencies).
    """

    def __init__(self, dim: int, num_frequencies: int) -> None:
        super().__init__()
        if num_frequencies < 0:
            raise ValueError(f"num_frequencies is {num_frequencies}: it must be 0 (no encoding) or more")
        self.num_frequencies = num_frequencies
        self.out_features = dim * (1 + 2 * num_frequencies)

    def forward(self, coords: Tensor) -> Tensor:
        """Encode coords [..., dim] as [..., out_features]."""
        return encode(coords, self.num_frequencies)


class _Heads(nn.Module):
    """The last layers of many fields: weight [fields, out_features, in_features] and bias [fields, out_features]."""

    def __init__(self, in_features: int, out_features: int, num_fields: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(num_fields, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(num_fields, out_features))

    def forward(self, x: Tensor) -> Tensor:
        """Apply each to its x [fields, N, in_features]."""
        return torch.baddbmm(self.bias[:, None], x, self.weight.mT)


class LoEMLP(nn.Module):
    """Levels of experts: an MLP whose layers, all but the last, choose their matrix by position.

    Each of the num_layers - 1 position-dependent layers has its own scale, so that few experts per layer still give
    every cell of the finest grid its own path through the network (Hao et al., NeurIPS 2022); the activation is a sine
    by default (Atikuzzaman and Bae). With tile_size 1 it is the ordinary dense MLP.

    Args:
        dim: coordinates per point, 1 to 4.
        out_features: width of the result.
        num_layers: linear layers in all, the final position-independent one included, >= 2.
        layer_width: channels of the hidden layers, >= 1.
        tile_size: experts per axis, >= 1: of all position-dependent layers, or of each.
        pattern: "fine_to_coarse", "quad_tree", "gray_code", or one (alpha, beta) per position-dependent layer.
        blending: "nearest" or "linear".
        bias_tile_size: vectors per axis of the bias, 1 to 2^24: of all position-dependent layers, or of each; 1 is the
            bias that all points share.
        bias_pattern: scale and shift of the bias tiles, one (alpha, beta) per position-dependent layer; None: those of
            its experts.
        bias_blending: "linear", which is continuous, or "nearest".
        bias_table_size: a power of two: bias tiles of more vectors keep as many, shared by a hash; None: all.
        activation: "sine" is sin(omega_0 y), its phase in fp32 or wider; "leaky_relu" has slope 0.2; "relu".
        omega_0: frequency of the sine, > 0. The other activations have none and take only 1.
        initialization: "default" (torch's linear layer) or "siren" (Sitzmann et al., 2020, for this omega_0).
        num_frequencies: octaves of positional encoding of the input, >= 0.
        grid: features that go into the first layer beside the encoding; None: none.
        implementation: "auto", "torch", "triton", "cpu" or "reference" (see implementation.py).
        num_fields: so many fields of this shape computed together, each with parameters of its own: all of them have
            a first axis of num_fields. None: one field, and no such axis.

    Attributes:
        grid_table: the grid's vectors, all levels' one after the other, coarsest first, [vectors, features_per_level],
            at the start uniform within +-1e-4; None without a grid.

    Raises:
        ValueError: a size is out of range, a choice is unknown, or two of them contradict each other.

    Example:
        >>> field = LoEMLP(dim=2, out_features=3)
        >>> colours = field(torch.rand(1000, 2))  # [1000, 3]
        >>> fields = LoEMLP(out_features=3, layer_width=16, num_layers=4, num_fields=100)
        >>> colours = fields(torch.rand(1000, 2))  # [100, 1000, 3]
        >>> last = fields.field(99)
    """

    recipe = None

    def __init__(
        self,
        *,
        dim: int = 2,
        out_features: int = 1,
        num_layers: int = 10,
        layer_width: int = 64,
        tile_size: int | Sequence[int] = 2,
        pattern: Pattern | Sequence[tuple[float, float]] = "fine_to_coarse",
        blending: Blending = "nearest",
        bias_tile_size: int | Sequence[int] = 1,
        bias_pattern: Sequence[tuple[float, float]] | None = None,
        bias_blending: Blending = "linear",
        bias_table_size: int | None = None,
        activation: Activation = "sine",
        omega_0: float = 1.0,
        initialization: Initialization = "default",
        num_frequencies: int = 0,
        grid: FeatureGrid | None = None,
        implementation: Implementation = "auto",
        num_fields: int | None = None,
    ) -> None:
        super().__init__()
        fields = _field_axis(num_fields)
        if num_layers < 2:
            raise ValueError(f"num_layers is {num_layers}: at least 2, one position-dependent layer and the final one")
        check_at_least(1, out_features=out_features, layer_width=layer_width)
        check_choice("activation", activation, Activation)
        check_choice("initialization", initialization, Initialization)
        if not (math.isfinite(omega_0) and omega_0 > 0):
            raise ValueError(f"omega_0 is {omega_0}: it is the frequency of the sine and must be positive")
        if activation != "sine" and omega_0 != 1:
            raise ValueError(f"omega_0 is {omega_0} but the activation is {activation}: only sine has a frequency")
        check_implementation(implementation, blending)
        self.levels = make_levels(pattern, num_layers - 1)
        self.dim, self.tile_sizes = dim, _sizes("tile_size", tile_size, num_layers - 1)
        self.tile_size = _one_or_all(self.tile_sizes)
        self.bias_tiles = _bias_tiles(self.levels, bias_tile_size, bias_pattern, bias_blending, bias_table_size, dim)
        self.blending: Blending = blending
        self.activation: Activation = activation
        self.omega_0 = omega_0
        self.initialization: Initialization = initialization
        self.implementation: Implementation = implementation
        self.num_fields = num_fields
        self.encoding = PositionalEncoding(dim, num_frequencies)
        self.grid, self.grid_tiles = grid, () if grid is None else grid.tiles(dim)
        self.layers = nn.ModuleList(
            PositionDependentLinear(
                self._in_features if i == 0 else layer_width,
                layer_width,
                level=level,
                dim=dim,
                tile_size=self.tile_sizes[i],
                blending=blending,
                bias_tile=self.bias_tiles[i],
                implementation="torch" if implementation in ("auto", "cpu") else implementation,
                num_fields=num_fields,
            )
            for i, level in enumerate(self.levels)
        )
        single = num_fields is None
        self.head = nn.Linear(layer_width, out_features) if single else _Heads(layer_width, out_features, num_fields)
        for i, layer in enumerate([*self.layers, self.head]):
            _init_linear_(layer.weight, layer.bias, initialization, omega_0, i == 0, fields)  # type: ignore[arg-type]
        table = None if grid is None else torch.empty(*fields, *self._grid_shape()).uniform_(-_GRID_INIT, _GRID_INIT)
        self.grid_table = None if table is None else nn.Parameter(table)

    def forward(self, coords: Tensor, rows: ExpertRows | None = None) -> Tensor:
        """Evaluate the field.

        Under autocast the hidden products run in autocast's dtype; coordinates, first layer, phases and the final layer
        stay in the parameters' dtype, because 16 bits cannot tell neighbouring pixels apart.

        Args:
            coords: points [..., dim] in the parameters' dtype; any batch shape, also an empty one. With num_fields:
                [N, dim], points of all fields, or [num_fields, N, dim].
            rows: `group` of these very points, for points that come again.

        Returns:
            [..., out_features]; with num_fields [num_fields, N, out_features].

        Raises:
            ValueError: coords has another number of coordinates, another dtype or another device than the parameters,
                or it belongs to another number of fields.
        """
        coords = self._checked(coords)
        if self.num_fields is not None:
            return self._evaluate(coords, rows)
        batch, coords = coords.shape[:-1], coords.reshape(-1, self.dim)
        out = self._evaluate(coords, rows)
        return out.view(*batch, out.shape[-1])

    def _checked(self, coords: Tensor) -> Tensor:
        """Coords; those of many fields as [1 or num_fields, N, dim]."""
        if coords.shape[-1:] != (self.dim,):
            raise ValueError(f"coords is {tuple(coords.shape)}: the last axis must hold {self.dim} coordinates")
        like = self._a_parameter
        if coords.dtype != like.dtype or coords.device != like.device:
            raise ValueError(
                f"coords is {coords.dtype} on {coords.device}, the parameters are {like.dtype} on {like.device}: "
                "they must agree, see Tensor.to and Module.to"
            )
        if self.num_fields is None:
            return coords
        if coords.dim() == 2:
            return coords[None]
        if coords.dim() != 3 or len(coords) != self.num_fields:
            raise ValueError(
                f"coords is {tuple(coords.shape)}: [N, {self.dim}] is wanted, points of all fields, or "
                f"[{self.num_fields}, N, {self.dim}]"
            )
        return coords

    def _evaluate(self, coords: Tensor, rows: ExpertRows | None = None) -> Tensor:
        circumstances = self._circumstances
        altered = circumstances["altered"]
        weights, biases = self._weights_and_biases if altered is None else ([], [])
        table = self._parameters["grid_table"] if altered is None and self.grid is not None else None
        tables = [] if table is None else [table]
        if needs_plain(coords, *(self.parameters() if altered else (*weights, *biases, *tables))):
            return self._layer_by_layer(coords)
        resolved = resolve_implementation(self.implementation, **circumstances)
        if resolved == "cpu":
            return fused_cpu.evaluate(coords, weights, biases, self.shape, table=table)
        if resolved == "triton":
            return fused_triton.evaluate(coords, weights, biases, self.shape, rows=rows, table=table)
        by_layers = resolved == "reference" or self.blending == "linear" or self.tile_size == 1 or needs_operators()
        if altered is None and not by_layers:
            return grouped.evaluate(coords, weights, biases, self.shape, table=table)
        if altered is not None and self.implementation == "auto" and not torch.compiler.is_compiling():
            warnings.warn(f"the network is computed layer by layer, without kernels: {altered}", stacklevel=5)
        return self._layer_by_layer(coords)

    def _layer_by_layer(self, coords: Tensor) -> Tensor:
        dtype, device = coords.dtype, coords.device.type
        mixed = not coords.is_meta and torch.is_autocast_enabled(device)
        x = self.encode(coords)
        x = x if self.num_fields is None else x.expand(self.num_fields, -1, -1)
        for i, layer in enumerate(self.layers):
            with torch.autocast(device, enabled=i > 0) if mixed else nullcontext():
                y = layer(x) if isinstance(layer, nn.Linear) else layer(x, coords)
            x = activate(y, self.activation, self.omega_0, phase_dtype=dtype)
        with torch.autocast(device, enabled=False) if mixed else nullcontext():
            return self.head(x.to(dtype))

    def encode(self, coords: Tensor) -> Tensor:
        """What goes into the first layer at coords [N, dim]: the encoding and, behind it, the grid's features.

        With num_fields, at coords [1 or num_fields, N, dim], it has as many axes.
        """
        encoded = self.encoding(coords)
        if self.grid is None:
            return encoded
        table: Tensor = self.grid_table  # type: ignore[assignment]
        features = features_by_torch
        if self.implementation == "auto":

            def features(coords: Tensor, table: Tensor, tiles: Sequence[BiasTile], beside: Tensor) -> Tensor:
                return grid_features(coords, table, tiles, beside=beside)

        return grouped.features_of_fields(coords, table, self.grid_tiles, encoded, features)

    @property
    def _in_features(self) -> int:
        """Of the first layer."""
        return self.encoding.out_features + (0 if self.grid is None else self.grid.out_features)

    def _grid_shape(self) -> tuple[int, int]:  # no property: torch.jit.trace and the host's viewer read them all
        """Of a field's table."""
        assert self.grid is not None
        return sum(num_bias_vectors(tile, self.dim) for tile in self.grid_tiles), self.grid.features_per_level

    @property
    def _altered(self) -> str | None:
        """Why the layers cannot be computed all at once: a change since construction; None if there is none."""
        if any(_GLOBAL_HOOKS):
            return "all modules have a hook"
        if len(self.layers) != len(self.levels):
            return f"it has {len(self.layers)} layers for {len(self.levels)} levels"
        if reason := _changed(self.encoding, PositionalEncoding):
            return f"encoding {reason}"
        if reason := _changed(self.head, nn.Linear if self.num_fields is None else _Heads):
            return f"head {reason}"
        fields = () if self.num_fields is None else (self.num_fields,)
        table = self._parameters.get("grid_table")
        if self.grid is not None and (table is None or table.shape != (*fields, *self._grid_shape())):
            return "grid_table was replaced"
        width, in_features = self.head.in_features, self._in_features
        for i, (layer, level, size, tile) in enumerate(zip(self.layers, self.levels, self.tile_sizes, self.bias_tiles)):
            if reason := _changed(layer, PositionDependentLinear):
                return f"layers.{i} {reason}"
            choices = (layer.level, layer.dim, layer.tile_size, layer.blending, layer.bias_tile, layer.weight.shape)  # type: ignore[union-attr]
            if choices != (level, self.dim, size, self.blending, tile, (*fields, size**self.dim, width, in_features)):
                return f"layers.{i} is not like the others"
            in_features = width
        return None

    @property
    def _weights_and_biases(self) -> tuple[list[Tensor], list[Tensor]]:
        """First layer to head."""
        parameters = [layer._parameters for layer in (*self.layers, self.head)]
        return [p["weight"] for p in parameters], [p["bias"] for p in parameters]  # type: ignore[misc]

    def outputs_to_fit(self, coords: Tensor, rows: ExpertRows | None = None) -> list[Tensor]:
        """`forward` alone."""
        return [self(coords, rows)]

    def mean_squared_errors(self, coords: Tensor, target: Tensor) -> Tensor:
        """The mean of (self(coords) - target)^2 of every field.

        Where the CPU kernels serve many fields, the pass that finds them finds their gradients too.

        Args:
            coords: points as in a call.
            target: [..., out_features], of the result's shape; with num_fields [num_fields, N, out_features].

        Returns:
            [num_fields]; of one field a scalar.

        Raises:
            ValueError: target has another shape than the result.
        """
        fields = () if self.num_fields is None else (self.num_fields,)
        coords = self._checked(coords)
        wanted = (*(fields or coords.shape[:-2]), *coords.shape[max(0, coords.dim() - 2) : -1], self.out_features)
        if target.shape != wanted:
            raise ValueError(f"target is {tuple(target.shape)}: {list(wanted)} is wanted, as the network gives it")
        circumstances = self._circumstances
        if fields and circumstances["altered"] is None and not needs_operators():
            weights, biases = self._weights_and_biases
            table: Tensor | None = self.grid_table if self.grid is not None else None  # type: ignore[assignment]
            plain = needs_plain(coords, target, *weights, *biases, *([] if table is None else [table]))
            if not plain and resolve_implementation(self.implementation, **circumstances) == "cpu":
                return fused_cpu.mean_squared_errors(coords, target, weights, biases, self.shape, table=table)
        if fields:
            return (self._evaluate(coords) - target).square().mean((1, 2))
        return (self(coords) - target).square().mean()

    def group(self, coords: Tensor) -> ExpertRows | None:
        """Points [..., dim] grouped by expert at every level where the Triton kernels use it; None elsewhere."""
        if self.resolved_implementation != "triton" or (self.tile_size == 1 and self.num_fields is None):
            return None
        if self.num_fields is not None:
            return fused_triton.rows_of_fields(self._checked(coords), self.num_fields, self.shape)
        index = expert_index(coords.reshape(-1, self.dim), self.levels, self.tile_size)
        return expert_rows(index, self.shape.experts)

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """The experts of all levels but the first, which Muon is for, as "experts"; all else as "fields".

        "grid" has the grid's table and the bias tiles, which are no matrices: few points of a step touch a vector, and
        its entries stand for themselves.
        """
        experts = [
            p for layer in list(self.layers)[1:] for p in layer.parameters() if p.dim() > 1 and p is not layer.bias
        ]
        tables = [p for name, p in self.named_parameters() if name == "grid_table"]
        axes = 1 if self.num_fields is None else 2
        tables += [layer.bias for layer in self.layers if layer.bias is not None and layer.bias.dim() > axes]  # type: ignore[misc, union-attr]
        chosen = {id(p) for p in experts + tables}
        rest = [p for p in self.parameters() if id(p) not in chosen]
        groups = {"experts": experts, "fields": rest, "grid": tables}
        return {name: parameters for name, parameters in groups.items() if parameters}

    def with_exact_derivatives(self) -> None:
        """Do nothing: they are exact."""

    @property
    def shape(self) -> NetworkShape:
        """All that the implementations know besides the parameters."""
        frequencies = self.encoding.num_frequencies
        tiles = self.bias_tiles if any(self.bias_tiles) else ()
        return NetworkShape(
            self.levels, self.dim, self.tile_size, self.activation, self.omega_0, frequencies, tiles, self.grid_tiles
        )

    @property
    def resolved_implementation(self) -> Resolved:
        """The one that computes the network where its parameters are now."""
        return resolve_implementation(self.implementation, **self._circumstances)

    @property
    def obstacle(self) -> str | None:
        """Why "auto" falls back to plain PyTorch where the parameters are now; None if it does not."""
        if self.implementation != "auto" or self.resolved_implementation != "torch":
            return None
        return obstacle("cpu" if self._a_parameter.device.type == "cpu" else "triton", **self._circumstances)

    @property
    def _circumstances(self) -> dict[str, Any]:
        """All that the choice of the implementation depends on."""
        like, experts = self._a_parameter, num_experts(max(self.tile_sizes), self.dim)
        where = {"device": like.device, "dtype": like.dtype, "blending": self.blending, "experts": experts}
        fields = {"fields": self.num_fields, "bias_tiles": any(self.bias_tiles)}
        return {**where, **fields, "altered": self._altered}  # not |, which torch.compile of torch 2.7 does not know

    @property
    def _a_parameter(self) -> Tensor:
        """Any one of them, which says where they are and in which dtype."""
        weight = self.head._parameters.get("weight")  # at hand; the generator of all takes 14 us
        return next(self.parameters()) if weight is None else weight

    @property
    def capturable(self) -> bool:
        """Whether a forward and backward pass on a GPU goes without waiting for it, as a CUDA graph needs."""
        largest = max(self.tile_sizes)
        dense = largest == 1 or (self.blending == "linear" and largest == 2)
        return self.resolved_implementation == "triton" or (self.resolved_implementation == "torch" and dense)

    @property
    def piecewise_linear(self) -> bool:
        """Whether the activation is made of straight pieces."""
        return self.activation != "sine"

    @property
    def options(self) -> dict[str, Any]:
        """LoEMLP's arguments for this network in plain numbers, text and lists; the levels in full.

        Those of bias tiles and a grid are there where there are any.
        """
        return {
            "dim": self.dim,
            "out_features": self.out_features,
            "num_layers": len(self.layers) + 1,
            "layer_width": self.head.in_features,
            "tile_size": self.tile_size if isinstance(self.tile_size, int) else list(self.tile_size),
            "pattern": [list(level) for level in self.levels],
            "blending": self.blending,
            **self._bias_options,
            "activation": self.activation,
            "omega_0": self.omega_0,
            "num_frequencies": self.encoding.num_frequencies,
            **({} if self.grid is None else {"grid": asdict(self.grid)}),
            **({} if self.num_fields is None else {"num_fields": self.num_fields}),
        }

    @property
    def _bias_options(self) -> dict[str, Any]:
        tiles = [tile for tile in self.bias_tiles if tile is not None]
        if not tiles:
            return {}
        sizes = _one_or_all(tuple(1 if tile is None else tile.tile_size for tile in self.bias_tiles))
        levels = [level if tile is None else tile.level for level, tile in zip(self.levels, self.bias_tiles)]
        return {
            "bias_tile_size": sizes if isinstance(sizes, int) else list(sizes),
            "bias_pattern": [list(level) for level in levels],
            "bias_blending": tiles[0].blending,
            "bias_table_size": tiles[0].table_size,
        }

    @property
    def out_features(self) -> int:
        """Width of the result."""
        return self.head.out_features

    @property
    def num_parameters(self) -> int:
        """Trainable numbers in all."""
        return sum(p.numel() for p in self.parameters())

    @property
    def macs_per_point(self) -> int:
        """Multiply-adds for one point: of the matrix products and of what bias tiles and the grid blend.

        Linear blending multiplies by the 2^dim experts. With num_fields: for one point of one field.
        """
        macs: int = self.head.weight.shape[-2:].numel() + (
            0 if self.grid is None else 2**self.dim * self.grid.out_features
        )
        for layer in self.layers:
            corners = 2**self.dim if self.blending == "linear" and layer.tile_size > 1 else 1  # type: ignore[operator]
            tile = layer.bias_tile
            vectors = 2**self.dim if tile is not None and tile.blending == "linear" else 0  # type: ignore[union-attr]
            macs += corners * layer.weight.shape[-2:].numel() + vectors * layer.weight.shape[-2]  # type: ignore[union-attr, operator]
        return macs

    @property
    def floats_per_point(self) -> float:
        """Numbers that a training step keeps for a point, about, where the parameters are now; of all fields."""
        # In copies of a level's activations; measured on the CPU: 3.9 (nearest), 4.8 (linear) and 1.1 with its kernels.
        fields = self.num_fields or 1
        copies = 6 if self.blending == "linear" else 1.5 if self.resolved_implementation == "cpu" else 4
        features = 0 if self.grid is None else self.grid.out_features
        # Features and their gradient; in torch operations also those of every corner, and the corners themselves.
        kernels = self.resolved_implementation in ("cpu", "triton")
        corners = 0 if self.grid is None or kernels else 2**self.dim
        blended = 2 * features + corners * (features + 4 * len(self.grid_tiles))
        if self.num_fields is not None and self.resolved_implementation == "cpu":
            return fields * (2 * self.out_features + blended)  # the backward pass computes all else anew
        return fields * (copies * len(self.layers) * self.head.in_features + blended)

    @property
    def workspace_numbers(self) -> int:
        """Numbers, about, that a training step on a CPU keeps beside points and parameters; there are no others."""
        if self.blending == "linear" or self.implementation not in ("auto", "cpu"):
            return 0
        if self.num_fields is not None:
            return self.num_parameters  # the gradients that losses keep; a thread's room is that of one field
        return fused_cpu.workspace_numbers(*self._weights_and_biases)

    def _with_fields(self, num_fields: int | None) -> "LoEMLP":
        """A network of this shape with so many fields, where and as the parameters are; its numbers say nothing."""
        options = {**self.options, "num_fields": num_fields, "grid": self.grid}
        with torch.random.fork_rng(devices=[]):
            network = LoEMLP(**options, initialization=self.initialization, implementation=self.implementation)
        return network.to(self._a_parameter)

    def field(self, index: int) -> "LoEMLP":
        """A network of its own with the parameters of one field."""
        self._check_field(index)
        single = self._with_fields(None)
        with torch.no_grad():
            for to, of_all in zip(single.parameters(), self.parameters()):
                to.copy_(of_all[index])
        return single

    def set_field_(self, index: int, single: "LoEMLP") -> None:
        """Give a field the parameters of a network of its shape.

        Raises:
            ValueError: the shapes differ, or there is no such field.
        """
        self._check_field(index)
        _check_alike(self, single)
        with torch.no_grad():
            for of_all, own in zip(self.parameters(), single.parameters()):
                of_all[index].copy_(own)

    def init_fields_(self, seeds: Sequence[int]) -> None:
        """Start every field anew from its own seed, as LoEMLP starts after torch.manual_seed(seed).

        Torch's random numbers go on as if nothing had been drawn.

        Raises:
            ValueError: there are not as many seeds as fields.
        """
        if self.num_fields is None or len(seeds) != self.num_fields:
            raise ValueError(f"{len(seeds)} seeds came for num_fields={self.num_fields}: one per field is wanted")
        options = {**self.options, "num_fields": None, "grid": self.grid}
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            for index, seed in enumerate(seeds):
                torch.manual_seed(seed)
                single = LoEMLP(**options, initialization=self.initialization)
                for of_all, own in zip(self.parameters(), single.parameters()):
                    of_all[index].copy_(own)

    def select(self, index: Tensor | Sequence[int]) -> "LoEMLP":
        """A network of the chosen fields, with parameters of its own.

        Args:
            index: their numbers, or bool for each field whether it is chosen; at least one.

        Raises:
            ValueError: there is no such field, or none is chosen.
        """
        chosen = torch.as_tensor(index, device="cpu")
        if self.num_fields is None:
            raise ValueError("this network is one field: give num_fields, or use LoEMLP.stack")
        if chosen.dtype == torch.bool and chosen.shape == (self.num_fields,):
            chosen = chosen.nonzero()[:, 0]
        if chosen.dim() != 1 or len(chosen) == 0 or chosen.dtype.is_floating_point or chosen.dtype == torch.bool:
            raise ValueError(f"index is {tuple(chosen.shape)} {chosen.dtype}: numbers of one field or more are wanted")
        for number in (int(chosen.min()), int(chosen.max())):
            self._check_field(number)
        network = self._with_fields(len(chosen))
        with torch.no_grad():
            for to, of_all in zip(network.parameters(), self.parameters()):
                to.copy_(of_all[chosen.to(of_all.device)])
        return network

    @staticmethod
    def stack(networks: Sequence["LoEMLP"]) -> "LoEMLP":
        """Networks of one shape, each of one field, as the fields of one network with parameters of its own.

        Raises:
            ValueError: there are none, or their shapes differ.
        """
        if not networks:
            raise ValueError("there are no networks to stack: give one or more")
        network = networks[0]._with_fields(len(networks))
        for single in networks:
            _check_alike(network, single)
        with torch.no_grad():
            for of_all, *own in zip(network.parameters(), *(single.parameters() for single in networks)):
                of_all.copy_(torch.stack(own))
        return network

    def _check_field(self, index: int) -> None:
        if self.num_fields is None:
            raise ValueError("this network is one field: give num_fields, or use LoEMLP.stack")
        if not 0 <= index < self.num_fields:
            raise ValueError(f"there is no field {index}: 0 to {self.num_fields - 1} are there")

    def __prepare_scriptable__(self) -> nn.Module:
        """Refuse torch.jit.script, which would translate the source and cannot."""
        raise TypeError(
            "torch.jit.script cannot take a LoEMLP: use torch.jit.trace(field, coords), for any number of points"
        )
