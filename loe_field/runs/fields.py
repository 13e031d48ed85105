"""A folder in which processes together fit the pictures of a list, each picture once.

    <folder>/options.json                      how the fields are made; who comes later must want the same
    <folder>/00001-32x32x3-uint8.safetensors   fields that were fitted together
    <folder>/results.csv, summary.json         all pictures, and the whole
    <folder>/.claims/00002.json                pictures that a living process is fitting: it holds the file's lock

A process takes its next pictures under the lock of .claims.lock, as many as are fitted together. What a process that
has died had taken is free again, because the system takes the locks from the dead. No process needs another one.
"""

import csv
import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from loe_field.errors import InputError
from loe_field.export.shards import SUFFIX, Member, PictureKind, Place, Shard, places_of, read_shard, shard_paths
from loe_field.files import is_owned, make_folder, owned, sweep, write_each, write_whole
from loe_field.network.layers import LoEMLP
from loe_field.pictures.memory import free_memory
from loe_field.pictures.picture import Picture
from loe_field.pictures.pillow import unlimited
from loe_field.pictures.read import read_picture
from loe_field.runs.content import content_of
from loe_field.signals.sizes import PARAMETERS_PER_TARGET, SmallNetwork, small_network_for
from loe_field.training.many import Depth, ManyRecipe, fit_fields
from loe_field.words import printable

RESULTS, SUMMARY, OPTIONS = "results.csv", "summary.json", "options.json"
_CLAIMS, _LOCK = ".claims", ".claims.lock"
_PIXELS_TOGETHER = {"cpu": 2**18, "cuda": 2**24}
"""Pixels of all pictures that are fitted together: on a CPU some ten seconds' work, which is lost in a kill."""
_MOST_TOGETHER = 4096
_WAIT = 0.2
"""Seconds from one look to the next for pictures that other processes have taken."""


class Item(NamedTuple):
    """A picture of the list."""

    name: str
    path: Path
    content: str
    """A hash of the file."""
    size: tuple[int, int]
    """Width and height as its header has them; zeros where it cannot be read."""


@dataclass(frozen=True)
class SetOptions:
    """How the fields of a set are made, the pictures apart."""

    recipe: ManyRecipe
    seed: int
    same_start: bool = False
    parameters_per_target: float = PARAMETERS_PER_TARGET
    layer_width: int | None = None
    tile_size: tuple[int, ...] | None = None
    num_frequencies: int | None = None
    start: str | None = None
    """A hash of the weights that all begin with."""

    def network_for(self, width: int, height: int, channels: int) -> SmallNetwork:
        """The sizes of the network for a picture."""
        size = small_network_for((width, height), channels, self.parameters_per_target)
        chosen = {name: getattr(self, name) for name in size._fields if getattr(self, name) is not None}
        return size._replace(**chosen)

    def seed_of(self, name: str) -> int:
        """The seed of a picture, whatever else is in the list."""
        if self.same_start:
            return self.seed
        words = f"{self.seed}\0{name}".encode("utf8", "surrogateescape")
        return int.from_bytes(hashlib.blake2b(words, digest_size=4).digest(), "big")


def items_of(pictures: dict[str, Path], problems: dict[str, str]) -> list[Item]:
    """The pictures, those of one size one after the other; those that cannot be read become problems."""
    items = []
    for name, path in pictures.items():
        try:
            items.append(Item(name, path, content_of(path), _size(path)))
        except InputError as error:
            problems[name] = str(error)
    return sorted(items, key=lambda item: item.size)


def _size(path: Path) -> tuple[int, int]:
    """A look at the header, which decides what is read together and nothing else."""
    try:
        with unlimited(), Image.open(path) as image:
            return image.size
    except Exception:  # decoders raise anything; the reader knows more kinds, and says later what is wrong
        with suppress(InputError):
            picture = read_picture(path)
            return picture.width, picture.height
        return 0, 0


