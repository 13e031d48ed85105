"""What the peers share: sizes checked once, counts of parameters and arithmetic, and the authors' training settings."""

import dataclasses
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from loe_field.optim import decay_factor

Schedule = Literal["constant", "exponential", "cosine"]

MAX_DIM = 3
"""Largest number of coordinates per point that the peers take."""


class Counts(NamedTuple):
    """Size of a network."""

    parameters: int
    """Real trainable numbers; a complex one counts twice."""
    macs: int
    """Real multiply-adds for one point in `forward`."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network's authors train it on one picture with Adam and mean squared error.

    Where the authors fit targets in [-1, 1] the loss here, on [0, 1], is a quarter of theirs; Adam does not notice.
    """

    source: str
    """Where the numbers come from."""
    lr: float
    """Learning rate at the start."""
    steps: int
    """How many steps the authors take."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of Adam's first and second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    amsgrad: bool = False
    """Adam with the largest second moment so far."""
    weight_decay: float = 0.0
    """L2 term on the matrices of the network; tables and biases have none."""
    schedule: Schedule = "constant"
    """How the learning rate goes over the run: constant, or down to final_factor of itself at the end."""
    final_factor: float = 1.0
    """The end of the schedule, 0 (cosine only) to 1."""
    batch: int | None = None
    """Points per step; None is the full picture at every step."""
    loss_on: Literal["last", "all"] = "last"
    """Whether the loss is that of `forward` or the mean over all that `outputs` returns."""

    def __post_init__(self) -> None:
        if self.schedule not in get_args(Schedule):
            raise ValueError(f"unknown schedule {self.schedule!r}: choose one of {', '.join(get_args(Schedule))}")
        if not 0 <= self.final_factor <= 1 or (self.schedule == "exponential" and self.final_factor == 0):
            raise ValueError(f"final_factor is {self.final_factor}: 0 to 1 is wanted, above 0 if exponential")

    def factor(self, step: int, max_steps: int) -> float:
        """Learning rate at a step, as a part of lr: 1 at step 0, final_factor from max_steps on."""
        return decay_factor(step, max_steps, kind=self.schedule, final_factor=self.final_factor)

    def split(self, network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Parameters with the weight decay, and those without."""
        decayed, rest = [], []
        for name, parameter in network.named_parameters():
            is_matrix = parameter.dim() >= 2 and not name.endswith("table") and "bias" not in name
            (decayed if self.weight_decay and is_matrix else rest).append(parameter)
        return decayed, rest

    def optimizer(self, network: nn.Module) -> torch.optim.Adam:
        """Adam over a network with these settings (the schedule apart)."""
        decayed, rest = self.split(network)
        groups = [{"params": rest, "weight_decay": 0.0}, {"params": decayed, "weight_decay": self.weight_decay}]
        return torch.optim.Adam(
            [group for group in groups if group["params"]],
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            amsgrad=self.amsgrad,
        )


