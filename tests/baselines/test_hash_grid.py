import dataclasses
import itertools

import pytest
import torch

from loe_field.baselines import HashGrid, HashGridOptions
from loe_field.baselines.hash_grid import Grid, HostGrid, resolutions, table_sizes

SMALL = HashGridOptions(num_levels=4, log2_hashmap_size=8, min_resolution=4, max_resolution=32)


def make(dim, options=SMALL, seed=0):
    torch.manual_seed(seed)
    grid = Grid(dim, options).double()
    torch.nn.init.normal_(grid.table)
    return grid


def vertices(n, dim):
    return torch.tensor(list(itertools.product(range(n + 1), repeat=dim)))


def test_resolutions_grow_geometrically_to_the_finest():
    assert resolutions(SMALL) == [4, 8, 16, 32]
    assert resolutions(HashGridOptions())[-1] == 256
    assert resolutions(dataclasses.replace(SMALL, num_levels=1)) == [4]


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_at_vertices_of_coarse_levels_it_is_the_table(dim):
    """Levels that fit are stored vertex by vertex, first axis fastest, and every vertex has its own row."""
    grid = make(dim)
    sizes = table_sizes(dim, SMALL)
    assert grid.num_dense >= 1
    for level in range(grid.num_dense):
        n = resolutions(SMALL)[level]
        where = vertices(n, dim)
        row = sum(sizes[:level]) + sum(where[:, axis] * (n + 1) ** axis for axis in range(dim))
        assert len(set(row.tolist())) == (n + 1) ** dim == sizes[level]
        features = grid(where.double() / n)[:, 2 * level : 2 * level + 2]
        torch.testing.assert_close(features, grid.table[row])


def test_at_vertices_of_fine_levels_it_is_the_hashed_row():
    grid = make(3)
    level, n = 3, 32
    where = torch.randint(0, n + 1, (50, 3))
    start = sum(table_sizes(3, SMALL)[:level])
    rows = [start + ((x ^ (y * 2654435761) ^ (z * 805459861)) % 256) for x, y, z in where.tolist()]
    torch.testing.assert_close(grid(where.double() / n)[:, 6:], grid.table[rows])


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_interpolation_reproduces_what_is_linear_per_axis(dim):
    options = dataclasses.replace(SMALL, log2_hashmap_size=20)
    grid = make(dim, options)
    start = 0
    with torch.no_grad():
        for n, size in zip(resolutions(options), table_sizes(dim, options)):
            where = vertices(n, dim)
            rows = start + sum(where[:, axis] * (n + 1) ** axis for axis in range(dim))
            grid.table[rows, 0] = where.double().prod(-1) / n**dim
            grid.table[rows, 1] = where.double().sum(-1) / n
            start += size
    points = torch.rand(200, dim, dtype=torch.float64)
    out = grid(points).view(200, 4, 2)
    torch.testing.assert_close(out[..., 0], points.prod(-1, keepdim=True).expand(-1, 4))
    torch.testing.assert_close(out[..., 1], points.sum(-1, keepdim=True).expand(-1, 4))


@pytest.mark.parametrize("implementation", ["paper", "torch"])
def test_continuous_across_cells(implementation):
    torch.manual_seed(0)
    net = HashGrid(options=dataclasses.replace(SMALL, implementation=implementation)).double()
    for name, parameter in net.named_parameters():
        if name.endswith("table"):
            torch.nn.init.normal_(parameter)
    border = torch.rand(200, 2, dtype=torch.float64)
    border[:, 0] = torch.randint(1, 32, (200,)) / 32
    step = torch.tensor([1e-9, 0.0], dtype=torch.float64)
    jump = (net(border + step) - net(border - step)).abs().max()
    assert jump < 1e-6
    assert net(border).std() > 0.1


@pytest.mark.parametrize("dim", [2, 3])
def test_where_all_levels_are_hashed_it_is_the_hosts_encoding(dim):
    options = dataclasses.replace(SMALL, log2_hashmap_size=4)
    ours = make(dim, options)
    host = HostGrid(dim, dataclasses.replace(options, implementation="torch")).double()
    assert ours.num_dense == 0
    with torch.no_grad():
        host.encoding.hash_table.copy_(ours.table)
    points = torch.rand(500, dim, dtype=torch.float64)
    torch.testing.assert_close(ours(points), host(points))


def test_the_host_counts_a_full_table_for_every_level():
    options = dataclasses.replace(SMALL, implementation="torch")
    net = HashGrid(options=options)
    assert net.num_parameters == 4 * 256 * 2 + (8 * 64 + 64 * 64 + 64)
    assert net.macs_per_point == 8 * 8 + (8 * 64 + 64 * 64 + 64)
    assert net(torch.rand(0, 2)).shape == (0, 1)
    with pytest.raises(ValueError, match="numbers in all; give 19 or less"):
        HashGrid(options=HashGridOptions(implementation="torch"))


def test_tcnn_where_it_is_missing_says_so():
    from nerfstudio.field_components.encodings import TCNN_EXISTS

    if TCNN_EXISTS:
        pytest.skip("tiny-cuda-nn is installed")
    with pytest.raises(ValueError, match='"tcnn", which is not installed here'):
        HashGrid(options=HashGridOptions(implementation="tcnn"))


def test_beyond_the_border_nothing_breaks():
    grid = make(2)
    points = torch.tensor([[1.0, 1.0], [-0.2, 0.5], [1.3, 2.0]], dtype=torch.float64)
    assert grid(points).isfinite().all()
    torch.testing.assert_close(grid(points[:1]), grid(points[:1] - 1e-12))


def test_initial_values_are_the_papers():
    net = HashGrid()
    assert 0.99e-4 < net.grid.table.abs().max() <= 1e-4
    assert all(layer.bias is None for layer in net.layers)
    assert net.layers[1].weight.abs().max() <= (6 / 128) ** 0.5
