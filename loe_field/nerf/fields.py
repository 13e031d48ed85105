"""Levels of experts as nerfstudio's Encoding, density field and radiance field."""

from collections.abc import Sequence
from typing import Literal

import torch
from nerfstudio.cameras.rays import RaySamples
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.field_components.activations import trunc_exp
from nerfstudio.field_components.embedding import Embedding
from nerfstudio.field_components.encodings import Encoding, SHEncoding
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.field_components.mlp import MLP
from nerfstudio.field_components.spatial_distortions import SpatialDistortion
from nerfstudio.fields.base_field import Field, get_normalized_directions
from torch import Tensor, nn

from loe_field.layers import Activation, LoEMLP
from loe_field.ops import Implementation
from loe_field.tiling import Blending, Pattern


class LoEEncoding(Encoding):
    """Levels of experts as an encoding: any field of the host can take it in place of a hash grid.

    Args:
        in_dim: coordinates per point, in [0, 1].
        out_dim: numbers per point.
        num_layers: as in LoEMLP; layer_width, tile_size, pattern, blending, activation, num_frequencies and
            implementation too.
        layer_width: channels.
        tile_size: experts per axis.
        pattern: a named pattern, or (alpha, beta) per level.
        blending: "nearest" or "linear".
        activation: between the levels.
        num_frequencies: octaves of positional encoding.
        implementation: how it is computed.
    """

    def __init__(
        self,
        in_dim: int = 3,
        *,
        out_dim: int = 32,
        num_layers: int = 6,
        layer_width: int = 64,
        tile_size: int = 2,
        pattern: Pattern | Sequence[tuple[float, float]] = "quad_tree",
        blending: Blending = "nearest",
        activation: Activation = "sine",
        num_frequencies: int = 6,
        implementation: Implementation = "auto",
    ) -> None:
        super().__init__(in_dim)
        self.levels_of_experts = LoEMLP(
            dim=in_dim,
            out_features=out_dim,
            num_layers=num_layers,
            layer_width=layer_width,
            tile_size=tile_size,
            pattern=pattern,
            blending=blending,
            activation=activation,
            num_frequencies=num_frequencies,
            implementation=implementation,
        )

    def get_out_dim(self) -> int:
        """Numbers per point."""
        return self.levels_of_experts.head.out_features

    def forward(self, in_tensor: Tensor) -> Tensor:
        """Points [..., in_dim] in [0, 1] to [..., out_dim]."""
        return self.levels_of_experts(in_tensor)


class _LoEBase(Field):
    """Positions in the scene to the unit cube, and what the levels of experts make of them there.

    Args:
        aabb: the scene's box [2, 3], for scenes without spatial_distortion.
        encoding: its first number is the logarithm of the density.
        spatial_distortion: contraction of all space into the ball or cube of radius 2; None: the box is all there is.
        average_init_density: what the density is multiplied by.
    """

    aabb: Tensor

    def __init__(
        self,
        aabb: Tensor,
        encoding: LoEEncoding,
        *,
        spatial_distortion: SpatialDistortion | None = None,
        average_init_density: float = 1.0,
    ) -> None:
        super().__init__()
        self.register_buffer("aabb", aabb)
        self.encoding = encoding
        self.spatial_distortion = spatial_distortion
        self.average_init_density = average_init_density

    def get_density(self, ray_samples: RaySamples) -> tuple[Tensor, Tensor]:
        """Density [..., 1], per unit of the scene's length, and the encoding's other numbers [..., out_dim - 1]."""
        positions = ray_samples.frustums.get_positions()
        if self.spatial_distortion is not None:
            positions = (self.spatial_distortion(positions) + 2.0) / 4.0
        else:
            positions = SceneBox.get_normalized_positions(positions, self.aabb)
        inside = ((positions > 0) & (positions < 1)).all(-1, keepdim=True)
        encoded = self.encoding(positions.clamp(0, 1)).float()
        logarithm, features = encoded.split([1, encoded.shape[-1] - 1], -1)
        return self.average_init_density * trunc_exp(logarithm) * inside, features

    def get_outputs(
        self, ray_samples: RaySamples, density_embedding: Tensor | None = None
    ) -> dict[FieldHeadNames, Tensor]:
        """Nothing but the density."""
        return {}


class LoEDensityField(_LoEBase):
    """A small density, to find out where along a ray the samples belong."""


class LoEField(_LoEBase):
    """Density and colour.

    The experts give density and features; a small MLP makes a colour of the features and the direction.

    Args:
        aabb: the scene's box [2, 3].
        encoding: density and features.
        num_images: training pictures, for the appearance embedding.
        appearance_dim: numbers of each picture's embedding; 0 for none.
        spatial_distortion: contraction of space, or None.
        color_width: channels of the colour's MLP.
        implementation: "torch", or "tcnn" for the host's own parts where tinycudann is installed.
    """

    def __init__(
        self,
        aabb: Tensor,
        encoding: LoEEncoding,
        *,
        num_images: int,
        appearance_dim: int = 0,
        spatial_distortion: SpatialDistortion | None = None,
        average_init_density: float = 1.0,
        color_width: int = 64,
        implementation: Literal["torch", "tcnn"] = "torch",
    ) -> None:
        super().__init__(
            aabb, encoding, spatial_distortion=spatial_distortion, average_init_density=average_init_density
        )
        self.direction_encoding = SHEncoding(levels=4, implementation=implementation)
        self.appearance = Embedding(num_images, appearance_dim) if appearance_dim else None
        self.color = MLP(
            in_dim=self.direction_encoding.get_out_dim() + encoding.get_out_dim() - 1 + appearance_dim,
            num_layers=3,
            layer_width=color_width,
            out_dim=3,
            activation=nn.ReLU(),
            out_activation=nn.Sigmoid(),
            implementation=implementation,
        )

    def get_outputs(
        self, ray_samples: RaySamples, density_embedding: Tensor | None = None
    ) -> dict[FieldHeadNames, Tensor]:
        """The colour [..., 3] in [0, 1]."""
        assert density_embedding is not None
        directions = get_normalized_directions(ray_samples.frustums.directions)
        shape = directions.shape[:-1]
        parts = [
            self.direction_encoding(directions.reshape(-1, 3)),
            density_embedding.reshape(-1, density_embedding.shape[-1]),
        ]
        if self.appearance is not None:
            if self.training:
                assert ray_samples.camera_indices is not None
                parts.append(self.appearance(ray_samples.camera_indices.reshape(-1)))
            else:
                mean = self.appearance.mean(dim=0)
                parts.append(mean.expand(len(parts[0]), -1))
        return {FieldHeadNames.RGB: self.color(torch.cat(parts, -1)).float().view(*shape, 3)}
