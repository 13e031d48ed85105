"""Files of weights: round trips, rounding, and a reader that knows docs/format.md and nothing of this package."""

import itertools
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support import spread

from loe_field import FeatureGrid, LoEMLP, load_field, save_field
from loe_field.errors import InputError
from loe_field.export.fields import encode_field, read_details, read_field
from loe_field.export.quantize import dequantized, quantized
from loe_field.image.load import load_run

NETWORKS = {
    "default": {"num_layers": 6, "layer_width": 16, "out_features": 3, "num_frequencies": 7},
    "linear": {"num_layers": 4, "layer_width": 8, "blending": "linear", "num_frequencies": 2, "pattern": "gray_code"},
    "wide tile": {"num_layers": 4, "layer_width": 8, "tile_size": 3, "pattern": [(3.7, 0.2), (2.0, 0.5), (1.5, -1.25)]},
    "wide tile, linear": {"num_layers": 3, "layer_width": 8, "tile_size": 3, "blending": "linear"},
    "volume": {"dim": 3, "num_layers": 3, "layer_width": 8, "activation": "leaky_relu"},
    "plain": {"num_layers": 3, "layer_width": 8, "tile_size": 1, "activation": "relu", "num_frequencies": 1},
    "bias tiles": {
        "num_layers": 4,
        "layer_width": 8,
        "tile_size": [1, 2, 3],
        "bias_tile_size": [4, 1, 3],
        "bias_pattern": [(3.5, 0.25), (1, 0), (2, -1.5)],
        "num_frequencies": 2,
    },
    "hashed": {"dim": 3, "num_layers": 3, "layer_width": 8, "bias_tile_size": 5, "bias_table_size": 32},
    "nearest bias tiles": {"num_layers": 3, "layer_width": 8, "bias_tile_size": 3, "bias_blending": "nearest"},
    "grid": {
        "num_layers": 3,
        "layer_width": 8,
        "num_frequencies": 1,
        "grid": FeatureGrid(num_levels=4, min_resolution=3, max_resolution=17, table_size=64),
    },
    "cyclic grid": {
        "dim": 3,
        "num_layers": 2,
        "layer_width": 8,
        "grid": FeatureGrid(1, features_per_level=3, tile_size=4, table_size=None),
    },
    "siren": {"num_layers": 3, "layer_width": 8, "omega_0": 30.0, "initialization": "siren"},
}


