"""Networks as ONNX models and as torch.export programs: traced from plain tensor operations, any number of points."""

import contextlib
import copy
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from loe_field.errors import InputError
from loe_field.export.plain import plain
from loe_field.network.protocol import Network

OPSET = 18
"""Version of ONNX's operators: the lowest that torch writes without converting."""
INPUT, OUTPUT, POINTS = "coordinates", "values", "N"
"""The model's input [N, dim], output [N, out_features] and the name of its free size."""
TOLERANCE = 1e-5
"""Largest difference from the field, in fp32."""


def require_onnx() -> None:
    """Refuse where ONNX models cannot be made.

    Raises:
        InputError: onnx or onnxscript is not installed.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"--format onnx needs {' and '.join(missing)}: pip install 'loe-field[export]'")


def has_onnxruntime() -> bool:
    """Whether ONNX models can be run here."""
    return importlib.util.find_spec("onnxruntime") is not None


def trace(field: Network) -> ExportedProgram:
    """The network as a program: coordinates float32 [N, dim] to values [N, out_features], N free, on the CPU.

    Raises:
        InputError: the network is computed by something that torch cannot trace.
    """
    module = plain(copy.deepcopy(field).to("cpu", torch.float32)).eval().requires_grad_(False)
    coords = torch.rand(8, field.dim)
    try:
        with _quiet():
            program = torch.export.export(
                module, (coords,), dynamic_shapes={INPUT: {0: torch.export.Dim(POINTS, max=2**62)}}, strict=False
            )
    except Exception as error:  # torch raises whatever the operation leads to
        raise InputError(f"this network cannot be traced ({_first_line(error)}): --format torch-export and onnx "
                         "take networks of torch's own operations") from None  # fmt: skip
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # where on this machine the line stood
    return program


def encode_program(program: ExportedProgram) -> bytes:
    """The content of a .pt2 file, which torch.export.load reads."""
    content = io.BytesIO()
    with _quiet():
        torch.export.save(program, content)
    return content.getvalue()


def encode_onnx(field: Network) -> bytes:
    """The content of an .onnx file, weights included.

    Raises:
        InputError: ONNX has no operators for the network.
    """
    program = trace(field)
    try:
        with _quiet():
            made = torch.onnx.export(program, dynamo=True, opset_version=OPSET, input_names=[INPUT],
                                     output_names=[OUTPUT], verbose=False)  # fmt: skip
    except Exception as error:
        raise InputError(f"this network cannot become an ONNX model ({_first_line(error)})") from None
    assert made is not None
    return _tidy(made.model_proto)


def run_program(content: bytes, coords: Tensor) -> Tensor:
    """The values of a .pt2 file's content for coords [N, dim]."""
    return torch.export.load(io.BytesIO(content)).module()(coords)


def run_onnx(content: bytes, coords: Tensor) -> Tensor:
    """The values of onnxruntime for coords [N, dim], on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return torch.from_numpy(np.asarray(session.run([OUTPUT], {INPUT: coords.numpy()})[0]))


def largest_difference(field: Network, coords: Tensor, values: Tensor) -> tuple[float, float]:
    """The largest difference of values from the field's own at coords [N, dim], and the largest that is allowed.

    1e-5 is allowed, or twice the error of the field's own fp32 against fp64 where that is more: high frequencies turn
    the last bit of a phase into more than that.
    """
    field = copy.deepcopy(field).to("cpu", torch.float32)
    with torch.no_grad():
        own = field(coords)
        rounding = (field.to(torch.float64)(coords.to(torch.float64)) - own).abs().max().item()
    return (values - own).abs().max().item(), max(TOLERANCE, 2 * rounding)


def _tidy(model: Any) -> bytes:
    """The model with its free size named, and without the exporter's notes, which name files of this machine."""
    import onnx

    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = POINTS
    del model.graph.value_info[:]
    for item in (model.graph, *model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    del model.metadata_props[:]
    model.producer_name, model.producer_version = "loe_field", ""
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' warnings, which are about their own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
