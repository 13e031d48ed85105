"""Files that are there whole or not at all."""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from loe_field.errors import InputError

_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}  # fmt: skip


@contextmanager
def write_whole(path: Path, *, staging: Path | None = None) -> Iterator[Path]:
    """Write to the temporary file yielded, which takes the place of `path` when the block ends without an exception.

    The content is on disk before the name changes: a kill or a power cut leaves the old file or the new, never a part.
    Through a symbolic link its target is written, which need not be there, and the link stays. Other names of the old
    file, hard links, keep its content.

    Args:
        path: where the file goes; its folder must exist.
        staging: folder of the temporary file, on the same file system; the folder of the file by default.

    Raises:
        InputError: it cannot be written, or what is there is no file; an OSError within the block is taken for that.
    """
    temporary: Path | None = None
    try:
        target = _replaceable(path)
        temporary = (staging or target.parent) / f".{secrets.token_hex(8)}.tmp{target.suffix}"
        sweep(temporary.parent)
        sweep()
        # From before the file is there: the exception of a signal may come at any moment.
        temporary.touch(exist_ok=False)
        with owned(temporary):
            yield temporary
            with open(temporary, "rb+") as file:
                if not os.fstat(file.fileno()).st_size:
                    raise OSError(errno.EIO, "nothing of it came to the disk")
                os.fsync(file.fileno())
            os.replace(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):  # of a disk that can be read only by now
                temporary.unlink(missing_ok=True)


def _replaceable(path: Path) -> Path:
    """The file that is written for a path: that itself, or what it links to.

    Raises:
        InputError: it is there, and no file.
    """
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except FileNotFoundError:
        kind = stat.S_IFREG
    if kind != stat.S_IFREG:
        raise InputError(f"{path} is {_KINDS.get(kind, 'no file')}: only a file is ever replaced, give another name")
    return Path(os.path.realpath(path))


