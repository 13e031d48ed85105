"""Calls cpu.c and its parts grid.c and fields.c with tensors (rays.py: rays.c); compiles them at first use.

OpenMP's functions are left open when it is linked: those of torch's own OpenMP, already loaded, fill them in, so that
both share one pool of threads instead of fighting over the cores.
"""

import ctypes
import functools
import hashlib
import itertools
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loe_field.network.kernels import compiling
from loe_field.network.kernels.compiling import Unavailable
from loe_field.network.shape import NetworkShape
from loe_field.network.tiling import BiasTile, num_bias_vectors, num_experts

_SOURCE = Path(__file__).with_name("cpu.c")
_PARTS = (_SOURCE, *map(_SOURCE.with_name, ("grid.c", "rays.c", "fields.c")))
_FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
# How OpenMP is had: from torch, from the compiler, not at all.
_OPENMP = ((("-fopenmp",), ()), (("-fopenmp",), ("-fopenmp",)), ((), ()))
_FUNCTIONS = (
    *("loe_forward", "loe_backward", "loe_grid_forward", "loe_grid_backward"),
    *("loe_fields", "loe_orthogonalize", "loe_muon", "loe_has_half"),
    *("loe_ray_coords", "loe_ray_weights", "loe_ray_weights_backward"),
    *("loe_ray_resample", "loe_ray_interlevel", "loe_ray_distortion"),
)
_SIZES = ("loe_forward_workspace", "loe_backward_workspace", "loe_fields_workspace", "loe_muon_workspace")
_WIDTH_PAD = 16
"""Widths are padded to this many floats: PAD in cpu.c."""
_ACTIVATIONS = {"sine": lambda omega_0: (1, omega_0), "leaky_relu": lambda _: (2, 0.2), "relu": lambda _: (2, 0.0)}
"""Finish of cpu.c and its parameter."""
MAX_EXPERTS = 65535
"""Expert numbers are kept in 16 bits."""
LARGEST_MATRIX = 128
"""Rows and columns of the largest matrix that Muon's kernels take: all that they work on, 320 kB of each thread, then
stays in a core's L2 cache. Larger products are better cut into parts, as BLAS does it."""


class _Tile(ctypes.Structure):
    """`Tile` of cpu.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("corners", "tile_size", "vectors", "hashed")),
        *((name, ctypes.c_float) for name in ("alpha", "beta")),
    )


class _Network(ctypes.Structure):
    """`Network` of cpu.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("points", "dim", "levels", "most_experts", "any_tile")),
        *((name, ctypes.c_int64) for name in ("in_features", "width", "out_features")),
        *((name, ctypes.c_int64) for name in ("half", "threads", "activation")),
        ("parameter", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("tile_size", "experts", "bias_tile", "alpha", "beta", "weight", "bias")),
    )


class _Fields(ctypes.Structure):
    """`Fields` of fields.c."""

    _fields_ = (("net", _Network), *((name, ctypes.c_int64) for name in ("fields", "own_points", "own_x")))


class _Grid(ctypes.Structure):
    """`Grid` of grid.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("points", "dim", "levels", "features", "threads", "beside")),
        *((name, ctypes.c_void_p) for name in ("tile", "start")),
    )


class _Muon(ctypes.Structure):
    """`Muon` of cpu.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("stacks", "rows", "columns", "iterations", "half", "threads")),
        *((name, ctypes.c_double) for name in ("momentum", "beta2", "eps", "step")),
        *((name, ctypes.c_void_p) for name in ("ends", "grad", "weight", "momenta", "row_scale")),
    )


def library() -> ctypes.CDLL:
    """The compiled kernels.

    Raises:
        Unavailable: no C compiler, or it fails.
    """
    return _find()[0]


