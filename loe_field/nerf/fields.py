"""Levels of experts as nerfstudio's Encoding, density field and radiance field."""

from collections.abc import Callable

import torch
from nerfstudio.cameras.rays import RayBundle, RaySamples
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.field_components.activations import trunc_exp
from nerfstudio.field_components.embedding import Embedding
from nerfstudio.field_components.encodings import Encoding, SHEncoding
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.field_components.spatial_distortions import SpatialDistortion
from nerfstudio.fields.base_field import Field, get_normalized_directions
from torch import Tensor

from loe_field.nerf.colour import ColourMLP, HostImplementation
from loe_field.nerf.marching import coords_of, weights_of
from loe_field.network.protocol import Network


class Contraction(SpatialDistortion):
    """All of space into the cube of half side 2: x where |x| <= 1, else (2 - 1 / |x|) x / |x|, |x| the largest axis.

    Mip-NeRF 360 (Barron et al., 2022), Eq. 10, in the largest norm. The host's SceneContraction gives the same at
    several times the cost on a CPU.
    """

    def forward(self, positions: Tensor) -> Tensor:  # type: ignore[override]
        """Points [..., 3] to points [..., 3]."""
        size = positions.abs().amax(-1, keepdim=True).clamp(min=1)
        return positions * ((2 - 1 / size) / size)


class LoEEncoding(Encoding):
    """A network as an encoding of coordinates in [0, 1]: any field of the host can take it in place of a hash grid."""

    def __init__(self, network: Network) -> None:
        super().__init__(network.dim)
        self.network = network

    def get_out_dim(self) -> int:
        """Numbers per point."""
        return self.network.out_features

    def forward(self, in_tensor: Tensor) -> Tensor:
        """Points [..., dim] in [0, 1] to [..., out_features]."""
        return self.network(in_tensor)


class LoEDensityField(Field):
    """Positions in the scene to the unit cube, and the density that the experts give there.

    Args:
        aabb: the scene's box [2, 3], for scenes without spatial_distortion.
        encoding: its first number is the logarithm of the density.
        spatial_distortion: contraction of all space into the cube of half side 2; None: the box is all there is.
    """

    aabb: Tensor

    def __init__(
        self, aabb: Tensor, encoding: LoEEncoding, *, spatial_distortion: SpatialDistortion | None = None
    ) -> None:
        super().__init__()
        self.register_buffer("aabb", aabb)
        self.encoding = encoding
        self.spatial_distortion = spatial_distortion

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
        return trunc_exp(logarithm) * inside, features

    def encoded(self, bundle: RayBundle, samples: RaySamples) -> tuple[Tensor, Tensor]:
        """By `marching`'s kernels: the encoding's numbers at samples [N, S, C], and whether each is inside [N, S]."""
        assert self.spatial_distortion is None or isinstance(self.spatial_distortion, Contraction)
        box = None if self.spatial_distortion else (self.aabb[0], self.aabb[1] - self.aabb[0])
        coords, inside = coords_of(bundle, samples, box)
        return self.encoding(coords).float(), inside

    def weights(self, bundle: RayBundle, samples: RaySamples) -> Tensor:
        """Weights [N, S, 1] of samples on a bundle's rays, by `marching`'s kernels."""
        return weights_of(samples, *self.encoded(bundle, samples))[0]

    def get_outputs(
        self, ray_samples: RaySamples, density_embedding: Tensor | None = None
    ) -> dict[FieldHeadNames, Tensor]:
        """Nothing but the density."""
        return {}


class LoEField(LoEDensityField):
    """Density and features by the experts; a small MLP makes a colour of the features and the direction.

    Args:
        aabb: the scene's box [2, 3].
        encoding: density and features.
        num_images: training pictures, for the appearance embedding.
        appearance_dim: numbers of each picture's embedding; 0 for none.
        spatial_distortion: contraction of space, or None.
        implementation: of direction encoding and MLP; see ColourMLP.
    """

    def __init__(
        self,
        aabb: Tensor,
        encoding: LoEEncoding,
        *,
        num_images: int,
        appearance_dim: int = 0,
        spatial_distortion: SpatialDistortion | None = None,
        implementation: HostImplementation = "auto",
    ) -> None:
        super().__init__(aabb, encoding, spatial_distortion=spatial_distortion)
        self.direction_encoding = SHEncoding(4, "tcnn" if implementation == "tcnn" else "torch")
        self.appearance = Embedding(num_images, appearance_dim) if appearance_dim else None
        in_dim = self.direction_encoding.get_out_dim() + encoding.get_out_dim() - 1 + appearance_dim
        self.color = ColourMLP(in_dim, implementation=implementation)

    def get_outputs(
        self, ray_samples: RaySamples, density_embedding: Tensor | None = None
    ) -> dict[FieldHeadNames, Tensor]:
        """The colour [..., 3] in [0, 1]."""
        assert density_embedding is not None
        x = self._with_directions(ray_samples, density_embedding)
        return {FieldHeadNames.RGB: self._colours(x, ray_samples)}

    def _with_directions(self, samples: RaySamples, features: Tensor) -> Tensor:
        """Encoded directions beside features [..., numbers]."""
        directions = samples.frustums.directions
        if directions.dim() > 2 and directions.stride(-2) == 0:  # those of a ray's samples are one: encoded once
            directions = directions[..., :1, :]
        return torch.cat([self._encoded_directions(directions).expand(*features.shape[:-1], -1), features], -1)

    def weights_and_colours(
        self,
        samples: RaySamples,
        bundle: RayBundle | None = None,
        *,
        seen: Callable[[Tensor], Tensor | None] = lambda weights: None,
    ) -> tuple[Tensor, Tensor]:
        """Weights [N, S, 1] and colours [N, S, 3] of samples.

        Args:
            samples: S on each of N rays.
            bundle: the rays, for `marching`'s kernels; None: by the host's operations.
            seen: of weights, which samples get a colour, bool [N, S]; the others are black. None: all get one.
        """
        if bundle is not None:
            weights, x = weights_of(
                samples, *self.encoded(bundle, samples), self._encoded_directions(bundle.directions)
            )
            assert x is not None
        else:
            density, features = self.get_density(samples)
            weights, x = samples.get_weights(density), self._with_directions(samples, features)
        return weights, self._colours(x, samples, seen(weights))

    def _encoded_directions(self, directions: Tensor) -> Tensor:
        """Directions [..., 3] to [..., numbers]."""
        encoded = self.direction_encoding(get_normalized_directions(directions).reshape(-1, 3))
        return encoded.view(*directions.shape[:-1], -1)

    def _colours(self, x: Tensor, samples: RaySamples, seen: Tensor | None = None) -> Tensor:
        """Colours [..., 3] from directions and features x [..., numbers]; black where not seen [...]."""
        chosen = slice(None) if seen is None else seen
        rows = x[chosen]
        if self.appearance is not None:
            if self.training:
                assert samples.camera_indices is not None
                own = self.appearance(samples.camera_indices[..., 0][chosen])
            else:
                own = self.appearance.mean(dim=0).expand(*rows.shape[:-1], -1)
            rows = torch.cat([rows, own], -1)
        colours = self.color(rows.flatten(0, -2)).float().view(*rows.shape[:-1], 3)
        return colours if seen is None else colours.new_zeros(*seen.shape, 3).index_put((seen,), colours)
