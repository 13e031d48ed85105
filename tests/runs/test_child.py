"""Children with a few lines of Python where ns-train would be."""

import os
import random
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from support import GROUND

from loe_field.runs import child
from loe_field.runs.child import Children, End

pytestmark = pytest.mark.slow

ORDERLY = """
import signal, sys, time
def stop(number, frame):
    stops.append(number)
    if len(stops) > 1:
        sys.exit(9)
    print("stopping", flush=True)
stops = []
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, lambda *_: sys.exit(7))
print("ready", flush=True)
while len(stops) == 0 or (SLOW and len(stops) < 2):
    time.sleep(0.01)
print("saved", flush=True)
sys.exit(143)
"""


@pytest.fixture
def child_runs(monkeypatch):
    """Let `code` stand for ns-train."""
    return lambda code: monkeypatch.setattr(child, "NS_TRAIN", code)


def test_words_environment_and_output(child_runs, tmp_path):
    child_runs("import os, sys; print(sys.argv[1:], os.environ['MINE']); sys.stderr.write('and stderr')")
    lines = []
    with Children() as children:
        end = children.run(["--a", "b c"], output=tmp_path / "log", show=lines.append, environment={"MINE": "yes"})
        assert (end, children.stopped) == (End(0, ""), 0)
        children.run([], output=tmp_path / "log", environment={"MINE": "again"})
    first, second = (tmp_path / "log").read_text().split("and stderr", 1)
    assert first + second == "['--a', 'b c'] yes\n[] again\nand stderr"
    assert lines == ["['--a', 'b c'] yes", "and stderr"]


def test_without_a_file_the_output_is_this_process_s_own(child_runs, capfd):
    child_runs("import sys; print('out'); sys.exit('error: too bad')")
    with Children() as children:
        assert children.run([]) == End(1, "too bad")
    assert capfd.readouterr() == ("out\n", "error: too bad\n")


@pytest.mark.parametrize(
    ("code", "end"),
    [
        ("import sys; sys.exit(3)", End(3, "exit status 3")),
        ("print('step 1'); raise ValueError('none such')", End(1, "ValueError: none such")),
        ("import os; os.kill(os.getpid(), 9)", End(-9, "killed by SIGKILL")),
    ],
)
def test_how_it_ended(code, end, child_runs, tmp_path):
    child_runs(code)
    with Children() as children:
        assert children.run([], output=tmp_path / "log") == end


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_its_own_time(number, child_runs, tmp_path):
    child_runs(f"SLOW = False{ORDERLY}")
    before = signal.getsignal(number)

    def show(line):
        if line == "ready":
            os.kill(os.getpid(), number)

    with Children() as children:
        assert children.run([], output=tmp_path / "log", show=show) == End(143, "stopped before its end")
        assert children.stopped == number
    assert (tmp_path / "log").read_text() == "ready\nstopping\nsaved\n"
    assert signal.getsignal(number) is before


def test_a_second_signal_is_handed_on_too(child_runs, tmp_path):
    child_runs(f"SLOW = True{ORDERLY}")

    def show(line):
        os.kill(os.getpid(), signal.SIGINT)

    with Children() as children:
        assert children.run([], output=tmp_path / "log", show=show).status == 9
    assert (tmp_path / "log").read_text() == "ready\nstopping\n"


def test_a_stop_between_two_children_is_known(child_runs, tmp_path):
    child_runs("import time; time.sleep(60)")
    with Children() as children:
        os.kill(os.getpid(), signal.SIGTERM)
        assert children.stopped == signal.SIGTERM
        start = time.monotonic()
        assert children.run([], output=tmp_path / "log") == End(-15, "stopped before its end")
        assert time.monotonic() - start < 30


