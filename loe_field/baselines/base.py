"""The class that all baselines share, and its checks."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from loe_field.network.checks import check_at_least, check_between
from loe_field.network.implementation import Resolved
from loe_field.network.protocol import Recipe
from loe_field.network.rows import ExpertRows

MOST_LAYERS = 1000
"""More linear layers are a slip, not a wish."""
MAX_DIM = 3
"""Largest number of coordinates per point that the baselines take."""


class Baseline(nn.Module, ABC):
    """A network of others, a `Network` over [0, 1)^dim whose targets lie in [0, 1].

    Args:
        dim: coordinates per point, 1 to 3.
        out_features: width of the result, >= 1.
        num_layers: linear layers in all, the final one included, 2 to 1,000; None: the authors' number.
        layer_width: channels of the hidden layers, >= 1; None: the authors' number.
        options: an instance of options_type, the network's own options; None: the authors'.

    Attributes:
        options_type: class of the network's options.
        recipe: how the network's authors train it.
        default_size: num_layers and layer_width that its authors take for a picture.
        own_options: the instance of options_type.

    Raises:
        ValueError: a size or option is out of range.
    """

    options_type: ClassVar[type]
    recipe: Recipe
    default_size: ClassVar[tuple[int, int]]
    resolved_implementation: Resolved = "torch"
    obstacle: str | None = None
    capturable: bool = True
    piecewise_linear: bool = False
    layers: nn.ModuleList

    def __init__(
        self,
        *,
        dim: int = 2,
        out_features: int = 1,
        num_layers: int | None = None,
        layer_width: int | None = None,
        options: Any = None,
    ) -> None:
        super().__init__()
        layers, width = self.default_size
        self.dim, self.out_features = dim, out_features
        self.num_layers = layers if num_layers is None else num_layers
        self.layer_width = width if layer_width is None else layer_width
        if not 1 <= dim <= MAX_DIM:
            raise ValueError(f"dim is {dim}: 1 to {MAX_DIM} coordinates per point are supported")
        check_at_least(1, out_features=out_features, layer_width=self.layer_width)
        check_between(2, MOST_LAYERS, num_layers=self.num_layers)
        self.own_options: Any = self.options_type() if options is None else options
        self._build()

    @abstractmethod
    def _build(self) -> None:
        """Check the options and make the layers, the sizes being set."""

    def forward(self, coords: Tensor, rows: ExpertRows | None = None) -> Tensor:
        """Evaluate the network in its parameters' dtype; autocast has no say, as the authors train in fp32.

        Args:
            coords: points [..., dim] in [0, 1), any batch shape, also an empty one.
            rows: not used here.

        Returns:
            [..., out_features], fitted to targets in [0, 1], not clamped.

        Raises:
            ValueError: coords has another number of coordinates.
        """
        flat = self._flat(coords)
        with torch.autocast(flat.device.type, enabled=False):
            out = self._evaluate(flat)
        return out.view(*coords.shape[:-1], self.out_features)

    def _flat(self, coords: Tensor) -> Tensor:
        if coords.shape[-1:] != (self.dim,):
            raise ValueError(f"coords is {tuple(coords.shape)}: the last axis must hold {self.dim} coordinates")
        return coords.reshape(-1, self.dim)

    def _widths(self, in_features: int) -> list[tuple[int, int]]:
        """Input and output width of each linear layer behind in_features."""
        hidden = [self.layer_width] * (self.num_layers - 1)
        return list(zip([in_features, *hidden], [*hidden, self.out_features]))

    def _mlp(self, x: Tensor, activate: Callable[[Tensor], Tensor]) -> Tensor:
        """`layers` with an activation after each but the last."""
        for layer in self.layers[:-1]:
            x = activate(layer(x))
        return self.layers[-1](x)

    @abstractmethod
    def _evaluate(self, coords: Tensor) -> Tensor:
        """Points [n, dim] to [n, out_features]."""

    def outputs_to_fit(self, coords: Tensor, rows: ExpertRows | None = None) -> list[Tensor]:
        """`forward` alone, unless the authors have it otherwise."""
        return [self(coords)]

    def group(self, coords: Tensor) -> None:
        """None: all rows go the same way."""

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Matrices under the authors' weight decay as "decayed"; all else, tables and biases included, as "fields"."""
        groups: dict[str, list[nn.Parameter]] = {"fields": [], "decayed": []}
        for name, parameter in self.named_parameters():
            is_matrix = parameter.dim() >= 2 and not name.endswith("table") and "bias" not in name
            groups["decayed" if self.recipe.weight_decay and is_matrix else "fields"].append(parameter)
        return {name: parameters for name, parameters in groups.items() if parameters}

    def with_exact_derivatives(self) -> None:
        """Do nothing: they are exact, unless a network says otherwise."""

    @property
    def num_parameters(self) -> int:
        """Real trainable numbers in all."""
        return sum(p.numel() * (2 if p.is_complex() else 1) for p in self.parameters() if p.requires_grad)

    @property
    def macs_per_point(self) -> int:
        """Real multiply-adds for one point: the matrix products of `layers`, unless a network says otherwise."""
        return sum(layer.weight.numel() for layer in self.layers)  # type: ignore[union-attr, misc]

    @property
    def floats_per_point(self) -> float:
        """Numbers that a training step keeps for a point, about."""
        return 8 * self.num_layers * self.layer_width

    @property
    def options(self) -> dict[str, Any]:
        """The class's name, the sizes, and the network's own options."""
        sizes = {name: getattr(self, name) for name in ("dim", "out_features", "num_layers", "layer_width")}
        return {"network": type(self).__name__, **sizes, **dataclasses.asdict(self.own_options)}