def _sync_folder(folder: Path) -> None:
    """Bring a folder's new name to the disk, where its file system knows that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_each(writers: Mapping[Path, Callable[[Path], object]]) -> None:
    """Write files, each whole or not at all, and the others too where one cannot be written.

    Args:
        writers: by a file's path what writes it to the path that it is given.

    Raises:
        InputError: some cannot be written.
    """
    problems: dict[Path, InputError] = {}
    for path, write in writers.items():
        try:
            with write_whole(path) as temporary:
                write(temporary)
        except InputError as error:
            problems[path] = error
    if problems:
        first, *others = problems
        names = "".join(f", nor can {path.name}" for path in others)
        raise InputError(f"{problems[first]}{names}")


@contextmanager
def write_output(path: Path) -> Iterator[Path]:
    """`write_whole` for a file that the user named: makes its folder.

    Raises:
        InputError: it cannot be written, or what is there is no file.
    """
    make_folder(Path(os.path.realpath(path)).parent)
    with write_whole(path) as temporary:
        yield temporary


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where they are not there.

    Raises:
        InputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be made: {error.strerror or error}") from None


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
    ancestor = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    try:
        with tempfile.TemporaryFile(dir=ancestor, prefix=".loe_field-"):
            pass  # it has no name where the system knows how, so that a kill leaves nothing
    except OSError as error:
        reason = f"{ancestor}: {error.strerror}"
        raise InputError(f"{folder} cannot be written ({reason}): give {option} another folder") from None


def check_name(path: Path, option: str) -> None:
    """Refuse a path that no file system has room for; the name's length counts in bytes.

    Raises:
        InputError: it is too long, or holds a zero byte; `option` is what should name another one.
    """
    longest = max((os.fsencode(part) for part in path.parts), key=len, default=b"")
    if b"\0" in os.fsencode(path):
        raise InputError(f"{option} has a zero byte in it: give the path of a file")
    if len(longest) > 255 or len(os.fsencode(path)) > 4000:
        start = os.fsdecode(longest[:40])
        raise InputError(f"{option} is too long, at {start}...: names have 255 bytes at most, paths 4,000")


def check_output(path: Path) -> Path:
    """The absolute path of a file that --output names, once it is sure that it can be written.

    Raises:
        InputError: it is a folder, or anything else but a file, or lies in one that can be neither made nor written.
    """
    path = path.expanduser().absolute()
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder: give --output the name of a file")
    try:
        target = _replaceable(path)
    except OSError as error:  # a loop of links, a name that is too long
        raise InputError(f"{path} cannot be written ({error.strerror}): give --output another name") from None
    check_writable(target.parent, "--output")
    return path


def check_output_folder(path: Path) -> Path:
    """The absolute path of a folder that --output names, once it is sure that it can be made.

    Raises:
        InputError: there is something already, unless an empty folder, or it can be neither made nor written.
    """
    path = path.expanduser().absolute()
    try:
        there = os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir()))
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): give --output another name") from None
    if there:
        raise InputError(f"{path} is there already: give --output the name of a new folder")
    check_writable(path.parent, "--output")
    return path


LOCK = ".loe_field.lock"
"""The file in a folder whose lock `locked` holds."""
_TEMPORARY_FILE = re.compile(rf"\.[0-9a-f]{{16}}\.tmp(\..*)?|{re.escape(LOCK)}")
_TEMPORARY_FOLDER = re.compile(r"loe_field-held-[a-z0-9_]{8}")
_swept: set[Path] = set()


def sweep(folder: Path | None = None) -> None:
    """Remove the temporary files that dead writers left in a folder, and the folders of `temporary_folder`.

    None is the system's folder for temporary files. A writer holds the lock of its file or folder, which the system
    takes from the dead, however they died and on whatever machine that shares the folder. Nothing is removed where a
    lock cannot be had, nor of other users. Done once a folder in a process.
    """
    with contextlib.suppress(OSError):  # a folder that is not there, or cannot be listed, has nothing for us
        folder = folder or Path(tempfile.gettempdir())
        if folder in _swept:
            return
        _swept.add(folder)
        names = {entry.name for entry in os.scandir(folder)}
        for name in filter(_TEMPORARY_FILE.fullmatch, names):
            _remove_dead(folder / name, os.O_RDWR)
        for name in filter(_TEMPORARY_FOLDER.fullmatch, names):
            _remove_dead(folder / name, os.O_RDONLY | os.O_DIRECTORY)


def _remove_dead(path: Path, flags: int) -> None:
    """Remove a file or folder of ours whose lock nobody holds."""
    with contextlib.suppress(OSError):
        held = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            kind = os.fstat(held)
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another sweeper may have removed it before this lock was had, and a writer made it anew.
            if kind.st_uid != os.geteuid() or not os.path.samestat(kind, os.lstat(path)):
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
        time.sleep(0.001)  # a sweeper has it for a moment
    try:
        yield
    finally:
        os.close(held)


def is_owned(path: Path) -> bool:
    """Whether a living process, this one included, is within `owned` of a file."""
    try:
        held = _lock(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    if held is not None:
        os.close(held)
    return held is None


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for files that must have a name. The next one that is made sweeps it if this process is killed."""
    sweep()
    while True:
        folder = Path(tempfile.mkdtemp(prefix="loe_field-held-"))
        with contextlib.suppress(FileNotFoundError):  # swept as soon as it was made
            if (held := _lock(folder, os.O_RDONLY)) is not None:
                break
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


@contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """Fill the temporary folder yielded, which becomes `path` when the block ends without an exception.

    Args:
        path: not there yet, or an empty folder; the folders above it are made.

    Raises:
        InputError: it cannot be written; an OSError within the block is taken for that.
    """
    target = Path(os.path.realpath(path))
    make_folder(target.parent)
    sweep(target.parent)
    temporary = target.parent / f"loe_field-held-{secrets.token_hex(4)}"
    held = None
    try:
        temporary.mkdir()
        held = _lock(temporary, os.O_RDONLY)
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                with open(Path(folder, name), "rb") as file:
                    os.fsync(file.fileno())
            _sync_folder(Path(folder))
        os.rename(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if held is not None:
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
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror or error}") from None
    try:
        with contextlib.suppress(OSError):  # of a full disk
            os.ftruncate(held, 0)
            os.write(held, str(os.getpid()).encode())
        yield
    finally:
        with contextlib.suppress(OSError):  # of a disk that can be read only by now
            path.unlink(missing_ok=True)
        os.close(held)
