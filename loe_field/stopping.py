"""Ctrl-C and SIGTERM: one policy for whatever is to end in an orderly way."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_signals(act: Callable[[list[int]], None]) -> Iterator[list[int]]:
    """Within it SIGINT and SIGTERM call `act`; afterwards they do what they did before.

    `act` gets the numbers of the signals so far, which are yielded too: none until one came. It is called in the main
    thread, between two of its operations. In another thread, which gets no signals, nothing is changed.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def handler(number: int, frame: FrameType | None) -> None:
        received.append(number)
        act(received)

    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
