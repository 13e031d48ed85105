"""Files that are there whole or not at all."""

import contextlib
import errno
import os
import secrets
import stat
import tempfile
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
        # From before the file is there: the exception of a signal may come at any moment.
        temporary.touch(exist_ok=False)
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
        with tempfile.TemporaryDirectory(dir=ancestor, prefix=".loe_field-"):
            pass
    except OSError as error:
        reason = f"{ancestor}: {error.strerror}"
        raise InputError(f"{folder} cannot be written ({reason}): give {option} another folder") from None


def check_output(path: Path) -> Path:
    """The absolute path of a file that --output names, once it is sure that it can be written.

    Raises:
        InputError: it is a folder, or anything else but a file, or lies in one that can be neither made nor written.
    """
    path = path.expanduser().absolute()
    if path.is_dir():
        raise InputError(f"{path} is a folder: give --output the name of a file")
    try:
        target = _replaceable(path)
    except OSError as error:  # a loop of links, a name that is too long
        raise InputError(f"{path} cannot be written ({error.strerror}): give --output another name") from None
    check_writable(target.parent, "--output")
    return path
