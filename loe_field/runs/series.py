"""Several pictures as --data, a folder or a pattern: one run each, one after the other, and a table of the outcome.

Each picture is fitted by an ns-train of its own, with all options of the command line in a config file: a run that is
killed for its memory takes no other with it, nothing piles up in the host or on the device, and a run is to the last
bit the one that the picture alone would have had. The price is the host's start, some ten seconds a picture.

    <output>/<folder's name>/<method>/<time>/summary.csv
    <output>/<folder's name>/<method>/<time>/<picture>/     what ns-train leaves of one picture, and run.json

--load-dir with the first of these folders goes on there: run.json says which runs came to their end, and of what they
were made. A picture that has changed since, or whose options have, is fitted again beside the old run.
"""

import copy
import csv
import glob
import hashlib
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from nerfstudio.utils.rich_utils import CONSOLE
from PIL import Image
from rich.table import Table
from rich.text import Text

from loe_field.errors import InputError
from loe_field.files import locked, sweep, temporary_folder, write_whole
from loe_field.image.config import ImageTrainerConfig
from loe_field.pictures.picture import FORMATS
from loe_field.runs.child import Children
from loe_field.runs.content import content_of, good_checkpoints, read_results
from loe_field.training.distributed import processes_here
from loe_field.training.folder import RunFolder
from loe_field.words import natural_order, printable, say

SUMMARY, RUN = "summary.csv", "run.json"
_NAMED = 5
"""Files that are left out and named; of more, how many."""
_FIGURES = {"psnr": "{:.2f}", "ssim": "{:.4f}", "parameters": "{:,}", "seconds": "{:.0f}"}
"""The numbers of a picture, and how the table on the console shows them."""


@dataclass
class PicturesTrainerConfig(ImageTrainerConfig):
    """How to fit a picture, or each one of a folder or pattern with a run of its own."""

    def set_experiment_name(self) -> None:
        """Name the experiment after the picture, or the folder of several."""
        data = self.pipeline.datamanager.data
        if self.experiment_name is None and data is not None and is_series(data):
            self.experiment_name = series_name(data)
        super().set_experiment_name()

    def set_timestamp(self) -> None:
        """The time; of a series that goes on, all of its folder's name."""
        if self.load_dir is not None and is_series(self.pipeline.datamanager.data):
            folder = self.load_dir.expanduser().resolve()
            if not (folder / SUMMARY).is_file():
                raise InputError(
                    f"--load-dir {folder} is no folder of a series, which holds {SUMMARY}: leave the option out to "
                    "begin one, or give --data the one picture whose run goes on"
                )
            if folder.parent.name != self.method_name:
                raise InputError(f"--load-dir {folder} was made by {folder.parent.name}, not by {self.method_name}")
            self.output_dir, self.experiment_name, self.timestamp = folder.parents[2], *folder.parts[-3::2]
        super().set_timestamp()

    def setup(self, **kwargs: Any) -> Any:
        """The picture's Trainer; for a folder or a pattern a PictureSeries."""
        return PictureSeries(self, **kwargs) if is_series(self.pipeline.datamanager.data) else super().setup(**kwargs)


def is_series(data: Path | None) -> bool:
    """Whether this is a folder or a pattern, not one picture. A file is a picture whatever its name looks like."""
    if data is None:
        return False
    data = data.expanduser()
    return data.is_dir() or (glob.has_magic(str(data)) and not data.exists())


def series_name(data: Path) -> str:
    """The folder's name; of a pattern that of the folder before its first wildcard."""
    path = data.expanduser()
    while glob.has_magic(str(path)) and not path.exists():
        path = path.parent
    return path.resolve().name or "pictures"


def pictures_of(data: Path) -> dict[str, Path]:
    """The pictures in a folder (not in folders within it) or that match a pattern, by name, in natural order.

    Hidden files are left out; those whose suffix is no picture's too, which is said. A name is the path within the
    pictures' common folder, with its suffix only where two differ in nothing else.

    Raises:
        InputError: there is none.
    """
    data = data.expanduser()
    if data.is_dir():
        try:
            found = [path for path in data.iterdir() if not path.name.startswith(".")]
        except OSError as error:
            raise InputError(f"the folder {data} cannot be read: {error.strerror}") from None
        what = f"the folder {data} holds no picture"
    else:
        found = [Path(path) for path in glob.glob(str(data), recursive=True)]
        what = f"no file matches {data}, or none of them is a picture"
    files = sorted({Path(os.path.abspath(path)) for path in found if path.is_file()}, key=_natural)
    suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
    suffixes |= {f".{name.lower()}" for name in FORMATS}
    pictures = [path for path in files if path.suffix.lower() in suffixes]
    if not pictures:
        raise InputError(f"{what} ({', '.join(FORMATS)}): give --data a picture, or a folder or pattern of some")
    others = [path.name for path in files if path not in set(pictures)]
    if others:
        names = ", ".join(others[:_NAMED]) + (f" and {len(others) - _NAMED} more" if len(others) > _NAMED else "")
        say(f"left out, no pictures by their names: {names}", CONSOLE)
    return named(pictures)


