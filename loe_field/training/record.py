"""The story of a run: its curve, its best, its time; kept in checkpoints, so that a resumed run goes on with it."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Point(NamedTuple):
    """One evaluation."""

    step: int
    """Optimizer steps taken."""
    seconds: float
    """Training time so far, without evaluations."""
    psnr: float
    """dB over the whole evaluation set."""


@dataclass
class RunRecord:
    """The story of a run so far."""

    curve: list[Point] = field(default_factory=list)
    """Every evaluation, in order."""
    seconds_before: float = 0.0
    """Training time of the runs that this one resumes."""
    _started: float | None = None

    def start(self) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    @contextmanager
    def clock_stopped(self) -> Iterator[None]:
        """For what is not training: evaluations."""
        before = time.perf_counter()
        try:
            yield
        finally:
            if self._started is not None:
                self._started += time.perf_counter() - before

    @property
    def seconds_here(self) -> float:
        """Training time of this part of the run, without evaluations; 0 before the start."""
        return 0.0 if self._started is None else time.perf_counter() - self._started

    @property
    def seconds(self) -> float:
        """Training time so far, over all resumed parts."""
        return self.seconds_before + self.seconds_here

    def add(self, step: int, psnr: float) -> Point:
        """Note an evaluation made now; a second one of the same step takes the place of the first."""
        if self.curve and self.curve[-1].step == step:
            self.curve.pop()
        point = Point(step, self.seconds, psnr)
        self.curve.append(point)
        return point

    @property
    def psnr_best(self) -> float:
        """The highest PSNR of all evaluations, dB; -inf before the first."""
        return max((point.psnr for point in self.curve), default=-math.inf)

    def seconds_to(self, target_psnr: float | None) -> float | None:
        """Training time at the first evaluation that reached the target; None if none did, or without a target."""
        if target_psnr is None:
            return None
        return next((point.seconds for point in self.curve if point.psnr >= target_psnr), None)

    def to_csv(self) -> str:
        """The curve as a table: step, seconds, psnr."""
        rows = (f"{p.step},{p.seconds:.3f},{p.psnr:.4f}\n" for p in self.curve)
        return ",".join(Point._fields) + "\n" + "".join(rows)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers only, for torch.load(weights_only=True)."""
        return {"curve": [tuple(point) for point in self.curve], "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint left off."""
        self.curve = [Point(*point) for point in state["curve"]]
        self.seconds_before = float(state["seconds"])
