"""Suites as TOML files: runs, as a base method with overrides, and their report."""

import hashlib
import os
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from loe_field.errors import InputError
from loe_field.runs.content import content_of

try:
    import tomllib  # pyright: ignore[reportMissingImports]
except ImportError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef]

COMPARED = ("baseline-nerfacto", "baseline-vanilla-nerf", "loe-nerf-adam")
"""Methods of runs/baseline_methods.py, which ns-train does not list of its own."""
_SHOWN_BY = "NERFSTUDIO_METHOD_CONFIGS"

Value = str | int | float | bool | list
"""The value of an option. The word "None" stands for None, which TOML has not."""
Overrides = Mapping[str, Value]
"""Options of ns-train by their dotted names, underscores as in Python."""
_WANTED: dict[Any, tuple[tuple[type, ...], str]] = {
    str: ((str,), "text"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a finite number"),
    Overrides: (
        (dict,),
        'a table of options by their dotted names in quotes ("pipeline.model.num_layers" = 6): text, numbers, not nan, '
        "true or false, or lists of these,",
    ),
}
"""TOML's values for a field of a type, and a word for them; a table for any other type."""
_OWN = (
    *("data", "output_dir", "experiment_name", "timestamp", "machine.seed"),
    *("load_config", "load_dir", "load_checkpoint", "load_step", "method_name"),
)
"""Options of ns-train that no suite overrides."""


@dataclass(frozen=True)
class Run:
    """One row of the table."""

    name: str
    overrides: Overrides = field(default_factory=dict)
    method: str | None = None
    """Another method than the suite's."""
    baseline: list[str] = field(default_factory=list)
    """Another network with its own options, words that end the command: ["hash-grid", "--log2-hashmap-size", "12"]."""
    published: str = ""
    """The published figure for this row, as text."""
    missing: str = ""
    """Why there is nothing to run for this row, as text; nothing is run."""


@dataclass(frozen=True)
class Search:
    """A small search that every run gets: each value with one seed, the best by final PSNR for the others."""

    options: list[str]
    """Options that are set to the value, by their dotted names."""
    values: list[float]
    seed: int
    """The seed of the search; its best run counts among the seeds' if it is one of them and nothing else differs."""
    overrides: Overrides = field(default_factory=dict)
    """Options of the search's runs alone, a shorter schedule for instance."""


@dataclass(frozen=True)
class Figure:
    """A plot of some of the runs, PSNR against steps and against seconds."""

    name: str
    """The file's, without .png."""
    title: str
    runs: list[str]
    """Names of runs."""


@dataclass(frozen=True)
class Suite:
    """A TOML file."""

    title: str
    runs: list[Run]
    method: str = "loe-image"
    seeds: list[int] = field(default_factory=lambda: [42])
    data: list[str] = field(default_factory=list)
    """Pictures or scenes' folders, relative to the TOML file; none: the method's default picture."""
    dataparser: list[str] = field(default_factory=list)
    """How scenes are read: the words that end the command, ["blender-data"] for instance; none: as the method does."""
    overrides: Overrides = field(default_factory=dict)
    """Options of all runs; a run's own come after them."""
    columns: list[str] = field(default_factory=lambda: ["psnr_best", "psnr", "ssim", "num_parameters", "train_seconds"])
    """Names of metrics.json for the table, mean and spread over seeds and pictures."""
    text: str = ""
    """Stands above the table."""
    search: Search | None = None
    train_seconds: float | None = None
    """Every run trains for so long (--max-train-seconds); None: for as many steps as its options say."""
    target_psnr: float | None = None
    """PSNR that the column seconds_to_target counts to, dB, at the evaluations of a run. No run stops there."""
    figures: list[Figure] = field(default_factory=list)
    """Plots beside curves.png, which shows all runs."""


@dataclass(frozen=True)
class Job:
    """One call of ns-train."""

    run: Run
    method: str
    data: Path | None
    seed: int
    overrides: Overrides
    ending: tuple[str, ...] = ()
    """Words that end the command: a baseline with its options, a dataparser with its own."""
    search_value: float | None = None
    """The searched value, in runs of the search."""

    @property
    def words(self) -> list[str]:
        """The command after ns-train, method first, but for the folder that the run goes to."""
        words = [self.method, "--machine.seed", str(self.seed), *(["--data", str(self.data)] if self.data else [])]
        for name, value in self.overrides.items():
            words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
        return [*words, *self.ending]

    @property
    def environment(self) -> dict[str, str]:
        """Variables that show the method to the host's tools, ns-eval among them; none where it is listed."""
        if self.method not in COMPARED:
            return {}
        shown = f"{self.method}=loe_field.runs.baseline_methods:{self.method.replace('-', '_')}"
        # The user's own come after it: the host reads no further than the first method that it cannot load.
        return {_SHOWN_BY: ",".join(filter(None, [shown, os.environ.get(_SHOWN_BY)]))}

    @property
    def key(self) -> str:
        """Changes with whatever changes the run, the content of its data among that."""
        content = [content_of(self.data)] if self.data else []
        return hashlib.sha256("\0".join([*self.words, *content]).encode()).hexdigest()[:10]

    def folder(self, root: Path) -> Path:
        """Its run folder."""
        name = self.data.stem if self.data else "default"
        return root / slug(self.run.name) / name / self.method / f"seed-{self.seed}-{self.key}"

    @property
    def label(self) -> str:
        """For people."""
        parts = [self.run.name, *([self.data.stem] if self.data else []), f"seed {self.seed}"]
        return ", ".join(parts + ([f"{self.search_value:g}"] if self.search_value is not None else []))


def slug(name: str) -> str:
    """A name as a folder's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "run"


def read_suite(path: Path) -> Suite:
    """Read and check a TOML file.

    Raises:
        InputError: it is not there, is not TOML, or says something that no suite has.
    """
    try:
        content = tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give a TOML file, see configs/") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not TOML: {error}") from None
    if not isinstance(content.get("runs"), list) or not content["runs"]:
        raise InputError(f"{path} lists no [[runs]]: a suite has at least one, with a name")
    suite: Suite = _build(Suite, content, str(path))
    for what, names in (
        ("runs", [slug(run.name) for run in suite.runs]),
        ("figures", [figure.name.casefold() for figure in suite.figures]),
    ):
        for name in [name for name, times in Counter(names).items() if times > 1]:
            raise InputError(f"{path} has {names.count(name)} {what} named like {name!r}: each needs one of its own")
    for name in [run.name for run in suite.runs]:
        if not name.strip() or not name.isprintable():
            raise InputError(f"{path} has a run named {name!r}: give it a name that can be read, of one line")
    for figure in suite.figures:
        if Path(figure.name).name != figure.name or not figure.name.isprintable() or figure.name == "curves":
            wanted = "give the name of a file, without folders, that is not curves"
            raise InputError(f"{path} has a figure named {figure.name!r}: {wanted}")
        for unknown in set(figure.runs) - {run.name for run in suite.runs}:
            raise InputError(f"{path} has a figure of {unknown!r}: no run has that name")
    _check_numbers(suite, str(path))
    return suite


def check_seeds(seeds: Sequence[int], named: str) -> None:
    """Refuse seeds that torch and numpy do not take; `named` is what gave them."""
    if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**32 for seed in seeds):
        wanted = "give at least one, each once, from 0 on and below 2^32"
        raise InputError(f"{named} = {list(seeds)}: {wanted}")


def _check_numbers(suite: Suite, where: str) -> None:
    """Refuse numbers that no suite can have."""
    check_seeds(suite.seeds, f"{where} says seeds")
    if suite.train_seconds is not None and suite.train_seconds <= 0:
        raise InputError(f"{where} says train_seconds = {suite.train_seconds}: it must be above 0")
    if (search := suite.search) is not None:
        check_seeds([search.seed], f"{where}, search says seed")
        for name, given in (("options", search.options), ("values", search.values)):
            if not given or len(set(given)) < len(given):
                raise InputError(f"{where}, search says {name} = {given}: give at least one, each once")
    everywhere = [("", suite.overrides)] + ([(", search", search.overrides)] if search else [])
    for place, overrides in [*everywhere, *((f", run {run.name!r}", run.overrides) for run in suite.runs)]:
        for name in overrides:
            if name.replace("-", "_") in _OWN:
                raise InputError(f"{where}{place} says {name!r} in overrides: loe-bench gives every run its own")
    for name in search.options if search else ():
        if name.replace("-", "_") in _OWN:
            raise InputError(f"{where}, search says {name!r} in options: loe-bench gives every run its own")


def _build(kind: Any, content: dict[str, Any], where: str) -> Any:
    """An object of one of the classes above, and those within it, of a TOML table; checked."""
    known, types = {f.name: f for f in fields(kind)}, get_type_hints(kind)
    for name in content.keys() - known:
        raise InputError(f"{where} says {name!r}: known are {', '.join(sorted(known))}")
    for name, known_as in known.items():
        if name not in content and known_as.default is known_as.default_factory is MISSING:
            raise InputError(f"{where} has no {name!r}")
    return kind(**{name: _value(types[name], name, value, where) for name, value in content.items()})


def _value(kind: Any, name: str, value: Any, where: str) -> Any:
    """The value of a field whose type is a kind of _WANTED or a class above, a list of one, or one with None."""
    is_list = get_origin(kind) is list
    if is_list or get_origin(kind) is UnionType:
        kind = get_args(kind)[0]
    types, words = _WANTED.get(kind, ((dict,), "a table"))
    parts = value if is_list else [value]
    right = isinstance(parts, list) and all(type(part) in types for part in parts)
    if right and kind == Overrides:
        options = [part for option in value.values() for part in (option if isinstance(option, list) else [option])]
        right = all(isinstance(part, str | int | float) and part == part for part in options)
    if right and kind is float:
        right = all(abs(part) <= sys.float_info.max for part in parts)
    if not right:
        raise InputError(f"{where} says {name} = {value!r}: {f'a list ({words} each)' if is_list else words} is wanted")
    if not is_dataclass(kind):
        return value
    if is_list:
        return [_build(kind, part, f"{where}, {name.removesuffix('s')} {i}") for i, part in enumerate(value, 1)]
    return _build(kind, value, f"{where}, {name}")


def jobs_of(suite: Suite, run: Run, data: Path | None, *, best: float | None = None) -> list[Job]:
    """The seeds of one run on one picture or scene (None: the method's own), with the search's best value if given."""
    searched = {} if suite.search is None or best is None else dict.fromkeys(suite.search.options, best)
    return [_job(suite, run, data, seed, searched) for seed in suite.seeds]


def search_jobs(suite: Suite, run: Run, data: Path | None) -> list[Job]:
    """The jobs of the search for one run on one picture; none where nothing is searched."""
    if (search := suite.search) is None:
        return []
    return [
        _job(suite, run, data, search.seed, {**dict.fromkeys(search.options, value), **search.overrides}, value)
        for value in search.values
    ]


def _job(suite: Suite, run: Run, data: Path | None, seed: int, overrides: Overrides, value: float | None = None) -> Job:
    """One job; `overrides` come after the suite's and the run's."""
    seconds: Overrides = {} if suite.train_seconds is None else {"max_train_seconds": suite.train_seconds}
    options = {**seconds, **suite.overrides, **run.overrides, **overrides}
    return Job(run, run.method or suite.method, data, seed, options, (*run.baseline, *suite.dataparser), value)
