"""The feature grid: what it is, its kernels in C, and a network that has one."""

from typing import Any

import pytest
import torch
from support import spread
from torch.autograd import gradcheck, gradgradcheck

from loe_field import FeatureGrid, LoEMLP, load_field, save_field
from loe_field.baselines.hash_grid import Grid, HashGridOptions, resolutions
from loe_field.errors import InputError
from loe_field.network.grid import features_by_kernels, features_by_torch, grid_features
from loe_field.network.kernels import cpu
from loe_field.network.tiling import num_bias_vectors

needs_kernels = pytest.mark.skipif(not cpu.available(), reason=f"no CPU kernels: {cpu.why_unavailable()}")

KINDS: dict[str, dict[str, Any]] = {
    "dense": {"table_size": None},
    "hashed": {"table_size": 64},
    "cyclic": {"table_size": None, "tile_size": 5},
    "cyclic and hashed": {"table_size": 32, "tile_size": 9},
}


def make_grid(kind, **options):
    sizes = {"num_levels": 3, "features_per_level": 2, "min_resolution": 3, "max_resolution": 11}
    return FeatureGrid(**(sizes | KINDS[kind] | options))


def inputs(grid, dim, points=700, columns=3, dtype=torch.float32, wide=True):
    """Coords, the tiles, a table of random vectors, and columns that stand before the features."""
    torch.manual_seed(0)
    tiles = grid.tiles(dim)
    table = torch.randn(sum(num_bias_vectors(tile, dim) for tile in tiles), grid.features_per_level, dtype=dtype)
    coords = torch.rand(points, dim, dtype=dtype)
    coords = coords * 3 - 1 if wide else coords
    if points > 9:
        coords[points // 2 :] = coords[points // 2]  # a run in one cell, with other fractions
        coords[points // 2 :] += 0.02 * torch.rand(points - points // 2, dim, dtype=dtype)
        coords[:3] = torch.tensor([[0.0], [1.0], [0.5]], dtype=dtype)
    leaves = [t.requires_grad_() for t in (coords, table, torch.randn(points, columns, dtype=dtype))]
    return leaves[0], leaves[1], tiles, leaves[2]


def results(function, coords, table, tiles, beside, cotangent):
    out = function(coords, table, tiles, beside)
    return [out, *torch.autograd.grad(out, (coords, table, beside), cotangent)]


def test_resolutions_are_those_of_instant_ngp():
    grid = FeatureGrid(num_levels=16, min_resolution=16, max_resolution=512)
    assert grid.resolutions[0] == 16
    assert grid.resolutions[-1] == 512
    assert grid.resolutions[1] == 20  # floor(16 * 32 ** (1 / 15))
    assert [tile.tile_size for tile in grid.tiles(3)] == [n + 1 for n in grid.resolutions]
    assert FeatureGrid(num_levels=1).resolutions == (16,)


@pytest.mark.parametrize(("levels", "low", "high"), [(33, 3, 1978350), (8, 152, 15859162), (64, 2**23, 2**24 - 1)])
def test_the_finest_level_is_max_resolution_also_where_the_power_rounds_down(levels, low, high):
    grid = FeatureGrid(num_levels=levels, min_resolution=low, max_resolution=high)
    assert (grid.resolutions[0], grid.resolutions[-1]) == (low, high)
    options = HashGridOptions(num_levels=levels, min_resolution=low, max_resolution=high)
    assert tuple(resolutions(options)) == grid.resolutions
    assert {tile.tile_size for tile in FeatureGrid(tile_size=4).tiles(2)} == {4}


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("kernels", [False, pytest.param(True, marks=needs_kernels)])
def test_it_is_instant_ngps_grid(dim, kernels):
    """Of equal tables, coords 0 and 1 included; the baseline's dense levels have their first axis fastest."""
    options = HashGridOptions(num_levels=5, log2_hashmap_size=8, min_resolution=4, max_resolution=40)
    theirs = Grid(dim, options)
    grid = FeatureGrid(num_levels=5, min_resolution=4, max_resolution=40, table_size=256)
    coords, table, tiles, beside = (t.detach() if torch.is_tensor(t) else t for t in inputs(grid, dim, wide=False))
    start, parts = 0, []
    for tile in tiles:
        count = num_bias_vectors(tile, dim)
        level, start = table[start : start + count], start + count
        if count == tile.tile_size**dim:
            level = level.view(*[tile.tile_size] * dim, 2).permute(*reversed(range(dim)), dim).reshape(count, 2)
        parts.append(level)
    theirs.table.data.copy_(torch.cat(parts))
    features = features_by_kernels if kernels else features_by_torch
    torch.testing.assert_close(features(coords.clamp(0, 1), table, tiles, beside)[:, 3:], theirs(coords.clamp(0, 1)))


@pytest.mark.parametrize("dim", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_of_the_definition(dim, kind):
    sizes = {"num_levels": 1, "min_resolution": 2, "tile_size": 2 if dim > 2 else KINDS[kind].get("tile_size")}
    table_size = KINDS[kind]["table_size"] and 4
    grid = make_grid(kind, features_per_level=1, table_size=table_size, **sizes)
    coords, table, tiles, beside = inputs(grid, dim, 2, 1, torch.float64)

    def features(coords, table, beside):
        return grid_features(coords, table, tiles, beside=beside)

    assert gradcheck(features, (coords, table, beside))
    assert gradgradcheck(features, (coords, table, beside))


@needs_kernels
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("features", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("dim", [1, 2, 3, 4])
@pytest.mark.parametrize("points", [1, 700])
def test_kernels_within_the_error_budget(dim, features, kind, points):
    """Against fp64: at most twice the error of eager fp32, and a floor of a few units in the last place."""
    coords, table, tiles, beside = inputs(make_grid(kind, features_per_level=features), dim, points)
    cotangent = torch.randn(points, 3 + 3 * features)
    ours = results(features_by_kernels, coords, table, tiles, beside, cotangent)
    eager = results(features_by_torch, coords, table, tiles, beside, cotangent)
    exact = [t.detach().double().requires_grad_() for t in (coords, table, beside)]
    # The same cells: 16 bits more would put points on borders elsewhere.
    truth = results(features_by_torch, exact[0], exact[1], tiles, exact[2], cotangent.double())
    for got, plain, true in zip(ours, eager, truth):
        assert got.shape == true.shape
        error, budget = (x.double() - true for x in (got, plain))
        scale = true.abs().max()
        assert error.square().mean().sqrt() <= 2 * budget.square().mean().sqrt() + 5e-7 * scale
        assert error.abs().max() <= 4 * budget.abs().max() + 2e-6 * scale


@needs_kernels
@pytest.mark.parametrize(("levels", "features", "kind"), [(1, 2, "hashed"), (5, 1, "dense"), (4, 4, "cyclic")])
def test_no_number_of_threads_changes_a_bit(levels, features, kind):
    grid = make_grid(kind, num_levels=levels, features_per_level=features)
    coords, table, tiles, beside = inputs(grid, 3, 3000)
    cotangent = torch.randn(3000, 3 + levels * features)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3, 7, 32):
            torch.set_num_threads(threads)
            found.append(results(features_by_kernels, coords, table, tiles, beside, cotangent))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for one, same in zip(found[0], other):
            assert torch.equal(one, same)


@needs_kernels
def test_odd_points():
    """Far out, at once infinite or not a number, and none at all; nothing outside of the table is touched."""
    grid = make_grid("hashed")
    coords, table, tiles, beside = inputs(grid, 2, 0)
    out, *grads = results(features_by_kernels, coords, table, tiles, beside, torch.empty(0, 9))
    assert out.shape == (0, 9)
    assert [g.shape for g in grads] == [coords.shape, table.shape, beside.shape]
    assert not grads[1].any()
    wild = torch.tensor([[float("nan"), 0], [float("inf"), 0], [-3e6, 1e12], [0.5, 0.5]])
    found = features_by_kernels(wild, table, tiles, wild.detach())
    assert not found[:2, 2:].isfinite().any()
    assert found[2:].isfinite().all()
    torch.testing.assert_close(found[2:], features_by_torch(wild[2:], table, tiles, wild[2:]))
    found[2:, 2:].sum().backward()


@needs_kernels
def test_strided_inputs_and_gradients():
    grid = make_grid("cyclic")
    coords, table, tiles, beside = inputs(grid, 2)
    wide = torch.randn(9, 700).t()
    expected = results(features_by_torch, coords, table, tiles, beside, wide)
    parts = (coords.detach().t().contiguous().t().requires_grad_(), table, tiles, beside)
    for got, want in zip(results(features_by_kernels, *parts, wide), expected):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


@needs_kernels
def test_second_derivatives_of_the_kernels():
    grid = make_grid("hashed", features_per_level=1)
    coords, table, tiles, beside = inputs(grid, 3, 40)

    def second(function, *tensors):
        coords, table, beside = tensors
        out = function(coords, table, tiles, beside)
        (slope,) = torch.autograd.grad(out.square().sum(), coords, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), tensors)

    exact = [t.detach().double().requires_grad_() for t in (coords, table, beside)]
    for got, want in zip(second(features_by_kernels, coords, table, beside), second(features_by_torch, *exact)):
        torch.testing.assert_close(got.double(), want, atol=1e-2, rtol=1e-4)


@needs_kernels
@pytest.mark.parametrize("change", ["compile", "vmap"])
def test_kernels_under_transforms(change):
    grid = make_grid("dense")
    coords, table, tiles, _ = inputs(grid, 2, 50)

    def function(coords, table):
        return grid_features(coords, table, tiles, beside=coords).square().sum(1)

    expected = torch.autograd.grad(function(coords, table).sum(), (coords, table))
    if change == "compile":
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        found = torch.autograd.grad(compiled(coords, table).sum(), (coords, table))
    else:
        out = function(coords, table)
        found = torch.autograd.grad(out, (coords, table), torch.eye(50), is_grads_batched=True)
        found = [g.sum(0) for g in found]
    for got, want in zip(found, expected):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_levels": 0}, "num_levels is 0: it must be 1 to 64"),
        ({"num_levels": 2.0}, "num_levels is 2.0: a whole number"),
        ({"features_per_level": None}, "features_per_level is None: a whole number"),
        ({"features_per_level": 65}, "features_per_level is 65"),
        ({"min_resolution": 0}, "min_resolution is 0"),
        ({"max_resolution": 2**24}, "max_resolution is 16777216: it must be 1 to 16,777,215"),
        ({"max_resolution": 8}, "max_resolution is 8: it must be at least min_resolution, 16"),
        ({"table_size": 3}, "table_size is 3: a power of two"),
        ({"table_size": True}, "table_size is True: a whole number"),
        ({"tile_size": 0}, "tile_size is 0"),
        ({"table_size": None, "max_resolution": 2000}, "1,160,935,651 vectors and keeps at most 2\\^30"),
    ],
    ids=str,
)
def test_what_is_out_of_range_is_told(options, words):
    with pytest.raises(ValueError, match=words):
        FeatureGrid(**options).tiles(3)