@functools.cache
def _find() -> tuple[ctypes.CDLL, str | None]:
    """`library` and `remark`."""
    deadline = time.monotonic() + compiling.COMPILE_SECONDS
    compiler, problem = compiling.compiler(), ""
    flags = (*_FLAGS, "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native")
    version = compiling.run([*compiler, "--version"], deadline)
    key = "\0".join([*(part.read_text() for part in _PARTS), *compiler, version, *flags, _processor()])
    with compiling.Cache() as cache:
        for number, (compile_flags, link_flags) in enumerate(_OPENMP):
            name = f"cpu-{hashlib.sha256(key.encode()).hexdigest()[:16]}-{number}"
            try:
                content = cache.get(name)
                if content is None:
                    content = compiling.build(_SOURCE, [*compiler, *flags, *compile_flags], link_flags, deadline)
                    cache.put(name, content)
                loaded = compiling.load(content, (*_FUNCTIONS, *_SIZES))
            except compiling.TooSlow:
                raise
            except (OSError, Unavailable) as error:  # this kind of OpenMP is not to be had
                problem = str(error)
                continue
            for size in _SIZES:
                getattr(loaded, size).restype = ctypes.c_int64
            remarks = [] if compile_flags else [f"on one thread, because {compiler[0]} has no OpenMP"]
            if cache.problem:
                remarks.append(f"compiled by every process for itself, because {cache.problem}")
            return loaded, "; ".join(remarks) or None
    raise Unavailable(f"the CPU kernels could not be compiled with {compiler[0]}: {compiling.one_line(problem)}")


def remark() -> str | None:
    """The shortcoming of the compiled kernels, in one line: one thread, or no cache; None if there is none."""
    return _find()[1] if available() else None


def available() -> bool:
    """Whether the kernels can be had here; compiles them at the first call (about 1 s)."""
    return why_unavailable() is None


@functools.cache
def why_unavailable() -> str | None:
    """None if the kernels can be had here, else the reason in one line."""
    try:
        library()
    except Unavailable as error:
        return str(error)
    return None


@functools.cache
def has_bf16() -> bool:
    """Whether this processor multiplies bf16 numbers (AVX-512 BF16) and the kernels use it."""
    return available() and bool(library().loe_has_half())


def _processor() -> str:
    """The meaning of "native": the processor's name and features (home folders are shared between machines)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    return "\n".join(
        sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    )


def padded(width: int) -> int:
    """Floats of a row of pre-activations."""
    return -(-width // _WIDTH_PAD) * _WIDTH_PAD


def _tile(tile: BiasTile | None, dim: int) -> _Tile:
    if tile is None:
        return _Tile()
    vectors = num_bias_vectors(tile, dim)
    corners = 2**dim if tile.blending == "linear" else 1
    return _Tile(corners, tile.tile_size, vectors, vectors < tile.tile_size**dim, *tile.level)


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array:
    return (ctypes.c_void_p * len(tensors))(*[t.data_ptr() for t in tensors])


def _address(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _network(
    shape: NetworkShape, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], bf16: bool
) -> tuple[_Network, Any]:
    """The structure for encoded points [..., N, in_features], and what it points to and must live as long."""
    levels, tile_sizes = len(shape.levels), shape.tile_sizes
    tiles = shape.bias_tiles or (None,) * levels
    kept = (
        (ctypes.c_int64 * levels)(*tile_sizes),
        (ctypes.c_int64 * levels)(*[num_experts(size, shape.dim) for size in tile_sizes]),
        (_Tile * levels)(*[_tile(tile, shape.dim) for tile in tiles]),
        (ctypes.c_float * levels)(*[level.alpha for level in shape.levels]),
        (ctypes.c_float * levels)(*[level.beta for level in shape.levels]),
        _pointers(weights),
        _pointers(biases),
    )
    sizes = (x.shape[-2], shape.dim, levels, shape.experts, any(tiles))
    widths = (x.shape[-1], weights[0].shape[-2], weights[-1].shape[-2])
    finish = _ACTIVATIONS[shape.activation](shape.omega_0)
    pointers = (ctypes.cast(k, ctypes.c_void_p) for k in kept)
    return _Network(*sizes, *widths, bf16, torch.get_num_threads(), *finish, *pointers), kept


class Call:
    """One network at one batch: keeps alive all that the C structure points to.

    Args:
        shape: the network's.
        x: encoded points, fp32 [N, in_features], contiguous.
        weights: per layer [experts, out, in], the head's [1, out, in] or [out, in]; fp32, contiguous.
        biases: per layer [out], or the vectors of its bias tile [num_bias_vectors, out]; fp32, contiguous.
        bf16: whether levels between the first and the head multiply in bf16.
    """

    def __init__(
        self, shape: NetworkShape, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], *, bf16: bool = False
    ) -> None:
        self._levels = len(shape.levels)
        self._x, self._weights, self._biases = x, weights, biases
        self._width, self._channels = weights[0].shape[-2], weights[-1].shape[-2]
        self._network, self._kept = _network(shape, x, weights, biases, bf16)

    def forward(self, coords: Tensor, *, keep: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Output [N, out_features], expert numbers int16 [levels, N], and, if kept, pre-activations for `backward`."""
        points, c = len(coords), library()
        index = self._x.new_empty(self._levels, points, dtype=torch.int16)
        z = self._x.new_empty(self._levels, points, padded(self._width)) if keep else None
        out = self._x.new_empty(points, self._channels)
        workspace = self._x.new_empty(c.loe_forward_workspace(ctypes.byref(self._network)))
        tensors = (coords, self._x, index, z, out, workspace)
        c.loe_forward(ctypes.byref(self._network), *map(_address, tensors))
        return out, index, z

    def backward(
        self,
        coords: Tensor,
        index: Tensor,
        z: Tensor,
        grad_out: Tensor,
        *,
        need_coords: bool,
        need_x: bool,
        need_parameters: bool,
    ) -> tuple[Tensor | None, Tensor | None, list[Tensor], list[Tensor]]:
        """Gradients of coords (by bias tiles alone), x, weights and biases from the output's [N, out_features].

        None, or empty lists, where they are not needed.
        """
        c = library()
        grad_coords = torch.empty_like(coords) if need_coords else None
        grad_x = torch.empty_like(self._x) if need_x else None
        weights = [torch.empty_like(w) for w in self._weights] if need_parameters else []
        biases = [torch.empty_like(b) for b in self._biases] if need_parameters else []
        pointers = [_pointers(weights), _pointers(biases)] if need_parameters else [None, None]
        workspace = self._x.new_empty(c.loe_backward_workspace(ctypes.byref(self._network)))
        before = map(_address, (coords, self._x, index, z, grad_out, grad_coords, grad_x))
        c.loe_backward(ctypes.byref(self._network), *before, *pointers, _address(workspace))
        return grad_coords, grad_x, weights, biases


