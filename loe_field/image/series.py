"""Several pictures as --data, a folder or a pattern: one run each, one after the other, and a table of the outcome.

Each picture is fitted by an ns-train of its own, as loe-bench does with its runs: a run that is killed for its memory
takes no other with it, nothing piles up in the host's loggers and viewer or on the device, and a run is to the last bit
the one that the picture alone would have had. The price is the host's start, some ten seconds a picture; the runs get
their options as a config file, so that what was given on the command line holds for all of them.

    <output>/<folder's name>/<method>/<time>/summary.csv
    <output>/<folder's name>/<method>/<time>/<picture>/     what ns-train leaves of one picture
"""

import copy
import csv
import glob
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import yaml
from nerfstudio.utils.rich_utils import CONSOLE
from PIL import Image
from rich.markup import escape
from rich.table import Table

from loe_field.errors import InputError
from loe_field.files import last_line, write_whole
from loe_field.image.picture import FORMATS

if TYPE_CHECKING:
    from loe_field.image.trainer import ImageTrainerConfig

_NAMED = 5
"""Files that are left out and named; of more, how many."""
_TAIL = 4000
"""Bytes of a run's stderr that are kept to find out why it failed."""
_LAST_WORDS_SECONDS = 5.0
"""How long a run's stderr is waited for after its end; a logger's helper may hold it open."""
_NS_TRAIN = (
    "import sys; sys.path[:1] == [''] and sys.path.pop(0); from nerfstudio.scripts.train import entrypoint as e; e()"
)
"""ns-train of this Python; the folder that one works in is no place to import from."""


@dataclass(frozen=True)
class Row:
    """What came of one picture: a line of summary.csv."""

    name: str
    """Of the picture, and of its run's folder."""
    size: str = ""
    """Width x height x channels."""
    psnr: float | None = None
    """dB."""
    ssim: float | None = None
    """Mean over the channels."""
    parameters: int | None = None
    """Of the field."""
    seconds: float | None = None
    """Training time."""
    problem: str = ""
    """Why there are no figures, or not those of a whole run; empty if all is well."""


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

    Hidden files are left out, and with a word those whose suffix is no picture's. A name is the path within the
    pictures' common folder, with its suffix only where there are two that differ in nothing else.

    Raises:
        InputError: there is none.
    """
    data = data.expanduser()
    if data.is_dir():
        try:
            found = [path for path in data.iterdir() if not path.name.startswith(".")]
        except OSError as error:
            raise InputError(f"the folder {data} cannot be read: {error.strerror}") from None
        what = f"the folder {data}"
    else:
        found = [Path(path) for path in glob.glob(str(data), recursive=True)]
        what = f"no file matches {data}, or none of them"
    files = sorted({Path(os.path.abspath(path)) for path in found if path.is_file()}, key=_natural)
    pictures = [path for path in files if path.suffix.lower() in picture_suffixes()]
    if not pictures:
        verb = "holds no picture" if data.is_dir() else "is a picture"
        raise InputError(f"{what} {verb} ({', '.join(FORMATS)}): give --data a picture, or a folder or pattern of some")
    others = [path.name for path in files if path not in set(pictures)]
    if others:
        names = ", ".join(others[:_NAMED]) + (f" and {len(others) - _NAMED} more" if len(others) > _NAMED else "")
        CONSOLE.print(f"left out, no pictures by their names: {names}", soft_wrap=True, highlight=False, markup=False)
    root = Path(os.path.commonpath([path.parent for path in pictures]))
    short = [path.relative_to(root).with_suffix("") for path in pictures]
    times = Counter(short)
    return {str(s if times[s] == 1 else p.relative_to(root)): p for s, p in zip(short, pictures)}


def picture_suffixes() -> set[str]:
    """File name endings of what can be read, in lower case, dot included."""
    known = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
    return known | {f".{name.lower()}" for name in FORMATS}


def _natural(path: Path) -> tuple[list[Any], str]:
    """2.png before 10.png; folder by folder, whatever the case unless nothing else differs."""
    parts = (re.split(r"(\d+)", part.lower()) for part in path.parts)
    return [[(0, int(t), "") if t.isdecimal() else (1, 0, t) for t in part] for part in parts], str(path)


class PictureSeries:
    """Stands where the host wants a Trainer, and runs one for each picture.

    Args:
        config: of all runs; `data` is the folder or the pattern.
        local_rank: the host's.
        world_size: the host's; 1.

    Raises:
        InputError: there is no picture, or an option is for one run only.
    """

    def __init__(self, config: "ImageTrainerConfig", local_rank: int = 0, world_size: int = 1) -> None:
        for name in ("load_dir", "load_checkpoint", "load_step"):
            if getattr(config, name) is not None:
                raise InputError(
                    f"--{name.replace('_', '-')} goes on with the run of one picture: give --data that picture, not a "
                    "folder or a pattern"
                )
        if world_size > 1:
            raise InputError("a folder of pictures is fitted on one device: leave --machine.num-devices out")
        data = config.pipeline.datamanager.data
        assert data is not None
        self.pictures = pictures_of(data)
        config.set_experiment_name()
        config.output_dir = config.output_dir.expanduser().resolve()
        self.config = config
        self.folder = config.get_base_dir()
        self.rows: list[Row] = []

    def setup(self) -> None:
        """Nothing yet: each run sets itself up."""

    def train(self) -> None:
        """Run all, and say what came of them.

        Raises:
            SystemExit: 1 if a run failed; 128 and the signal's number after Ctrl-C or SIGTERM, which stop the run under
                way as they stop a single one.
        """
        with _Signals() as signals:
            for number, (name, path) in enumerate(self.pictures.items(), 1):
                CONSOLE.rule(escape(f"{number}/{len(self.pictures)}: {name}"))
                self.rows.append(self._run(name, path, signals))
                self._write_summary()
                if signals.received:
                    break
        self._show()
        if signals.received:
            CONSOLE.print(f"stopped; {len(self.rows)} of {len(self.pictures)} pictures were begun")
            raise SystemExit(128 + signals.received)
        if any(row.problem for row in self.rows):
            raise SystemExit(1)

    def _run(self, name: str, path: Path, signals: "_Signals") -> Row:
        """Fit one picture in a process of its own, which speaks for itself on the console."""
        config = copy.deepcopy(self.config)
        config.data = config.pipeline.datamanager.data = path
        config.timestamp = str(Path(self.config.timestamp) / name)
        with tempfile.TemporaryDirectory(prefix="loe_field-") as folder:
            file = Path(folder) / "config.yml"
            file.write_text(yaml.dump(config), "utf8")
            command = [sys.executable, "-c", _NS_TRAIN, str(config.method_name), "--load-config", str(file)]
            sys.stdout.flush()
            with signals.process(command) as process:
                assert process.stderr is not None
                reader, tail = _passed_on(process.stderr)
                status = process.wait()
                reader.join(_LAST_WORDS_SECONDS)
        row = _row(name, config.get_base_dir() / "metrics.json")
        if signals.received:
            problem = "stopped before its end"
        elif status < 0:
            problem = f"killed by {signal.Signals(-status).name}"
        elif status > 0:
            problem = last_line(tail).removeprefix("error: ") or f"exit status {status}"
        else:
            problem = "" if row.size else "left no metrics.json"
        return Row(**{**vars(row), "problem": problem})

    def _write_summary(self) -> None:
        """summary.csv, whole or not at all."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        names = [field.name for field in fields(Row)]
        writer.writerow(names)
        writer.writerows([getattr(row, name) for name in names] for row in self.rows)
        self.folder.mkdir(parents=True, exist_ok=True)
        with write_whole(self.folder / "summary.csv") as path:
            path.write_text(text.getvalue(), "utf8")

    def _show(self) -> None:
        """The table, and where it lies."""
        table = Table("name", "size", header_style="bold")
        for heading in ("PSNR (dB)", "SSIM", "parameters", "seconds"):
            table.add_column(heading, justify="right")
        with_problems = any(row.problem for row in self.rows)
        if with_problems:
            table.add_column("problem", overflow="fold")
        for row in self.rows:
            problem = [escape(row.problem)] if with_problems else []
            table.add_row(escape(row.name), row.size, *_figures(row), *problem)
        CONSOLE.rule()
        CONSOLE.print(table)
        CONSOLE.print(f"  summary        {self.folder / 'summary.csv'}", soft_wrap=True, highlight=False, markup=False)


