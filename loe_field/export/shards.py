"""A set of fields as safetensors shards, each with the stacked weights of fields of one shape; see docs/format.md."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor

from loe_field.errors import InputError
from loe_field.export.fields import Peak, Side, metadata_of
from loe_field.files import write_whole
from loe_field.network.layers import LoEMLP
from loe_field.typed import Between, typed
from loe_field.words import natural_order

SET_VERSION = 1
KEY = "loe_field_set"
"""The metadata's key for the JSON text."""
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Member:
    """What is known of one field of a set."""

    name: str
    """The picture's, within its set."""
    psnr: float | None
    """dB, as the picture holds its numbers; None: not one differs."""
    seed: int
    """Of the initial weights."""
    num_steps: Annotated[int, Between(0, 2**53)]
    """Optimizer steps."""
    path: str | None = None
    """Where the picture lay."""
    content: str | None = None
    """A hash of its file."""
    radiance_peak: Peak | None = None
    """Picture.peak of HDR."""

    @property
    def decibels(self) -> float:
        """The PSNR as a number: infinite where nothing differs."""
        return math.inf if self.psnr is None else self.psnr


@dataclass(frozen=True)
class PictureKind:
    """The size and the numbers of all pictures of a shard."""

    height: Side
    width: Side
    channels: Annotated[int, Between(1, 4)]
    dtype: Literal["uint8", "uint16", "float16", "float32"]


@dataclass(frozen=True)
class _Details:
    """The metadata's JSON, as docs/format.md has it."""

    network: dict[str, Any]
    picture: PictureKind
    members: tuple[Member, ...]
    recipe: dict[str, Any] = field(default_factory=dict)


class Shard:
    """Fields of one shape: their members, and weights that are read as they are asked for.

    Attributes:
        network: arguments of LoEMLP for one field.
        picture: the kind of their pictures.
        members: one for each field.
        recipe: how they were fitted, for information.
        name: of the file, without its suffix; "" of one in memory.
    """

    def __init__(self, details: _Details, weights: Mapping[str, Tensor] | None = None, path: Path | None = None):
        self.network, self.picture, self.members = details.network, details.picture, details.members
        self.recipe, self._path, self._weights = details.recipe, path, weights
        self.name = "" if path is None else path.name.removesuffix(SUFFIX)

    @staticmethod
    def of(network: LoEMLP, picture: PictureKind, members: tuple[Member, ...], recipe: dict[str, Any]) -> "Shard":
        """The fields of a network."""
        options = {name: value for name, value in network.options.items() if name != "num_fields"}
        weights = {name: value.detach() for name, value in network.state_dict().items()}
        return Shard(_Details(options, picture, members, recipe), weights)

    def write(self, path: Path) -> None:
        """Write the shard, whole or not at all.

        Raises:
            InputError: it cannot be written.
        """
        from safetensors.torch import save

        details = {
            "format_version": SET_VERSION,
            "network": self.network,
            "picture": asdict(self.picture),
            "coordinates": "((column + 0.5) / width, (row + 0.5) / height)",
            "recipe": self.recipe,
            "members": [_without_none(asdict(member), "psnr") for member in self.members],
        }
        text = json.dumps(details, separators=(",", ":"), allow_nan=False)
        with write_whole(path) as temporary:
            assert self._weights is not None
            tensors = {name: value.contiguous() for name, value in self._weights.items()}
            temporary.write_bytes(save(tensors, {KEY: text}))  # save_file's are for this user alone

    def weights(self, index: int) -> dict[str, Tensor]:
        """The parameters of one field, float32 by their names in LoEMLP's state_dict.

        Raises:
            InputError: the file is gone or damaged.
        """
        if self._weights is not None:
            return {name: value[index].clone() for name, value in self._weights.items()}
        try:
            return {name: self._file.get_slice(name)[index] for name in self._shapes}
        except Exception as error:  # safetensors raises whatever a broken byte leads to
            raise InputError(f"{self._path} cannot be read ({error}): get a whole copy of it") from None

    @cached_property
    def _file(self) -> Any:
        from safetensors import safe_open

        return safe_open(self._path, "pt").__enter__()

    @cached_property
    def num_parameters(self) -> int:
        """Of one field."""
        return self.blank().num_parameters

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(value.shape) for name, value in self.blank().state_dict().items()}

    def blank(self) -> LoEMLP:
        """A network of the shape of one field, without numbers."""
        with torch.device("meta"):
            return LoEMLP(**self.network)

    def field(self, index: int) -> LoEMLP:
        """One field as a network of its own, in fp32 on the CPU."""
        network = self.blank().to_empty(device="cpu")
        network.load_state_dict(self.weights(index))
        return network

    def __getstate__(self) -> dict[str, Any]:
        """All but the open file, which another process opens anew."""
        return {name: value for name, value in vars(self).items() if name not in ("_file", "_shapes")}


