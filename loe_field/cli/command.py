"""The frame around each command of this package: options, errors in one line, an orderly stop."""

import inspect
import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Protocol

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn

from loe_field.errors import InputError, shortage
from loe_field.files import check_name
from loe_field.stopping import stop_signals
from loe_field.words import say


class Command(Protocol):
    """A dataclass of options with the work that they are for."""

    def main(self) -> int | None:
        """Do the work; an exit status where it is not 0."""


class _Stopped(BaseException):
    """Ctrl-C or SIGTERM."""


def run_command(command: type[Command], name: str) -> None:
    """Parse the options and do the work; end the process with another exit status than 0 unless all is well.

    An InputError is a line on stderr and status 1; so is a lack of memory, disk or rights. A pipe that nobody reads
    any more ends the command as SIGPIPE does.
    A command that writes one file, its option --output, ends after Ctrl-C or SIGTERM with 128 and the signal's number
    and a line: it must leave a whole file or the one before when an exception passes through it.
    """
    arguments = tyro.cli(command, prog=name, description=inspect.getdoc(command))
    output: Path | None = getattr(arguments, "output", None)
    try:
        for option, value in vars(arguments).items():
            for path in value if isinstance(value, tuple) else [value]:
                if isinstance(path, Path):
                    check_name(path, f"--{option.replace('_', '-')}")
        with nullcontext() if output is None else stop_signals(_stop):
            status = arguments.main()
        sys.stdout.flush()
    except InputError as error:
        say(f"error: {error}", sys.stderr)
        status = 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + signal.SIGPIPE
    except (OSError, MemoryError, RuntimeError) as error:
        problem = shortage(error)
        if problem is None:
            raise
        say(f"error: {problem}", sys.stderr)
        status = 1
    except _Stopped as stopped:
        stopped.with_traceback(None)  # closes a `with` that was just being entered, and its temporary file with it
        say(f"stopped: {output} was not written", sys.stderr)
        sys.stderr.flush()
        os._exit(128 + stopped.args[0])  # at once: libpng would still complain of the picture that it did not get
    if status:
        sys.exit(status)


def progress_bar(console: Console, *columns: ProgressColumn, transient: bool = False) -> Progress:
    """A bar with a description, counts and `columns`; nothing where the console is no terminal."""
    bar = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*bar, *columns, console=console, transient=transient, disable=not console.is_terminal)


def _stop(received: list[int]) -> None:
    if len(received) == 1:  # a second one must not interrupt the tidying
        raise _Stopped(received[0])