def read_with_numpy(path):
    """The function that a file describes, by docs/format.md alone."""
    with safe_open(path, "np") as file:
        net = json.loads(file.metadata()["loe_field"])["network"]
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def numbers(name):
        values = tensors[name].astype(np.float32)
        scale = tensors.get(f"{name}.scale")
        return values if scale is None else values * scale.astype(np.float32)[..., None]

    def expert(cell, size):
        powers = size ** np.arange(net["dim"])[::-1]
        return (cell.astype(int) % size * powers).sum(-1)

    def of_level(name, i):
        return net[name][i] if isinstance(net[name], list) else net[name]

    def blend(entries, number, scaled, blending):
        cell = np.floor(scaled)
        if blending == "nearest":
            return entries[number(cell)]
        total, f = 0, scaled - cell
        for corner in itertools.product((0, 1), repeat=net["dim"]):
            share = np.where(corner, f, 1 - f).prod(1).reshape(-1, *[1] * (entries.ndim - 1))
            total = total + share * entries[number(cell + corner)]
        return total

    def vector(cell, size, table):
        if table is None or size ** net["dim"] <= table:
            return expert(cell, size)
        primes = (1, 2654435761, 805459861, 3674653429)
        return np.bitwise_xor.reduce((cell.astype(int) % size) * primes[: net["dim"]], -1) % table

    def grid_features(p):
        grid, start, features = net["grid"], 0, []
        low, levels = grid["min_resolution"], grid["num_levels"]
        for g in range(levels):
            last = low if levels == 1 else grid["max_resolution"]
            n = last if g == levels - 1 else int(low * (last / low) ** (g / (levels - 1)) + 1e-9)
            size, table = grid["tile_size"] or n + 1, grid["table_size"]
            count = min(size ** net["dim"], table or size ** net["dim"])
            rows, start = numbers("grid_table")[start : start + count], start + count
            number = lambda cell, size=size, table=table: vector(cell, size, table)  # noqa: E731
            features.append(blend(rows, number, np.float32(n) * p, "linear"))
        return features

    def bias_of(i, p):
        bias = numbers(f"layers.{i}.bias")
        if net.get("bias_tile_size", 1) == 1 or of_level("bias_tile_size", i) == 1:
            return bias
        (alpha, beta), size, table = net["bias_pattern"][i], of_level("bias_tile_size", i), net["bias_table_size"]

        return blend(
            bias, lambda cell: vector(cell, size, table), np.float32(alpha) * p + np.float32(beta), net["bias_blending"]
        )

    activation = {
        "sine": lambda y: np.sin(np.float32(net["omega_0"]) * y),
        "leaky_relu": lambda y: np.where(y > 0, y, np.float32(0.2) * y),
        "relu": lambda y: np.maximum(y, 0),
    }[net["activation"]]

    def evaluate(p):
        octaves = 2 ** np.arange(net["num_frequencies"], dtype=np.float32)
        a = (np.float32(np.pi) * (2 * p - 1)[:, :, None] * octaves).reshape(len(p), -1)
        h = np.concatenate([p, np.sin(a), np.cos(a), *(grid_features(p) if "grid" in net else [])], 1)
        for i, (alpha, beta) in enumerate(net["pattern"]):
            s, size = np.float32(alpha) * p + np.float32(beta), of_level("tile_size", i)
            matrix = blend(
                numbers(f"layers.{i}.weight"), lambda cell, size=size: expert(cell, size), s, net["blending"]
            )
            h = activation((matrix @ h[:, :, None])[:, :, 0] + bias_of(i, p))
        return h @ numbers("head.weight").T + numbers("head.bias")

    return evaluate


def make(name="default"):
    torch.manual_seed(0)
    return spread(LoEMLP(**NETWORKS[name]))


