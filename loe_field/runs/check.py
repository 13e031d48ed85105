"""A suite against what its methods know: a mistake is found before the first fit, not after hours of them."""

import contextlib
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tyro

from loe_field.errors import InputError
from loe_field.runs.report import FIGURES
from loe_field.runs.suite import COMPARED, Run, Suite, jobs_of, search_jobs

_LISTED = ("loe-image", "loe-image-smooth", "loe-image-paper", "loe-nerf")


def check_suite(suite: Suite, pictures: Sequence[Path | None], where: str) -> None:
    """Read the options of every run as ns-train will, and look at the data for each method.

    Raises:
        InputError: no such method, option, value or column, or data that a method does not take; `where` is the file.
    """
    runs = [run for run in suite.runs if not run.missing]
    methods = _methods({run.method or suite.method for run in runs}, where)
    if methods.keys() <= {*_LISTED, *COMPARED}:  # methods of others have figures of their own
        for column in suite.columns:
            if column not in FIGURES:
                raise InputError(f"{where} says {column!r} in columns: known are {', '.join(FIGURES)}")
    from loe_field.runs.series import PicturesTrainerConfig

    for run in runs:
        config = methods[run.method or suite.method]
        _check_run(suite, run, pictures[0], config, where)
        for picture in pictures:
            if isinstance(config, PicturesTrainerConfig) and picture is not None and picture.is_dir():
                raise InputError(f"{picture} is a folder: {config.method_name} takes pictures here, one by one")


def _methods(names: set[str], where: str) -> dict[str, Any]:
    """The configs of methods, as the host registers them."""
    with _quiet():
        from nerfstudio.plugins.registry import discover_methods

        from loe_field.training.config import LoETrainerConfig

        known: dict[str, Any] = discover_methods()[0]
        if names & set(COMPARED):
            from loe_field.runs import baseline_methods

            known |= {name: getattr(baseline_methods, name.replace("-", "_")).config for name in COMPARED}
    known = {name: config for name, config in known.items() if isinstance(config, LoETrainerConfig)}
    for name in names - known.keys():
        raise InputError(f"{where} says method = {name!r}: known are {', '.join(sorted({*known, *COMPARED}))}")
    return {name: known[name] for name in names}


def _check_run(suite: Suite, run: Run, picture: Path | None, config: Any, where: str) -> None:
    """Refuse what ns-train would refuse; seeds and searched values differ in nothing that it would."""
    best = suite.search.values[0] if suite.search else None
    for job in [*search_jobs(suite, run, picture)[:1], *jobs_of(suite, run, picture, best=best)[:1]]:
        said = io.StringIO()
        try:
            with _quiet(), contextlib.redirect_stderr(said):
                kind = tyro.conf.SuppressFixed[tyro.conf.FlagConversionOff[type(config)]]
                tyro.cli(kind, default=config, args=job.words[1:]).check()
        except SystemExit:
            raise InputError(f"{where}, run {run.name!r}: {_problem(said.getvalue())}") from None
        except ValueError as error:
            raise InputError(f"{where}, run {run.name!r}: {error}") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Let the host's words and warnings go nowhere, and tyro's not be broken into lines."""
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "1000"
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        del os.environ["COLUMNS"]
        if columns is not None:
            os.environ["COLUMNS"] = columns


def _problem(said: str) -> str:
    """The line of a message of tyro's that says what is wrong: the first one below its title."""
    lines = [line.strip(" │") for line in said.splitlines()]
    lines = [line for line in lines if line.strip("─-")]
    return " ".join(lines[1].split()) if len(lines) > 1 else said.strip() or "its words end the command before it runs"