def together(width: int, height: int, device: torch.device, threads: int = 1) -> int:
    """How many pictures of a size are fitted together: as time and memory have it, and one for each thread."""
    pixels = max(1, width * height)
    most = min(_MOST_TOGETHER, max(threads, _PIXELS_TOGETHER[device.type] // pixels))
    numbers = 16 * pixels  # in fp32: targets, and weights, gradients and moments of 0.55 parameters per target, twice
    return max(1, min(most, int(0.5 * free_memory(device) / (4 * numbers))))


def fit_pictures(
    pictures: Sequence[Picture],
    names: Sequence[str],
    options: SetOptions,
    device: torch.device,
    *,
    start: LoEMLP | None = None,
    watch: Callable[[float], None] = lambda done: None,
) -> tuple[LoEMLP, list[Member]]:
    """Fit pictures of one size and kind together; psnr is NaN of those that came to nothing."""
    first = pictures[0]
    targets = torch.from_numpy(np.stack([picture.unit for picture in pictures])).to(device)
    size = options.network_for(first.width, first.height, first.channels)
    check_start(start, size, first)
    white = first.white if first.values.dtype.kind == "u" else None
    seeds = [options.seed_of(name) for name in names]
    depth = Depth(white, first.peak is not None)
    fitted = fit_fields(targets, size, seeds=seeds, recipe=options.recipe, depth=depth, start=start, watch=watch)
    return fitted.network, [
        Member(name, None if psnr == math.inf else psnr, seed, steps, radiance_peak=picture.peak)
        for name, picture, psnr, seed, steps in zip(names, pictures, fitted.psnr, seeds, fitted.num_steps)
    ]


def check_start(start: LoEMLP | None, size: SmallNetwork, picture: Picture) -> None:
    """Refuse a field to begin with that has not the shape of a picture's network.

    Raises:
        InputError: it has another.
    """
    if start is None:
        return
    with torch.device("meta"):
        wanted = LoEMLP(**size.options((picture.width, picture.height), picture.channels))
    if wanted.options != start.options:
        both = ((own, start.options.get(name)) for name, own in wanted.options.items())
        own, other = next((pair for pair in both if pair[0] != pair[1]), ("", ""))
        raise InputError(
            f"the field of --init-from has not the shape of a network for {picture.width} x {picture.height} pixels of "
            f"{picture.channels} channels ({other} where {own} is wanted): give one of pictures of this size"
        )


def kind_of(picture: Picture) -> PictureKind:
    """What a shard says of its pictures."""
    dtype: Any = picture.values.dtype.name
    return PictureKind(picture.height, picture.width, picture.channels, dtype)


class FieldFolder:
    """The folder of a set, and what this process knows of it.

    Raises:
        InputError: it cannot be made, or holds fields that were made with other options.
    """

    def __init__(self, path: Path, items: Sequence[Item], options: SetOptions) -> None:
        self.path, self.items, self.options = path, items, options
        self.problems: dict[str, str] = {}
        self._read = cache(read_shard)
        make_folder(path / _CLAIMS)
        sweep(path)
        with self._alone():
            self._agree()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process looks for pictures, or hands them back, for as long as this lasts."""
        try:
            with owned(self.path / _LOCK):
                yield
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error.strerror or error}") from None

    def _agree(self) -> None:
        path, mine = self.path / OPTIONS, json.loads(json.dumps(asdict(self.options)))
        try:
            theirs = json.loads(path.read_text("utf8"))
        except FileNotFoundError:
            with write_whole(path) as temporary:
                temporary.write_text(json.dumps(mine, indent=2), "utf8")
            return
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({error}): give --timestamp another name") from None
        mine, theirs = _flat(mine), _flat(theirs)
        if others := [name for name in mine if mine[name] != theirs.get(name)]:
            name = others[0]
            raise InputError(
                f"{self.path} holds fields that were made with other options ({name} {theirs.get(name)}, now "
                f"{mine[name]}): give the same, or --timestamp another name for a set of its own"
            )

    def places(self) -> list[Place]:
        """All fields that are done, by their names."""
        return places_of([self._read(path) for path in shard_paths(self.path)])

    def done(self) -> dict[str, Place]:
        """The fields of the list that are done, by name."""
        wanted = {item.name: item.content for item in self.items}
        found = {place.member.name: place for place in self.places()}
        return {name: found[name] for name, content in wanted.items() if _is_of(found.get(name), content)}

    @contextmanager
    def claim(self, count: Callable[[Item], int]) -> Iterator[tuple[int, list[Item]]]:
        """Take pictures of one size, as many as `count` says of the first, for this process alone.

        Yields:
            The claim's number, and the pictures; none where all are done, have a problem, or are another's.
        """
        with ExitStack() as held:
            with self._alone():
                taken, last = self._claimed()
                done = self.done()
                free = [i for i in self.items if not (i.name in taken or i.name in done or i.name in self.problems)]
                mine = [item for item in free if item.size == free[0].size][: count(free[0])] if free else []
                numbers = [int(path.name.split("-")[0]) for path in shard_paths(self.path)]
                number = 1 + max([last, *numbers])
                path = self.path / _CLAIMS / f"{number:05d}.json"
                if mine:
                    held.enter_context(owned(path))
                    path.write_text(json.dumps([item.name for item in mine]), "utf8")
            try:
                yield number, mine
            finally:
                if mine:
                    with self._alone():
                        path.unlink(missing_ok=True)

    def _claimed(self) -> tuple[set[str], int]:
        """The pictures that living processes have taken, and the last claim's number; the claims of the dead go."""
        taken: set[str] = set()
        last = 0
        for path in sorted((self.path / _CLAIMS).glob("*.json")):
            if is_owned(path):
                taken |= set(json.loads(path.read_text("utf8")))
                last = int(path.stem)
            else:
                path.unlink(missing_ok=True)
        return taken, last

    def others_at_work(self) -> bool:
        """Whether other processes have taken pictures of the list that are not done."""
        with self._alone():
            taken, _ = self._claimed()
            done = self.done()
        return any(item.name in taken and item.name not in done for item in self.items)

    def fit(self, number: int, items: Sequence[Item], device: torch.device, show: Any, start: LoEMLP | None) -> None:
        """Read and fit pictures, and write the fields of each kind as a shard; what cannot be read is a problem."""
        pictures = []
        for item in items:
            try:
                pictures.append((item, _without_palette(read_picture(item.path))))
            except InputError as error:
                self.problems[item.name] = str(error)
                show.problem(item.name, str(error))

        def kind(pair: tuple[Item, Picture]) -> tuple[Any, ...]:
            return (*pair[1].values.shape, pair[1].values.dtype.name, pair[1].peak is not None)

        for (height, width, channels, dtype, is_hdr), pairs in groupby(sorted(pictures, key=kind), key=kind):
            group = list(pairs)
            names = [item.name for item, _ in group]
            network, members = fit_pictures(
                [picture for _, picture in group], names, self.options, device, start=start, watch=show.watch
            )
            good = []
            for row, ((item, _), member) in enumerate(zip(group, members)):
                if member.psnr is not None and math.isnan(member.psnr):
                    self.problems[item.name] = "the fit came to nothing (NaN): give smaller learning rates"
                    show.problem(item.name, self.problems[item.name])
                    continue
                good.append((row, Member(**{**vars(member), "path": str(item.path), "content": item.content})))
            if good:
                shard = Shard.of(
                    network.select([row for row, _ in good]),
                    kind_of(group[0][1]),
                    tuple(member for _, member in good),
                    asdict(self.options),
                )
                suffix = "-hdr" if is_hdr else ""
                shard.write(self.path / f"{number:05d}-{width}x{height}x{channels}-{dtype}{suffix}{SUFFIX}")
                show.fitted([member.decibels for _, member in good])

    def wait(self) -> None:
        """Let some time pass in which others may get on."""
        time.sleep(_WAIT)

    def write_results(self, pictures: Sequence[str], more: dict[str, Any]) -> dict[str, Any]:
        """Write results.csv and summary.json of the pictures of these names; returns the latter's content.

        Raises:
            InputError: one cannot be written.
        """
        done = self.done()
        rows = [self._row(name, done.get(name)) for name in pictures]
        summary = {**statistics_of([place.member.decibels for place in done.values()]), **more}
        failed = [name for name in pictures if name in self.problems]
        summary |= {"pictures": len(pictures), "failed": len(failed), "failed_names": failed}
        used = [(place.shard.num_parameters, place.shard.picture) for place in done.values()]
        per_target = [n / (kind.height * kind.width * kind.channels) for n, kind in used]
        summary["parameters_per_target"] = max(per_target, default=None)

        def table(path: Path) -> None:
            with open(path, "w", encoding="utf8", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)

        content = json.dumps(summary, indent=2)
        writers = {self.path / SUMMARY: lambda path: path.write_text(content, "utf8"), self.path / RESULTS: table}
        write_each(writers)
        return summary

    def _row(self, name: str, place: Place | None) -> dict[str, Any]:
        problem = printable(self.problems.get(name, "" if place else "not fitted yet"))
        row: dict[str, Any] = dict.fromkeys(("name", "size", "psnr", "parameters", "steps", "seed", "shard"), "")
        if place is not None:
            kind, member = place.shard.picture, place.member
            row["size"] = f"{kind.width} x {kind.height} x {kind.channels}"
            row |= {"psnr": round(member.decibels, 4), "parameters": place.shard.num_parameters}
            row |= {"steps": member.num_steps, "seed": member.seed, "shard": place.shard.name}
        return row | {"name": printable(name), "problem": problem}


def _is_of(place: Place | None, content: str) -> bool:
    return place is not None and place.member.content == content


def _flat(options: dict[str, Any]) -> dict[str, Any]:
    """Options of options beside the others."""
    inner = options.get("recipe")
    return {**options, **(inner if isinstance(inner, dict) else {}), "recipe": None}


def _without_palette(picture: Picture) -> Picture:
    """The picture as its field's file can say it: colours."""
    if picture.mode not in ("1", "P"):
        return picture
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[picture.channels]
    return Picture(picture.values, picture.format, mode, None, picture.icc_profile, picture.note)


def statistics_of(psnr: Sequence[float]) -> dict[str, Any]:
    """Count, mean, median, least and a histogram in whole decibels of finite PSNR; exact fits are counted apart."""
    finite = sorted(value for value in psnr if math.isfinite(value))
    bins: dict[str, int] = {}
    for value in finite:
        bins[str(math.floor(value))] = bins.get(str(math.floor(value)), 0) + 1
    return {
        "fitted": len(psnr),
        "psnr_mean": statistics.fmean(finite) if finite else None,
        "psnr_median": statistics.median(finite) if finite else None,
        "psnr_min": finite[0] if finite else None,
        "exact": len(psnr) - len(finite),
        "histogram": bins,
    }


def histogram_lines(bins: dict[str, int]) -> list[str]:
    """A histogram as lines of text, with steps that make no more than some fifteen."""
    if not bins:
        return []
    low, high = (pick(map(int, bins)) for pick in (min, max))
    step = max(1, math.ceil((high - low + 1) / 15))
    counts = [sum(bins.get(str(db), 0) for db in range(at, at + step)) for at in range(low, high + 1, step)]
    return [
        f"{at:4d} to {at + step} dB  {'#' * math.ceil(40 * n / max(counts)):40s} {n:,}"
        for at, n in zip(range(low, high + 1, step), counts)
    ]