class FieldsCall:
    """Many fields at one batch: keeps alive all that the C structure points to. All tensors are fp32 and contiguous.

    Args:
        shape: that of every field.
        coords: points [1 or F, N, dim].
        x: encoded points [1 or F, N, in_features], F of them where coords has.
        weights: per layer [F, experts, out, in], the head's [F, out, in].
        biases: per layer [F, out], or the vectors of bias tiles [F, num_bias_vectors, out].
    """

    def __init__(
        self, shape: NetworkShape, coords: Tensor, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
    ) -> None:
        self._coords, self._x, self._weights, self._biases = coords, x, weights, biases
        network, self._kept = _network(shape, x, weights, biases, False)
        self._structure = _Fields(network, len(weights[-1]), len(coords) > 1, len(x) > 1)
        self._out = (len(weights[-1]), x.shape[1], weights[-1].shape[1])

    def _call(self, *tensors: Any) -> None:
        structure, c = ctypes.byref(self._structure), library()
        workspace = self._x.new_empty(c.loe_fields_workspace(structure))
        c.loe_fields(structure, _address(self._coords), _address(self._x), *tensors, _address(workspace))

    def forward(self) -> Tensor:
        """Outputs [F, N, out_features]."""
        out = self._x.new_empty(self._out)
        self._call(_address(out), *[None] * 6)
        return out

    def losses(self, target: Tensor, *, need_x: bool, need_parameters: bool) -> tuple[Tensor, Any]:
        """Mean squared errors [F] against target [F, N, out_features], and their gradients as `backward` has them."""
        loss = self._x.new_empty(self._out[0])
        return loss, self._gradients((target, loss, None), need_x, need_parameters)

    def backward(
        self, grad_out: Tensor, *, need_x: bool, need_parameters: bool
    ) -> tuple[Tensor | None, list[Tensor], list[Tensor]]:
        """Gradients of x [F, N, in_features], weights and biases from the output's; None or empty where not needed."""
        return self._gradients((None, None, grad_out), need_x, need_parameters)

    def _gradients(
        self, tensors: Sequence[Tensor | None], need_x: bool, need_parameters: bool
    ) -> tuple[Tensor | None, list[Tensor], list[Tensor]]:
        grad_x = self._x.new_empty(*self._out[:2], self._x.shape[2]) if need_x else None
        weights = [torch.empty_like(w) for w in self._weights] if need_parameters else []
        biases = [torch.empty_like(b) for b in self._biases] if need_parameters else []
        pointers = [_pointers(weights), _pointers(biases)] if need_parameters else [None, None]
        self._call(None, *map(_address, tensors), _address(grad_x), *pointers)
        return grad_x, weights, biases


