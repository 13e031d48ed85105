"""How many threads to compute with on a CPU that others use too."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_FIRST_PROBE, _PERIOD, _SAMPLES = 10, 200, 3


class ThreadTuner:
    """Times training steps with one, half and all of the threads now and then, and keeps to the fastest.

    Torch's threads wait for each other after every operation. Where another process holds a core they wait for its time
    slice, hundreds of times a step: on two cores with one of them busy, a step of 8,192 pixels took 200 ms with two
    threads and 60 ms with one (40 and 60 ms with both cores free). The probes are steps of the run itself.
    """

    def __init__(self, most: int) -> None:
        self.candidates = sorted({1, max(1, most // 2), most})
        self.best = most
        self._taken = 0
        self._to_probe: list[int] = []
        self._seconds: dict[int, list[float]] = {}

    @contextmanager
    def step(self) -> Iterator[None]:
        """Set the threads for one step, and time it if it is a probe."""
        if len(self.candidates) > 1 and self._taken % _PERIOD == _FIRST_PROBE:
            self._to_probe = [threads for threads in self.candidates for _ in range(_SAMPLES)]
            self._seconds = {threads: [] for threads in self.candidates}
        self._taken += 1
        probe = self._to_probe.pop(0) if self._to_probe else None
        threads = probe or self.best
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        start = time.perf_counter()
        yield
        if probe is not None:
            self._seconds[probe].append(time.perf_counter() - start)
            if not self._to_probe:
                self.best = min(self.candidates, key=lambda threads: statistics.median(self._seconds[threads]))