# A network with a grid.

NETWORKS: dict[str, dict[str, Any]] = {
    "small mlp": {"tile_size": 1, "num_layers": 2, "layer_width": 16, "out_features": 3},
    "experts": {"num_layers": 4, "layer_width": 20, "num_frequencies": 2},
    "bias tiles": {"num_layers": 3, "layer_width": 8, "bias_tile_size": 4, "tile_size": [1, 3]},
}


def network(name, dtype=torch.float32, **options):
    torch.manual_seed(0)
    return spread(LoEMLP(grid=make_grid("hashed"), **(NETWORKS[name] | options))).to(dtype)


def network_results(field, points, cotangent):
    points = points.detach().requires_grad_()
    out = field(points)
    return [out, *torch.autograd.grad(out, [points, *field.parameters()], cotangent)]


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_implementation_equals_the_reference(name, dim):
    points = torch.rand(5, 60, dim, dtype=torch.float64) * 3 - 1
    channels = NETWORKS[name].get("out_features", 1)
    cotangent = torch.randn(5, 60, channels, dtype=torch.float64)
    truth = network_results(network(name, torch.float64, dim=dim, implementation="reference"), points, cotangent)
    exact = network_results(network(name, torch.float64, dim=dim, implementation="torch"), points, cotangent)
    for got, want in zip(exact, truth):
        torch.testing.assert_close(got, want, atol=1e-11, rtol=1e-10)
    for implementation in ("torch", *(["cpu"] if cpu.available() else [])):
        field = network(name, dim=dim, implementation=implementation)
        assert field.resolved_implementation == implementation
        ours = network_results(field, points.float(), cotangent.float())
        for got, want in zip(ours, truth):
            assert (got.double() - want).abs().max() < 2e-4 * want.abs().max() + 1e-4


