"""Ctrl-C, SIGTERM and a closed terminal: one policy for whatever is to end in an orderly way."""

import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_signals(act: Callable[[list[int]], None]) -> Iterator[list[int]]:
    """Within it SIGINT, SIGTERM and SIGHUP call `act`; afterwards they do what they did before.

    SIGHUP stays ignored where it is, as under nohup. After it nothing more is said on the terminal, which is gone.
    `act` gets the numbers of the signals so far, which are yielded too: none until one came. It is called in the main
    thread, between two of its operations. In another thread, which gets no signals, nothing is changed.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def handler(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if number == signal.SIGHUP:
            _leave_terminal()
        act(received)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield received
    finally:
        for number, before in previous.items():  # None: one of another language's, which Python cannot set again
            signal.signal(number, signal.SIG_DFL if before is None else before)


def _leave_terminal() -> None:
    """Lead stdout and stderr nowhere where they are a terminal: writing to one that is gone is an error."""
    for number in (1, 2):
        try:
            is_device = stat.S_ISCHR(os.fstat(number).st_mode)
        except OSError:  # closed
            continue
        if is_device:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)
