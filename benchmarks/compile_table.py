"""What the Triton kernels become on every family of GPUs: registers, spills, shared memory, programs side by side.

    python -m benchmarks.compile_table --output benchmarks/results/compile.csv

Needs Triton and no GPU, and takes some ten minutes. A kernel's own test of its budget of registers is
`test_compiles_for_every_family_without_spills`. The package's own launches run on tensors without memory, so that a
kernel is compiled for the very arguments that a run gives it; nothing is launched.
"""

import argparse
import contextlib
import itertools
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from benchmarks import common
from loe_field.network.kernels import bias as bias_kernels
from loe_field.network.kernels import encoding, grid, level, network, newton_schulz
from loe_field.network.shape import Arithmetic, NetworkShape, Precision
from loe_field.network.tiling import BiasTile, Level, fine_to_coarse, num_bias_vectors


class Card(NamedTuple):
    """What programs share on a multiprocessor (CUDA C++ Programming Guide, table of compute capabilities)."""

    shared_kib: int
    largest_kib: int
    """Shared memory of one program at most."""
    warps: int
    programs: int


CARDS = {
    80: Card(164, 163, 64, 32),
    86: Card(100, 99, 48, 16),
    89: Card(100, 99, 48, 24),
    90: Card(228, 227, 64, 32),
    100: Card(228, 227, 64, 32),
    120: Card(100, 99, 48, 24),
}
REGISTERS = 65536
TENSOR_COLUMNS = 512
"""Of the tensor cores' own memory, from sm_100 on."""
INSTRUCTIONS = ("tcgen05.mma", "wgmma.mma_async", "mma.sync")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class _Driver:
    """A card that is not there, for Triton's compiler."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return self.architecture  # Triton keeps what it has compiled by device

    def get_current_stream(self, device: int) -> int:
        return 0


@contextlib.contextmanager
def compiling_for(architecture: int) -> Iterator[list[Any]]:
    """Launches within compile for sm_`architecture`; the compiled kernels go into the list."""
    compiled: list[Any] = []
    run, capability = JITFunction.run, level.capability

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        compiled.append(run(self, *args, grid=grid, warmup=True, **options))
        return compiled[-1]

    driver.set_active(_Driver(architecture))  # type: ignore[arg-type]
    JITFunction.run, level.capability = compile_only, lambda device: divmod(architecture, 10)  # type: ignore[assignment]
    try:
        yield compiled
    finally:
        JITFunction.run, level.capability, driver._active = run, capability, None  # type: ignore[assignment]


def figures(kernel: Any, architecture: int) -> dict[str, Any]:
    """Registers and spilled bytes of a thread, shared bytes of a program, and how many a multiprocessor holds."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        done = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True)
    # None of the kernels has an array of its own: what lies on the stack are spilled registers.
    registers, spilled = map(int, re.findall(r"REG:(\d+) STACK:(\d+)", done.stdout)[0])
    card, metadata = CARDS[architecture], kernel.metadata
    limits = [
        REGISTERS // (32 * metadata.num_warps * 8 * triton.cdiv(registers, 8)),
        card.shared_kib * 1024 // (metadata.shared + 1024),
        card.warps // metadata.num_warps,
        card.programs,
    ]
    if columns := getattr(metadata, "tmem_size", 0):
        limits.append(TENSOR_COLUMNS // columns)
    return {
        "registers": registers,
        "spilled_bytes": spilled,
        "shared_bytes": metadata.shared,
        "warps": metadata.num_warps,
        "stages": metadata.num_stages,
        "programs_per_sm": min(limits),
        "warps_per_sm": min(limits) * metadata.num_warps,
        "tensor_cores": " ".join(name for name in INSTRUCTIONS if name in kernel.asm["ptx"]),
    }


def launch_level(
    row: int,
    sizes: tuple[int, int],
    experts: int,
    precision: Precision,
    dtypes: tuple[torch.dtype, torch.dtype],
    need_x: bool = True,
    tile: tuple[BiasTile, int] | None = None,
) -> None:
    """A level of `sizes` (in, out) on rows of `row` numbers, forward and backward.

    `dtypes` are those of x and y; `tile` is that of the bias and the coordinates of a point, whose gradient is wanted.
    """

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    points, (in_features, out_features) = 262144, sizes
    order = None if experts == 1 else empty(points, dtype=torch.int32)
    starts = None if experts == 1 else empty(experts + 1, dtype=torch.int32)
    how = Arithmetic("sine" if experts > 1 or out_features > 3 else "none", 1.0, precision, dtypes[1])
    weight, bias, coords = empty(experts, out_features, in_features), empty(out_features), None
    if tile is not None:
        vectors, coords, how = num_bias_vectors(*tile), empty(points, tile[1]), how._replace(tile=tile[0])
        bias = empty(vectors, out_features)
    arguments = (empty(points, row, dtype=dtypes[0]), weight, bias, coords, order, starts, how)
    level.level_forward(*arguments)
    bias_kernels.level_gradients(empty(points, out_features, dtype=dtypes[1]), *arguments, (need_x, True, True, True))


def launch_grid(dim: int, features: int) -> None:
    """A grid of 16 levels, forward and backward."""
    tiles = [BiasTile(Level(float(2**i)), 2**i + 1, table_size=2**15) for i in range(4, 10)]
    vectors = sum(num_bias_vectors(tile, dim) for tile in tiles)
    sizes = [(262144, dim), (vectors, features), (262144, len(tiles) * features)]
    coords, table, rows = (torch.empty(size, device="meta") for size in sizes)
    grid.features(coords, table, tiles, rows)
    grid.table_gradient(rows, coords, tiles, vectors)
    grid.coords_gradient(rows, coords, table, tiles)


def launches() -> Iterator[tuple[dict[str, Any], Callable[[], Any]]]:
    """What the package launches by default, and how: levels of networks, the encoding, Muon."""

    def hidden(precision: Precision, width: int, experts: int) -> tuple[dict[str, Any], Callable[[], Any]]:
        dtype = DTYPES.get(precision, torch.float32)
        settings = {"level": "hidden", "precision": precision, "width": width, "experts": experts}
        return settings, lambda: launch_level(width, (width, width), experts, precision, (dtype, dtype))

    def first(
        dtype: torch.dtype, features: int, width: int, experts: int, slopes: bool = False
    ) -> tuple[dict[str, Any], Callable[[], Any]]:
        name = f"first of {features}" + slopes * ", with coords' gradient"
        settings = {"level": name, "precision": "tf32x3", "width": width, "experts": experts}
        row, dtypes = 4 * triton.cdiv(features, 4), (torch.float32, dtype)
        return settings, lambda: launch_level(row, (features, width), experts, "tf32x3", dtypes, slopes)

    def head(dtype: torch.dtype, width: int) -> tuple[dict[str, Any], Callable[[], Any]]:
        settings = {"level": "head", "precision": "tf32x3", "width": width, "experts": 1}
        return settings, lambda: launch_level(width, (width, 3), 1, "tf32x3", (dtype, torch.float32))

    def whole(precision: Precision, keep: torch.dtype | None) -> tuple[dict[str, Any], Callable[[], Any]]:
        shape = NetworkShape(fine_to_coarse(9), 2, 2, "sine", 1.0, 7)
        name = "whole" if keep is None else "whole, kept for gradients"
        settings = {"level": name, "precision": precision, "width": "9 x 64", "experts": 4}
        sizes = [(4, 64, 30), *[(4, 64, 64)] * 8, (1, 64)]
        weights = [torch.empty(size, device="meta") for size in sizes]
        biases = [torch.empty(size[-2], device="meta") for size in sizes]
        coords = torch.empty(262144, 2, device="meta")
        return settings, lambda: network.network_forward(coords, weights, biases, shape, precision, keep)

    def tiled(precision: Precision, dim: int, size: int, width: int = 64) -> tuple[dict[str, Any], Callable[[], Any]]:
        settings = {"level": f"bias tile of {size}^{dim}", "precision": precision, "width": width, "experts": 4}
        dtype, tile = DTYPES.get(precision, torch.float32), (BiasTile(Level(16.0), size), dim)
        return settings, lambda: launch_level(width, (width, width), 4, precision, (dtype, dtype), tile=tile)

    def vectors(dim: int, features: int) -> tuple[dict[str, Any], Callable[[], Any]]:
        settings = {"level": f"grid in {dim}D", "precision": "", "width": features, "experts": ""}
        return settings, lambda: launch_grid(dim, features)

    yield whole("bf16", None)
    yield whole("bf16", torch.bfloat16)
    yield whole("tf32", None)
    yield whole("tf32", torch.float32)
    yield hidden("bf16", 64, 4)
    yield hidden("tf32", 64, 4)
    yield first(torch.bfloat16, 30, 64, 4)
    yield head(torch.bfloat16, 64)
    yield vectors(3, 2)
    for precision in ("bf16", "tf32", "tf32x3", "ieee"):
        yield tiled(precision, 2, 8)
    yield tiled("bf16", 3, 16)
    yield tiled("tf32", 3, 16)
    yield tiled("bf16", 2, 16, width=256)
    for width in (16, 64):
        settings = {"level": "Muon", "precision": "tf32x3", "width": width, "experts": ""}
        matrices = torch.empty(36, width, width, device="meta")
        yield settings, lambda matrices=matrices: newton_schulz.newton_schulz(matrices)
    yield hidden("ieee", 64, 4)
    for precision, width in itertools.product(("bf16", "tf32"), (16, 128, 256)):
        yield hidden(precision, width, 4)
    yield first(torch.float32, 39, 64, 8, slopes=True)
    for width in (128, 256):
        yield first(torch.bfloat16, 30, width, 4)
        yield head(torch.bfloat16, width)
    yield hidden("fp16", 64, 4)
    for precision, experts in itertools.product(("bf16", "tf32"), (1, 16, 64)):
        yield hidden(precision, 64, experts)
    yield hidden("ieee", 128, 4)
    yield first(torch.float32, 30, 64, 4)
    yield head(torch.float32, 64)
    for dim, frequencies in ((2, 7), (3, 6)):
        settings = {"level": f"{dim}D", "precision": "", "width": dim * (1 + 2 * frequencies), "experts": ""}
        coords = torch.empty(1000, dim, device="meta")
        yield settings, lambda coords=coords, frequencies=frequencies: encoding.encode(coords, frequencies)


def rows_for(
    architectures: Sequence[int], chosen: Callable[[dict[str, Any]], bool] = lambda _: True
) -> Iterator[dict[str, Any]]:
    """The table's rows, one a kernel; `chosen` may leave some settings out."""
    for settings, launch in filter(lambda pair: chosen(pair[0]), launches()):
        for architecture in architectures:
            with compiling_for(architecture) as compiled:
                launch()
            for kernel in dict.fromkeys(compiled):
                name = {"kernel": kernel.metadata.name.strip("_")}
                yield name | settings | {"sm": architecture} | figures(kernel, architecture)


def main() -> None:
    """Compile, print and write the table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", type=int, nargs="+", choices=list(CARDS), default=list(CARDS))
    parser.add_argument("--output", type=Path, help="CSV to append to")
    options = parser.parse_args()
    for row in rows_for(options.architectures):
        print(*row.values(), flush=True)
        common.write([row | {"triton": triton.__version__, "commit": common.commit()}], options.output)


if __name__ == "__main__":
    main()
