"""Files of weights: round trips, rounding, and a reader that knows docs/format.md and nothing of this package."""

import itertools
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from loe_field import LoEMLP, load_field, save_field
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

    def expert(cell):
        powers = net["tile_size"] ** np.arange(net["dim"])[::-1]
        return (cell.astype(int) % net["tile_size"] * powers).sum(-1)

    activation = {
        "sine": lambda y: np.sin(np.float32(net["omega_0"]) * y),
        "leaky_relu": lambda y: np.where(y > 0, y, np.float32(0.2) * y),
        "relu": lambda y: np.maximum(y, 0),
    }[net["activation"]]

    def evaluate(p):
        octaves = 2 ** np.arange(net["num_frequencies"], dtype=np.float32)
        a = (np.float32(np.pi) * (2 * p - 1)[:, :, None] * octaves).reshape(len(p), -1)
        h = np.concatenate([p, np.sin(a), np.cos(a)], 1)
        for i, (alpha, beta) in enumerate(net["pattern"]):
            s = np.float32(alpha) * p + np.float32(beta)
            weight, cell = numbers(f"layers.{i}.weight"), np.floor(s)
            if net["blending"] == "nearest":
                matrix = weight[expert(cell)]
            else:
                matrix, f = 0, s - cell
                for corner in itertools.product((0, 1), repeat=net["dim"]):
                    share = np.where(corner, f, 1 - f).prod(1)[:, None, None]
                    matrix = matrix + share * weight[expert(cell + corner)]
            h = activation((matrix @ h[:, :, None])[:, :, 0] + numbers(f"layers.{i}.bias"))
        return h @ numbers("head.weight").T + numbers("head.bias")

    return evaluate


def make(name="default"):
    torch.manual_seed(0)
    return LoEMLP(**NETWORKS[name])


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
    "newer": (lambda d, t: d.update(format_version=2), "has format version 2 and this program reads 1: update it"),
    "no network": (lambda d, t: d.pop("network"), "metadata that cannot be understood"),
    "other width": (lambda d, t: d["network"].update(layer_width=9), "contradicts itself"),
    "unknown option": (lambda d, t: d["network"].update(colour="red"), "contradicts itself"),
    "no head": (lambda d, t: t.pop("head.weight"), "contradicts itself: .*head.weight"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_metadata_is_refused(name, tmp_path):
    change, words = BAD[name]
    with pytest.raises(InputError, match=words):
        load_field(stored_with(tmp_path, change))


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
