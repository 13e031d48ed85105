"""The layer against its definition, its own derivatives, and by property."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from loe_field import BiasTile, Level, position_dependent_linear, position_dependent_linear_ref
from loe_field.network.grouped import grouped_linear, permute_rows
from loe_field.network.rows import group_rows


def make_inputs(rows, dim, tile_size, *, in_features=5, out_features=3, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    coords = torch.rand(rows, dim, generator=generator, dtype=dtype) * 4 - 2
    return normal(rows, in_features), coords, normal(tile_size**dim, out_features, in_features), normal(out_features)


@given(
    rows=st.integers(0, 40),
    dim=st.integers(1, 4),
    tile_size=st.integers(1, 3),
    blending=st.sampled_from(["nearest", "linear"]),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=80)
def test_equals_the_reference(rows, dim, tile_size, blending, bias, seed):
    x, coords, weight, b = make_inputs(rows, dim, tile_size, seed=seed)
    level, b = Level(3.7, 0.3), b if bias else None
    got = position_dependent_linear(x, coords, weight, b, level, tile_size=tile_size, blending=blending)
    expected = position_dependent_linear_ref(x, coords, weight, b, level, tile_size=tile_size, blending=blending)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)


TILES = [
    BiasTile(Level(2.1, 0.4), 3),
    BiasTile(Level(4.0), 2),
    BiasTile(Level(3.3), 4, table_size=8),
    BiasTile(Level(1.9), 3, "nearest"),
    BiasTile(Level(5.0), 1),
]


def vectors_of(tile, dim, *, out_features=3, dtype=torch.float64):
    count = min(tile.tile_size**dim, tile.table_size or 2**30)
    return torch.randn(count, out_features, generator=torch.Generator().manual_seed(5), dtype=dtype)


@given(
    rows=st.integers(0, 40),
    dim=st.integers(1, 4),
    tile_size=st.integers(1, 3),
    blending=st.sampled_from(["nearest", "linear"]),
    tile=st.sampled_from(TILES),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60)
def test_bias_tiles_equal_the_reference(rows, dim, tile_size, blending, tile, seed):
    x, coords, weight, _ = make_inputs(rows, dim, tile_size, seed=seed)
    arguments = (x, coords, weight, vectors_of(tile, dim), Level(3.7, 0.3))
    choices = {"tile_size": tile_size, "blending": blending, "bias_tile": tile}
    got, expected = (f(*arguments, **choices) for f in (position_dependent_linear, position_dependent_linear_ref))
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)


def test_the_shared_bias_is_the_tile_of_one_vector():
    x, coords, weight, bias = make_inputs(20, 2, 2)
    for function in (position_dependent_linear, position_dependent_linear_ref):
        shared = function(x, coords, weight, bias, Level(3.0), tile_size=2)
        tile = BiasTile(Level(3.0), 1)
        alone = function(x, coords, weight, bias[None], Level(3.0), tile_size=2, bias_tile=tile)
        torch.testing.assert_close(alone, shared, atol=1e-14, rtol=1e-14)


def test_bias_tile_by_hand():
    """Three vectors in 1D at -0.25, 0.25 and 0.75 of the tile's length of 1.5: between two of them, and around."""
    vectors = torch.tensor([[1.0], [10.0], [100.0]])
    coords = torch.tensor([[-0.25], [0.0], [0.5], [1.0], [1.25]])
    out = position_dependent_linear_ref(
        torch.zeros(5, 1), coords, torch.ones(1, 1, 1), vectors, Level(1.0), tile_size=1,
        bias_tile=BiasTile(Level(2.0, 0.5), 3),
    )  # fmt: skip
    assert out.flatten().tolist() == [1, 5.5, 55, 50.5, 1]


@pytest.mark.parametrize("tile", [TILES[0], TILES[2], TILES[3]], ids=["linear", "hashed", "nearest"])
@pytest.mark.parametrize(("dim", "tile_size"), [(1, 1), (2, 2), (3, 1)])
def test_derivatives_of_bias_tiles(tile, dim, tile_size):
    x, coords, weight, _ = make_inputs(5, dim, tile_size, in_features=3, out_features=2)
    inputs = [t.requires_grad_() for t in (x, weight, vectors_of(tile, dim, out_features=2), coords)]
    if tile.blending == "nearest":
        coords = inputs.pop().detach()

    def layer(x, weight, bias, coords=coords):
        choices = {"tile_size": tile_size, "bias_tile": tile}
        return position_dependent_linear(x, coords, weight, bias, Level(1.3, 0.1), **choices).sin()

    assert gradcheck(layer, inputs)
    assert gradgradcheck(layer, inputs)


