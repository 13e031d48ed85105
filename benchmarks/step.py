"""A whole network: forward and backward, the full training step with its optimizers, or evaluation, beside baselines.

    python -m benchmarks.step --points 16384 --output benchmarks/results/step.csv
    python -m benchmarks.step --what step --points 262144 --precision bf16      # camera whole, on a GPU
    python -m benchmarks.step --what evaluate --points 262144 --precision bf16  # pixels in rows, without gradients

Needs torch and this package only. Every implementation gets the same points, targets and numbers; on a GPU a step is a
replay of a CUDA graph for all that can be recorded in one.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import (
    Case,
    DenseSine,
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
from loe_field import FeatureGrid, LoEMLP, expert_index
from loe_field.network import fused_triton
from loe_field.network.optim import Muon
from loe_field.training.step import TrainStep

SHAPE = {"num_layers": 10, "num_frequencies": 7}
WITH_VECTORS = {"loe bias tiles": {"bias_tile_size": 8}, "loe grid": {"grid": FeatureGrid()}}
"""Options of the networks whose biases are interpolated, or whose first layer has a grid's features."""
CHECKED = 1024
"""Points at which a case is compared with fp64."""


class MaskedLoop(nn.Module):
    """LoEMLP by masks, one expert after the other."""

    def __init__(self, field: LoEMLP) -> None:
        super().__init__()
        self.field = field

    def forward(self, points: Tensor) -> Tensor:
        """Points [N, dim] to [N, out_features]."""
        field = self.field
        x = field.encoding(points)
        for layer, index in zip(field.layers, expert_index(points, field.levels, field.tile_size)):
            x = torch.sin(masked_linear(x, layer.weight, layer.bias, index))
        return field.head(x)


class Whole(nn.Module):
    """LoEMLP by the one kernel of `network.kernels.network`, wherever it serves."""

    def __init__(self, field: LoEMLP) -> None:
        super().__init__()
        self.field = field

    def forward(self, points: Tensor) -> Tensor:
        """Points [N, dim] to [N, out_features]."""
        return fused_triton.evaluate(points, *self.field._weights_and_biases, self.field.shape, whole=True)