@needs_kernels
def test_auto_takes_the_kernels_for_few_layers_and_one_matrix():
    field = network("small mlp")
    assert field.resolved_implementation == "cpu"
    assert field.obstacle is None
    points = torch.rand(40, 2)
    torch.testing.assert_close(
        field(points), network("small mlp", implementation="torch")(points), atol=1e-5, rtol=1e-4
    )


def test_a_table_has_a_group_of_its_own():
    field = network("experts")
    groups = field.param_groups()
    assert [p is field.grid_table for p in groups["grid"]] == [True]
    assert all(p is not field.grid_table for name in ("experts", "fields") for p in groups[name])
    assert field.num_parameters == sum(p.numel() for group in groups.values() for p in group)
    assert field.layers[0].weight.shape[-1] == 2 * 5 + 3 * 2
    plain = LoEMLP(**NETWORKS["experts"])
    assert "grid" not in plain.param_groups()
    assert field.macs_per_point - plain.macs_per_point == 6 * 20 + 4 * 6
    assert field.floats_per_point > plain.floats_per_point


def test_options_make_the_same_network_again():
    field = network("bias tiles")
    again = LoEMLP(**{**field.options, "grid": FeatureGrid(**field.options["grid"])})
    again.load_state_dict(field.state_dict())
    points = torch.rand(9, 2)
    assert torch.equal(again(points), field(points))
    assert "grid" not in LoEMLP().options


