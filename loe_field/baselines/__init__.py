"""The peers behind one interface: coordinates in [0, 1), targets in [0, 1], each as its authors have it.

Each module holds one network with its options, its size in closed form and its authors' training settings; nothing here
imports nerfstudio until a hash grid asks for the host's encoding.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

from loe_field.baselines import bacon, finer, fourier, gauss, hash_grid, relu_pe, siren, wire
from loe_field.baselines.bacon import Bacon, BaconOptions, BandOutput
from loe_field.baselines.base import Counts, Peer, Recipe, Schedule, check_sizes
from loe_field.baselines.finer import Finer, FinerOptions
from loe_field.baselines.fourier import Fourier, FourierOptions
from loe_field.baselines.gauss import Gauss, GaussOptions
from loe_field.baselines.hash_grid import HashGrid, HashGridOptions, largest_table
from loe_field.baselines.relu_pe import ReluPe, ReluPeOptions
from loe_field.baselines.siren import Siren, SirenOptions
from loe_field.baselines.wire import Wire, WireOptions

Baseline = Literal["siren", "relu-pe", "fourier", "finer", "wire", "gauss", "bacon", "hash-grid"]
Options = (
    SirenOptions
    | ReluPeOptions
    | FourierOptions
    | FinerOptions
    | WireOptions
    | GaussOptions
    | BaconOptions
    | HashGridOptions
)


class _Entry(NamedTuple):
    network: Callable[..., Peer]
    options: type
    counts: Callable[..., Counts]
    recipe: Recipe
    num_layers: int
    layer_width: int


_ENTRIES: dict[str, _Entry] = {
    "siren": _Entry(Siren, SirenOptions, siren.counts, siren.RECIPE, 5, 256),
    "relu-pe": _Entry(ReluPe, ReluPeOptions, relu_pe.counts, relu_pe.RECIPE, 5, 256),
    "fourier": _Entry(Fourier, FourierOptions, fourier.counts, fourier.RECIPE, 4, 256),
    "finer": _Entry(Finer, FinerOptions, finer.counts, finer.RECIPE, 5, 256),
    "wire": _Entry(Wire, WireOptions, wire.counts, wire.RECIPE, 4, 181),
    "gauss": _Entry(Gauss, GaussOptions, gauss.counts, gauss.RECIPE, 5, 256),
    "bacon": _Entry(Bacon, BaconOptions, bacon.counts, bacon.RECIPE, 5, 256),
    "hash-grid": _Entry(HashGrid, HashGridOptions, hash_grid.counts, hash_grid.RECIPE, 3, 64),
}


def _entry(name: str) -> _Entry:
    if name not in _ENTRIES:
        raise ValueError(f"unknown network {name!r}: choose one of {', '.join(get_args(Baseline))}")
    return _ENTRIES[name]


def _options(name: str, options: Options | None) -> Options:
    wanted = _entry(name).options
    if options is None:
        return wanted()
    if type(options) is not wanted:
        raise ValueError(f"options is a {type(options).__name__}, but {name} takes {wanted.__name__}")
    return options


def recipe(name: Baseline) -> Recipe:
    """How the authors of a network train it on a picture."""
    return _entry(name).recipe


def default_size(name: Baseline) -> tuple[int, int]:
    """num_layers and layer_width that the authors of a network take for a picture."""
    entry = _entry(name)
    return entry.num_layers, entry.layer_width


def build(
    name: Baseline,
    *,
    dim: int,
    out_features: int,
    num_layers: int | None = None,
    layer_width: int | None = None,
    options: Options | None = None,
) -> Peer:
    """A peer by name.

    Args:
        name: which one.
        dim: coordinates per point, 1 to 3.
        out_features: width of the result, >= 1.
        num_layers: linear layers in all, the final one included, >= 2; None: the authors' number.
        layer_width: channels of the hidden layers, >= 1 (complex ones for "wire"); None: the authors' number.
        options: the network's own options; None: the authors'.

    Raises:
        ValueError: the name is unknown, the options are another network's, or a value is out of range.
    """
    entry = _entry(name)
    return entry.network(
        dim=dim,
        out_features=out_features,
        num_layers=entry.num_layers if num_layers is None else num_layers,
        layer_width=entry.layer_width if layer_width is None else layer_width,
        options=_options(name, options),
    )


def counts(
    name: Baseline,
    *,
    dim: int,
    out_features: int,
    num_layers: int | None = None,
    layer_width: int | None = None,
    options: Options | None = None,
) -> Counts:
    """Parameters and multiply-adds per point of what `build` would give, without building it.

    Raises:
        ValueError: the name is unknown, the options are another network's, or a size is out of range.
    """
    entry = _entry(name)
    sizes = {
        "dim": dim,
        "out_features": out_features,
        "num_layers": entry.num_layers if num_layers is None else num_layers,
        "layer_width": entry.layer_width if layer_width is None else layer_width,
    }
    check_sizes(**sizes)
    return entry.counts(**sizes, options=_options(name, options))


def width_for(
    name: Baseline,
    *,
    dim: int,
    out_features: int,
    parameters: int | None = None,
    macs: int | None = None,
    num_layers: int | None = None,
    options: Options | None = None,
) -> int:
    """The largest layer_width within a budget.

    Args:
        name: which network.
        dim: coordinates per point, 1 to 3.
        out_features: width of the result, >= 1.
        parameters: most trainable numbers; None: any.
        macs: most multiply-adds per point; None: any.
        num_layers: linear layers in all; None: the authors' number.
        options: the network's own options; None: the authors'. A hash grid's table is no matter of width: see
            `largest_table`.

    Raises:
        ValueError: no budget is given, or one channel already exceeds it.
    """
    if parameters is None and macs is None:
        raise ValueError("parameters and macs are both None: give at least one budget")

    def fits(width: int) -> bool:
        size = counts(
            name, dim=dim, out_features=out_features, num_layers=num_layers, layer_width=width, options=options
        )
        return (parameters is None or size.parameters <= parameters) and (macs is None or size.macs <= macs)

    if not fits(1):
        least = counts(name, dim=dim, out_features=out_features, num_layers=num_layers, layer_width=1, options=options)
        raise ValueError(
            f"parameters is {parameters} and macs {macs}: {name} needs {least.parameters} and {least.macs} at width 1 "
            "with these options"
        )
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


__all__ = [
    "Bacon",
    "BaconOptions",
    "BandOutput",
    "Baseline",
    "Counts",
    "Finer",
    "FinerOptions",
    "Fourier",
    "FourierOptions",
    "Gauss",
    "GaussOptions",
    "HashGrid",
    "HashGridOptions",
    "Options",
    "Peer",
    "Recipe",
    "ReluPe",
    "ReluPeOptions",
    "Schedule",
    "Siren",
    "SirenOptions",
    "Wire",
    "WireOptions",
    "build",
    "counts",
    "default_size",
    "largest_table",
    "recipe",
    "width_for",
]
