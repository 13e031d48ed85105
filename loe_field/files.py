"""Files that are there whole or not at all."""

import fcntl
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from loe_field.errors import InputError


@contextmanager
def write_whole(path: Path, *, staging: Path | None = None) -> Iterator[Path]:
    """Write to the temporary file yielded, which takes the place of `path` when the block ends without an exception.

    The content is on disk before the name changes: a kill or a power cut leaves the old file or the new, never a part.

    Args:
        path: where the file goes; its folder must exist.
        staging: folder of the temporary file, on the same file system; the folder of `path` by default.
    """
    temporary = (staging or path.parent) / f".{secrets.token_hex(8)}.tmp{path.suffix}"
    sweep(temporary.parent)
    try:  # from before the file is there: the exception of a signal may come at any moment
        temporary.touch(exist_ok=False)
        with owned(temporary):
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def write_output(path: Path) -> Iterator[Path]:
    """`write_whole` for a file that the user named: makes its folder.

    Raises:
        InputError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_whole(path) as temporary:
            yield temporary
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None


def last_line(content: bytes | bytearray) -> str:
    """The last line of a log that is not empty, as drawn last; of a box, as tyro draws, the first within."""
    text = content.decode("utf8", "replace").replace("\r", "\n")
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    last = lines[-1] if lines else ""
    tops = [number for number, line in enumerate(lines) if line.startswith("╭")]
    return lines[tops[-1] + 1].strip("│ ") if tops and last.startswith("╰") else last


def check_writable(folder: Path, option: str) -> None:
    """Try a folder, or the nearest one above it that is there, before any work goes into what it is to hold.

    Raises:
        InputError: it can be neither made nor written; `option` is what should name another one.
    """
    ancestor = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=ancestor, prefix=".loe_field-"):
            pass  # it has no name where the system knows how, so that a kill leaves nothing
    except OSError as error:
        reason = f"{ancestor}: {error.strerror}"
        raise InputError(f"{folder} cannot be written ({reason}): give {option} another folder") from None


def check_output(path: Path) -> Path:
    """The absolute path of a file that --output names, once it is sure that it can be written.

    Raises:
        InputError: it is a folder, or lies in one that can be neither made nor written.
    """
    path = path.expanduser().resolve()
    if path.is_dir():
        raise InputError(f"{path} is a folder: give --output the name of a file")
    check_writable(path.parent, "--output")
    return path


LOCK = ".loe_field.lock"
"""The file in a folder whose lock `locked` holds."""
_TEMPORARY_FILE = re.compile(rf"\.[0-9a-f]{{16}}\.tmp(\..*)?|{re.escape(LOCK)}")
_TEMPORARY_FOLDER = re.compile(r"loe_field-held-[a-z0-9_]{8}")
_swept: set[Path] = set()


def sweep(folder: Path) -> None:
    """Remove what writers that are dead left in a folder: temporary files, and folders by `temporary_folder`.

    A writer holds the lock of what it writes, which the kernel takes from the dead, however they died and on whatever
    machine that shares the folder. Nothing is removed where a lock cannot be had, or of other users. Done once a folder
    in a process.
    """
    if folder in _swept:
        return
    _swept.add(folder)
    with suppress(OSError):  # a folder that is not there, or cannot be listed, has nothing for us
        names = {entry.name for entry in os.scandir(folder)}
        for name in filter(_TEMPORARY_FILE.fullmatch, names):
            _remove_dead(folder / name, os.O_RDWR)
        for name in filter(_TEMPORARY_FOLDER.fullmatch, names):
            _remove_dead(folder / name, os.O_RDONLY | os.O_DIRECTORY)


def _remove_dead(path: Path, flags: int) -> None:
    """Remove a file or folder of ours whose lock nobody holds."""
    with suppress(OSError):
        held = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            kind = os.fstat(held)
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if kind.st_uid != os.geteuid():
                return
            if stat.S_ISDIR(kind.st_mode):
                shutil.rmtree(path)
            elif stat.S_ISREG(kind.st_mode):
                path.unlink()
        finally:
            os.close(held)


def _lock(path: Path, flags: int) -> int | None:
    """A descriptor that holds the lock of a file or folder until it is closed; None if another one holds it.

    A file system that has no locks is taken to have one writer.
    """
    while True:
        held = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(held), os.stat(path)):
                return held
        except FileNotFoundError:
            pass  # as below: somebody removed the path before the lock was had
        except BlockingIOError:
            os.close(held)
            return None
        except OSError:
            return held
        os.close(held)


@contextmanager
def owned(path: Path) -> Iterator[None]:
    """Keep a temporary file, made if it is not there, from being swept for as long as this lasts."""
    while (held := _lock(path, os.O_RDWR | os.O_CREAT)) is None:
        pass  # a sweeper has it for a moment
    try:
        yield
    finally:
        os.close(held)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for files that must have a name. The next one that is made sweeps it if this process is killed."""
    sweep(Path(tempfile.gettempdir()))
    while True:
        folder = Path(tempfile.mkdtemp(prefix="loe_field-held-"))
        with suppress(FileNotFoundError):  # swept as soon as it was made
            if (held := _lock(folder, os.O_RDONLY)) is not None:
                break
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a folder if it is not there, and keep other writers out of it until this, or the process, ends.

    Raises:
        InputError: another one writes there, or it cannot be written.
    """
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = _lock(path, os.O_RDWR | os.O_CREAT)
        if held is None:
            owner = path.read_text("utf8").strip() or "another"
            raise InputError(f"{folder} is being written by process {owner}: wait for its end, or give another folder")
        os.ftruncate(held, 0)
        os.write(held, str(os.getpid()).encode())
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror or error}") from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(held)
