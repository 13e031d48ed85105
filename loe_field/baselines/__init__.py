"""The peers behind one interface: coordinates in [0, 1), targets in [0, 1], each as its authors have it.

Each module holds one network with its options, its size in closed form and its authors' training settings; nothing here
imports nerfstudio until a hash grid asks for the host's encoding.
"""

from typing import Literal, get_args

from loe_field.baselines.bacon import Bacon, BaconOptions, BandOutput
from loe_field.baselines.base import Counts, Peer, Recipe, Schedule
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


_NETWORKS: dict[str, type[Peer]] = {
    "siren": Siren,
    "relu-pe": ReluPe,
    "fourier": Fourier,
    "finer": Finer,
    "wire": Wire,
    "gauss": Gauss,
    "bacon": Bacon,
    "hash-grid": HashGrid,
}


def _network(name: str) -> type[Peer]:
    if name not in _NETWORKS:
        raise ValueError(f"unknown network {name!r}: choose one of {', '.join(get_args(Baseline))}")
    return _NETWORKS[name]


def _options(name: str, options: Options | None) -> Options:
    wanted = _network(name).options_type
    if options is None:
        return wanted()
    if type(options) is not wanted:
        raise ValueError(f"options is a {type(options).__name__}, but {name} takes {wanted.__name__}")
    return options


def recipe(name: Baseline) -> Recipe:
    """How the authors of a network train it on a picture."""
    return _network(name).recipe


def default_size(name: Baseline) -> tuple[int, int]:
    """num_layers and layer_width that the authors of a network take for a picture."""
    return _network(name).default_size


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
    sizes = {"num_layers": num_layers, "layer_width": layer_width}
    return _network(name)(dim=dim, out_features=out_features, **sizes, options=_options(name, options))


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
    network = _network(name)
    sizes = network.sizes(dim=dim, out_features=out_features, num_layers=num_layers, layer_width=layer_width)
    return network.counts(**sizes, options=_options(name, options))


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
