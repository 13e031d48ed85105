"""The choice of a baseline on a command line: a subcommand, whose options appear in --help once it is chosen.

A field `baseline: BaselineChoice = None` gives `ns-train loe-image ... siren --omega-0 20`; None is levels of experts.
"""

from typing import TYPE_CHECKING, Annotated, Any, Union

import tyro

from loe_field.baselines import NETWORKS, HashGridOptions, Options


def _choice(options: dict[str, Any]) -> Any:
    """None, or one of the options, which are given as a class or as an instance to start from."""
    members = [Annotated[None, tyro.conf.subcommand("loe", prefix_name=False, description="Levels of experts.")]]
    for name, default in options.items():
        kind, more = (default, {}) if isinstance(default, type) else (type(default), {"default": default})
        members.append(Annotated[kind, tyro.conf.subcommand(name, prefix_name=False, **more)])
    return tyro.conf.OmitSubcommandPrefixes[Union[tuple(members)]]  # noqa: UP007


SCENE_GRID = HashGridOptions(log2_hashmap_size=15, max_resolution=512)
"""A hash grid of a size for a scene."""

if TYPE_CHECKING:
    BaselineChoice = Options | None
    HashGridChoice = HashGridOptions | None
else:
    BaselineChoice = _choice({name: network.options_type for name, network in NETWORKS.items()})
    """None, or the options of a baseline."""
    HashGridChoice = _choice({"hash-grid": SCENE_GRID})
    """None, or the options of a hash grid."""
