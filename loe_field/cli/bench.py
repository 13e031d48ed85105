"""loe-bench: run a suite of fits and report it."""

import math
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from loe_field.bench.report import write_report
from loe_field.bench.runner import Interrupted, Outcome, finished, run_job
from loe_field.bench.suite import Job, Run, Suite, jobs_of, read_suite, search_jobs
from loe_field.errors import InputError


@dataclass
class Bench:
    """Run the fits that a TOML file describes and report them.

    Each goes through ns-train. Writes results.csv, table.md, curves.png and a page of pictures after every run. What
    has been run before is not run again; a run that was stopped goes on.
    """

    config: Annotated[Path, tyro.conf.Positional]
    """The suite, see configs/."""
    runs: tuple[str, ...] = ()
    """Only runs with these words in their names."""
    output_dir: Path | None = None
    """Where runs and report go. None: outputs/bench/<name of the suite>."""
    data: tuple[Path, ...] = ()
    """Pictures or scenes' folders instead of the suite's."""
    seeds: tuple[int, ...] = ()
    """Seeds instead of the suite's."""
    max_num_iterations: int | None = None
    """Steps of every run instead of the suite's."""
    train_seconds: float | None = None
    """Training seconds of every run instead of the suite's seconds or steps."""
    dry_run: bool = False
    """Print the commands and run nothing."""

    def main(self) -> int:
        """Run everything; 1 if a run failed, 130 after Ctrl-C or SIGTERM."""
        suite = self._chosen(read_suite(self.config))
        root = (self.output_dir or Path("outputs/bench") / self.config.stem).expanduser().resolve()
        pictures: list[Path | None] = [*self._pictures(suite)] or [None]
        console = Console()
        if self.dry_run:
            for run in suite.runs:
                for picture in pictures:
                    if not run.missing:
                        for job in [*search_jobs(suite, run, picture), *jobs_of(suite, run, picture)]:
                            print(shlex.join(["ns-train", *job.options, *job.dataparser]))
            return 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        runs = _Runs(suite, root, console)
        try:
            with runs.progress:
                for run in suite.runs:
                    for picture in pictures:
                        if not run.missing:
                            runs.run(run, picture)
        except (Interrupted, KeyboardInterrupt):
            console.print("stopped; the same command goes on from here")
            return 130
        finally:
            write_report(root, suite, runs.outcomes, runs.searches)
            console.print((root / "table.md").read_text("utf8"), markup=False, highlight=False, soft_wrap=True)
            console.print(f"results {root}", soft_wrap=True, highlight=False)
        return int(any(outcome.problem for outcome in [*runs.outcomes, *runs.searches]))

    def _chosen(self, suite: Suite) -> Suite:
        """The suite with this command's options in it."""
        runs = [r for r in suite.runs if not self.runs or any(w.lower() in r.name.lower() for w in self.runs)]
        if not runs:
            names = ", ".join(run.name for run in suite.runs)
            raise InputError(f"no run is named like {' or '.join(self.runs)}: there are {names}")
        if self.max_num_iterations is not None:
            if self.max_num_iterations < 1:
                raise InputError(f"--max-num-iterations is {self.max_num_iterations}: it must be at least 1")
            steps = {"max_num_iterations": self.max_num_iterations}
            runs = [replace(r, overrides={**r.overrides, **steps}) for r in runs]
            if suite.search is not None:
                search = replace(suite.search, overrides={**suite.search.overrides, **steps})
                suite = replace(suite, search=search)
            text = f"{suite.text.rstrip()}\n\nRun with `--max-num-iterations {self.max_num_iterations}` instead.\n"
            suite = replace(suite, text=text, train_seconds=None)
        if self.train_seconds is not None:
            if self.max_num_iterations is not None:
                raise InputError("--train-seconds and --max-num-iterations are both given: give one")
            text = f"{suite.text.rstrip()}\n\nRun with `--train-seconds {self.train_seconds:g}` instead.\n"
            suite = replace(suite, text=text, train_seconds=self.train_seconds)
        return replace(suite, runs=runs, seeds=list(self.seeds) or suite.seeds)

    def _pictures(self, suite: Suite) -> list[Path]:
        paths = list(self.data) or [self.config.parent / path for path in suite.data]
        for path in paths:
            if not path.exists():
                raise InputError(f"{path} is not there: --data takes pictures, or folders of scenes")
        return [path.resolve() for path in paths]


class _Runs:
    """The runs of one call, with a progress bar over them."""

    def __init__(self, suite: Suite, root: Path, console: Console) -> None:
        self.suite, self.root, self.console = suite, root, console
        self.outcomes: list[Outcome] = []
        self.searches: list[Outcome] = []
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[line]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self.progress.add_task("runs", total=0, line="")

    def run(self, run: Run, picture: Path | None) -> None:
        """The search, where there is one, and all seeds."""
        best = None
        searched = self._all(list(search_jobs(self.suite, run, picture)), self.searches)
        if searched:
            good = [outcome for outcome in searched if outcome.metrics]
            if not good:
                return
            best = max(good, key=lambda o: _finite(o.metrics["psnr"])).job.search_value
        self._all(list(jobs_of(self.suite, run, picture, best=best)), self.outcomes)

    def _all(self, jobs: Sequence[Job], outcomes: list[Outcome]) -> list[Outcome]:
        self.progress.update(self._task, total=(self.progress.tasks[0].total or 0) + len(jobs))
        done = []
        for job in jobs:
            self.progress.update(self._task, description=job.label, line="")
            outcome = finished(job, self.root) or run_job(
                job, self.root, lambda line: self.progress.update(self._task, line=line[:60])
            )
            result = outcome.problem or f"PSNR {outcome.metrics['psnr']:.2f} dB"
            self.console.print(f"{job.label}: {result}", soft_wrap=True, highlight=False, markup=False)
            done.append(outcome)
            outcomes.append(outcome)
            self.progress.advance(self._task)
            write_report(self.root, self.suite, self.outcomes, self.searches)
        return done


def _finite(psnr: Any) -> float:
    return -math.inf if psnr is None or math.isnan(psnr) else float(psnr)


def main() -> None:
    """The command."""
    try:
        code = tyro.cli(Bench, prog="loe-bench", description=Bench.__doc__).main()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    sys.exit(code)


if __name__ == "__main__":
    main()
