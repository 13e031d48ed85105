"""One position-dependent layer, forward and backward, beside its baselines.

    python -m benchmarks.layer --points 16384 --width 64 --tile-size 2 --output benchmarks/results/layer.csv

Needs torch and this package only. Every implementation gets the same points, features, cotangent and numbers.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.common import (
    Case,
    grouped_mm_linear,
    masked_linear,
    measure,
    options,
    refuse_wrong,
    relative_error,
    rows_of,
    select,
    set_up,
    show,
    write,
)
from loe_field import Level, expert_index, position_dependent_linear

LEVEL = Level(16.0)


def cases(points: int, width: int, dim: int, tile_size: int, precision: str, device: torch.device) -> list[Case]:
    """The layer's implementations at one size."""
    experts = tile_size**dim
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    coords = torch.rand(points, dim, device=device)
    x = torch.randn(points, width, device=device).to(dtype).requires_grad_()
    weight = (torch.randn(experts, width, width, device=device) / width**0.5).requires_grad_()
    bias = torch.randn(width, device=device).requires_grad_()
    cotangent = torch.randn(points, width, device=device).to(dtype)
    index = expert_index(coords, [LEVEL], tile_size)[0]
    flop, moved = 6.0 * points * width**2, 5.0 * points * width * x.element_size()

    def layer(implementation: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        return lambda x, weight, bias: position_dependent_linear(
            x, coords, weight, bias, LEVEL, tile_size=tile_size, implementation=implementation
        )  # type: ignore[arg-type]

    def dense(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, weight[0].to(x.dtype), bias.to(x.dtype))

    def grouped(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        # As loe_field's own plain PyTorch: bf16 rows meet bf16 matrices.
        return layer("torch")(x, weight.to(x.dtype), bias.to(x.dtype))

    functions = {
        "loe": layer("auto") if device.type == "cuda" else grouped,
        "loe torch": grouped,
        "masked loop": lambda x, w, b: masked_linear(x, w.to(x.dtype), b.to(x.dtype), index),
        "grouped_mm": lambda x, w, b: grouped_mm_linear(x, w, b, index),
        "dense": dense,
        "dense compiled": torch.compile(dense, dynamic=False),
    }
    if device.type != "cuda":
        del functions["loe torch"]  # the same thing

    def gradients(function: Callable[..., Tensor], *leaves: Tensor) -> list[Tensor]:
        out = function(*leaves)
        return [out.detach(), *torch.autograd.grad(out, leaves, cotangent.to(out.dtype))]

    def error(name: str) -> float:
        exact = [t.detach().to(dtype).double().requires_grad_() for t in (x, weight, bias)]
        if name.startswith("dense"):
            true = gradients(lambda x, w, b: torch.nn.functional.linear(x, w[0], b), *exact)
        else:
            true = gradients(layer("reference"), *exact) if points <= 4096 else gradients(masked, *exact)
        return relative_error(gradients(functions[name], x, weight, bias), true)

    def masked(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return sum(
            torch.where((index == e)[:, None], torch.nn.functional.linear(x, w, bias), 0) for e, w in enumerate(weight)
        )  # type: ignore[return-value]

    return [
        Case(name, lambda f=f: gradients(f, x, weight, bias), lambda name=name: error(name), flop, moved)
        for name, f in functions.items()
    ]


def main() -> None:
    """Check, time, print, write."""
    parser = options(__doc__ or "")
    parser.add_argument("--width", type=int, nargs="+", default=[64])
    arguments = parser.parse_args()
    device = set_up(arguments.device, arguments.threads, arguments.precision)
    rows = []
    for points in arguments.points:
        for width in arguments.width:
            for tile_size in arguments.tile_size:
                size = (points, width, arguments.dim, tile_size, arguments.precision, device)
                settings = dict(zip(("points", "width", "dim", "tile_size", "precision"), size))
                chosen = select(cases(*size), arguments.implementations)
                done = measure(chosen, arguments.precision, device, arguments.repeats)
                rows += (new := rows_of(done, settings, against="dense", precision=arguments.precision, device=device))
                write(new, arguments.output)
    show(rows, ["implementation", "points", "width", "tile_size", "p20_ms", "median_ms", "p80_ms", "times_dense",
                "gflop_per_s", "gb_per_s", "times_floor", "peak_mib", "note"])  # fmt: skip
    refuse_wrong(rows)


if __name__ == "__main__":
    main()
