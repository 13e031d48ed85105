"""The network of a fit: measured before it is built, and refused where options do nothing."""

from dataclasses import replace

import pytest
import torch

from loe_field.adapter.model import SignalModelConfig
from loe_field.adapter.network import LoEConfig, build_network
from loe_field.baselines import NETWORKS, HashGridOptions, SirenOptions

LOE = LoEConfig(num_layers=3, layer_width=8, tile_size=2)
GRID = HashGridOptions(log2_hashmap_size=8)


@pytest.mark.parametrize("name", ["loe", *NETWORKS])
def test_measuring_it_takes_no_random_number(name, monkeypatch):
    options = GRID if name == "hash-grid" else None
    states = []
    for measured in (True, False):
        if not measured:
            monkeypatch.setattr("loe_field.adapter.network.built", lambda make: make())
        torch.manual_seed(0)
        states.append(build_network(name, LOE, options, resolution=(32, 24), channels=3).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])


@pytest.mark.parametrize(
    "options",
    [
        {"tile_size": 10**9},
        {"layer_width": 10**6},
        {"num_layers": 10**9},
        {"num_frequencies": 10**30},
        {"num_layers": 1},
    ],
    ids=str,
)
def test_sizes_beyond_memory(options):
    with pytest.raises(ValueError, match=r"it must be|GiB|any machine"):
        build_network("loe", replace(LOE, **options), None, resolution=(32, 24), channels=3)


def test_what_the_threads_of_a_processor_keep_is_counted(monkeypatch):
    """Each has sums of the experts' gradients; torch and a GPU have none."""
    loe, module = replace(LOE, tile_size=8, layer_width=16), "loe_field.adapter.network"
    numbers = sum(p.numel() for p in loe.build(2, 1).parameters())
    monkeypatch.setattr(f"{module}.available_memory", lambda: 100 * numbers)
    monkeypatch.setattr("torch.get_num_threads", lambda: 64)
    with pytest.raises(ValueError, match="GiB"):
        build_network("loe", loe, None, resolution=(32, 24), channels=1)
    assert build_network("loe", replace(loe, implementation="torch"), None, resolution=(32, 24), channels=1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert build_network("loe", loe, None, resolution=(32, 24), channels=1)


@pytest.mark.parametrize(
    "options",
    [{"max_resolution": 10**12}, {"num_levels": 10**9}, {"features_per_level": 10**9}, {"log2_hashmap_size": 10**30}],
    ids=str,
)
def test_grids_beyond_memory(options):
    with pytest.raises(ValueError, match=r"it must be|GiB|any machine"):
        build_network("hash-grid", LOE, replace(GRID, **options), resolution=(32, 24), channels=3)


def test_a_grid_goes_as_fine_as_the_picture():
    loe = LoEConfig(num_layers=3, layer_width=8, tile_size=1, grid_levels=4, grid_table_size=256)
    assert loe.sized((300, 200), 3).build(2, 3).grid.max_resolution == 150
    assert loe.sized((20, 20), 3).build(2, 3).grid.max_resolution == 16
    grid = replace(loe, grid_features=4, grid_min_resolution=8, grid_tile_size=5).build(3, 1).grid
    assert (grid.features_per_level, grid.min_resolution, grid.max_resolution, grid.tile_size) == (4, 8, 512, 5)
    assert LoEConfig().sized((300, 200), 3).build(2, 3).grid is None
    assert LoEConfig().sized((300, 200), 3).grid_max_resolution is None
    with pytest.raises(ValueError, match="grid_levels is -1"):
        replace(loe, grid_levels=-1).build(2, 3)


@pytest.mark.parametrize(
    "option", [{"tile_size": 4}, {"grid_levels": 2}, {"num_frequencies": 3}, {"omega_0": 2.0}, {"blending": "linear"}]
)
def test_an_option_that_a_baseline_has_not_is_refused(option):
    recipe = LoEConfig(num_frequencies=9)
    (name,) = option
    config = SignalModelConfig(loe=replace(recipe, **option), baseline=SirenOptions(), recipe=recipe)
    with pytest.raises(ValueError, match=f"{name.replace('_', '-')} is for levels of experts and the network is siren"):
        config.build((8, 6), 1)
    taken = SignalModelConfig(loe=replace(recipe, layer_width=8), baseline=SirenOptions(), recipe=recipe)
    assert taken.build((8, 6), 1).layer_width == 8
