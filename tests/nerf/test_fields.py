"""LoE fields: the contraction, the field's outputs, and the encoding in the host's own fields."""

import pytest
import torch
from nerfstudio.cameras.rays import Frustums, RaySamples
from nerfstudio.configs.method_configs import method_configs  # noqa: F401  (the host's modules import each other)
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.field_components.mlp import MLP
from nerfstudio.field_components.spatial_distortions import SceneContraction
from nerfstudio.fields.density_fields import HashMLPDensityField
from nerfstudio.fields.vanilla_nerf_field import NeRFField

from loe_field import LoEMLP
from loe_field.nerf.fields import Contraction, LoEDensityField, LoEEncoding, LoEField

pytestmark = pytest.mark.slow

AABB = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])


def encoding(out_features, **options):
    torch.manual_seed(0)
    return LoEEncoding(
        LoEMLP(dim=3, out_features=out_features, num_layers=3, layer_width=16, num_frequencies=3, **options)
    )


def samples_at(points):
    """One sample at each point, [N, 1]."""
    shape = (*points.shape[:-1], 1)
    zeros = torch.zeros(shape)
    frustums = Frustums(
        origins=points, directions=torch.tensor([0.0, 0.0, 1.0]).expand_as(points), starts=zeros, ends=zeros,
        pixel_area=torch.ones(shape),
    )  # fmt: skip
    return RaySamples(frustums=frustums, camera_indices=torch.zeros(shape, dtype=torch.long))


def test_contraction_is_the_hosts():
    torch.manual_seed(1)
    points = torch.randn(500, 3, dtype=torch.float64) * torch.logspace(-2, 3, 500, dtype=torch.float64)[:, None]
    expected = SceneContraction(order=float("inf"))(points)
    torch.testing.assert_close(Contraction()(points), expected)
    assert Contraction()(points).abs().max() < 2


@pytest.mark.parametrize("distortion", [None, Contraction()], ids=["box", "contracted"])
def test_density_and_colour(distortion):
    field = LoEField(AABB, encoding(8), num_images=2, spatial_distortion=distortion)
    points = torch.rand(50, 1, 3) * 6 - 3
    outputs = field(samples_at(points))
    density, colour = outputs[FieldHeadNames.DENSITY], outputs[FieldHeadNames.RGB]
    assert density.shape == (50, 1, 1)
    assert colour.shape == (50, 1, 3)
    assert ((colour > 0) & (colour < 1)).all()
    within = (points.abs() < 1).all(-1, keepdim=True)
    assert ((density > 0) == (within if distortion is None else torch.ones_like(within))).all()


def test_appearance_is_each_pictures_own_while_training_and_their_mean_after():
    field = LoEField(AABB, encoding(8), num_images=3, appearance_dim=4)
    samples = samples_at(torch.zeros(3, 1, 3))
    samples.camera_indices = torch.arange(3).view(3, 1, 1)
    colours = field.train()(samples)[FieldHeadNames.RGB].squeeze()
    assert not torch.allclose(colours[0], colours[1])
    colours = field.eval()(samples)[FieldHeadNames.RGB].squeeze()
    torch.testing.assert_close(colours[0], colours[1])


def a_host_field_with_position_encoding():
    field = NeRFField(
        position_encoding=encoding(12), base_mlp_num_layers=2, base_mlp_layer_width=16, skip_connections=()
    )
    return field, field.position_encoding


def the_hosts_hash_density_field():
    field = HashMLPDensityField(AABB, num_levels=2, log2_hashmap_size=4, implementation="torch")
    field.encoding = encoding(12)
    field.mlp_base = torch.nn.Sequential(field.encoding, MLP(in_dim=12, num_layers=2, layer_width=16, out_dim=1))
    return field, field.encoding


@pytest.mark.parametrize("build", [a_host_field_with_position_encoding, the_hosts_hash_density_field])
def test_the_encoding_trains_in_a_field_of_the_host(build):
    field, mine = build()
    torch.manual_seed(2)
    points = torch.rand(256, 1, 3)
    target = torch.sin(9 * points).prod(-1, keepdim=True).abs() + 0.5
    before = [p.detach().clone() for p in mine.parameters()]
    optimizer = torch.optim.Adam(field.parameters(), 1e-2)
    losses = []
    for _ in range(300):
        density, _ = field.get_density(samples_at(points))
        loss = (density - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all((p != q).any() for p, q in zip(before, mine.parameters()))


def test_density_alone():
    field = LoEDensityField(AABB, encoding(1))
    density, features = field.get_density(samples_at(torch.rand(5, 1, 3)))
    assert density.shape == (5, 1, 1)
    assert features.shape == (5, 1, 0)
