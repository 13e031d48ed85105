"""The Triton kernels for vectors of tiles, of biases and of the feature grid: on a CUDA GPU where there is one,
otherwise in Triton's interpreter, which a process of its own turns on.

Errors against fp64 are at most twice those of eager PyTorch in fp32, plus a floor.
"""

import pytest
import torch
from on_triton import DEVICE, DTYPES, INTERPRETED, TRITON, kernels, needs_triton, once, only_gpu
from support import run_tests

from loe_field import BiasTile, FeatureGrid, Level, LoEMLP
from loe_field.network.bias import blended_bias
from loe_field.network.fused_triton import expert_linear
from loe_field.network.grid import features_by_kernels, features_by_torch
from loe_field.network.rows import expert_rows
from loe_field.network.shape import activate
from loe_field.network.tiling import bias_shares, num_bias_vectors

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.mark.slow
@needs_triton
@once
def test_in_the_interpreter():
    run_tests(__file__, TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.skipif(TRITON < (3, 6), reason="older versions of Triton spill fp32 products")
@pytest.mark.parametrize(
    ("architecture", "precisions"),
    [
        (90, []),
        *(
            pytest.param(sm, precisions, marks=pytest.mark.slow)
            for sm, precisions in ((80, ["tf32"]), (90, ["bf16", "tf32"]), (100, ["bf16"]), (120, ["bf16"]))
        ),
    ],
    ids=str,
)
def test_compiles_for_every_family_without_spills(architecture, precisions):
    """Numbers of a vector that lie side by side are read together, and no atomic waits for the threads beside it."""
    from benchmarks.compile_table import CARDS, compiling_for, launch_grid, rows_for

    def chosen(settings):
        tiled = settings["level"] == "bias tile of 8^2" and settings["precision"] in precisions
        return tiled or settings["level"] == "grid in 3D"

    for row in rows_for([architecture], chosen):
        assert row["spilled_bytes"] <= 8, row  # of `slopes` with Triton 3.6; nothing else spills
        assert row["shared_bytes"] <= CARDS[architecture].largest_kib * 1024, row
        assert row["warps_per_sm"] >= 8, row
        if row["kernel"] in ("features", "add_up", "slopes"):
            assert row["registers"] <= 128, row
    with compiling_for(architecture) as compiled:
        launch_grid(3, 2)
    assembly = {kernel.metadata.name: kernel.asm["ptx"] for kernel in compiled}
    assert assembly["_features"].count("ld.global.v2.b32") >= 8
    assert assembly["_add_up"].count("add.u64") >= 8
    assert "bar.sync" not in assembly["_add_up"]


def points(rows, dim, tile):
    """Half at random, half within some last bits of a border of a cell."""
    generator = torch.Generator().manual_seed(1)
    coords = 4 * torch.rand(rows, dim, generator=generator) - 2
    border = ((tile.level.alpha * coords[::2]).round() - tile.level.beta) / tile.level.alpha
    coords[::2] = torch.nextafter(border, torch.randn(border.shape, generator=generator))
    return coords.to(DEVICE)


def shares(coords, tile):
    """`bias_shares`, the cells under nearest blending as fp32 finds them."""
    index, share = bias_shares(coords if tile.blending == "linear" else coords.float(), tile)
    return index, share.to(coords.dtype)


def worst(got, exact):
    assert got.isfinite().all()
    return (got.double() - exact).abs().max().item() if got.numel() else 0.0


def judge(got, eager, exact, floor):
    for name, a, b, c in zip(("y", "grad x", "grad weight", "grad bias", "grad coords"), got, eager, exact):
        assert a.shape == c.shape
        scale = max(1.0, c.abs().max().item()) if c.numel() else 1.0
        assert worst(a, c) <= 2 * worst(b, c) + floor * scale, name


def with_gradients(function, leaves, cotangent):
    leaves = [t.detach().requires_grad_() for t in leaves]
    y = function(*leaves)
    grads = torch.autograd.grad(y, leaves, cotangent.to(y.dtype), allow_unused=True)
    return [y.detach(), *(g for g in grads if g is not None)]


TILES = [  # dim, experts, tile
    (2, 3, BiasTile(Level(3.3, 0.7), 8)),
    (3, 1, BiasTile(Level(7.1, -0.2), 6, table_size=64)),
    (1, 1, BiasTile(Level(40.0), 700)),
    (3, 1, BiasTile(Level(5.0, 0.25), 30, table_size=1024)),
    (4, 1, BiasTile(Level(1.5), 2)),
    (2, 2, BiasTile(Level(11.0, 0.5), 40, "nearest")),
    (4, 1, BiasTile(Level(9.0), 50, "nearest", 256)),
]


def make_case(rows, dim, experts, tile, dtype=torch.float32, in_features=6, out_features=20):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(DEVICE)

    x, weight = normal(rows, in_features).to(dtype), normal(experts, out_features, in_features) / in_features**0.5
    index = torch.randint(experts, (rows,), generator=generator).to(DEVICE)
    bias = normal(num_bias_vectors(tile, dim), out_features)
    coords = 4 * torch.rand(rows, dim, generator=generator).to(DEVICE) - 2
    return [x, weight, bias, coords], index, normal(rows, out_features)


def by_kernels(index, experts, tile, how):
    order, starts = (None, None) if experts == 1 else (t[0] for t in expert_rows(index[None], experts))

    def level(x, weight, bias, coords):
        return expert_linear(x, weight, bias, order, starts, coords=coords, bias_tile=tile, **how)

    return level


def by_torch(index, tile, activation, omega_0):
    def level(x, weight, bias, coords):
        z = torch.einsum("noi,ni->no", weight.to(x.dtype)[index], x)
        z = z + blended_bias(bias, *shares(coords, tile))
        return activate(z.to(torch.promote_types(x.dtype, torch.float32)), activation, omega_0).to(x.dtype)

    return level


@kernels
@pytest.mark.parametrize(
    "precision",
    ["ieee", "fp16", *(pytest.param(name, marks=only_gpu) for name in ("bf16", "tf32", "tf32x3"))],
)
@pytest.mark.parametrize(("dim", "experts", "tile"), TILES, ids=str)
def test_bias_tiles_of_a_level(dim, experts, tile, precision):
    """Result and gradients, by products and by atomics; nothing is written into what is given."""
    if INTERPRETED and precision == "fp16" and experts != 3:
        pytest.skip("the interpreter takes long")
    dtype = DTYPES.get(precision, torch.float32)
    leaves, index, cotangent = make_case(37 if INTERPRETED else 3001, dim, experts, tile, dtype)
    how = {"activation": "sine", "omega_0": 1.5}
    before = [t.clone() for t in (*leaves, cotangent)]
    got = with_gradients(by_kernels(index, experts, tile, how | {"precision": precision}), leaves, cotangent)
    assert all(torch.equal(t, old) for t, old in zip((*leaves, cotangent), before))
    assert len(got) == 4 + (tile.blending == "linear")
    function = by_torch(index, tile, **how)
    x, weight, *others = leaves
    exact = with_gradients(function, [t.double() for t in (x, weight.to(dtype), *others)], cotangent)
    # 16 bits: the products of the bias' gradient take shares and gradients that short.
    judge(got, with_gradients(function, leaves, cotangent), exact, {"ieee": 2e-6, "tf32x3": 5e-6}.get(precision, 4e-3))


@kernels
def test_no_rows():
    tile = BiasTile(Level(3.0), 3)
    leaves, index, cotangent = make_case(0, 2, 1, tile)
    got = with_gradients(by_kernels(index, 1, tile, {"precision": "ieee"}), leaves, cotangent)
    for grad, leaf in zip(got[1:], leaves):
        assert grad.shape == leaf.shape
        assert not grad.any()


@kernels
def test_wide_levels_and_only_what_is_needed():
    """Beyond the fused backward pass; each gradient alone is that of all together."""
    tile = BiasTile(Level(3.0), 2)
    leaves, index, cotangent = make_case(20, 1, 1, tile, in_features=66, out_features=70)
    level = by_kernels(index, 1, tile, {"precision": "ieee", "activation": "sine"})
    got = with_gradients(level, leaves, cotangent)
    function = by_torch(index, tile, "sine", 1.0)
    exact = with_gradients(function, [t.double() for t in leaves], cotangent)
    judge(got, with_gradients(function, leaves, cotangent), exact, 2e-6)
    for needed in (2, 3):
        alone = [t.detach().requires_grad_(i == needed) for i, t in enumerate(leaves)]
        (grad,) = torch.autograd.grad(level(*alone), alone[needed], cotangent)
        assert torch.equal(grad, got[1 + needed])


@kernels
def test_second_derivatives():
    """The gradient of a gradient penalty, against torch in fp64."""
    tile = BiasTile(Level(2.3, 0.1), 3)
    leaves, index, cotangent = make_case(15, 2, 2, tile)

    def penalty(level, leaves, cotangent):
        leaves = [t.detach().requires_grad_() for t in leaves]
        slopes = torch.autograd.grad(level(*leaves), leaves, cotangent, create_graph=True)
        return torch.autograd.grad(sum(s.square().sum() for s in slopes), leaves)

    how = {"activation": "sine", "omega_0": 2.0}
    got = penalty(by_kernels(index, 2, tile, how | {"precision": "ieee"}), leaves, cotangent)
    exact = penalty(by_torch(index, tile, **how), [t.double() for t in leaves], cotangent.double())
    for a, b in zip(got, exact):
        torch.testing.assert_close(a.double(), b, rtol=2e-5, atol=2e-5 * b.abs().max().item())


@kernels
@pytest.mark.parametrize(
    ("dim", "tile"),
    [
        (1, BiasTile(Level(1.0), 1, "nearest")),
        (2, BiasTile(Level(3.3, 0.7), 2, "nearest")),
        (3, BiasTile(Level(123.4, -0.3), 7, "nearest")),
        (4, BiasTile(Level(1e4, 0.1), 1000, "nearest", 2**20)),
        (1, BiasTile(Level(2.0**-140), 2**24, "nearest", 2**18)),
    ],
    ids=str,
)
def test_the_cell_of_a_point_is_that_of_torch_to_the_bit(dim, tile):
    """Near borders, below zero, far out, in tiles of any size."""
    from loe_field.network.kernels import grid

    coords = torch.cat([points(200, dim, tile), 1e9 * points(50, dim, tile), 1e16 * points(50, dim, tile)])
    coords /= max(1.0, tile.level.alpha / 100)
    vectors = num_bias_vectors(tile, dim)
    table = torch.arange(vectors, dtype=torch.float32, device=DEVICE)[:, None]
    found = torch.full((len(coords), 1), torch.nan, device=DEVICE)
    grid.features(coords, table, [tile], found)
    assert torch.equal(found.long(), bias_shares(coords, tile)[0])


TWO = [BiasTile(Level(4.0), 5), BiasTile(Level(9.0, 0.3), 4, table_size=32)]


def gradient_of(grad, coords, tiles=TWO):
    from loe_field.network.kernels import grid

    return grid.table_gradient(grad, coords, tiles, sum(num_bias_vectors(tile, coords.shape[1]) for tile in tiles))


@kernels
@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered in:RuntimeWarning")
def test_sums_in_fixed_point_do_not_depend_on_the_order_and_do_not_overflow():
    generator = torch.Generator().manual_seed(0)
    coords = torch.rand(40, 2, generator=generator).to(DEVICE)
    grad = torch.randn(40, 6, generator=generator).to(DEVICE)
    got = gradient_of(grad, coords)
    mixed = torch.randperm(40, generator=generator).to(DEVICE)
    assert torch.equal(gradient_of(grad[mixed], coords[mixed]), got)
    for scale in (2.0**120, 2.0**-60):
        assert torch.equal(gradient_of(grad * scale, coords), got * scale)
    one = [BiasTile(Level(1.0), 1)]
    for value in (3e36, -1.0, 0.0, 1e-36):
        got = gradient_of(torch.full((40, 1), value, device=DEVICE), coords, one).item()
        assert got == pytest.approx(40 * value, rel=1e-6, abs=4 * 40 * 2.0**-126)
    for odd in (torch.nan, torch.inf):
        spoilt = grad.clone()
        spoilt[3, 2] = odd
        assert gradient_of(spoilt, coords).isnan().all()
    coords[5, 1] = torch.nan
    grad[5] = 0
    assert gradient_of(grad, coords).isfinite().all()


GRIDS = {
    "dense": (2, {"table_size": None}),
    "hashed": (3, {"table_size": 64}),
    "cyclic and hashed": (4, {"table_size": 32, "tile_size": 9, "num_levels": 1, "features_per_level": 3}),
    "one number a vector": (1, {"features_per_level": 1, "tile_size": 5}),
}


def make_grid(**options):
    return FeatureGrid(**{"num_levels": 2, "min_resolution": 3, "max_resolution": 11} | options)


def grid_case(name, rows):
    dim, options = GRIDS[name]
    generator = torch.Generator().manual_seed(0)
    grid = make_grid(**options)
    tiles = grid.tiles(dim)
    vectors = sum(num_bias_vectors(tile, dim) for tile in tiles)
    coords = 3 * torch.rand(rows, dim, generator=generator) - 1
    table = torch.randn(vectors, grid.features_per_level, generator=generator)
    beside = torch.randn(rows, 3, generator=generator)
    return [t.to(DEVICE) for t in (coords, table, beside)], tiles, torch.randn(rows, 3 + grid.out_features).to(DEVICE)


def grid_by_kernels(tiles, width):
    def features(coords, table, beside):
        out = features_by_kernels(coords, table, tiles, beside, "triton")
        assert out.shape[1] % 4 == 0
        assert not out[:, width:].any()
        return out[:, :width]

    return features


def grid_by_torch(tiles):
    return lambda coords, table, beside: features_by_torch(coords, table, tiles, beside)


@kernels
@pytest.mark.parametrize("rows", [0, 37, pytest.param(100_003, marks=only_gpu)])
@pytest.mark.parametrize("name", GRIDS)
def test_grid(name, rows):
    """Features and their gradients; nothing is written into what is given."""
    leaves, tiles, cotangent = grid_case(name, rows)
    before = [t.clone() for t in (*leaves, cotangent)]
    function = grid_by_kernels(tiles, cotangent.shape[1])
    got = with_gradients(function, leaves, cotangent)
    assert all(torch.equal(t, old) for t, old in zip((*leaves, cotangent), before))
    plain = grid_by_torch(tiles)
    exact = with_gradients(plain, [t.double() for t in leaves], cotangent)
    judge(got, with_gradients(plain, leaves, cotangent), exact, 2e-6)


@kernels
def test_strides_and_only_what_is_needed_of_a_grid():
    """Of more rows than a block has."""
    leaves, tiles, cotangent = grid_case("one number a vector", 131)
    function = grid_by_kernels(tiles, cotangent.shape[1])
    got = with_gradients(function, leaves, cotangent)
    torch.testing.assert_close(got[0], grid_by_torch(tiles)(*leaves), atol=1e-6, rtol=1e-6)
    strided = [t.t().contiguous().t() for t in leaves]
    for a, b in zip(with_gradients(function, strided, cotangent.t().contiguous().t()), got):
        assert torch.equal(a, b)
    for needed in range(2):
        alone = [t.detach().requires_grad_(i == needed) for i, t in enumerate(leaves)]
        (grad,) = torch.autograd.grad(function(*alone), alone[needed], cotangent)
        assert torch.equal(grad, got[1 + needed])


@kernels
def test_second_derivatives_of_a_grid():
    leaves, tiles, cotangent = grid_case("hashed", 20)

    def penalty(features, leaves, cotangent):
        leaves = [t.detach().requires_grad_() for t in leaves]
        slopes = torch.autograd.grad(features(*leaves).sin(), leaves[:2], cotangent, create_graph=True)
        return torch.autograd.grad(slopes[0].square().sum() + slopes[1].square().sum(), leaves)

    got = penalty(grid_by_kernels(tiles, cotangent.shape[1]), leaves, cotangent)
    exact = penalty(grid_by_torch(tiles), [t.double() for t in leaves], cotangent.double())
    for a, b in zip(got, exact):
        torch.testing.assert_close(a.double(), b, rtol=2e-5, atol=2e-5 * b.abs().max().item())


NETWORKS = [
    {"grid": make_grid(), "num_frequencies": 1, "dim": 3, "tile_size": [1, 2]},
    {"bias_tile_size": [4, 1], "tile_size": [1, 2], "num_frequencies": 2, "out_features": 3},
    {"tile_size": [3, 1, 2], "dim": 1, "omega_0": 2.0, "num_layers": 4},
    {"tile_size": [2, 1], "bias_tile_size": 5, "bias_table_size": 16, "bias_pattern": [(9, 0.25), (1.5, 0)]},
    {"bias_tile_size": 3, "bias_blending": "nearest", "activation": "relu", "tile_size": 1},
]


def make_field(**options):
    torch.manual_seed(0)
    field = LoEMLP(**{"num_layers": 3, "layer_width": 16, "implementation": "triton"} | options).to(DEVICE)
    with torch.no_grad():
        for vectors in (*(layer.bias for layer in field.layers), *(() if field.grid is None else (field.grid_table,))):
            vectors.copy_(torch.randn(vectors.shape))
    return field


def compare(field, coords, atol=3e-5):
    """A field in Triton and its derivatives against the definition in fp64."""
    plain = LoEMLP(**field.options | {"grid": field.grid}, implementation="reference").to(DEVICE).double()
    plain.load_state_dict(field.state_dict())
    exact_coords = coords.double().requires_grad_()
    coords = coords.clone().requires_grad_()
    got, exact = field(coords), plain(exact_coords)
    torch.testing.assert_close(got.double(), exact, atol=atol, rtol=1e-5)
    cotangent = torch.randn(got.shape, device=DEVICE)
    grads = torch.autograd.grad(got, [coords, *field.parameters()], cotangent, allow_unused=True)
    true = torch.autograd.grad(exact, [exact_coords, *plain.parameters()], cotangent.double(), allow_unused=True)
    for a, b in zip(grads, true):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a.double(), b, atol=atol * max(1, b.abs().max().item()), rtol=1e-4)


