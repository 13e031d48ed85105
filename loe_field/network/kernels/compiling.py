"""A C file as a loaded library: compiled once per machine, kept where nobody else can write, checked before it is used.

The library is kept in `$XDG_CACHE_HOME/loe_field` (`~/.cache/loe_field`). The last part of its name is the hash of its
content; a file that does not match is thrown away and compiled anew. It is read once and loaded from that copy in
memory, so that no change of the file after the check leads anywhere. Where the folder is missing, full, a link, or open
to others, every process compiles for itself, and says so.
"""

import ctypes
import hashlib
import itertools
import os
import secrets
import selectors
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

COMPILE_SECONDS = 120
"""For all that the compiler is asked to do."""
_MOST_OUTPUT = 2**20
"""Bytes that a compiler may print."""
_OPEN_SYMBOLS = ("-undefined", "dynamic_lookup") if sys.platform == "darwin" else ()


_loaded = itertools.count()
"""Libraries loaded so far."""


class Unavailable(RuntimeError):
    """A library cannot be had on this machine; the text says why and what to do, in one line."""


class TooSlow(Unavailable):
    """The compiler's time is up."""


_LEASH = 'exec 3<&0 </dev/null; { read _ <&3; kill -9 0; } >/dev/null 2>&1 & exec "$@" 3<&-'
"""A shell's words before a command: stdin is a pipe that ends with this process, and all of the group with it."""


def compiler() -> list[str]:
    """The words of the C compiler's command: $CC, cc, gcc or clang.

    Raises:
        Unavailable: there is none.
    """
    if os.name != "posix":
        raise Unavailable("the CPU kernels are for Linux and macOS")
    wanted = os.environ.get("CC")
    try:
        choices = [shlex.split(wanted)] if wanted else [["cc"], ["gcc"], ["clang"]]
    except ValueError as error:
        raise Unavailable(f"CC is {wanted!r}, which is not a command ({error})") from None
    for words in choices:
        if words and shutil.which(words[0]):
            return words
    raise Unavailable(
        f"CC is {wanted!r}, which is not there" if wanted else "no C compiler: install gcc or clang, or set CC"
    )


def run(command: Sequence[str], deadline: float, folder: Path | None = None) -> str:
    """What a command prints; it has a session of its own, of which nothing is left when this returns.

    Args:
        command: its words.
        deadline: on the clock of time.monotonic.
        folder: of its temporary files.

    Raises:
        Unavailable: it fails or prints without end.
        TooSlow: it has not ended at the deadline.
    """
    words = one_line(shlex.join(command))
    environment = {**os.environ, "LC_ALL": "C"} | ({} if folder is None else {"TMPDIR": str(folder)})
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    leashed = ["sh", "-c", _LEASH, "sh", *command]
    printed, process = bytearray(), None
    try:
        with _deferred_signals():  # between its start and the assignment nobody could end it
            process = subprocess.Popen(leashed, env=environment, start_new_session=True, **pipes)  # type: ignore[call-overload]
        assert process.stdout is not None
        with process.stdout as output, selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            while part := _read(output.fileno(), selector, deadline):
                printed += part
                if len(printed) > _MOST_OUTPUT:
                    raise Unavailable(f"{words} prints without end")
        status = process.wait(max(0.0, deadline - time.monotonic()))
    except (TimeoutError, subprocess.TimeoutExpired):
        raise TooSlow(f"{words} had not ended after {COMPILE_SECONDS} s") from None
    except (OSError, ValueError) as error:
        raise Unavailable(f"{words}: {one_line(str(error))}") from None
    finally:
        if process is not None:
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert process.stdin is not None
            process.stdin.close()
    text = printed.decode(errors="replace")
    if status != 0:
        raise Unavailable(f"{words} failed: {one_line(text) or f'exit status {status}'}")
    return text


def _read(descriptor: int, selector: selectors.BaseSelector, deadline: float) -> bytes:
    if not selector.select(max(0.0, deadline - time.monotonic())):
        raise TimeoutError
    return os.read(descriptor, 2**16)


