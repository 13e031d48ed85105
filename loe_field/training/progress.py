"""What the console shows while a run goes on: one live line in a terminal, one plain line an evaluation in a log."""

from nerfstudio.utils.rich_utils import CONSOLE
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from loe_field.training.record import Point


def duration(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class TrainProgress:
    """Steps, speed, time left and PSNR of a run.

    Args:
        start_step: steps taken before.
        num_steps: steps in all, resumed ones included; None where seconds count.
        num_seconds: length of the run in seconds where they count, resumed ones included.
        seconds_before: seconds taken before.
        per_step: pixels or rays per step.
        unit: what these are.
    """

    def __init__(
        self,
        start_step: int,
        num_steps: int | None,
        *,
        num_seconds: float | None = None,
        seconds_before: float = 0.0,
        per_step: int,
        unit: str,
    ) -> None:
        self._start, self._steps, self._per_step, self._unit = start_step, num_steps, per_step, unit
        self._num_seconds, self._seconds_before = num_seconds, seconds_before
        self._live = Progress(
            TextColumn("training"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[status]}"),
            console=CONSOLE,
            transient=True,
            disable=not CONSOLE.is_terminal,
        )
        self._task = self._live.add_task("", total=1.0, status="")
        self._live.update(self._task, completed=self._part(start_step, 0.0))

    def __enter__(self) -> "TrainProgress":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def _part(self, step: int, seconds: float) -> float:
        """How much of the run is done, 0 to 1."""
        if self._num_seconds is not None:
            return min(1.0, (self._seconds_before + seconds) / self._num_seconds)
        assert self._steps is not None
        return step / self._steps

    def _count(self, step: int) -> str:
        return f"{step}" if self._steps is None else f"{step:>{len(str(self._steps))}}/{self._steps}"

    def _pace(self, step: int, seconds: float) -> str:
        done = step - self._start
        if done <= 0 or seconds <= 0:
            return ""
        rate = done / seconds
        if self._num_seconds is not None:
            left = self._num_seconds - self._seconds_before - seconds
        else:
            assert self._steps is not None
            left = (self._steps - step) / rate
        return f"{rate * self._per_step / 1e3:,.0f}k {self._unit}/s  ETA {duration(max(left, 0))}"

    def update(self, step: int, seconds: float, psnr: float | None) -> None:
        """Move the live line: steps taken, seconds of this run, PSNR of the last evaluation."""
        shown = "" if psnr is None else f"PSNR {psnr:.2f} dB  "
        status = f"step {self._count(step)}  {shown}{self._pace(step, seconds)}"
        self._live.update(self._task, completed=self._part(step, seconds), status=status)

    def evaluated(self, point: Point, best: float, seconds: float) -> None:
        """Print a line that stays: one evaluation."""
        CONSOLE.print(
            f"step {self._count(point.step)} ({100 * self._part(point.step, seconds):3.0f} %)  "
            f"PSNR {point.psnr:.2f} dB (best {best:.2f})  {duration(point.seconds)}  {self._pace(point.step, seconds)}",
            highlight=False,
        )
