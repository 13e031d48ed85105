"""What the recipe makes of a picture's size."""

import pytest
import torch
from nerfstudio.data.scene_box import SceneBox

from loe_field.image.model import LoEImageModel, LoEImageModelConfig
from loe_field.image.pixels import pixel_centers
from loe_field.image.sizes import levels_for, pixels_per_batch_for, tile_size_for
from loe_field.tiling import expert_index


def model_for(height, width, channels, **options):
    metadata = {"height": height, "width": width, "channels": channels}
    box = SceneBox(aabb=torch.tensor([[-1.0] * 3, [1.0] * 3]))
    return LoEImageModel(LoEImageModelConfig(**options), scene_box=box, num_train_data=1, metadata=metadata)


@pytest.mark.parametrize(
    ("size", "tile_size", "levels", "pixels"),
    [
        ((1, 1, 1), 2, 9, 8192),
        ((512, 512, 1), 2, 9, 8192),
        ((512, 512, 3), 2, 9, 8192),
        ((480, 640, 3), 2, 10, 8192),
        ((512, 768, 3), 4, 9, 16384),
        ((1024, 1024, 1), 4, 9, 16384),
        ((1920, 1080, 3), 8, 9, 32768),
        ((8192, 8192, 3), 8, 11, 32768),
    ],
)
def test_more_experts_for_more_targets(size, tile_size, levels, pixels):
    assert tile_size_for(*size) == tile_size
    assert levels_for(*size[:2], tile_size) == levels
    assert pixels_per_batch_for(*size) == pixels


@pytest.mark.parametrize("size", [(512, 768, 3), (1024, 1024, 1), (700, 2000, 4), (1920, 1080, 3)])
def test_parameters_stay_below_targets(size):
    height, width, channels = size
    model = model_for(*size)
    assert model.config.tile_size > 2
    assert model.config.num_layers == len(model.field.levels) + 1
    assert model.field.num_parameters < 0.56 * height * width * channels


@pytest.mark.parametrize("tile_size", [2, 3, 4, 8])
@pytest.mark.parametrize("pattern", ["fine_to_coarse", "quad_tree"])
def test_every_expert_has_pixels_and_no_cell_is_larger_than_one_at_the_finest_level(tile_size, pattern):
    field = model_for(300, 400, 3, tile_size=tile_size, pattern=pattern).field
    places = pixel_centers(torch.arange(300 * 400), 400) / torch.tensor([400.0, 300.0])
    for served in expert_index(places, field.levels, tile_size):
        assert len(served.unique()) == tile_size**2
    assert max(level.alpha for level in field.levels) >= 400


def test_what_was_asked_for_counts():
    model = model_for(1920, 1080, 3, tile_size=2, num_layers=4)
    assert [level.alpha for level in model.field.levels] == [8, 4, 2]
    assert model_for(8, 8, 1, tile_size=5, num_layers=2, levels=((7.0, 0.5),)).field.levels == ((7.0, 0.5),)
