"""The console during a run: one live line in a terminal, one plain line an evaluation in a log."""

from nerfstudio.utils.rich_utils import CONSOLE
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from loe_field.training.record import RunRecord


def duration(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class TrainProgress:
    """Steps, speed, time left and PSNR of a run that goes on from start_step.

    It ends at num_seconds, or if that is None at num_steps, resumed ones included. A step takes per_step units: pixels,
    rays.
    """

    def __init__(
        self,
        record: RunRecord,
        start_step: int,
        num_steps: int,
        num_seconds: float | None,
        *,
        per_step: int,
        unit: str,
    ) -> None:
        self._record, self._start, self._steps, self._num_seconds = record, start_step, num_steps, num_seconds
        self._per_step, self._unit = per_step, unit
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
        self._live.update(self._task, completed=self._part(start_step))

    def __enter__(self) -> "TrainProgress":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def _part(self, step: int) -> float:
        """How much of the run is done, 0 to 1."""
        return step / self._steps if self._num_seconds is None else min(1.0, self._record.seconds / self._num_seconds)

    def _count(self, step: int) -> str:
        return f"{step:>{len(str(self._steps))}}/{self._steps}" if self._num_seconds is None else f"{step}"

    def _pace(self, step: int) -> str:
        done, seconds = step - self._start, self._record.seconds_here
        if done <= 0 or seconds <= 0:
            return ""
        rate = done / seconds
        left = (self._steps - step) / rate if self._num_seconds is None else self._num_seconds - self._record.seconds
        return f"{rate * self._per_step / 1e3:,.0f}k {self._unit}/s  ETA {duration(max(left, 0))}"

    def update(self, step: int) -> None:
        """Move the live line to so many steps."""
        psnr = f"PSNR {self._record.curve[-1].psnr:.2f} dB  " if self._record.curve else ""
        status = f"step {self._count(step)}  {psnr}{self._pace(step)}"
        self._live.update(self._task, completed=self._part(step), status=status)

    def evaluated(self) -> None:
        """Print a line that stays: the last evaluation."""
        step, seconds, psnr = self._record.curve[-1]
        CONSOLE.print(
            f"step {self._count(step)} ({100 * self._part(step):3.0f} %)  PSNR {psnr:.2f} dB "
            f"(best {self._record.psnr_best:.2f})  {duration(seconds)}  {self._pace(step)}",
            highlight=False,
        )