class _Signals:
    """Ctrl-C and SIGTERM, both handed on to the run under way as SIGTERM.

    That ends a run that trains in its own good time, and one that is still starting at once and without a traceback. A
    run lives in a session of its own, so that the terminal's Ctrl-C does not come to it a second time.
    """

    def __init__(self) -> None:
        self.received = 0
        """The first signal's number; 0 if there was none."""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "_Signals":
        self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    def _handle(self, number: int, _: object) -> None:
        self.received = self.received or number
        if self._process is not None:
            self._process.terminate()

    @contextmanager
    def process(self, command: Sequence[str]) -> Iterator["subprocess.Popen[bytes]"]:
        """A process that gets the signals; it does not outlive the block."""
        with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as process:
            self._process = process
            try:
                if self.received:  # it came while the process was being made
                    process.terminate()
                yield process
            finally:
                self._process = None
                if process.poll() is None:
                    process.kill()


def _passed_on(stream: IO[bytes]) -> tuple[threading.Thread, bytearray]:
    """Pass a stream on to stderr as it comes: the thread that does it, and the stream's last bytes so far."""
    tail = bytearray()

    def read() -> None:
        for line in stream:
            sys.stderr.write(line.decode("utf8", "replace"))
            sys.stderr.flush()
            tail.extend(line)
            del tail[:-_TAIL]

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread, tail


def _row(name: str, path: Path) -> Row:
    """A run's figures, as far as there are any."""
    try:
        metrics = json.loads(path.read_text("utf8"))
    except (OSError, ValueError):
        return Row(name)
    return Row(
        name,
        size="{width} x {height} x {channels}".format(**metrics),
        psnr=round(metrics["psnr"], 4),
        ssim=None if metrics["ssim"] is None else round(metrics["ssim"], 5),
        parameters=metrics["num_parameters"],
        seconds=round(metrics["train_seconds"], 3),
    )


def _figures(row: Row) -> list[str]:
    """The numbers of a row for people."""
    values = (row.psnr, "{:.2f}"), (row.ssim, "{:.4f}"), (row.parameters, "{:,}"), (row.seconds, "{:.0f}")
    return ["" if value is None else form.format(value) for value, form in values]
