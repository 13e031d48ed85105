"""TrainStep as on a GPU, rehearsed on the CPU: a graph is a function there, which replays what was recorded."""

from types import SimpleNamespace

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from loe_field.training.step import TrainStep, _Recorded


class Launches(TorchDispatchMode):
    """Counts the operations that a GPU would be given one by one: those of a graph are within `replaying`."""

    def __init__(self):
        super().__init__()
        self.count, self.replaying = 0, False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not (self.replaying or func.is_view)
        return func(*args, **(kwargs or {}))


class Rehearsal(TrainStep):
    """Warms up, records and replays; a replay reads what a graph would read, and writes where it would write."""

    launches: Launches | None = None
    _generator = SimpleNamespace(get_offset=lambda: 0)  # a CPU's has none

    def __post_init__(self):
        super().__post_init__()
        self.captures, self.recordings = True, 0

    def _warm_up(self, step, drawn):
        return self._take(step, drawn)

    def _record(self, step, drawn):
        self.recordings += 1
        static = [t.clone() for t in drawn]
        figures = ({}, {})

        def replay():
            if self.launches is not None:
                self.launches.replaying = True
            with self._as_recorded():
                rates = [group["lr"] for group in self._groups]
                assert all(isinstance(rate, torch.Tensor) for rate in rates)
                for mine, found in zip(figures, self._take(step, tuple(static))):
                    mine.update(found)
            if self.launches is not None:
                self.launches.replaying = False

        with self._as_recorded():
            pass
        return _Recorded(SimpleNamespace(replay=replay), static, *figures)