def named(pictures: Sequence[Path]) -> dict[str, Path]:
    """Absolute paths by name: the path within their common folder, with its suffix only where it alone differs."""
    root = Path(os.path.commonpath([path.parent for path in pictures]))
    short = [path.relative_to(root).with_suffix("") for path in pictures]
    times = Counter(short)
    return {str(s if times[s] == 1 else p.relative_to(root)): p for s, p in zip(short, pictures)}


def _natural(path: Path) -> tuple[list[Any], str]:
    """2.png before 10.png; folder by folder, whatever the case unless nothing else differs."""
    return [natural_order(part)[0] for part in path.parts], str(path)


class PictureSeries:
    """Stands where the host wants a Trainer, and runs one for each picture of the config's folder or pattern.

    Raises:
        InputError: there is no picture, or an option is for one run only.
    """

    def __init__(self, config: PicturesTrainerConfig, local_rank: int = 0, world_size: int = 1) -> None:
        for name in ("load_checkpoint", "load_step"):
            if getattr(config, name) is not None:
                use = "goes on with the run of one picture: give --data that picture, not a folder or a pattern"
                raise InputError(f"--{name.replace('_', '-')} {use}")
        if processes_here(local_rank, world_size) is not None:
            raise InputError("a folder of pictures is fitted by one process: give one picture, or leave the others out")
        config = copy.deepcopy(config)
        data = config.pipeline.datamanager.data
        assert data is not None
        self.pictures = pictures_of(data)
        config.set_experiment_name()
        config.output_dir = config.output_dir.expanduser().resolve()
        self.goes_on = config.load_dir is not None
        self.config = replace(config, load_dir=None)
        self.folder = config.get_base_dir()
        self.rows: list[dict[str, Any]] = []
        """Lines of summary.csv: a name, and figures or a problem, or both if a run was stopped."""

    def setup(self) -> None:
        """Nothing yet: each run sets itself up."""

    def train(self) -> None:
        """Run all, and show the table.

        Raises:
            SystemExit: 1 if a run failed; 128 and the signal's number after Ctrl-C or SIGTERM, which stop the run too.
            InputError: the folder is another's, or cannot be written any more; what is done is shown all the same.
        """
        try:
            children = self._run_all()
        except (InputError, OSError):
            if self.rows:
                self._show()
            raise
        self._show()
        if children.stopped:
            begun = f"{len(self.rows)} of {len(self.pictures)} pictures were begun"
            on = f"the same command with --load-dir {self.folder} goes on"
            say(f"stopped; {begun}; {on}", CONSOLE)
            raise SystemExit(128 + children.stopped)
        if any(row["problem"] for row in self.rows):
            raise SystemExit(1)

    def _run_all(self) -> Children:
        with ExitStack() as held, Children() as children:
            if self.goes_on:
                held.enter_context(locked(self.folder))
            else:
                claimed = RunFolder(self.config)
                held.callback(claimed.release)
                self.folder = claimed.path
            if not (self.folder / SUMMARY).exists():  # by which a folder is known to be a series'
                self._write_summary()
            for number, (name, path) in enumerate(self.pictures.items(), 1):
                CONSOLE.rule(_shown(f"{number}/{len(self.pictures)}: {name}"))
                self.rows.append(self._run(name, path, children))
                self._write_summary()
                if children.stopped:
                    break
        return children

    def _run(self, name: str, path: Path, children: Children) -> dict[str, Any]:
        """Fit one picture in a process of its own, which speaks for itself on the console; figures, if it left any.

        What was fitted before is not fitted again, and what was begun goes on from its last checkpoint.
        """
        try:
            made_of = {"options": self._options, "content": content_of(path)}
        except InputError as error:
            say(f"error: {error}", sys.stderr)
            return {"name": name, "problem": str(error)}
        place = self._place(name, made_of)
        config = copy.deepcopy(self.config)
        config.data = config.pipeline.datamanager.data = path
        config.timestamp = str(Path(self.config.timestamp) / place)
        folder = config.get_base_dir()
        if _begun(folder) == {**made_of, "finished": True} and (row := _row(name, folder)) is not None:
            say(f"fitted before: {folder}", CONSOLE)
            return row
        self._mark(folder, made_of, finished=False)
        config.load_dir = good_checkpoints(folder)
        with temporary_folder() as work:
            file = work / "config.yml"
            with write_whole(file) as whole:
                whole.write_text(yaml.dump(config), "utf8")
            end = children.run([str(config.method_name), "--load-config", str(file)])
        row = _row(name, folder)
        if not end.problem and row is not None:
            self._mark(folder, made_of, finished=True)
        if row is None:
            return {"name": name, "problem": end.problem or "left no metrics.json"}
        return {**row, "problem": end.problem}

    @property
    def _options(self) -> str:
        """A hash of all options but where the picture and its run lie."""
        config = copy.deepcopy(self.config)
        config.data = config.pipeline.datamanager.data = config.experiment_name = None
        config.output_dir, config.timestamp = Path(), ""
        return hashlib.blake2b(yaml.dump(config).encode(), digest_size=16).hexdigest()

    def _place(self, name: str, made_of: dict[str, str]) -> str:
        """The folder of a picture's run: named as the picture, or with a number where another one has that name."""
        place = name
        for number in itertools.count(2):
            folder = self.folder / place
            sweep(folder)
            if not folder.is_dir() or not any(path.is_file() for path in folder.iterdir()):
                break
            begun = _begun(folder)
            if begun is not None and {**begun, **made_of} == begun:
                break
            place = f"{name}-{number}"
        if place != name:
            said = f"the picture or the options are not what they were for {self.folder / name}: fitted anew in {place}"
            say(said, CONSOLE)
        return place

    @staticmethod
    def _mark(folder: Path, made_of: dict[str, str], *, finished: bool) -> None:
        """Note in a run's folder what it is made of, and whether it came to its end."""
        folder.mkdir(parents=True, exist_ok=True)
        with write_whole(folder / RUN) as path:
            path.write_text(json.dumps({**made_of, "finished": finished}), "utf8")

    def _write_summary(self) -> None:
        """summary.csv, whole or not at all."""
        with write_whole(self.folder / SUMMARY) as path, open(path, "w", encoding="utf8", newline="") as file:
            writer = csv.DictWriter(file, ["name", "size", *_FIGURES, "problem"], lineterminator="\n")
            writer.writeheader()
            writer.writerows(row | {key: printable(row[key]) for key in ("name", "problem")} for row in self.rows)

    def _show(self) -> None:
        """The table, and where it lies."""
        table = Table("name", "size", header_style="bold")
        for heading in ("PSNR (dB)", "SSIM", "parameters", "seconds"):
            table.add_column(heading, justify="right")
        with_problems = any(row["problem"] for row in self.rows)
        if with_problems:
            table.add_column("problem", overflow="fold")
        for row in self.rows:
            figures = ("" if row.get(key) is None else form.format(row[key]) for key, form in _FIGURES.items())
            problem = [_shown(row["problem"])] if with_problems else []
            table.add_row(_shown(row["name"]), row.get("size"), *figures, *problem)
        CONSOLE.rule()
        CONSOLE.print(table)
        say(f"  summary        {self.folder / SUMMARY}", CONSOLE)


def _begun(folder: Path) -> dict[str, Any] | None:
    """The note in a run's folder, if it has one."""
    try:
        note = json.loads((folder / RUN).read_text("utf8"))
    except (OSError, ValueError):
        return None
    return note if isinstance(note, dict) else None


def _row(name: str, folder: Path) -> dict[str, Any] | None:
    """The line of summary.csv for a run that left all its figures, else None."""
    metrics = read_results(folder)
    if metrics is None:
        return None
    try:
        return {
            "name": name,
            "size": "{width} x {height} x {channels}".format(**metrics),
            "psnr": round(metrics["psnr"], 4),
            "ssim": None if metrics["ssim"] is None else round(metrics["ssim"], 5),
            "parameters": metrics["num_parameters"],
            "seconds": round(metrics["train_seconds"], 3),
            "problem": "",
        }
    except (LookupError, TypeError):
        return None


def _shown(text: str) -> Text:
    """For a table or a rule, which take text without markup."""
    return Text(printable(text, CONSOLE.encoding))
