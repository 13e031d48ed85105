"""loe-bench: run a suite of fits and report it."""

import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.progress import TextColumn

from loe_field.cli.command import progress_bar, run_command
from loe_field.errors import InputError
from loe_field.files import check_writable, locked
from loe_field.runs.check import check_suite
from loe_field.runs.child import Children
from loe_field.runs.jobs import Outcome, finished, run_job, was_other
from loe_field.runs.report import write_report
from loe_field.runs.suite import Job, Run, Suite, check_seeds, jobs_of, read_suite, search_jobs
from loe_field.words import printable, say


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
    """Folder of runs and report. None: outputs/bench/<name of the suite>."""
    data: tuple[Path, ...] = ()
    """Pictures or scenes' folders instead of the suite's."""
    dataparser: str | None = None
    """How scenes are read instead of the suite's way: blender-data, colmap, ..."""
    seeds: tuple[int, ...] = ()
    """Seeds instead of the suite's."""
    max_num_iterations: int | None = None
    """Steps of every run instead of the suite's."""
    train_seconds: float | None = None
    """Training seconds of every run instead of the suite's seconds or steps."""
    dry_run: bool = False
    """Print the commands and run nothing."""

    def main(self) -> int:
        """Run everything; 1 if a run failed, 128 and the signal's number after Ctrl-C or SIGTERM."""
        suite = self._chosen(read_suite(self.config))
        root = (self.output_dir or Path("outputs/bench") / self.config.stem).expanduser().resolve()
        pictures: list[Path | None] = [*self._pictures(suite)] or [None]
        check_suite(suite, pictures, str(self.config))
        pairs = [(run, picture) for run in suite.runs if not run.missing for picture in pictures]
        if self.dry_run:
            for job in [job for pair in pairs for job in [*search_jobs(suite, *pair), *jobs_of(suite, *pair)]]:
                variables = [f"{name}={shlex.quote(value)}" for name, value in job.environment.items()]
                say(" ".join([*variables, shlex.join(["ns-train", *job.words])]), sys.stdout)
            return 0
        check_writable(root, "--output-dir")
        console = Console()
        with locked(root), Children() as children:
            runs = _Runs(suite, root, console, children)
            with runs.progress:
                for run, picture in pairs:
                    runs.run(run, picture)
            write_report(root, suite, runs.outcomes, runs.searches)
        for line in (root / "table.md").read_text("utf8").splitlines():
            say(line, console)
        say(f"results {root}", console)
        if children.stopped:
            console.print("stopped; the same command goes on from here")
            return 128 + children.stopped
        return int(any(outcome.problem for outcome in [*runs.outcomes, *runs.searches]))

    def _chosen(self, suite: Suite) -> Suite:
        """The suite with this command's options in it."""
        runs = [r for r in suite.runs if not self.runs or any(w.lower() in r.name.lower() for w in self.runs)]
        if not runs:
            names = ", ".join(run.name for run in suite.runs)
            raise InputError(f"no run is named like {' or '.join(self.runs)}: there are {names}")
        steps, seconds = self.max_num_iterations, self.train_seconds
        if steps is not None and seconds is not None:
            raise InputError("--train-seconds and --max-num-iterations are both given: give one")
        if steps is not None:
            if steps < 1:
                raise InputError(f"--max-num-iterations is {steps}: it must be at least 1")
            runs = [replace(run, overrides={**run.overrides, "max_num_iterations": steps}) for run in runs]
            if (search := suite.search) is not None:
                search = replace(search, overrides={**search.overrides, "max_num_iterations": steps})
            suite = replace(suite, search=search, train_seconds=None)
        elif seconds is not None:
            if not 0 < seconds < math.inf:
                raise InputError(f"--train-seconds is {seconds:g}: it must be above 0, and finite")
            suite = replace(suite, train_seconds=seconds)
        if steps is not None or seconds is not None:
            option = f"--train-seconds {seconds:g}" if steps is None else f"--max-num-iterations {steps}"
            suite = replace(suite, text=f"{suite.text.rstrip()}\n\nRun with `{option}` instead.\n")
        if self.seeds:
            check_seeds(self.seeds, "--seeds")
        dataparser = suite.dataparser if self.dataparser is None else [self.dataparser]
        return replace(suite, runs=runs, seeds=list(self.seeds) or suite.seeds, dataparser=dataparser)

    def _pictures(self, suite: Suite) -> list[Path]:
        paths = [path.expanduser() for path in self.data or [self.config.parent / path for path in suite.data]]
        named = "--data" if self.data else f"{self.config} says it in data"
        for path in paths:
            if not (path.is_file() or path.is_dir()):
                problem = "is no file" if path.exists() else "is not there"
                raise InputError(f"{path} {problem} ({named}): give pictures, or folders of scenes")
        return [path.resolve() for path in dict.fromkeys(paths)]


class _Runs:
    """The runs of one call, with a progress bar over them."""

    def __init__(self, suite: Suite, root: Path, console: Console, children: Children) -> None:
        self.suite, self.root, self.console, self.children = suite, root, console, children
        self.outcomes: list[Outcome] = []
        self.searches: list[Outcome] = []
        self.progress = progress_bar(console, TextColumn("{task.fields[line]}", markup=False))
        self._task = self.progress.add_task("runs", total=0, line="")

    def run(self, run: Run, picture: Path | None) -> None:
        """The search, where there is one, and all seeds."""
        searched = self._all(search_jobs(self.suite, run, picture), self.searches)
        best = max(searched, key=lambda o: (bool(o.metrics), _finite(o.metrics.get("psnr"))), default=None)
        if best is None or best.metrics:
            self._all(jobs_of(self.suite, run, picture, best=best and best.job.search_value), self.outcomes)

    def _all(self, jobs: Sequence[Job], outcomes: list[Outcome]) -> list[Outcome]:
        self.progress.update(self._task, total=(self.progress.tasks[0].total or 0) + len(jobs))
        done = []
        for job in jobs:
            if self.children.stopped:
                break
            self.progress.update(self._task, description=printable(job.label, self.console.encoding), line="")
            outcome = finished(job, self.root)
            if outcome is None and was_other(job, self.root):
                said = f"{job.label}: its data are not what they were, it is fitted again"
                say(said, self.console)
            outcome = outcome or run_job(
                job,
                self.root,
                self.children,
                lambda line: self.progress.update(self._task, line=printable(line[:60], self.console.encoding)),
            )
            if outcome.problem and self.children.stopped:
                break
            result = outcome.problem or f"PSNR {outcome.metrics['psnr']:.2f} dB"
            say(f"{job.label}: {result}", self.console)
            done.append(outcome)
            outcomes.append(outcome)
            self.progress.advance(self._task)
            write_report(self.root, self.suite, self.outcomes, self.searches)
        return done


def _finite(psnr: Any) -> float:
    return -math.inf if psnr is None or math.isnan(psnr) else float(psnr)


main = partial(run_command, Bench, "loe-bench")

if __name__ == "__main__":
    main()
