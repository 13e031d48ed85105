"""Files that are there whole or not at all."""

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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
    try:  # from before the file is there: the exception of a signal may come at any moment
        temporary.touch(exist_ok=False)
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
        with tempfile.TemporaryDirectory(dir=ancestor, prefix=".loe_field-"):
            pass
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
        InputError: it is a folder, or lies in one that can be neither made nor written.
    """
    path = path.expanduser().resolve()
    if path.is_dir():
        raise InputError(f"{path} is a folder: give --output the name of a file")
    check_writable(path.parent, "--output")
    return path
