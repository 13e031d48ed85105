"""Many small fields, a training step in parts.

    python -m benchmarks.fields --points 1024 --width 12 16 24 32 --output benchmarks/results/fields.csv

Needs torch and this package only. Every field is a square picture of so many points, all of them at every step. Columns
are microseconds a field; "ns_per_point" is that of losses and their gradients, "gmacs" how many multiply-adds a second
that makes, of all that a forward and a backward pass need.
"""

import math
import statistics
import time
from functools import partial
from itertools import pairwise

import torch

from benchmarks.common import options, provenance, relative_error, set_up, show, synchronize, write
from loe_field import LoEMLP
from loe_field.network.optim import Muon


def row_of(side: int, width: int, layers: int, fields: int, repeats: int, device: torch.device) -> dict[str, object]:
    """Check against each field alone, and time."""
    shape = {"out_features": 3, "num_layers": layers, "layer_width": width, "num_frequencies": 2}
    network = LoEMLP(**shape, num_fields=fields).to(device)  # type: ignore[arg-type]
    axis = (torch.arange(side, device=device) + 0.5) / side
    coords = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).view(-1, 2)
    target = torch.rand(fields, len(coords), 3, device=device)
    single = network.field(0)
    alone = torch.autograd.grad((single(coords) - target[0]).square().mean(), [*single.parameters()])
    losses = network.mean_squared_errors(coords, target)
    together = [grad[0] for grad in torch.autograd.grad(losses.sum(), [*network.parameters()])]
    if (error := relative_error(together, alone)) > 1e-4:
        raise SystemExit(f"not timed: the gradients are {error:.1e} from those of a field alone")

    groups = network.param_groups()
    muon, adam = Muon(groups["experts"]), torch.optim.Adam(groups["fields"], lr=1e-3, fused=True)

    def backward() -> None:
        network.mean_squared_errors(coords, target).sum().backward()

    parts = (backward, muon.step, adam.step, partial(network, coords))
    # One thread's own seconds are the same on a busy machine.
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    seconds = []
    for _ in range(repeats + 1):
        marks = [clock()]
        for i, part in enumerate(parts):
            with torch.set_grad_enabled(i == 0):
                part()
            synchronize(device)
            marks.append(clock())
        network.zero_grad()
        seconds.append([end - start for start, end in pairwise(marks)])
    medians = [statistics.median(times) for times in zip(*seconds[1:])]
    macs = 3 * single.macs_per_point - single.layers[0].weight[0].numel()  # type: ignore[union-attr, operator]
    names = ("losses_and_gradients", "muon", "adam", "forward")
    step = sum(medians[:3])
    return {
        "side": side, "width": width, "layers": layers, "fields": fields, "parameters": single.num_parameters,
        **{name: f"{1e6 * s / fields:.1f}" for name, s in zip(names, medians)},
        "ns_per_point": f"{1e9 * medians[0] / fields / len(coords):.1f}",
        "gmacs": f"{macs * fields * len(coords) / medians[0] / 1e9:.1f}",
        "field_steps_per_second": f"{fields / step:.0f}", **provenance(device),
    }  # fmt: skip


def main() -> None:
    """Check, time, print, write."""
    parser = options(__doc__ or "")
    parser.set_defaults(points=[1024])
    parser.add_argument("--width", type=int, nargs="+", default=[12, 16, 24, 32])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--fields", type=int, default=256)
    arguments = parser.parse_args()
    device = set_up(arguments.device, arguments.threads, arguments.precision)
    rows = []
    for points in arguments.points:
        for width in arguments.width:
            size = (math.isqrt(points), width, arguments.layers, arguments.fields)
            rows.append(row_of(*size, arguments.repeats, device))
            write(rows[-1:], arguments.output)
    show(rows, list(rows[0])[:12])


if __name__ == "__main__":
    main()