def test_reference_by_hand():
    """Two experts in 1D: x -> 2x in even cells and 10x in odd ones, and the mean of both halfway."""
    weight = torch.tensor([[[2.0]], [[10.0]]])
    coords = torch.tensor([[0.0], [1.2], [2.5], [-0.5]])
    x, bias = torch.ones(4, 1), torch.tensor([1.0])
    nearest = position_dependent_linear_ref(x, coords, weight, bias, Level(1.0), tile_size=2)
    assert nearest.flatten().tolist() == [3, 11, 3, 11]
    linear = position_dependent_linear_ref(x, coords, weight, bias, Level(1.0), tile_size=2, blending="linear")
    torch.testing.assert_close(linear.flatten(), torch.tensor([3.0, 1 + 0.8 * 10 + 0.2 * 2, 7.0, 7.0]))


@pytest.mark.parametrize("blending", ["nearest", "linear"])
@pytest.mark.parametrize(("dim", "tile_size"), [(1, 3), (2, 2), (3, 2), (2, 1), (2, 3)])
def test_first_and_second_derivatives(blending, dim, tile_size):
    x, coords, weight, bias = make_inputs(6, dim, tile_size, in_features=3, out_features=2)
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    if blending == "linear":
        inputs.append(coords.requires_grad_())

    def layer(x, weight, bias, coords=coords):
        return position_dependent_linear(
            x, coords, weight, bias, Level(1.3, 0.1), tile_size=tile_size, blending=blending
        ).sin()

    assert gradcheck(layer, inputs)
    assert gradgradcheck(layer, inputs)


def test_an_expert_without_points_gets_a_zero_gradient():
    x, _, weight, bias = make_inputs(8, 2, 2)
    weight.requires_grad_()
    coords = torch.full((8, 2), 0.1, dtype=torch.float64)
    position_dependent_linear(x, coords, weight, bias, Level(2.0), tile_size=2).square().sum().backward()
    assert weight.grad[0].abs().sum() > 0
    assert weight.grad[1:].abs().sum() == 0


def test_batch_shapes_and_strides():
    x, coords, weight, bias = make_inputs(24, 2, 2)
    flat = position_dependent_linear(x, coords, weight, bias, Level(3.0), tile_size=2)
    shaped = position_dependent_linear(
        x.view(2, 3, 4, 5), coords.view(2, 3, 4, 2), weight, bias, Level(3.0), tile_size=2
    )
    assert torch.equal(shaped.view(24, 3), flat)
    strided_x = x.t().contiguous().t()
    strided_weight = weight.mT.contiguous().mT
    assert not strided_x.is_contiguous()
    strided = position_dependent_linear(strided_x, coords, strided_weight, bias, Level(3.0), tile_size=2)
    torch.testing.assert_close(strided, flat)


def test_inputs_stay_as_they_were_and_backward_runs_twice():
    tensors = make_inputs(16, 2, 2)
    before = [t.clone() for t in tensors]
    x, coords, weight, bias = tensors
    for t in (x, weight, bias):
        t.requires_grad_()
    out = position_dependent_linear(x, coords, weight, bias, Level(3.0), tile_size=2)
    cotangent = torch.randn_like(out)
    kept = cotangent.clone()
    first = torch.autograd.grad(out, (x, weight, bias), cotangent, retain_graph=True)
    second = torch.autograd.grad(out, (x, weight, bias), cotangent)
    for a, b in zip(first, second):
        assert torch.equal(a, b)
    assert torch.equal(cotangent, kept)
    for t, old in zip(tensors, before):
        assert torch.equal(t, old)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tile_size": 0}, "tile_size is 0"),
        ({"tile_size": 3}, r"must be \[9, out_features, 5\]"),
        ({"blending": "cubic"}, "unknown blending 'cubic'"),
        ({"implementation": "cobol"}, "unknown implementation 'cobol'"),
        ({"x": torch.zeros(3, 5, dtype=torch.float64)}, "must agree in all but the last axis"),
        ({"bias": torch.zeros(4, dtype=torch.float64)}, r"it must be \[3\]"),
        ({"coords": torch.zeros(8, 5, dtype=torch.float64)}, "5 coordinates per point"),
        ({"bias_tile": BiasTile(Level(1.0), 4)}, r"bias is \(3,\): it must be \[16, 3\]"),
        ({"bias_tile": BiasTile(Level(1.0), 4), "bias": None}, r"bias is None: it must be \[16, 3\]"),
        ({"bias_tile": BiasTile(Level(1.0), 4, "cubic")}, "unknown bias_blending 'cubic'"),
        ({"bias_tile": BiasTile(Level(1.0), 4, table_size=12)}, "bias_table_size is 12: a power of two"),
        ({"bias_tile": BiasTile(Level(1.0), 0)}, "bias_tile_size is 0"),
    ],
)
def test_wrong_shapes_and_choices_are_named(change, words):
    x, coords, weight, bias = make_inputs(8, 2, 2)
    arguments = {"x": x, "coords": coords, "weight": weight, "bias": bias, "level": Level(2.0), "tile_size": 2}
    with pytest.raises(ValueError, match=words):
        position_dependent_linear(**(arguments | change))


