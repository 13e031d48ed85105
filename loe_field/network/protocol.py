"""The one interface of all networks: LoEMLP, and every baseline."""

# pyright: reportReturnType=false
# The docstrings are the bodies.

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor
from torch.nn import Parameter

from loe_field.network.checks import check_choice
from loe_field.network.implementation import Resolved
from loe_field.network.rows import ExpertRows

Schedule = Literal["constant", "exponential", "cosine"]


@dataclass(frozen=True)
class Recipe:
    """How a network's authors train it on one picture with Adam and mean squared error.

    Where the authors fit targets in [-1, 1] the loss here, on [0, 1], is a quarter of theirs; Adam does not notice.
    """

    lr: float
    """Learning rate at the start."""
    batch: int | None = None
    """Points per step; None: all points at every step."""
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

    def __post_init__(self) -> None:
        check_choice("schedule", self.schedule, Schedule)
        if not 0 <= self.final_factor <= 1 or (self.schedule == "exponential" and self.final_factor == 0):
            raise ValueError(f"final_factor is {self.final_factor}: 0 to 1 is wanted, above 0 if exponential")


@runtime_checkable
class Network(Protocol):
    """A module from coordinates in [0, 1) to values that are fitted to targets in [0, 1], not clamped.

    It is a torch.nn.Module too. Properties hold for the parameters where they are now, under the autocast that is on.
    """

    dim: int
    """Coordinates per point."""

    @property
    def out_features(self) -> int:
        """Width of the result."""

    @property
    def num_parameters(self) -> int:
        """Real trainable numbers in all."""

    @property
    def macs_per_point(self) -> int:
        """Real multiply-adds for one point."""

    @property
    def floats_per_point(self) -> float:
        """Numbers that a training step keeps for a point, about."""

    @property
    def resolved_implementation(self) -> Resolved:
        """The implementation that computes it.

        Raises:
            RuntimeError: the one that was asked for cannot serve here.
        """

    @property
    def obstacle(self) -> str | None:
        """Why "auto" falls back to plain PyTorch; None if it does not."""

    @property
    def capturable(self) -> bool:
        """Whether a step on a GPU waits for nothing, as a CUDA graph needs."""

    @property
    def piecewise_linear(self) -> bool:
        """Whether it is made of straight pieces, so that its Laplacian is zero wherever it is a number."""

    @property
    def options(self) -> dict[str, Any] | None:
        """All that decides about the computation besides the parameters, in plain numbers and text."""

    @property
    def recipe(self) -> Recipe | None:
        """How its authors train it; None for the recipe of this package."""

    def __call__(self, coords: Tensor, rows: ExpertRows | None = None) -> Tensor:
        """Points [..., dim], and `group` of them or None, to values [..., out_features]."""

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """As torch.nn.Module has it."""

    def parameters(self) -> Iterator[Parameter]:
        """As torch.nn.Module has it."""

    def outputs_to_fit(self, coords: Tensor, rows: ExpertRows | None = None) -> list[Tensor]:
        """The outputs [..., out_features] whose errors the loss is the mean of; the last is that of a call."""

    def group(self, coords: Tensor) -> ExpertRows | None:
        """Points [..., dim] grouped for a call, to be kept for points that come again; None where nothing is won."""

    def param_groups(self) -> dict[str, list[Parameter]]:
        """The parameters by their optimizer, none twice and no group empty.

        They are "experts", "fields", "grid", "decayed".
        """

    def with_exact_derivatives(self) -> None:
        """Make derivatives for coords those of the function itself where training takes others."""