class Peer(nn.Module, ABC):
    """A network over [0, 1)^dim whose targets lie in [0, 1].

    Args:
        dim: coordinates per point, 1 to 3.
        out_features: width of the result, >= 1.
        num_layers: linear layers in all, the final one included, >= 2; None: the authors' number.
        layer_width: channels of the hidden layers, >= 1; None: the authors' number.
        options: an instance of options_type, the network's own options; None: the authors'.

    Attributes:
        options_type: class of the network's options.
        recipe: how the network's authors train it.
        default_size: num_layers and layer_width that its authors take for a picture.

    Raises:
        ValueError: a size or option is out of range.
    """

    options_type: ClassVar[type]
    recipe: ClassVar[Recipe]
    default_size: ClassVar[tuple[int, int]]

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
        sizes = self.sizes(dim=dim, out_features=out_features, num_layers=num_layers, layer_width=layer_width)
        self.dim, self.out_features = dim, out_features
        self.num_layers, self.layer_width = sizes["num_layers"], sizes["layer_width"]
        self.options = self.options_type() if options is None else options
        self._build()

    @classmethod
    def sizes(cls, *, dim: int, out_features: int, num_layers: int | None, layer_width: int | None) -> dict[str, int]:
        """All four sizes, the authors' where none is given.

        Raises:
            ValueError: one is out of range.
        """
        layers, width = cls.default_size
        sizes = {
            "dim": dim,
            "out_features": out_features,
            "num_layers": layers if num_layers is None else num_layers,
            "layer_width": width if layer_width is None else layer_width,
        }
        check_sizes(**sizes)
        return sizes

    @staticmethod
    @abstractmethod
    def counts(*, dim: int, out_features: int, num_layers: int, layer_width: int, options: Any) -> Counts:
        """Size of the network with these options, without building it."""

    @abstractmethod
    def _build(self) -> None:
        """Check the options and make the layers, the sizes being set."""

    def forward(self, coords: Tensor) -> Tensor:
        """Evaluate the network in its parameters' dtype; autocast has no say, as the authors train in fp32.

        Args:
            coords: points [..., dim] in [0, 1), any batch shape, also an empty one.

        Returns:
            [..., out_features], fitted to targets in [0, 1], not clamped.

        Raises:
            ValueError: coords has another number of coordinates.
        """
        points = self._points(coords)
        with torch.autocast(points.device.type, enabled=False):
            out = self._evaluate(points)
        return out.view(*coords.shape[:-1], self.out_features)

    def _points(self, coords: Tensor) -> Tensor:
        if coords.shape[-1:] != (self.dim,):
            raise ValueError(f"coords is {tuple(coords.shape)}: the last axis must hold {self.dim} coordinates")
        return coords.reshape(-1, self.dim)

    def _widths(self, in_features: int) -> list[tuple[int, int]]:
        """Input and output width of each linear layer behind in_features."""
        return widths(in_features, self.layer_width, self.out_features, self.num_layers)

    @abstractmethod
    def _evaluate(self, points: Tensor) -> Tensor:
        """Points [n, dim] to [n, out_features]."""

    @property
    def num_parameters(self) -> int:
        """Real trainable numbers in all."""
        return sum(p.numel() * (2 if p.is_complex() else 1) for p in self.parameters() if p.requires_grad)

    @property
    def macs_per_point(self) -> int:
        """Real multiply-adds for one point; how they are counted, `counts` says."""
        sizes = {"dim": self.dim, "out_features": self.out_features, "num_layers": self.num_layers}
        return self.counts(**sizes, layer_width=self.layer_width, options=self.options).macs


def check_sizes(*, dim: int, out_features: int, num_layers: int, layer_width: int) -> None:
    """Raise ValueError where a size is out of range."""
    if not 1 <= dim <= MAX_DIM:
        raise ValueError(f"dim is {dim}: 1 to {MAX_DIM} coordinates per point are supported")
    for name, value, least in (
        ("out_features", out_features, 1),
        ("num_layers", num_layers, 2),
        ("layer_width", layer_width, 1),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}: it must be at least {least}")


def check_positive(**values: float) -> None:
    """Raise ValueError where a value is not a positive number."""
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} is {value}: it must be positive")


def widths(in_features: int, layer_width: int, out_features: int, num_layers: int) -> list[tuple[int, int]]:
    """Input and output width of each linear layer of an MLP, first to last."""
    hidden = [layer_width] * (num_layers - 1)
    return list(zip([in_features, *hidden], [*hidden, out_features]))


def mlp_counts(in_features: int, layer_width: int, out_features: int, num_layers: int, *, bias: bool = True) -> Counts:
    """Size of an ordinary MLP; multiply-adds are those of the matrix products."""
    sizes = widths(in_features, layer_width, out_features, num_layers)
    macs = sum(i * o for i, o in sizes)
    return Counts(macs + (sum(o for _, o in sizes) if bias else 0), macs)