def _grid(coords: Tensor, table: Tensor, tiles: Sequence[BiasTile], beside: int) -> tuple[_Grid, Any]:
    """The structure, and what it points to and must live as long."""
    points, dim = coords.shape
    starts = itertools.accumulate((num_bias_vectors(tile, dim) for tile in tiles[:-1]), initial=0)
    kept = (_Tile * len(tiles))(*[_tile(tile, dim) for tile in tiles]), (ctypes.c_int64 * len(tiles))(*starts)
    sizes = (points, dim, len(tiles), table.shape[1], torch.get_num_threads(), beside)
    return _Grid(*sizes, *(ctypes.cast(k, ctypes.c_void_p) for k in kept)), kept


def grid_forward(coords: Tensor, beside: Tensor, table: Tensor, tiles: Sequence[BiasTile]) -> Tensor:
    """`grid.grid_features` of contiguous fp32 tensors."""
    grid, _kept = _grid(coords, table, tiles, beside.shape[1])
    out = coords.new_empty(len(coords), beside.shape[1] + len(tiles) * table.shape[1])
    library().loe_grid_forward(ctypes.byref(grid), *map(_address, (coords, beside, table, out)))
    return out


def grid_backward(
    coords: Tensor, table: Tensor, tiles: Sequence[BiasTile], grad: Tensor, *, need_coords: bool, need_table: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of coords, by the features alone, and table from that of `grid_forward`'s result, contiguous.

    None where they are not needed.
    """
    grid, _kept = _grid(coords, table, tiles, grad.shape[1] - len(tiles) * table.shape[1])
    grad_coords = torch.empty_like(coords) if need_coords else None
    grad_table = torch.empty_like(table) if need_table else None
    tensors = (coords, table, grad, grad_coords, grad_table)
    library().loe_grid_backward(ctypes.byref(grid), *map(_address, tensors))
    return grad_coords, grad_table


def orthogonalize(matrices: Tensor, num_iterations: int, *, bf16: bool = False) -> Tensor:
    """`optim.orthogonalize` of contiguous fp32 matrices [B, rows, columns] up to LARGEST_MATRIX.

    With `bf16` products are of bf16 numbers where `has_bf16()`.
    """
    count, rows, columns = matrices.shape
    out, c = torch.empty_like(matrices), library()
    sizes = [ctypes.c_int64(n) for n in (count, rows, columns, num_iterations, bf16, torch.get_num_threads())]
    workspace = _muon_workspace(matrices)
    c.loe_orthogonalize(*sizes, *map(_address, (matrices, out, workspace)))
    return out


def muon_step(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    momenta: Sequence[Tensor],
    row_scales: Sequence[Tensor],
    group: dict[str, Any],
    *,
    step_size: float,
) -> None:
    """The update that `optim.Muon` defines, of all stacks in one call; weights, momenta and row_scales change.

    Stacks are [..., rows, columns] with matrices of one size up to LARGEST_MATRIX, row_scales [..., rows, 1], all
    contiguous and fp32. `group` is a parameter group of Muon; step_size times the orthogonal matrices is added.
    """
    rows, columns = weights[0].shape[-2:]
    ends = list(itertools.accumulate(w.numel() // (rows * columns) for w in weights))
    kept = ((ctypes.c_int64 * len(ends))(*ends), *map(_pointers, (grads, weights, momenta, row_scales)))
    bf16 = group["dtype"] == torch.bfloat16
    sizes = (len(weights), rows, columns, group["num_iterations"], bf16, torch.get_num_threads())
    factors = (*(group[name] for name in ("momentum", "beta2", "eps")), step_size)
    muon = _Muon(*sizes, *factors, *(ctypes.cast(k, ctypes.c_void_p) for k in kept))
    workspace = _muon_workspace(weights[0])
    library().loe_muon(ctypes.byref(muon), _address(workspace))
    for tensor in (*weights, *momenta, *row_scales):
        torch.autograd.graph.increment_version(tensor)


def _muon_workspace(matrices: Tensor) -> Tensor:
    sizes = [ctypes.c_int64(n) for n in (*matrices.shape[-2:], torch.get_num_threads())]
    return matrices.new_empty(library().loe_muon_workspace(*sizes))