def test_it_starts_small():
    table = LoEMLP(grid=FeatureGrid()).grid_table
    assert 9e-5 < table.abs().max() <= 1e-4
    assert table.min() < -9e-5


@pytest.mark.parametrize("quantization", [None, "fp16", "int8"])
def test_files(tmp_path, quantization):
    field, points = network("experts"), torch.rand(200, 2)
    save_field(field, tmp_path / "field.safetensors", quantization=quantization)
    again = load_field(tmp_path / "field.safetensors")
    assert again.grid == field.grid
    error = (again(points) - field(points)).abs().max()
    assert error <= {None: 0, "fp16": 1e-2, "int8": 5e-2}[quantization] * field(points).abs().max()


def test_a_file_with_another_grid_than_its_table_is_refused(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = tmp_path / "field.safetensors"
    save_field(network("experts"), path)
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for old, new in (('"table_size":64', '"table_size":32'), ('"table_size":64', '"table_size":3')):
        save_file(tensors, path, {"loe_field": metadata["loe_field"].replace(old, new)})
        with pytest.raises(InputError, match="contradicts itself"):
            load_field(path)


def test_a_replaced_table_is_computed_layer_by_layer():
    field, points = network("experts"), torch.rand(30, 2)
    expected = field(points)
    torch.nn.utils.parametrize.register_parametrization(field, "grid_table", torch.nn.Identity())
    with pytest.warns(UserWarning, match="grid_table was replaced"):
        torch.testing.assert_close(field(points), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:the network is computed layer by layer")
@pytest.mark.parametrize("implementation", ["auto", "torch"])
def test_a_table_of_another_length_is_refused(implementation):
    """Kernels would read beyond its end."""
    field = network("experts", implementation=implementation)
    field.grid_table = torch.nn.Parameter(field.grid_table.detach()[:7])
    with pytest.raises((ValueError, RuntimeError), match=r"table is|split"):
        field(torch.rand(30, 2))


@needs_kernels
def test_bf16_keeps_features_exact():
    if not cpu.has_bf16():
        pytest.skip("no bf16")
    field, points = network("experts"), torch.rand(300, 2)
    with torch.autocast("cpu", torch.bfloat16):
        found = field(points)
    expected = field(points)
    assert 0 < (found - expected).abs().max() < 3e-2 * expected.abs().max()


def test_exported_programs():
    from loe_field.export.traced import trace

    field, points = network("bias tiles"), torch.rand(11, 2)
    torch.testing.assert_close(trace(field).module()(points), field(points), atol=1e-5, rtol=1e-4)
