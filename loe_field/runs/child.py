"""The one way to run ns-train as a child process: where its output goes, how it is stopped, how it ended."""

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import IO, NamedTuple

from loe_field.files import last_line
from loe_field.stopping import stop_signals

_LEASH = """
import sys
sys.path[:1] == [''] and sys.path.pop(0)
import os, signal, threading
def leash(pipe):
    os.read(pipe, 1)
    try:
        import psutil
        for process in psutil.Process().children(recursive=True):
            process.kill()
    finally:
        os.killpg(0, signal.SIGKILL)
threading.Thread(target=leash, args=[os.dup(0)], daemon=True).start()
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
"""
"""A child's first lines: it ends with its parent, however that ends, and all that it has started with it.

The child's stdin is a pipe that the parent never writes to: it ends when the parent does. The folder that one works in
is no place to import from.
"""
NS_TRAIN = "sys.argv[0] = 'ns-train'\nfrom nerfstudio.scripts.train import entrypoint as e\ne()"
"""ns-train of this Python, wherever its scripts lie."""
_TAIL = 500
"""Lines at the end of the output that are kept to find out why a child failed; tyro's boxes are long."""
_LAST_WORDS_SECONDS = 5.0
"""How long the output is waited for after a child's end; a logger's helper may hold it open."""


def ns_train(*words: str) -> list[str]:
    """The command ns-train with these words, of this Python, wherever its scripts lie; `Children` has a leash too."""
    return [sys.executable, "-c", f"import sys\n{NS_TRAIN}", *words]


class End(NamedTuple):
    """How a child ended."""

    status: int
    """Its exit status; below 0, the signal that killed it, negated."""
    problem: str
    """Why it did not end well, one line; empty if it did."""


class Children(ExitStack):
    """Runs ns-train, one child at a time, within a `with` block that hands Ctrl-C, SIGTERM and SIGHUP on as SIGTERM.

    SIGTERM ends a run that trains after its step, evaluated and saved, and one that is still starting at once and
    without a traceback; a second one ends either at once. A child lives in a session of its own, so that the terminal's
    Ctrl-C does not come to it a second time, and never outlives its call of `run`, nor this process, were it killed.
    """

    _process: "subprocess.Popen[bytes] | None" = None
    _received: Sequence[int] = ()

    def __enter__(self) -> "Children":
        self._received = self.enter_context(stop_signals(self._hand_on))
        return self

    @property
    def stopped(self) -> int:
        """The first signal's number, after which no child should be started; 0 if there was none."""
        return self._received[0] if self._received else 0

    def _hand_on(self, _: list[int]) -> None:
        if self._process is not None:
            self._process.terminate()

    def run(
        self,
        words: Sequence[str],
        *,
        output: Path | None = None,
        show: Callable[[str], None] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> End:
        """Run ns-train to its end.

        Args:
            words: those after ns-train on the command line.
            output: file to which stdout and stderr are appended; None: they are this process's own.
            show: called with each line for the file, or else for stderr, in another thread.
            environment: variables to add to this process's own.

        Raises:
            OSError: the file for the output cannot be opened.
        """
        sys.stdout.flush()
        log = open(output, "ab", buffering=0) if output else None  # noqa: SIM115  (_read closes it)
        process = self._process = subprocess.Popen(
            [sys.executable, "-c", _LEASH + NS_TRAIN, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if output else None,
            stderr=subprocess.STDOUT if output else subprocess.PIPE,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        try:
            if self.stopped:  # it came while the process was being made
                process.terminate()
            tail: deque[bytes] = deque(maxlen=_TAIL)
            stream = process.stdout or process.stderr
            reader = threading.Thread(target=_read, args=(stream, log, tail, show), daemon=True)
            reader.start()
            status = process.wait()
        finally:
            self._process = None
            _kill(process)
        reader.join(_LAST_WORDS_SECONDS)
        if status == 0:
            return End(0, "")
        if self.stopped:
            return End(status, "stopped before its end")
        if status < 0:
            return End(status, f"killed by {signal.Signals(-status).name}")
        return End(status, last_line(b"".join(tail)).removeprefix("error: ") or f"exit status {status}")


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End a child, if it has not ended, and what it has left running."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdin is not None
    process.stdin.close()


def _read(stream: IO[bytes], log: IO[bytes] | None, tail: deque[bytes], show: Callable[[str], None] | None) -> None:
    """Pass a stream on as it comes, to a file or to stderr, and keep its end.

    It is read to its end also where it can be passed on no more: the run would die of a pipe that nobody reads.
    """
    with stream, log or nullcontext():
        for line in stream:
            tail.append(line)
            with suppress(OSError):
                if log is None:
                    sys.stderr.write(line.decode("utf8", "replace"))
                    sys.stderr.flush()
                else:
                    log.write(line)
            if show is not None and (said := last_line(line)):
                show(said)