def one_line(text: str) -> str:
    """The end of a text, without line breaks and whatever else a terminal would obey."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[-300:]


def build(source: Path, command: Sequence[str], link_flags: Sequence[str], deadline: float) -> bytes:
    """The content of the shared library of a C file.

    Args:
        source: the file.
        command: the compiler's words, with the flags for compiling.
        link_flags: the flags for linking; symbols that are nowhere stay open.
        deadline: on the clock of time.monotonic.

    Raises:
        Unavailable: it does not compile, or there is no room for it.
        TooSlow: it has not ended at the deadline.
    """
    try:
        with _ends_orderly(), tempfile.TemporaryDirectory(prefix="loe_field-held-") as name, _held(name):
            folder = Path(name)
            compiled, linked = folder / "library.o", folder / "library.so"
            run([*command, "-c", str(source), "-o", str(compiled)], deadline, folder)
            link = [*command, "-shared", str(compiled), "-o", str(linked), *link_flags, *_OPEN_SYMBOLS, "-lm"]
            run(link, deadline, folder)
            if not linked.exists():
                raise Unavailable(f"{one_line(shlex.join(link))} made no library")
            return linked.read_bytes()
    except OSError as error:
        raise Unavailable(f"no room to compile in ({one_line(str(error))}): set TMPDIR") from None


@contextmanager
def _held(folder: str) -> Iterator[None]:
    """Lock a temporary folder: files.sweep removes those whose writer is dead, and so holds no lock."""
    import fcntl  # not on every system on which torch computes

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks, where nothing is swept
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _deferred_signals() -> Iterator[None]:
    """A signal that comes within it does what it does when it is over."""
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    if threading.current_thread() is not threading.main_thread():
        numbers = ()
    previous = {number: signal.signal(number, lambda number, frame: received.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, before in previous.items():  # None: one of another language's, which Python cannot set again
            signal.signal(number, signal.SIG_DFL if before is None else before)
        for number in received:
            signal.raise_signal(number)


@contextmanager
def _ends_orderly() -> Iterator[None]:
    """A signal that would end the process on the spot, within it, leads out of it by an exception."""
    ending = []
    if threading.current_thread() is threading.main_thread():
        ending = [s for s in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) == signal.SIG_DFL]

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    for number in ending:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in ending:
            signal.signal(number, signal.SIG_DFL)


def load(content: bytes, functions: Sequence[str]) -> ctypes.CDLL:
    """The library of this content, which must have these functions.

    Raises:
        OSError: it cannot be loaded.
        Unavailable: it has no such functions.
    """
    if hasattr(os, "memfd_create"):
        with open(os.memfd_create("loe_field"), "wb") as file:
            file.write(content)
            file.flush()
            # What the loader opened once under a name it gives again: every name is another.
            loaded = ctypes.CDLL(f"/proc/{os.getpid()}/{'./' * next(_loaded)}fd/{file.fileno()}")
    else:
        with tempfile.TemporaryDirectory(prefix="loe_field-") as folder:
            path = Path(folder, "library.so")
            path.write_bytes(content)
            loaded = ctypes.CDLL(str(path))
    for name in functions:
        if not hasattr(loaded, name):
            raise Unavailable(f"what the compiler made has no {name}")
    return loaded


class Cache:
    """The folder where libraries are kept, or none; `problem` says why there is none, or why it could not be used."""

    def __init__(self) -> None:
        self.problem: str | None = None
        self._folder: int | None = None
        try:
            self._folder = self._open()
        except Unavailable as error:
            self.problem = one_line(str(error))

    def _open(self) -> int:
        wanted = os.environ.get("XDG_CACHE_HOME")
        try:
            base = Path(wanted) if wanted else Path.home() / ".cache"
        except RuntimeError:
            raise Unavailable("this user has no home folder: set XDG_CACHE_HOME") from None
        if not base.is_absolute():
            raise Unavailable(f"the cache folder {str(base)!r} is not an absolute path: set XDG_CACHE_HOME to one")
        self._path = base / "loe_field"
        descriptor = None
        try:
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            status = os.fstat(descriptor)
        except OSError as error:
            if descriptor is not None:
                os.close(descriptor)
            reason = "it is a link" if self._path.is_symlink() else error.strerror
            raise Unavailable(f"{self._path} cannot be used: {reason}") from None
        if not _ours(status):
            os.close(descriptor)
            whose = "is another user's" if status.st_uid != os.geteuid() else "can be written by others"
            raise Unavailable(f"{self._path} {whose}: delete it or set XDG_CACHE_HOME")
        return descriptor

    def __enter__(self) -> "Cache":
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            os.close(self._folder)

    def get(self, prefix: str) -> bytes | None:
        """The content kept under this name, if it is whole; what is not is thrown away."""
        if self._folder is None:
            return None
        for name in os.listdir(self._folder):
            if not name.startswith(prefix):
                continue
            with suppress(OSError):
                descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=self._folder)
                with open(descriptor, "rb") as file:
                    status = os.fstat(descriptor)
                    content = file.read() if stat.S_ISREG(status.st_mode) and _ours(status) else b""
                if name == _name(prefix, content):
                    return content
            with suppress(OSError):
                os.unlink(name, dir_fd=self._folder)
        return None

    def put(self, prefix: str, content: bytes) -> None:
        """Keep it, whole or not at all."""
        if self._folder is None:
            return
        name = _name(prefix, content)
        temporary = f".{secrets.token_hex(8)}.tmp"
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self._folder)
            with open(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            os.rename(temporary, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        except OSError as error:
            self.problem = one_line(f"{self._path} cannot be written: {error.strerror}")
        finally:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=self._folder)


def _name(prefix: str, content: bytes) -> str:
    return f"{prefix}-{hashlib.sha256(content).hexdigest()}.so"


def _ours(status: os.stat_result) -> bool:
    """Whether nobody but this user and root can have written a file or folder."""
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
