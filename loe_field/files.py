"""Files that are there whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loe_field.errors import InputError


@contextmanager
def write_whole(path: Path, *, staging: Path | None = None) -> Iterator[Path]:
    """Write to a temporary file that takes the place of `path` when the block ends without an exception.

    The content is on disk before the name changes, so that a kill or a power cut at any moment leaves the old file or
    the new one, never a part.

    Args:
        path: where the file goes; its folder must exist.
        staging: folder of the temporary file, on the same file system; the folder of `path` by default.

    Yields:
        the temporary path to write to.
    """
    descriptor, name = tempfile.mkstemp(dir=staging or path.parent, prefix=".", suffix=f".tmp{path.suffix}")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes it private; a user's file has the user's own mode
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
    """The last line of a log's end that is not empty, stripped; of a line that was drawn over, what stands now.

    Of a box, which is how tyro says what is wrong with an option, it is the first line within.
    """
    lines = [line.strip() for line in content.decode("utf8", "replace").replace("\r", "\n").splitlines()]
    lines = [line for line in lines if line]
    if lines and lines[-1].startswith("╰"):
        tops = [number for number, line in enumerate(lines) if line.startswith("╭")]
        if tops:
            return lines[tops[-1] + 1].strip("│ ")
    return lines[-1] if lines else ""


def check_writable(folder: Path, option: str) -> None:
    """Try a folder, or the nearest one above it that is there, before any work goes into what it is to hold.

    Raises:
        InputError: it can be neither made nor written; `option` is what should name another one.
    """
    ancestor = folder
    while not ancestor.exists():
        ancestor = ancestor.parent
    try:
        with tempfile.TemporaryDirectory(dir=ancestor, prefix=".loe_field-"):
            pass
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({ancestor}: {error.strerror}): give {option} another folder"
        ) from None


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
