"""The host's colour MLP by this package's kernels."""

from typing import Literal

import torch
from nerfstudio.field_components.mlp import MLP
from torch import Tensor, nn

from loe_field.network import fused_cpu
from loe_field.network.kernels import cpu
from loe_field.network.modes import needs_plain
from loe_field.network.shape import NetworkShape
from loe_field.network.tiling import Level

HostImplementation = Literal["auto", "torch", "tcnn"]


class ColourMLP(MLP):
    """The host's MLP of three layers 64 wide, with ReLUs and a sigmoid at its end.

    Args:
        in_dim: numbers that come in.
        implementation: "auto": by the C kernels for fp32 on a CPU where there is a compiler, elsewhere in torch
            operations. "torch": in these everywhere. "tcnn": by tinycudann where it is installed.
    """

    def __init__(self, in_dim: int, *, implementation: HostImplementation = "auto") -> None:
        super().__init__(
            in_dim=in_dim,
            num_layers=3,
            layer_width=64,
            out_dim=3,
            activation=nn.ReLU(),
            out_activation=nn.Sigmoid(),
            implementation="tcnn" if implementation == "tcnn" else "torch",
        )
        self._kernels = implementation == "auto"

    def pytorch_fwd(self, in_tensor: Tensor) -> Tensor:
        """Rows [N, in_dim] to colours [N, 3] in (0, 1)."""
        weights, biases = [layer.weight for layer in self.layers], [layer.bias for layer in self.layers]
        tensors: list[Tensor] = [in_tensor, *weights, *biases]  # type: ignore[list-item]
        serve = self._kernels and not needs_plain(*tensors)
        if not serve or any(t.device.type != "cpu" or t.dtype != torch.float32 for t in tensors) or not cpu.available():
            return super().pytorch_fwd(in_tensor)
        matrices = [weight[None] for weight in weights]  # type: ignore[index]
        shape = NetworkShape((Level(1, 0),) * (len(matrices) - 1), 1, 1, "relu", 1.0)
        nowhere = in_tensor.new_empty(len(in_tensor), 1)  # the one expert of each level is everywhere
        return fused_cpu.evaluate_rows(nowhere, in_tensor, matrices, biases, shape).sigmoid()  # type: ignore[arg-type]