class TinyCudaNN(nn.Module):
    """tiny-cuda-nn's sine MLP: only its unfused CutlassMLP computes the sine, and only without its JIT."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        import tinycudann as tcnn

        if hasattr(tcnn, "supports_jit_fusion"):
            tcnn.supports_jit_fusion = lambda: False
        encoding = {"otype": "Frequency", "n_frequencies": SHAPE["num_frequencies"]}
        network = {
            "otype": "CutlassMLP",
            "activation": "Sine",
            "output_activation": "None",
            "n_neurons": width,
            "n_hidden_layers": SHAPE["num_layers"] - 1,
        }
        self.net = tcnn.NetworkWithInputEncoding(dim, 1, encoding, network)

    def forward(self, points: Tensor) -> Tensor:
        """Points [N, dim] to [N, 1]."""
        return self.net(points).float()


@dataclass
class Fitting:
    """One batch, the same at every step."""

    call: Callable[[Tensor], Tensor]
    coords: Tensor
    target: Tensor
    capturable: bool
    weight: float = 1.0
    metrics: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    def draw(self, step: int) -> tuple[Tensor, ...]:
        """Nothing."""
        return ()

    def losses(self, *drawn: Tensor) -> dict[str, Tensor]:
        """The mean squared error."""
        return {"loss": nn.functional.mse_loss(self.call(self.coords).float(), self.target)}

    def variant(self, step: int) -> None:
        """All steps are alike."""


def optimizers(model: nn.Module, precision: str) -> dict[str, torch.optim.Optimizer]:
    """The default recipe: Muon for hidden matrices, Adam for the rest."""
    network = model.field if isinstance(model, (MaskedLoop, Whole)) else model
    layers = list(network.layers) if not isinstance(network, TinyCudaNN) else []
    hidden = [layer.weight for layer in layers[1:]]
    rest = [p for p in model.parameters() if all(p is not h for h in hidden)]
    gpu = rest[0].is_cuda
    adam = torch.optim.Adam(rest, lr=1e-2, betas=(0.9, 0.99), **({"fused": True, "capturable": True} if gpu else {}))
    muon_dtype = torch.bfloat16 if precision == "bf16" else None
    return {**({"experts": Muon(hidden, dtype=muon_dtype)} if hidden else {}), "fields": adam}


def cases(
    what: str, points: int, width: int, dim: int, tile_size: int, precision: str, device: torch.device
) -> list[Case]:
    """The network's implementations at one size."""
    shape = SHAPE | {"dim": dim, "layer_width": width}

    def field(implementation: str, **more: Any) -> LoEMLP:
        torch.manual_seed(0)
        choices = {"tile_size": tile_size, "implementation": implementation} | more
        return LoEMLP(**shape, **choices).to(device)  # type: ignore[arg-type]

    def dense() -> DenseSine:
        torch.manual_seed(0)
        return DenseSine(dim, shape["num_layers"], width, shape["num_frequencies"]).to(device)

    models: dict[str, Callable[[], tuple[nn.Module, Callable[[Tensor], Tensor], nn.Module]]] = {}

    def add(name: str, build: Callable[[], nn.Module], exact: Callable[[], nn.Module], compiled: bool = False) -> None:
        def make() -> tuple[nn.Module, Callable[[Tensor], Tensor], nn.Module]:
            model = build()
            return model, torch.compile(model, dynamic=False) if compiled else model, exact()

        models[name] = make

    add("loe", lambda: field("auto"), lambda: field("reference"))
    if device.type == "cuda" or field("auto").resolved_implementation != "torch":
        add("loe torch", lambda: field("torch"), lambda: field("reference"))
    if device.type == "cuda":
        add("loe whole", lambda: Whole(field("triton")), lambda: field("reference"))
    for name, more in WITH_VECTORS.items():
        add(name, partial(field, "auto", **more), partial(field, "reference", **more))
    add("masked loop", lambda: MaskedLoop(field("torch")), lambda: MaskedLoop(field("torch")))
    add("dense", dense, dense)
    add("dense compiled", dense, dense, compiled=True)
    if device.type == "cuda":
        add("tinycudann", lambda: TinyCudaNN(dim, width).to(device), lambda: TinyCudaNN(dim, width).to(device))

    coords = torch.rand(points, dim, device=device)
    if what == "evaluate" and dim == 2:  # as a picture is rendered
        pixels = torch.arange(points, device=device)
        side = math.isqrt(points)
        coords = (torch.stack([pixels // side, pixels % side], -1) + 0.5) / side
    target = torch.rand(points, 1, device=device)
    cotangent = torch.randn(points, 1, device=device) / points
    hidden_bytes = 2 if precision == "bf16" else 4
    macs = field("auto").macs_per_point
    flop, moved = 6.0 * macs * points, 4.0 * points * width * (shape["num_layers"] - 1) * hidden_bytes
    if what == "evaluate":
        flop, moved = flop / 3, moved / 2

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")

    def make_case(name: str) -> Case:
        state: dict[str, object] = {}

        def prepare() -> None:
            if not state:
                model, call, exact = models[name]()
                state.update(model=model, call=call, exact=exact)
                if what == "step":
                    state["step"] = step_of(model, call)

        def step_of(model: nn.Module, call: Callable[[Tensor], Tensor]) -> Callable[[], object]:
            # Masks and lists make the host wait for the GPU, which no graph can hold.
            case = Fitting(call, coords, target, capturable=name not in ("masked loop", "loe torch"))
            return partial(
                TrainStep(case, optimizers(model, precision), device=device, autocast=precision == "bf16"), 0
            )

        def network() -> None:
            model, call = state["model"], state["call"]
            for p in model.parameters():  # type: ignore[attr-defined]
                p.grad = None
            with autocast():
                out = call(coords)  # type: ignore[operator]
            out.backward(cotangent.to(out.dtype))

        def error() -> float:
            """At all points, which is the one size that is compiled; compared at the first of them."""
            prepare()
            model, call, exact = state["model"], state["call"], state["exact"]
            few, some = coords[:CHECKED], cotangent.clone()
            some[CHECKED:] = 0
            with torch.device(device), autocast():  # as TrainStep does, or it would be compiled twice
                out = call(coords)  # type: ignore[operator]
            if isinstance(model, TinyCudaNN):  # its parameters have a layout of their own
                return relative_error([out[:CHECKED]], [model(few).double()])
            gradients = torch.autograd.grad(out, hidden(model.parameters()), some.to(out.dtype))  # type: ignore[attr-defined]
            true = exact.double()(few.double())  # type: ignore[attr-defined]
            exact_gradients = torch.autograd.grad(true, hidden(exact.parameters()), some[:CHECKED].double())  # type: ignore[attr-defined]
            return relative_error([out[:CHECKED], *gradients], [true, *exact_gradients])

        def hidden(parameters: Iterable[Tensor]) -> list[Tensor]:
            return [p for p in parameters if p.dim() > 1]

        def evaluate() -> None:
            with torch.no_grad(), autocast():
                state["call"](coords)  # type: ignore[operator]

        run = {"step": lambda: state["step"](), "network": network, "evaluate": evaluate}[what]  # type: ignore[operator]
        return Case(name, run, error, flop, moved)

    return [make_case(name) for name in models]


def main() -> None:
    """Check, time, print, write."""
    parser = options(__doc__ or "")
    parser.add_argument("--what", choices=["network", "step", "evaluate"], default="network")
    parser.add_argument("--width", type=int, default=64)
    arguments = parser.parse_args()
    device = set_up(arguments.device, arguments.threads, arguments.precision)
    rows = []
    for points in arguments.points:
        for tile_size in arguments.tile_size:
            size = (arguments.what, points, arguments.width, arguments.dim, tile_size, arguments.precision)
            settings = dict(zip(("what", "points", "width", "dim", "tile_size", "precision"), size))
            chosen = select(cases(*size, device), arguments.implementations)
            done = measure(chosen, arguments.precision, device, arguments.repeats)
            rows += (new := rows_of(done, settings, against="dense", precision=arguments.precision, device=device))
            write(new, arguments.output)
    show(rows, ["implementation", "what", "points", "dim", "tile_size", "p20_ms", "median_ms", "p80_ms", "times_dense",
                "gflop_per_s", "gb_per_s", "times_floor", "peak_mib", "note"])  # fmt: skip
    refuse_wrong(rows)


if __name__ == "__main__":
    main()
