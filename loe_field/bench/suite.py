"""What a suite's TOML file says: runs, as a base method with overrides, and how to report them."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from loe_field.errors import InputError

try:
    import tomllib  # pyright: ignore[reportMissingImports]
except ImportError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef]

Value = str | int | float | bool | list[Any]
"""What an option is set to. The word "None" stands for None, which TOML has not."""


@dataclass(frozen=True)
class Run:
    """One row of the table."""

    name: str
    overrides: Mapping[str, Value] = field(default_factory=dict)
    """Options of ns-train by their dotted names, underscores as in Python."""
    method: str | None = None
    """Another method than the suite's."""
    published: str = ""
    """What somebody else reports for this row, as text."""
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
    overrides: Mapping[str, Value] = field(default_factory=dict)
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
    overrides: Mapping[str, Value] = field(default_factory=dict)
    """Options of all runs; a run's own come after them."""
    columns: list[str] = field(default_factory=lambda: ["psnr_best", "psnr", "ssim", "num_parameters", "train_seconds"])
    """Names of metrics.json for the table, mean and spread over seeds and pictures."""
    text: str = ""
    """Stands above the table."""
    search: Search | None = None
    train_seconds: float | None = None
    """Every run trains for so long (--max-train-seconds); None: for as many steps as its options say."""
    target_psnr: float | None = None
    """What the column seconds_to_target counts to, dB, at the evaluations of a run. Nothing is stopped there."""
    figures: list[Figure] = field(default_factory=list)
    """Plots beside curves.png, which shows all runs."""


@dataclass(frozen=True)
class Job:
    """One call of ns-train."""

    run: Run
    method: str
    data: Path | None
    seed: int
    overrides: Mapping[str, Value]
    dataparser: tuple[str, ...] = ()
    """Words that end the command."""
    search_value: float | None = None
    """The searched value, in runs of the search."""

    @property
    def options(self) -> list[str]:
        """Words for ns-train, the method first, without those of the dataparser."""
        words = [self.method, "--machine.seed", str(self.seed)]
        if self.data is not None:
            words += ["--data", str(self.data)]
        for name, value in self.overrides.items():
            listed = value if isinstance(value, list) else [value]
            words += [f"--{name.replace('_', '-')}", *(str(v) for v in listed)]
        return words

    @property
    def key(self) -> str:
        """Changes with whatever changes the run."""
        return hashlib.sha256("\0".join([*self.options, *self.dataparser]).encode()).hexdigest()[:10]

    def folder(self, root: Path) -> Path:
        """Where its run folder lies."""
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
        content = tomllib.loads(path.read_text("utf8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give a TOML file, see configs/") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}") from None
    if not isinstance(content.get("runs"), list) or not content["runs"]:
        raise InputError(f"{path} lists no [[runs]]: a suite has at least one, with a name")
    runs = [_build(Run, run, f"{path}, run {i + 1}", {"name"}) for i, run in enumerate(content["runs"])]
    names = [slug(run.name) for run in runs]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path} has {names.count(name)} runs named like {name!r}: each needs a name of its own")
    content = {**content, "runs": runs}
    if "search" in content:
        content["search"] = _build(Search, content["search"], f"{path}, search", {"options", "values", "seed"})
    if isinstance(content.get("figures"), list):
        content["figures"] = [
            _build(Figure, f, f"{path}, figures", {"name", "title", "runs"}) for f in content["figures"]
        ]
        for figure in content["figures"]:
            if Path(figure.name).name != figure.name:
                raise InputError(f"{path} has a figure named {figure.name!r}: give the name of a file, without folders")
        for unknown in {name for figure in content["figures"] for name in figure.runs} - {run.name for run in runs}:
            raise InputError(f"{path} has a figure of {unknown!r}: no run has that name")
    return _build(Suite, content, str(path), {"title", "runs"})


def _build(kind: Any, content: Any, where: str, needed: set[str]) -> Any:
    known = {f.name for f in fields(kind)}
    if not isinstance(content, dict):
        raise InputError(f"{where} is {content!r}: a table is wanted")
    for name in content.keys() - known:
        raise InputError(f"{where} says {name!r}: known are {', '.join(sorted(known))}")
    for name in sorted(needed - content.keys()):
        raise InputError(f"{where} has no {name!r}")
    types = get_type_hints(kind)
    for name, value in content.items():
        if not _is(value, types[name]):
            raise InputError(f"{where} says {name} = {value!r}: {_wanted(types[name])} is wanted")
    return kind(**content)


def _is(value: Any, kind: Any) -> bool:
    """Whether what TOML gave is of a type of the classes above."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return any(_is(value, part) for part in parts)
    if origin is list:
        return isinstance(value, list) and all(_is(v, parts[0]) for v in value)
    if origin is Mapping:
        return isinstance(value, dict) and all(_is(v, parts[1]) for v in value.values())
    if kind is Any:
        return True
    if isinstance(value, bool) and kind is not bool:
        return False
    return isinstance(value, (int, float) if kind is float else kind)


def _wanted(kind: Any) -> str:
    """A type in words."""
    if get_origin(kind) is list:
        return f"a list ({_wanted(get_args(kind)[0])} each)"
    if get_origin(kind) is Mapping:
        return 'a table of options by their dotted names in quotes ("pipeline.model.num_layers" = 6)'
    if get_origin(kind) is UnionType:
        return _wanted(next(part for part in get_args(kind) if part is not type(None)))
    words: dict[Any, str] = {str: "text", int: "a whole number", float: "a number"}
    return words.get(kind, "a table")


def _overrides(suite: Suite, run: Run) -> dict[str, Value]:
    seconds: dict[str, Value] = {} if suite.train_seconds is None else {"max_train_seconds": suite.train_seconds}
    return {**seconds, **suite.overrides, **run.overrides}


def jobs_of(suite: Suite, run: Run, data: Path | None, *, best: float | None = None) -> Iterator[Job]:
    """The jobs of one run on one picture or scene: its seeds.

    Args:
        suite: the suite.
        run: one of its runs.
        data: the picture or scene; None: the method's own.
        best: the best value of the search, where there is one.
    """
    overrides = _overrides(suite, run)
    if suite.search is not None and best is not None:
        overrides |= dict.fromkeys(suite.search.options, best)
    for seed in suite.seeds:
        yield Job(run, run.method or suite.method, data, seed, overrides, tuple(suite.dataparser))


def search_jobs(suite: Suite, run: Run, data: Path | None) -> Iterator[Job]:
    """The jobs of the search for one run on one picture."""
    if suite.search is None:
        return
    search = suite.search
    for value in search.values:
        overrides = _overrides(suite, run) | dict.fromkeys(search.options, value) | {**search.overrides}
        yield Job(
            run, run.method or suite.method, data, search.seed, overrides, tuple(suite.dataparser), search_value=value
        )