@kernels
@pytest.mark.parametrize("options", NETWORKS, ids=str)
def test_networks(options):
    """Behind LoEMLP, with and without rows given, any batch shape."""
    field = make_field(**options)
    assert field.resolved_implementation == "triton"
    assert field.capturable
    coords = 3 * torch.rand(2, 14, field.dim, device=DEVICE) - 1
    compare(field, coords)
    with torch.no_grad():
        assert torch.equal(field(coords, field.group(coords)), field(coords))
        assert field(coords[:0]).shape == (0, 14, field.out_features)


@kernels
def test_torch_compile_and_batches_of_gradients():
    field = make_field(num_layers=2, tile_size=[2], bias_tile_size=3, grid=make_grid())
    coords = torch.rand(20, 2, device=DEVICE, requires_grad=True)
    inputs = [coords, *field.parameters()]
    cotangents = torch.randn(2, 20, 1, device=DEVICE)
    out, compiled = (call(coords) for call in (field, torch.compile(field, fullgraph=True, backend="aot_eager")))
    torch.testing.assert_close(compiled, out)
    expected = [torch.autograd.grad(out, inputs, c, retain_graph=True) for c in cotangents]
    for got, true in zip(torch.autograd.grad(compiled, inputs, cotangents[0]), expected[0]):
        torch.testing.assert_close(got, true, atol=1e-5, rtol=1e-4)
    for got, *true in zip(torch.autograd.grad(out, inputs, cotangents, is_grads_batched=True), *expected):
        torch.testing.assert_close(got, torch.stack(true), atol=1e-5, rtol=1e-4)


