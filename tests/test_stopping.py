"""A terminal that is closed ends a command in its own time, as Ctrl-C does."""

import os
import pty
import signal
import sys

from support import GROUND

from loe_field.stopping import stop_signals

SPEAKS = f"""{GROUND}
import time
from loe_field.stopping import stop_signals
with stop_signals(lambda received: None) as received:
    print("ready", flush=True)
    while not received:
        time.sleep(0.01)
    print("still speaking", flush=True)
    sys.stderr.write("and here")
    sys.exit(100 + received[0])
"""


def test_a_terminal_that_is_gone_is_spoken_to_no_more():
    process, terminal = pty.fork()
    if process == 0:
        os.execl(sys.executable, "python", "-c", SPEAKS)
    said = b""
    while b"ready" not in said:
        said += os.read(terminal, 100)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 101


def test_a_handler_of_another_language_is_no_error_afterwards(monkeypatch):
    real = signal.signal
    monkeypatch.setattr(signal, "signal", lambda number, handler: real(number, handler) and None)
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    before = {number: real(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        with stop_signals(lambda received: None):
            pass
    finally:
        for number, handler in before.items():
            real(number, handler)
