"""The folder of a run, which no other run may have."""

import contextlib
import itertools
import os
import re
import shutil
import weakref

from nerfstudio.utils.rich_utils import CONSOLE

from loe_field.errors import InputError
from loe_field.files import LOCK, locked, make_folder, sweep
from loe_field.training.checkpoints import checkpoint_steps
from loe_field.training.config import LoETrainerConfig
from loe_field.words import say

_CLOCK = re.compile(r"\d{4}-\d\d-\d\d_\d{6}")
"""A timestamp as the host makes it."""


class RunFolder:
    """The folder that a config names, made and held for this run alone until `release` or the end of the process.

    Runs may start in the same second: where the folder of a timestamp of the clock is there already, the config gets
    the next of -2, -3, ... after it, and a line says so. The folder of a timestamp that the user chose may be there,
    but neither with another process in it nor with checkpoints, unless the run goes on from these.

    Raises:
        InputError: the folder is another run's, or cannot be made.
    """

    def __init__(self, config: LoETrainerConfig) -> None:
        timestamp, self.path = config.timestamp, config.get_base_dir()
        models = self.path / config.relative_model_dir
        sources = (config.load_dir, config.load_checkpoint and config.load_checkpoint.parent)
        goes_on = any(os.path.realpath(source.expanduser()) == os.path.realpath(models) for source in sources if source)
        by_clock = _CLOCK.fullmatch(timestamp) is not None and not goes_on
        for number in itertools.count(2):
            self._made = [path for path in (self.path, *self.path.parents) if not os.path.lexists(path)]
            make_folder(self.path.parent)
            try:
                self.path.mkdir(exist_ok=not by_clock)
                break
            except OSError as error:
                if not isinstance(error, FileExistsError):
                    raise InputError(f"the folder {self.path} cannot be made: {error.strerror}") from None
                if not by_clock:
                    raise InputError(f"{self.path} is a file: give another --timestamp") from None
            config.timestamp = f"{timestamp}-{number}"
            self.path = config.get_base_dir()
        lock = contextlib.ExitStack()
        try:
            lock.enter_context(locked(self.path))
        except InputError:
            self._remove_empty()
            raise
        self.release = weakref.finalize(self, lock.close)
        if config.timestamp != timestamp:
            say(f"{timestamp} is taken: this run's folder is {self.path}", CONSOLE)
        if not by_clock and not goes_on and models.is_dir() and checkpoint_steps(models):
            self.release()
            raise InputError(
                f"{self.path} holds a run: give another --timestamp, or go on from it with --load-dir {models}"
            )
        for run in self.path.parent.iterdir():  # what dead writers left: a run that goes on may have another folder
            sweep(run)

    def discard(self) -> None:
        """Remove the folder with its content, and those above it that were made for it; nothing that was there."""
        with contextlib.suppress(OSError):  # of a disk that can be read only by now
            for path in list(self.path.iterdir()) if self._made else ():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                elif path.name != LOCK:  # held to the end: another run may want the folder
                    path.unlink()
        self.release()
        self._remove_empty()

    def _remove_empty(self) -> None:
        """Remove the folders that were made, those that another run has by now excepted."""
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()
