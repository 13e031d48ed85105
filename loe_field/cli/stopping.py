"""Ctrl-C and SIGTERM in a command that writes one file: one line, and the file as it was before."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType


class _Stopped(BaseException):
    """Ctrl-C or SIGTERM."""


def _stop(number: int, frame: FrameType | None) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):  # a second one must not interrupt the tidying
        signal.signal(each, signal.SIG_IGN)
    raise _Stopped(number)


def stoppable(work: Callable[[], None], output: Path) -> None:
    """Do the work; a signal ends the process with 128 and its number, and a line that says what was not written.

    Args:
        work: what to do. It leaves a whole file or none when an exception passes through it.
        output: that file.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        work()
    except _Stopped as stopped:
        print(f"stopped: {output} was not written", file=sys.stderr, flush=True)
        os._exit(128 + stopped.args[0])  # at once: libpng would still complain of the picture that it did not get
