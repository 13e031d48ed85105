"""The methods that nerfstudio finds through this package's entry points, and how its tools end on bad input.

nerfstudio loads entry points without a try: an exception here would stop its tools for all methods. Where the methods
cannot be imported, each name holds a method that says so in one line when it is started.
"""

import sys
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from loe_field.errors import InputError, shortage
from loe_field.words import say

_NAMES = ("loe-image", "loe-image-smooth", "loe-image-paper", "loe-images", "loe-nerf")
_COMMANDS = [[name] for name in _NAMES]


def _problem(error: Exception) -> str:
    """One line: what keeps the methods from being imported, and what to do."""
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or str(error)).split(".")[0]
        if package not in ("loe_field", "nerfstudio"):
            return f"{package} is not installed. `pip install loe-field` installs what is missing"
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{what}. `pip install --upgrade loe-field` installs versions that fit each other"


def _unusable(name: str, problem: str) -> Any:
    """A method that can be listed but not started.

    Raises:
        SystemExit: the command line starts it. Its options, unknown here, would be the first to be complained of.
    """
    from nerfstudio.engine.trainer import TrainerConfig
    from nerfstudio.plugins.types import MethodSpecification

    message = f"{name} cannot start: {problem}"
    if sys.argv[1:2] == [name]:
        sys.exit(f"error: {message}")

    @dataclass
    class Unusable(TrainerConfig):
        def setup(self, **kwargs: Any) -> Any:
            raise InputError(message)

        def set_timestamp(self) -> None:
            raise InputError(message)

    return MethodSpecification(config=Unusable(method_name=name), description=f"Cannot start: {problem}.")


def _show(kind: Any, error: BaseException, traceback: TracebackType | None, previous: Any = sys.excepthook) -> None:
    """Let an uncaught InputError end the process with one line on stderr and status 1, and no traceback.

    One of a process on another device comes as the text of its traceback, which ends with it. A lack of memory, disk or
    rights is a line too, where a method of ours is what runs, and so is a process of the run that was killed; one that
    ended by itself has told why.
    """
    line = str(error) if isinstance(error, InputError) else shortage(error) if sys.argv[1:2] in _COMMANDS else None
    if kind.__name__ == "ProcessRaisedException":
        where, _, message = str(error).rstrip().rpartition("\n")[2].partition(": ")
        line = message if where == f"{InputError.__module__}.{InputError.__name__}" else None
    if kind.__name__ == "ProcessExitedException" and sys.argv[1:2] in _COMMANDS:
        if error.exit_code < 0:  # type: ignore[attr-defined]
            say(f"error: {error}", sys.stderr)
    elif line is not None:
        say(f"error: {line}", sys.stderr)
    else:
        previous(kind, error, traceback)


def _show_of_thread(of: threading.ExceptHookArgs, previous: Any = threading.excepthook) -> None:
    """The same for threads: a logger of the host writes in one."""
    if of.exc_value is not None and isinstance(of.exc_value, OSError):
        _show(of.exc_type, of.exc_value, of.exc_traceback, lambda *_: previous(of))
    else:
        previous(of)


sys.excepthook, threading.excepthook = _show, _show_of_thread
try:
    from loe_field.methods import loe_image, loe_image_paper, loe_image_smooth, loe_images, loe_nerf
except Exception as error:  # a missing package, a library that cannot be loaded, versions that do not fit: whatever
    try:
        loe_image, loe_image_smooth, loe_image_paper, loe_images, loe_nerf = (
            _unusable(name, _problem(error)) for name in _NAMES
        )
    except Exception:  # a host that is not the one known: it warns of a None and goes on
        loe_image = loe_image_smooth = loe_image_paper = loe_images = loe_nerf = None