def test_it_does_not_outlive_an_error(child_runs, tmp_path, monkeypatch):
    child_runs("import time; time.sleep(60)")
    made = []

    class Process(child.subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            made.append(self)

        def wait(self, timeout=None):
            if self.poll() is None and not hasattr(self, "failed"):
                self.failed = True
                raise RuntimeError("of the parent")
            return super().wait(timeout)

    monkeypatch.setattr(child.subprocess, "Popen", Process)
    with Children() as children, pytest.raises(RuntimeError, match="of the parent"):
        children.run([], output=tmp_path / "log")
    assert made[0].returncode == -signal.SIGKILL


def test_an_output_that_stays_open_is_not_waited_for_for_ever(child_runs, tmp_path, monkeypatch):
    monkeypatch.setattr(child, "_LAST_WORDS_SECONDS", 0.2)
    child_runs("import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(20)'])")
    start = time.monotonic()
    with Children() as children:
        assert children.run([], output=tmp_path / "log").status == 0
    assert time.monotonic() - start < 15


def test_elsewhere_than_in_the_main_thread_signals_stay_as_they_are(child_runs, tmp_path):
    child_runs("print('done')")
    before, ends = signal.getsignal(signal.SIGTERM), []

    def work():
        with Children() as children:
            assert signal.getsignal(signal.SIGTERM) is before
            ends.append(children.run([], output=tmp_path / "log"))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ends == [End(0, "")]
    assert (tmp_path / "log").read_text() == "done\n"


PARENT = f"""{GROUND}
from loe_field.runs import child
child.NS_TRAIN = sys.argv[1]
with child.Children() as children:
    end = children.run([])
sys.exit(128 + children.stopped)
"""
FAMILY = """
import os, subprocess, time
for new in (False, True):
    subprocess.Popen(["sleep", "60"], start_new_session=new)
print(os.getpid(), flush=True)
while True: pass
"""


def family(code):
    """A process that runs Children, and those below it, once the child has said that it is there."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT, code], stdout=subprocess.PIPE, text=True)
    parent.stdout.readline()
    return parent, psutil.Process(parent.pid).children(recursive=True)


def still_there(processes):
    left = psutil.wait_procs(processes, 10)[1]
    return [process for process in left if process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("moment", [0.0, random.Random(1).uniform(0, 0.3)])
def test_a_killed_parent_takes_child_and_grandchildren_with_it(moment):
    parent, below = family(FAMILY)
    assert len(below) == 3
    time.sleep(moment)
    parent.kill()
    parent.wait()
    assert still_there(below) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_parent_leaves_nothing_running(number):
    parent, below = family(FAMILY.replace("(False, True)", "(False,)"))
    parent.send_signal(number)
    assert parent.wait(20) == 128 + number
    assert still_there(below) == []


def test_nohup_holds_for_what_it_starts():
    code = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n{PARENT}"
    child = "import time; print(1, flush=True); time.sleep(1)"
    parent = subprocess.Popen([sys.executable, "-c", code, child], stdout=subprocess.PIPE, text=True)
    parent.stdout.readline()
    parent.send_signal(signal.SIGHUP)
    assert parent.wait(20) == 128


def test_a_child_reads_no_input(child_runs, tmp_path):
    child_runs("import sys; print(repr(sys.stdin.read()))")
    with Children() as children:
        children.run([], output=tmp_path / "log")
    assert (tmp_path / "log").read_text() == "''\n"


COMPILES = f"""{GROUND}
import time
for name in ("network", "network.kernels"):
    sys.modules["loe_field." + name] = types.ModuleType(name)
    sys.modules["loe_field." + name].__path__ = [sys.modules["loe_field"].__path__[0] + "/" + name.replace(".", "/")]
from loe_field.network.kernels.compiling import run
print("ready", flush=True)
run(["sh", "-c", "sleep 60; true"], time.monotonic() + 100)
"""


def test_a_compiler_dies_with_the_process_that_started_it():
    parent = subprocess.Popen([sys.executable, "-c", COMPILES], stdout=subprocess.PIPE, text=True)
    parent.stdout.readline()
    below = []
    deadline = time.monotonic() + 20
    while len(below) < 3 and time.monotonic() < deadline:
        below = psutil.Process(parent.pid).children(recursive=True)
    parent.kill()
    parent.wait()
    assert len(below) == 3
    assert still_there(below) == []
