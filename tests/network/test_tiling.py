import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loe_field import (
    BiasTile,
    Level,
    PositionDependentLinear,
    blending_weights,
    expert_index,
    fine_to_coarse,
    gray_code,
    make_levels,
    quad_tree,
)
from loe_field.baselines import HashGridOptions
from loe_field.baselines.hash_grid import Grid
from loe_field.network.tiling import bias_shares


def test_patterns_are_the_papers():
    assert [level.alpha for level in fine_to_coarse(9)] == [2.0 ** (10 - i) for i in range(1, 10)]
    assert [level.alpha for level in quad_tree(9)] == [2.0**i for i in range(1, 10)]
    assert [level.alpha for level in gray_code(5)] == [2, 2, 4, 8, 16]
    assert {level.beta for level in gray_code(5)} == {0.5}
    assert {level.beta for level in fine_to_coarse(9) + quad_tree(9)} == {0.0}


def test_finest_cell_of_the_papers_net_is_one_pixel_of_512():
    x = (torch.arange(512) + 0.5) / 512
    index = expert_index(x[:, None], fine_to_coarse(9), 2)
    assert torch.equal(index[0], torch.arange(512) % 2)
    # All levels together tell every pixel from every other: they are the bits of its number.
    assert len(torch.unique(index, dim=1).T) == 512


@given(
    dim=st.integers(1, 4),
    tile_size=st.integers(1, 5),
    alpha=st.floats(0.1, 600),
    beta=st.floats(-3, 3),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60)
def test_expert_index_is_floor_mod_with_the_last_axis_fastest(dim, tile_size, alpha, beta, seed):
    points = np.random.default_rng(seed).uniform(-2, 2, (7, dim))
    index = expert_index(torch.from_numpy(points), [Level(alpha, beta)], tile_size)[0]
    for point, got in zip(points, index.tolist()):
        expected = 0
        for p in point:
            expected = expected * tile_size + int(np.floor(alpha * p + beta)) % tile_size
        assert got == expected


@given(dim=st.integers(1, 4), tile_size=st.integers(1, 4), seed=st.integers(0, 2**31))
@settings(max_examples=40)
def test_blending_is_the_cyclic_hat_function_of_every_expert(dim, tile_size, seed):
    rng = np.random.default_rng(seed)
    points = rng.uniform(-2, 2, (5, dim))
    level = Level(rng.uniform(0.5, 20), rng.uniform(-1, 1))
    index, weight = blending_weights(torch.from_numpy(points), level, tile_size)
    assert index.shape == weight.shape == (5, 2**dim)
    dense = torch.zeros(5, tile_size**dim, dtype=torch.float64).scatter_add_(1, index, weight)
    for point, row in zip(points, dense.numpy()):
        hats = []
        for p in point:
            t = level.alpha * p + level.beta
            distance = [min((t - j) % tile_size, (j - t) % tile_size) for j in range(tile_size)]
            hat = [max(0.0, 1 - d) for d in distance]
            hats.append([1.0] if tile_size == 1 else hat)
        expected = [np.prod(combination) for combination in itertools.product(*hats)]
        np.testing.assert_allclose(row, expected, atol=1e-9)
        assert row.sum() == pytest.approx(1)


def test_blending_is_continuous_where_nearest_jumps():
    level, edge = Level(4.0), 0.5
    before, after = (torch.tensor([[edge + d]], dtype=torch.float64) for d in (-1e-9, 1e-9))
    assert expert_index(before, [level], 2)[0] != expert_index(after, [level], 2)[0]

    def dense(p):
        index, weight = blending_weights(p, level, 2)
        return torch.zeros(1, 2, dtype=torch.float64).scatter_add_(1, index, weight)

    torch.testing.assert_close(dense(before), dense(after), atol=1e-7, rtol=0)


def test_each_level_has_its_own_tile_size():
    points, levels = torch.rand(50, 3) * 4 - 2, (Level(3.0), Level(5.0, 0.5), Level(2.0))
    together = expert_index(points, levels, (1, 3, 2))
    for index, level, size in zip(together, levels, (1, 3, 2)):
        assert torch.equal(index, expert_index(points, [level], size)[0])


@pytest.mark.parametrize("table_size", [None, 2**12])
def test_a_bias_tile_is_blended_as_a_tile_of_experts_is(table_size):
    """A table that is large enough changes nothing."""
    points, level = torch.rand(40, 3, dtype=torch.float64) * 6 - 3, Level(3.7, 0.3)
    found = bias_shares(points, BiasTile(level, 5, table_size=table_size))
    assert all(torch.equal(got, true) for got, true in zip(found, blending_weights(points, level, 5)))
    index, share = bias_shares(points, BiasTile(level, 5, "nearest", table_size))
    assert torch.equal(index[:, 0], expert_index(points, [level], 5)[0])
    assert (share == 1).all()


@pytest.mark.parametrize(("dim", "log2_table"), [(2, 14), (2, 5), (3, 14), (3, 6)])
def test_a_level_of_instant_ngps_grid_is_a_bias_tile(dim, log2_table):
    """The features of a grid of 9 cells, stored vertex by vertex or by the hash, come out of a layer without matrix."""
    torch.manual_seed(0)
    options = HashGridOptions(num_levels=1, min_resolution=9, log2_hashmap_size=log2_table)
    grid = Grid(dim, options).double()
    tile = BiasTile(Level(9.0), 10, table_size=2**log2_table)
    layer = PositionDependentLinear(1, 2, level=Level(1.0), dim=dim, tile_size=1, bias_tile=tile).double()
    entries = grid.table.detach()
    if len(entries) == 10**dim:  # there the first axis runs fastest
        entries = entries.view(*[10] * dim, 2).permute(*reversed(range(dim)), dim).flatten(0, -2)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(entries)
    points = torch.rand(200, dim, dtype=torch.float64)
    torch.testing.assert_close(layer(points[:, :1], points), grid(points), atol=1e-15, rtol=1e-12)


def test_half_precision_coordinates_are_scaled_in_fp32():
    points = torch.rand(200, 2).to(torch.bfloat16)
    levels = fine_to_coarse(9)
    assert torch.equal(expert_index(points, levels, 2), expert_index(points.float(), levels, 2))


def test_custom_pattern():
    assert make_levels([(3, 0.25), (5, 0)], 2) == (Level(3.0, 0.25), Level(5.0, 0.0))


@pytest.mark.parametrize(
    ("pattern", "count", "words"),
    [
        ("spiral", 2, "unknown pattern 'spiral'.*fine_to_coarse"),
        ([(2, 0)], 2, "lists 1 .* has 2"),
        ([(2, 0), (-1, 0)], 2, "level 2 has alpha -1"),
        ([(2, float("nan")), (1, 0)], 2, "level 1"),
    ],
)
def test_bad_patterns_say_what_is_wrong(pattern, count, words):
    with pytest.raises(ValueError, match=words):
        make_levels(pattern, count)
