"""FINER: Liu et al., "Flexible spectral-bias tuning in Implicit NEural Representation" (CVPR 2024).

`h <- sin(omega_0 (|z| + 1) z)` with z = W h + b: around z = 0 it is SIREN's sine, further out the period shrinks.
Weights are SIREN's; the biases of the first layer are uniform within +-k, which picks the frequencies that the network
starts with. The repository liuzhen0212/FINER leaves k at torch's 1 / sqrt(in) for pictures
(run_finer.sh, train_image.py), takes 5 linear layers of 256 and treats the factor |z| + 1 as a constant in the backward
pass unless told otherwise: those are the defaults here.

The authors fit targets in [-1, 1] over coordinates in [-1, 1]: the network sees 2 p - 1 and returns (y + 1) / 2.
"""

import dataclasses

import torch
from torch import Tensor, nn

from loe_field.baselines.siren import Siren, SirenOptions
from loe_field.network.checks import check_positive
from loe_field.network.protocol import Recipe


@dataclasses.dataclass(frozen=True)
class FinerOptions(SirenOptions):
    """FINER: sines of variable period (Liu et al., CVPR 2024)."""

    first_bias_scale: float | None = None
    """k: biases of the first layer start uniform within +-k, k > 0. None: torch's 1 / sqrt(coordinates per point)."""
    scale_gradient: bool = False
    """Differentiate the factor |z| + 1 too. The authors' scripts do not: faster, but gradients, also those with respect
    to the coordinates, are then not the function's own."""


class Finer(Siren):
    """An MLP with sines of variable period.

    Its recipe is that of liuzhen0212/FINER, run_finer.sh and train_image.py: 5,000 steps on RGB of 512x512.
    """

    own_options: FinerOptions
    options_type = FinerOptions
    recipe = Recipe(lr=5e-4, schedule="exponential", final_factor=0.1)

    def _build(self) -> None:
        super()._build()
        k = self.own_options.first_bias_scale
        if k is not None:
            check_positive(first_bias_scale=k)
            first = self.layers[0]
            assert isinstance(first, nn.Linear)
            nn.init.uniform_(first.bias, -k, k)

    def with_exact_derivatives(self) -> None:
        """Differentiate the factor |z| + 1 from now on."""
        self.own_options = dataclasses.replace(self.own_options, scale_gradient=True)

    def _activate(self, y: Tensor, omega_0: float) -> Tensor:
        scale = (y if self.own_options.scale_gradient else y.detach()).abs() + 1
        return torch.sin(omega_0 * scale * y)
