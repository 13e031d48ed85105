"""Sizes of the recipe for signals of all sizes."""

import itertools

import pytest
import torch

from loe_field.adapter.network import LoEConfig, build_network
from loe_field.network.layers import LoEMLP
from loe_field.network.tiling import expert_index
from loe_field.signals.signal import grid_coords
from loe_field.signals.sizes import (
    levels_for,
    samples_per_batch_for,
    seconds_for,
    small_network_for,
    tile_size_for,
)


def network_for(resolution, channels, **options):
    config = LoEConfig(**options).sized(resolution, channels)
    return config, build_network("loe", config, None, resolution=resolution, channels=channels)


@pytest.mark.parametrize(
    ("resolution", "channels", "tile_size", "levels", "samples"),
    [
        ((1, 1), 1, 2, 9, 8192),
        ((512, 512), 1, 2, 9, 8192),
        ((512, 512), 3, 2, 9, 8192),
        ((640, 480), 3, 2, 10, 8192),
        ((768, 512), 3, 4, 9, 16384),
        ((1024, 1024), 1, 4, 9, 16384),
        ((1080, 1920), 3, 8, 9, 32768),
        ((8192, 8192), 3, 8, 11, 32768),
        ((44_100,), 1, 2, 16, 8192),
        ((256, 256, 256), 1, 4, 9, 16384),
    ],
)
def test_more_experts_for_more_targets(resolution, channels, tile_size, levels, samples):
    assert tile_size_for(resolution, channels) == tile_size
    assert levels_for(resolution, tile_size) == levels
    assert samples_per_batch_for(resolution, channels) == samples


@pytest.mark.parametrize(
    ("resolution", "channels", "experts", "vectors", "parameters"),
    [((512, 512), 1, 2, 11, 141_825), ((16, 16), 3, 2, 11, 141_955), ((768, 512), 3, 4, 27, 639_619)],
)
def test_the_smooth_recipe_fills_what_experts_leave_with_bias_tiles(resolution, channels, experts, vectors, parameters):
    options = {"num_frequencies": 9, "expert_levels": 3, "bias_tile_size": None, "bias_levels": "fine"}
    state = torch.random.get_rng_state()
    config = LoEConfig(**options).sized(resolution, channels)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert config.tile_size == (1,) * 6 + (experts,) * 3
    assert config.bias_tile_size == vectors
    assert config.sized(resolution, channels) == config
    network = build_network("loe", config, None, resolution=resolution, channels=channels)
    assert network.num_parameters == parameters
    scales = [tile.level.alpha for tile in network.bias_tiles]
    assert (scales[0], scales[-1]) == pytest.approx((max(resolution), max(resolution) / 8))
    assert [coarser / finer for finer, coarser in itertools.pairwise(scales)] == pytest.approx([8 ** (-1 / 8)] * 8)


def test_no_tile_no_scales():
    assert LoEConfig(bias_levels="fine").sized((64, 64), 1).bias_levels is None
    one = LoEConfig(bias_levels="fine", bias_tile_size=4, num_layers=2).sized((64, 32), 1)
    assert one.bias_levels == ((64, 0),)


def test_experts_are_said_once():
    with pytest.raises(ValueError, match="leave expert_levels out"):
        LoEConfig(tile_size=(1, 2), num_layers=3, expert_levels=1).sized((8, 8), 1)
    with pytest.raises(ValueError, match="expert_levels is -1"):
        LoEConfig(expert_levels=-1).sized((8, 8), 1)


@pytest.mark.parametrize("size", [(768, 512, 3), (1024, 1024, 1), (2000, 700, 4), (1080, 1920, 3)])
def test_parameters_stay_below_targets(size):
    width, height, channels = size
    config, network = network_for((width, height), channels)
    assert config.tile_size > 2
    assert config.num_layers == len(network.levels) + 1
    assert network.num_parameters < 0.56 * height * width * channels


@pytest.mark.parametrize("tile_size", [2, 3, 4, 8])
@pytest.mark.parametrize("pattern", ["fine_to_coarse", "quad_tree"])
def test_every_expert_has_pixels_and_no_cell_is_larger_than_one_at_the_finest_level(tile_size, pattern):
    _, network = network_for((400, 300), 3, tile_size=tile_size, pattern=pattern)
    coords = grid_coords(torch.arange(300 * 400), (300, 400)) / torch.tensor([400.0, 300.0])
    for served in expert_index(coords, network.levels, tile_size):
        assert len(served.unique()) == tile_size**2
    assert max(level.alpha for level in network.levels) >= 400


def test_options_of_the_user_count():
    _, network = network_for((1080, 1920), 3, tile_size=2, num_layers=4)
    assert [level.alpha for level in network.levels] == [8, 4, 2]
    _, network = network_for((8, 8), 1, tile_size=5, num_layers=2, levels=((7.0, 0.5),))
    assert network.levels == ((7.0, 0.5),)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    "size",
    [(1, 1), (8, 8), (12, 5), (16, 16), (28, 28), (32, 32), (48, 33), (64, 64), (100, 75), (128, 128), (300, 200)],
)
def test_a_small_picture_has_a_network_of_its_own_size(size, channels):
    small = small_network_for(size, channels)
    network = LoEMLP(**small.options(size, channels))
    assert network.num_parameters == small.num_parameters(2, channels)
    targets = size[0] * size[1] * channels
    if targets >= 800:
        assert 0.3 < network.num_parameters / targets <= 0.55
    else:
        assert network.num_parameters <= max(0.55 * targets, 330)
    assert small_network_for(size, channels, 0.2).num_parameters(2, channels) <= network.num_parameters
    if min(size) < 8:
        return
    coords = grid_coords(torch.arange(size[0] * size[1]), size[::-1]) / torch.tensor(size)
    for index, level, tile in zip(
        expert_index(coords, network.levels, network.tile_sizes), network.levels, small.tile_size
    ):
        assert level.alpha <= max(size)
        assert len(index.unique()) == tile**2


@pytest.mark.parametrize(
    ("resolution", "seconds", "batch"),
    [((2000, 2000), None, 32768), ((6028, 3391), 181, 8192), ((8192, 8192), 321, 8192)],
)
def test_large_pictures_end_by_the_clock_and_take_small_steps(resolution, seconds, batch):
    assert seconds_for(resolution) == seconds
    assert samples_per_batch_for(resolution, 3, by_clock=True) == batch
    assert samples_per_batch_for(resolution, 3) == 32768