@given(levels=st.integers(1, 4), rows=st.integers(0, 30), experts=st.integers(1, 6), seed=st.integers(0, 1000))
@settings(max_examples=40)
def test_group_rows_lays_equal_experts_side_by_side_and_finds_the_way_back(levels, rows, experts, seed):
    generator = torch.Generator().manual_seed(seed)
    counts = [experts, *torch.randint(1, experts + 1, (levels - 1,), generator=generator).tolist()]
    index = torch.stack([torch.randint(count, (rows,), generator=generator) for count in counts])
    groups, back = group_rows(index, counts)
    numbers = torch.arange(1, rows + 1)  # 0 is padding
    x = numbers[:, None]
    for level, group, count in zip(index, groups, counts):
        x = permute_rows(x, group)
        slots = x[:, 0]
        assert torch.equal(numbers[group.rows][slots > 0], slots[slots > 0])
        served = torch.arange(count).repeat_interleave(torch.tensor(group.splits))
        assert torch.equal(level[slots[slots > 0] - 1], served[slots > 0])
        assert torch.equal(slots[slots > 0].sort().values, numbers)
        assert len(slots) <= 1.25 * rows
    assert torch.equal(permute_rows(x, back)[:, 0], numbers)


def test_padding_adds_nothing():
    """Nearly equal groups are padded and go through one batched product; no gradient comes from the padding."""
    index = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2], [3, 3, 2, 2, 1, 1, 0, 0, 3, 2, 1]])
    groups, back = group_rows(index, [4, 4])
    assert [len(g.perm) for g in groups] == [12, 12]
    x, _, weight, bias = make_inputs(11, 2, 2, in_features=3, out_features=3)
    bias = bias + 1  # a padded row has an output of its own, which nobody may see

    def two_levels(x, weight, bias):
        for group in groups:
            x = grouped_linear(permute_rows(x, group), weight, bias, group.splits).cos()
        return permute_rows(x, back)

    def plain(x, weight, bias):
        for level in index:
            x = (torch.einsum("noi,ni->no", weight[level], x) + bias).cos()
        return x

    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    torch.testing.assert_close(two_levels(*inputs), plain(*inputs))
    cotangent = torch.randn(11, 3, dtype=torch.float64)
    for got, expected in zip(
        torch.autograd.grad(two_levels(*inputs), inputs, cotangent),
        torch.autograd.grad(plain(*inputs), inputs, cotangent),
    ):
        torch.testing.assert_close(got, expected)
    assert gradcheck(two_levels, inputs)
    assert gradgradcheck(two_levels, inputs)


def test_uninitialised_memory_never_shows():
    """Every output is written: with torch.empty filled with NaN nothing changes."""
    x, coords, weight, bias = make_inputs(33, 2, 3)
    weight.requires_grad_()

    def run():
        out = position_dependent_linear(x, coords, weight, bias, Level(3.0), tile_size=3)
        return out.detach(), torch.autograd.grad(out.square().sum(), weight)[0]

    expected = run()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        got = run()
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip(got, expected):
        assert torch.isfinite(a).all()
        assert torch.equal(a, b)


def test_grouped_linear_follows_autocast():
    x, _, weight, bias = make_inputs(8, 2, 2, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = grouped_linear(x, weight, bias, [2, 2, 2, 2])
    assert out.dtype == torch.bfloat16
    exact = torch.cat([r @ w.T + bias for r, w in zip(x.split(2), weight)])
    torch.testing.assert_close(out.float(), exact, atol=0.1, rtol=0.05)
