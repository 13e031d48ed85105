"""Networks of others behind one interface: coordinates in [0, 1), targets in [0, 1], each as its authors have it.

Each module holds one network with its options and its authors' training settings. Nothing here imports nerfstudio until
a hash grid asks for the host's encoding.
"""

from typing import Literal, get_args

from loe_field.baselines.bacon import Bacon, BaconOptions
from loe_field.baselines.bacon import BandOutput as BandOutput
from loe_field.baselines.base import Baseline
from loe_field.baselines.finer import Finer, FinerOptions
from loe_field.baselines.fourier import Fourier, FourierOptions
from loe_field.baselines.gauss import Gauss, GaussOptions
from loe_field.baselines.hash_grid import HashGrid, HashGridOptions
from loe_field.baselines.relu_pe import ReluPe, ReluPeOptions
from loe_field.baselines.siren import Siren, SirenOptions
from loe_field.baselines.wire import Wire, WireOptions
from loe_field.network.checks import check_choice
from loe_field.network.protocol import Recipe

BaselineName = Literal["siren", "relu-pe", "fourier", "finer", "wire", "gauss", "bacon", "hash-grid"]
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

NETWORKS: dict[BaselineName, type[Baseline]] = {
    "siren": Siren,
    "relu-pe": ReluPe,
    "fourier": Fourier,
    "finer": Finer,
    "wire": Wire,
    "gauss": Gauss,
    "bacon": Bacon,
    "hash-grid": HashGrid,
}


def _network(name: BaselineName) -> type[Baseline]:
    check_choice("network", name, BaselineName)
    return NETWORKS[name]


def recipe(name: BaselineName) -> Recipe:
    """How the authors of a network train it on a picture."""
    return _network(name).recipe


def name_of(options: Options) -> BaselineName:
    """The network that takes these options."""
    return next(name for name in get_args(BaselineName) if NETWORKS[name].options_type is type(options))


def options_type(name: BaselineName) -> type[Options]:
    """The class of a network's own options."""
    return _network(name).options_type


def build(
    name: BaselineName,
    *,
    dim: int,
    out_features: int,
    num_layers: int | None = None,
    layer_width: int | None = None,
    options: Options | None = None,
) -> Baseline:
    """A baseline by name; the other arguments are those of `Baseline`; channels of "wire" are complex.

    Raises:
        ValueError: the name is unknown, the options are another network's, or a value is out of range.
    """
    network = _network(name)
    if options is not None and type(options) is not network.options_type:
        raise ValueError(f"options is a {type(options).__name__}, but {name} takes {network.options_type.__name__}")
    return network(dim=dim, out_features=out_features, num_layers=num_layers, layer_width=layer_width, options=options)