@kernels
def test_wrong_arguments():
    tile = BiasTile(Level(3.0), 3)
    (x, weight, bias, coords), *_ = make_case(4, 2, 1, tile)
    for vectors, where in ((bias[:8], coords), (None, coords), (bias, None)):
        with pytest.raises(ValueError, match="bias_tile comes without coords and all its vectors"):
            expert_linear(x, weight, vectors, None, None, coords=where, bias_tile=tile, precision="ieee")


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="takes a GPU")
@pytest.mark.parametrize("implementation", ["triton", "torch"])
@pytest.mark.parametrize(
    "options", [{"bias_tile_size": 8}, {"bias_tile_size": 40, "tile_size": [1, 2]}, {"grid": FeatureGrid()}], ids=str
)
def test_gradients_are_the_same_every_time(options, implementation):
    field = make_field(layer_width=64, num_frequencies=4, **options, implementation=implementation)
    coords = torch.rand(50_000, 2, device="cuda", requires_grad=True)
    inputs, cotangent = [coords, *field.parameters()], torch.randn(50_000, 1, device="cuda")

    def gradients():
        with torch.autocast("cuda", dtype=torch.bfloat16):
            y = field(coords)
        return torch.autograd.grad(y, inputs, cotangent)

    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(gradients(), gradients()))


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="takes a GPU")
@pytest.mark.parametrize(
    "options", [{"bias_tile_size": 8}, {"bias_tile_size": 40, "tile_size": [1, 2]}, {"grid": FeatureGrid()}], ids=str
)
def test_a_training_step_is_captured_in_a_graph(options):
    """No launch waits for the device; replays with other points take the steps that would be taken without."""
    fields = [make_field(layer_width=64, num_frequencies=4, **options) for _ in range(2)]
    batches, coords = torch.rand(4, 1000, 2, device="cuda"), torch.empty(1000, 2, device="cuda")

    def steps_of(field):
        adam = torch.optim.Adam(field.parameters(), lr=1e-3, fused=True, capturable=True)

        def step():
            adam.zero_grad()
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = (field(coords) - coords.sum(1, keepdim=True)).square().mean()
            loss.backward()
            adam.step()

        return step

    eager, recorded = map(steps_of, fields)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        coords.copy_(batches[0])
        recorded()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded()
    for i, batch in enumerate(batches):
        coords.copy_(batch)
        eager()
        if i:
            graph.replay()
    for a, b in zip(*(field.parameters() for field in fields)):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