def _without_none(values: dict[str, Any], *kept: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None or name in kept}


def read_shard(path: Path) -> Shard:
    """A shard of a set; its weights are read later.

    Raises:
        InputError: it is no such file, damaged, or of a newer format.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(KEY)
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            kinds = {file.get_slice(name).get_dtype() for name in shapes}
    except Exception as error:
        raise InputError(f"{path} cannot be read as safetensors ({error}): get a whole copy of it") from None
    if text is None:
        raise InputError(f"{path} is no shard of a set of fields: its metadata has no {KEY!r}")
    details = typed(_Details, metadata_of(path, text, SET_VERSION), f"{path}, {KEY}", strict=False)
    shard = Shard(details, path=path)
    try:
        with torch.device("meta"):
            network = typed(LoEMLP, {**details.network, "num_fields": len(details.members)}, "network")
    except InputError as error:
        raise InputError(f"{path} contradicts itself: {error}") from None
    except (TypeError, RuntimeError) as error:
        raise InputError(f"{path} contradicts itself: {' '.join(str(error).split())[:200]}") from None
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    if shapes != wanted or kinds != {"F32"} or (network.dim, network.out_features) != (2, details.picture.channels):
        raise InputError(f"{path} contradicts itself: its tensors are not those of {len(details.members)} networks")
    return shard


def shard_paths(folder: Path) -> list[Path]:
    """The shards in a folder, in the order in which they were begun.

    Raises:
        InputError: the folder cannot be read.
    """
    try:
        return sorted(path for path in folder.glob(f"[0-9]*{SUFFIX}") if path.is_file())
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be read: {error.strerror}") from None


class Place(NamedTuple):
    """Where a member's field lies."""

    shard: Shard
    row: int

    @property
    def member(self) -> Member:
        """What is known of it."""
        return self.shard.members[self.row]


def places_of(shards: list[Shard]) -> list[Place]:
    """All members by their names, in natural order; of a name that was fitted again the last one."""
    last = {member.name: Place(shard, row) for shard in shards for row, member in enumerate(shard.members)}
    return [last[name] for name in sorted(last, key=natural_order)]


def read_set(folder: Path, read: Callable[[Path], Shard] = read_shard) -> list[Place]:
    """All members of a set, by their names in natural order.

    Raises:
        InputError: it is no folder of a set, or a shard is damaged.
    """
    paths = shard_paths(folder) if folder.is_dir() else []
    if not paths:
        raise InputError(f"{folder} holds no shards of fields: give the folder that ns-train loe-images has written")
    return places_of([read(path) for path in paths])


def find_member(places: list[Place], wanted: str, folder: Path) -> Place:
    """The member of a name, or else of a number, from 0.

    Raises:
        InputError: there is none.
    """
    for place in places:
        if place.member.name == wanted:
            return place
    if wanted.isdecimal() and int(wanted) < len(places):
        return places[int(wanted)]
    raise InputError(
        f"--member {wanted} is not in {folder}: give a name of its results.csv, or a number from 0 to {len(places) - 1}"
    )
