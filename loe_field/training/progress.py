"""What the console shows while a run goes on: one live line in a terminal, one plain line an evaluation in a log."""

from nerfstudio.utils.rich_utils import CONSOLE
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from loe_field.training.record import Point


def duration(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class TrainProgress:
    """Steps, speed, time left and PSNR of a run from start_step to num_steps.

    Args:
        start_step: steps taken before.
        num_steps: steps in all, resumed ones included.
        per_step: pixels or rays per step.
        unit: what these are.
    """

    def __init__(self, start_step: int, num_steps: int, *, per_step: int, unit: str) -> None:
        self._start, self._total, self._per_step, self._unit = start_step, num_steps, per_step, unit
        self._live = Progress(
            TextColumn("training"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            console=CONSOLE,
            transient=True,
            disable=not CONSOLE.is_terminal,
        )
        self._task = self._live.add_task("", total=num_steps, completed=start_step, status="")

    def __enter__(self) -> "TrainProgress":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def _pace(self, step: int, seconds: float) -> str:
        done = step - self._start
        if done <= 0 or seconds <= 0:
            return ""
        rate = done / seconds
        left = duration((self._total - step) / rate)
        return f"{rate * self._per_step / 1e3:,.0f}k {self._unit}/s  ETA {left}"

    def update(self, step: int, seconds: float, psnr: float | None) -> None:
        """Move the live line: steps taken, seconds of this run, PSNR of the last evaluation."""
        shown = "" if psnr is None else f"PSNR {psnr:.2f} dB  "
        self._live.update(self._task, completed=step, status=shown + self._pace(step, seconds))

    def evaluated(self, point: Point, best: float, seconds: float) -> None:
        """Print a line that stays: one evaluation."""
        CONSOLE.print(
            f"step {point.step:>{len(str(self._total))}}/{self._total} ({100 * point.step / self._total:3.0f} %)  "
            f"PSNR {point.psnr:.2f} dB (best {best:.2f})  {duration(point.seconds)}  {self._pace(point.step, seconds)}",
            highlight=False,
        )
