"""Several processes of torch.distributed for the tests, forked from this one, so that they import nothing."""

import contextlib
import os
import signal
import socket
import sys
import time
import traceback

import pytest
import torch


def only_where_forks_are_safe():
    """Skip a file of tests that fork, but in the process of its own that test_forking.py starts for it.

    Once autograd has started threads for a device, which other tests' stand-ins for one make it do, no fork of the
    process can use it.
    """
    if os.environ.get("LOE_FIELD_FORKS") != "1":
        pytest.skip("tests/test_forking.py runs it", allow_module_level=True)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Launched:
    """`function(rank)` in each of some processes, told of each other as torchrun does; they print into files."""

    def __init__(self, folder, size, function):
        self.folder, self.pids = folder, []
        place = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        for rank in range(size):
            for name in ("out", "err"):
                (folder / f"{rank}.{name}").write_text("")
            pid = os.fork()
            if pid == 0:
                os.environ.update(place, RANK=str(rank), LOCAL_RANK=str(rank))
                self._run(rank, function)
            self.pids.append(pid)

    def _run(self, rank, function):
        status = 1
        try:
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(self.folder / f"{rank}.{name}", os.O_WRONLY | os.O_APPEND), number)
            sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115  (pytest's are others)
            sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            torch.set_num_threads(1)
            function(rank)
            status = 0
        except SystemExit as ended:
            status = ended.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def end(self, timeout=90):
        """Exit statuses, minus the signal's number of those killed; the processes are gone afterwards."""
        deadline, statuses = time.monotonic() + timeout, {}
        while len(statuses) < len(self.pids) and time.monotonic() < deadline:
            for pid in set(self.pids) - statuses.keys():
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    statuses[pid] = os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        for pid in set(self.pids) - statuses.keys():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        return [statuses.get(pid, "hung") for pid in self.pids]

    def said(self, name="err"):
        """What each has printed."""
        return [(self.folder / f"{rank}.{name}").read_text() for rank in range(len(self.pids))]


@contextlib.contextmanager
def launched(folder, size, function):
    folder.mkdir(exist_ok=True)
    processes = Launched(folder, size, function)
    try:
        yield processes
    finally:
        if any(_alive(pid) for pid in processes.pids):
            processes.end(0)


def _alive(pid):
    with contextlib.suppress(ChildProcessError):
        return os.waitpid(pid, os.WNOHANG) == (0, 0)
    return False
