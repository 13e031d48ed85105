"""ONNX models and torch.export programs: they give what the field gives, for any number of points, on their own."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from support import spread

from loe_field import LoEMLP
from loe_field.baselines import build
from loe_field.export import traced
from loe_field.export.plain import plain

BASELINES = ("siren", "relu-pe", "fourier", "finer", "wire", "gauss", "bacon", "hash-grid")


def make(name):
    torch.manual_seed(0)
    if name in BASELINES:
        return build(name, dim=2, out_features=3, layer_width=8)
    options = {
        "nearest": {"num_frequencies": 7},
        "linear": {"blending": "linear", "pattern": "gray_code"},
        "wide tile, linear": {"tile_size": 3, "blending": "linear", "activation": "leaky_relu"},
        "bias tiles": {"tile_size": [1, 2, 3], "bias_tile_size": 4, "bias_table_size": 8},
        "plain": {"tile_size": 1, "activation": "relu"},
        "volume": {"dim": 3, "omega_0": 5.0},
    }[name]
    return spread(LoEMLP(**({"num_layers": 4, "layer_width": 8, "out_features": 3} | options)))


def points_for(field, count=300):
    return torch.rand(count, field.dim, generator=torch.Generator().manual_seed(1))


LOE = ("nearest", "linear", "wide tile, linear", "bias tiles", "plain", "volume")


@pytest.mark.parametrize("name", BASELINES)
def test_plain_operations_give_the_field(name):
    field = make(name)
    points = points_for(field)
    with torch.no_grad():
        torch.testing.assert_close(plain(field)(points), field(points), atol=2e-6, rtol=0)


def test_plain_tiles_reach_beyond_the_unit_square():
    for name in ("nearest", "wide tile, linear"):
        field = make(name)
        points = 6 * points_for(field) - 3
        with torch.no_grad():
            torch.testing.assert_close(traced.trace(field).module()(points), field(points), atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", [*LOE, *BASELINES])
def test_a_program_gives_the_field(name):
    field = make(name)
    points = points_for(field)
    program = traced.trace(field)
    operations = {str(node.target).split(".")[0] for node in program.graph.nodes if node.op == "call_function"}
    assert operations <= {"aten", "<built-in function getitem>"}
    values = traced.run_program(traced.encode_program(program), points)
    difference, allowed = traced.largest_difference(field, points, values)
    assert difference <= allowed
    assert allowed <= (1e-3 if name == "bacon" else 3e-5), "how far fp32 itself is off"


@pytest.mark.slow
def test_a_program_runs_without_this_package(tmp_path):
    field = make("nearest")
    (tmp_path / "field.pt2").write_bytes(traced.encode_program(traced.trace(field)))
    points = points_for(field)
    np.save(tmp_path / "points.npy", points.numpy())
    code = (
        "import sys, numpy, torch\n"
        "program = torch.export.load('field.pt2').module()\n"
        "points = torch.from_numpy(numpy.load('points.npy'))\n"
        "assert program(points[:1]).shape == (1, 3)\n"
        "numpy.save('values.npy', program(points).numpy())\n"
        "assert 'loe_field' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        np.testing.assert_allclose(np.load(tmp_path / "values.npy"), field(points).numpy(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nearest", "wide tile, linear", "bias tiles", "wire", "hash-grid"])
def test_a_model_gives_the_field(name):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    field = make(name)
    content = traced.encode_onnx(field)
    for count in (1, 300):
        points = points_for(field, count)
        difference, allowed = traced.largest_difference(field, points, traced.run_onnx(content, points))
        assert difference <= allowed <= 1e-4
    model = onnx.load_from_string(content)
    ends = {end.name: end.type.tensor_type.shape.dim for end in (*model.graph.input, *model.graph.output)}
    assert {name: [d.dim_param or d.dim_value for d in dims] for name, dims in ends.items()} == {
        "coordinates": ["N", 2],
        "values": ["N", 3],
    }
    assert {node.domain for node in model.graph.node} == {""}
    assert b"loe_field/export" not in content, "no name of this machine's files"


def test_a_difference_is_seen():
    field = make("nearest")
    points = points_for(field)
    with torch.no_grad():
        values = field(points)
    values[7, 1] += 1e-3
    difference, allowed = traced.largest_difference(field, points, values)
    assert difference == pytest.approx(1e-3, rel=1e-3)
    assert difference > allowed == 1e-5