@pytest.mark.parametrize("quantization", [None, "fp16", "int8"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_specification_is_enough_to_read_a_file(name, quantization, tmp_path):
    save_field(make(name), tmp_path / "f.safetensors", quantization=quantization)
    field = load_field(tmp_path / "f.safetensors")
    points = torch.rand(500, field.dim)
    with torch.no_grad():
        expected = field(points).numpy()
    np.testing.assert_allclose(read_with_numpy(tmp_path / "f.safetensors")(points.numpy()), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_fp32_comes_back_as_it_was(name, tmp_path):
    field = make(name)
    save_field(field, tmp_path / "f.safetensors", picture_size=(4, 6, field.head.out_features))
    again, details = read_field(tmp_path / "f.safetensors", implementation="torch")
    assert again.implementation == "torch"
    assert again.levels == field.levels
    for (key, value), (key_again, value_again) in zip(field.state_dict().items(), again.state_dict().items()):
        assert key == key_again
        assert torch.equal(value, value_again)
    points = torch.rand(100, field.dim)
    torch.testing.assert_close(again(points), field(points), atol=1e-6, rtol=0)
    assert details.picture_size == (4, 6, field.head.out_features)
    assert details.quantization is None


@pytest.mark.parametrize(("name", "version"), [("default", 1), ("bias tiles", 2), ("hashed", 2)])
def test_what_older_programs_read_stays_as_it_was(name, version):
    content = encode_field(make(name))
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    details = json.loads(header["__metadata__"]["loe_field"])
    assert details["format_version"] == version
    assert ("bias_pattern" in details["network"]) is (version == 2)


def test_a_file_knows_its_own_size(tmp_path):
    sizes = []
    for quantization in (None, "fp16", "int8"):
        path = tmp_path / "f.safetensors"
        save_field(make(), path, quantization=quantization, picture_size=(10, 20, 3))
        metrics = read_details(path).metrics
        sizes.append(path.stat().st_size)
        assert metrics == {"file_bytes": sizes[-1], "bits_per_pixel": round(8 * sizes[-1] / 200, 4)}
    assert sizes[0] > sizes[1] > sizes[2]


def test_a_file_of_radiance_knows_its_peak(tmp_path):
    path = tmp_path / "f.safetensors"
    path.write_bytes(encode_field(make(), picture_size=(10, 20, 3), radiance_peak=12.5))
    with safe_open(path, "np") as file:
        assert json.loads(file.metadata()["loe_field"])["picture"]["radiance_peak"] == 12.5
    field = load_run(path)
    picture = field.picture
    assert (picture.peak, picture.values.shape, picture.format) == (12.5, (10, 20, 3), "EXR")
    shown = torch.tensor([[0.0, 0.25, 1.5]])
    light = 12.5 * (5001**shown - 1) / 5000  # docs/format.md
    np.testing.assert_allclose(picture.from_unit(shown.numpy()), light, rtol=1e-5)
    assert field(torch.tensor([[0.5, 0.5], [19.5, 9.5]])).shape == (2, 3)


def test_only_fields_of_pictures_can_be_rendered(tmp_path):
    for name, size, words in (
        ("default", None, "does not say how large its picture is"),
        ("default", (10, 20, 1), "gives 3 channels where its picture has 1"),
        ("volume", (10, 20, 3), "takes 3 coordinates"),
    ):
        save_field(make(name), tmp_path / "f.safetensors", picture_size=size)
        with pytest.raises(InputError, match=words):
            load_run(tmp_path / "f.safetensors")


@pytest.mark.parametrize("name", NETWORKS)
def test_rounding_is_bounded_and_leaves_the_field_alone(name):
    field = make(name)
    before = {key: value.clone() for key, value in field.state_dict().items()}
    half, stored = quantized(field, "fp16"), quantized(field, "int8")
    assert all(torch.equal(value, before[key]) for key, value in field.state_dict().items())
    for key, value in dequantized(half).items():
        torch.testing.assert_close(value, before[key], rtol=2**-11, atol=2**-25)
    hidden = {f"layers.{i}.weight" for i in range(1, len(field.layers))}
    assert {key for key, value in stored.items() if value.dtype == torch.int8} == hidden
    for key in hidden:
        assert stored[f"{key}.scale"].shape == before[key].shape[:2]
        assert stored[key].abs().max() <= 127


def correlated():
    """A field whose hidden activations go together, as those of a fit do."""
    field = make()
    with torch.no_grad():
        for layer in field.layers:
            layer.weight += 0.3 * torch.randn(1, layer.weight.shape[1], 1)
    return field


def test_compensated_rounding_is_better_than_the_nearest_number():
    field, nearest, compensated = correlated(), correlated(), correlated()
    stored = quantized(field, "int8")
    compensated.load_state_dict(dequantized(stored))
    rounded = dequantized(quantized(field, "fp16"))
    for i in range(1, len(field.layers)):
        weight = field.layers[i].weight.detach()
        scale = stored[f"layers.{i}.weight.scale"].float()[..., None]
        rounded[f"layers.{i}.weight"] = (weight / scale).round().clamp(-127, 127) * scale
    nearest.load_state_dict(rounded)
    points = torch.rand(4000, 2)
    with torch.no_grad():
        errors = [(other(points) - field(points)).square().mean().sqrt() for other in (nearest, compensated)]
    assert errors[1] < 0.8 * errors[0]
    assert errors[1] < 0.02


def test_rows_of_zeros_and_experts_without_points_are_rounded_too():
    field = LoEMLP(num_layers=3, layer_width=4, pattern=[(0.5, 0.0), (0.5, 0.0)])  # expert 0 serves the whole square
    with torch.no_grad():
        field.layers[1].weight[:, 0] = 0
        field.layers[1].weight[3] *= 1e-6
    values = dequantized(quantized(field, "int8"))["layers.1.weight"]
    torch.testing.assert_close(values, field.layers[1].weight.detach(), atol=5e-3, rtol=0)
    assert (values[:, 0] == 0).all()


def test_what_cannot_be_stored_is_refused():
    field = make()
    with torch.no_grad():
        field.head.weight[0, 0] = 1e6
    assert quantized(field, None)
    with pytest.raises(InputError, match=r"head\.weight holds a number that is too large for fp16"):
        quantized(field, "int8")
    with torch.no_grad():
        field.head.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        quantized(field, None)


def stored_with(tmp_path, change):
    """A good file with its metadata changed."""
    save_field(make("plain"), tmp_path / "good.safetensors")
    with safe_open(tmp_path / "good.safetensors", "pt") as file:
        details = json.loads(file.metadata()["loe_field"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(details, tensors)
    save_file(tensors, tmp_path / "bad.safetensors", {"loe_field": json.dumps(details)})
    return tmp_path / "bad.safetensors"


BAD = {
    "newer": (lambda d, t: d.update(format_version=4), "has format version 4 and this program reads 1 to 3: update it"),
    "truth as version": (lambda d, t: d.update(format_version=[1]), r"has format version \[1\]"),
    "a bias tile that is not there": (lambda d, t: d["network"].update(bias_tile_size=2), "contradicts itself: .*bias"),
    "no network": (lambda d, t: d.pop("network"), "loe_field has no network"),
    "network no table": (lambda d, t: d.update(network=[1]), r"network is \[1\]: a table"),
    "number as text": (lambda d, t: d["network"].update(tile_size="2"), "network.tile_size is '2': a whole number"),
    "part of a layer": (lambda d, t: d["network"].update(num_layers=3.5), "num_layers is 3.5: a whole number"),
    "truth as number": (lambda d, t: d["network"].update(dim=True), "dim is True: a whole number"),
    "no number": (lambda d, t: d["network"].update(omega_0=float("nan")), "omega_0 is nan: a finite number"),
    "huge tile": (lambda d, t: d["network"].update(tile_size=10**9), "contradicts itself"),
    "huger tile": (lambda d, t: d["network"].update(tile_size=10**30), "contradicts itself"),
    "many layers": (lambda d, t: d["network"].update(num_layers=10**9, pattern="quad_tree"), "contradicts itself"),
    "pattern of words": (lambda d, t: d["network"].update(pattern=["a", "b"]), "contradicts itself: .*pattern"),
    "another activation": (lambda d, t: d["network"].update(activation="gelu"), "activation is 'gelu': one of sine"),
    "quantization": (lambda d, t: d.update(quantization="zip"), "quantization is 'zip': one of fp16, int8"),
    "height": (lambda d, t: d.update(picture={"height": -1, "width": 2, "channels": 1}), "height is -1"),
    "width": (lambda d, t: d.update(picture={"height": 1, "width": 0, "channels": 1}), "width is 0"),
    "letter": (lambda d, t: d.update(picture={"height": "x", "width": 2, "channels": 1}), "height is 'x'"),
    "no width": (lambda d, t: d.update(picture={"height": 1, "channels": 1}), "has no width"),
    "large picture": (lambda d, t: d.update(picture={"height": 10**18, "width": 2, "channels": 1}), "height is 1000"),
    "picture no table": (lambda d, t: d.update(picture="a.png"), "picture is 'a.png'"),
    "metrics no table": (lambda d, t: d.update(metrics=[]), r"metrics is \[\]"),
    "metric": (lambda d, t: d.update(metrics={"psnr": "good"}), "metrics.psnr is 'good'"),
    "NaN weights": (lambda d, t: t["layers.0.bias"].fill_(torch.nan), "layers.0.bias that are not finite"),
    "doubles": (lambda d, t: t.update({"head.bias": t["head.bias"].double()}), "head.bias is float64"),
    "another scale": (
        lambda d, t: t.update({"layers.1.weight": t["layers.1.weight"].char(), "layers.1.weight.scale": torch.ones(9)}),
        r"scale is float32 \[9\]: \[1, 8\]",
    ),
    "no scale": (
        lambda d, t: t.update({"layers.1.weight": t["layers.1.weight"].char()}),
        "no tensor layers.1.weight.sc",
    ),
    "spare scale": (
        lambda d, t: t.update({"head.bias.scale": torch.ones(1)}),
        "head.bias.scale that the network has not",
    ),
    "other width": (lambda d, t: d["network"].update(layer_width=9), "contradicts itself"),
    "unknown option": (lambda d, t: d["network"].update(colour="red"), "contradicts itself"),
    "no head": (lambda d, t: t.pop("head.weight"), "contradicts itself: .*head.weight"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_metadata_is_refused(name, tmp_path):
    change, words = BAD[name]
    with pytest.raises(InputError, match=words):
        load_field(stored_with(tmp_path, change))


@pytest.mark.parametrize("peak", [float("nan"), float("inf"), "a", 0, -1, 1e-40, 10**400, [1]], ids=str)
def test_a_peak_that_is_none_is_refused(peak, tmp_path):
    picture = {"height": 4, "width": 6, "channels": 1, "radiance_peak": peak}
    with pytest.raises(InputError, match=r"picture\.radiance_peak is "):
        load_run(stored_with(tmp_path, lambda d, t: d.update(picture=picture)))


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "9" * 5000, "[]", "null", '{"format_version": []}', ""])
def test_metadata_that_are_no_json_of_ours_are_refused(text, tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "f", {"loe_field": text})
    with pytest.raises(InputError, match=r"no JSON|format version") as caught:
        load_field(tmp_path / "f")
    assert len(str(caught.value)) < 400


def test_reading_takes_no_random_number(tmp_path):
    save_field(make(), tmp_path / "f")
    state = torch.random.get_rng_state()
    load_field(tmp_path / "f")
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    "size", [(4, 6), (4, 6, 3, 1), ("4", 6, 3), (4.5, 6, 3), (0, 6, 3), (-1, 6, 3), 5, "abc", True]
)
def test_a_picture_size_that_is_none_is_refused(size, tmp_path):
    with pytest.raises(InputError, match="picture_size"):
        save_field(make(), tmp_path / "f", picture_size=size)
    assert not (tmp_path / "f").exists()


def test_arguments_of_another_kind_are_named(tmp_path):
    save_field(make(), tmp_path / "f", picture_size=tuple(np.array([4, 6, 3])))
    with pytest.raises(InputError, match="unknown implementation 'zzz'"):
        load_field(tmp_path / "f", implementation="zzz")
    with pytest.raises(InputError, match="quantization is 'zip'"):
        save_field(make(), tmp_path / "g", quantization="zip")
    with pytest.raises(InputError, match="the field is a Linear"):
        save_field(torch.nn.Linear(2, 2), tmp_path / "g")
    assert not (tmp_path / "g").exists()


def test_other_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="is not a file"):
        load_field(tmp_path / "none")
    (tmp_path / "text").write_text("nothing of the sort")
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        load_field(tmp_path / "text")
    save_file({"a": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(InputError, match="not one of a LoE field"):
        load_field(tmp_path / "other")
    save_field(make(), tmp_path / "whole")
    (tmp_path / "part").write_bytes((tmp_path / "whole").read_bytes()[:-10])
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        load_field(tmp_path / "part")
