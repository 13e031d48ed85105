"""The jobs of a suite, each an ns-train of its own; one that is done is remembered, one that was stopped goes on."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loe_field.files import write_whole
from loe_field.runs.child import Children
from loe_field.runs.content import good_checkpoints, read_results
from loe_field.runs.suite import Job


@dataclass
class Outcome:
    """The outcome of a job."""

    job: Job
    folder: Path
    metrics: dict[str, Any] = field(default_factory=dict)
    """The content of metrics.json; empty if the run failed."""
    problem: str = ""
    """Why it failed, one line; empty if it did not."""


def finished(job: Job, root: Path) -> Outcome | None:
    """The outcome of a job that ran to its end before and left all its results, else None.

    A failed one is tried again. One whose data have changed since is another job, with another folder.
    """
    folder = job.folder(root)
    metrics = read_results(folder) if _complete(folder) == job.words else None
    return None if metrics is None else Outcome(job, folder, metrics)


def was_other(job: Job, root: Path) -> bool:
    """Whether this job was finished with other content of its data."""
    folder = job.folder(root)
    others = folder.parent.glob(f"{folder.name.removesuffix(job.key)}*")
    return any(_complete(other) == job.words for other in others if other != folder)


def _complete(folder: Path) -> list[str] | None:
    """The options of a run that came to its end."""
    try:
        return json.loads((folder / "complete.json").read_text("utf8"))["options"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def run_job(job: Job, root: Path, children: Children, show: Callable[[str], None]) -> Outcome:
    """Run ns-train to its end, or on from its last checkpoint, and `show` each line of its output.

    `children.stopped` says afterwards whether it was stopped, saved, before its end.
    """
    folder = job.folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "complete.json").unlink(missing_ok=True)
    # The run's folder is <output-dir>/<experiment>/<method>/<timestamp>.
    output, experiment, _, timestamp = folder.parents[2], *folder.parts[-3:]
    where = ["--output-dir", str(output), "--experiment-name", experiment, "--timestamp", timestamp]
    if (checkpoints := good_checkpoints(folder)) is not None:
        where += ["--load-dir", str(checkpoints)]
    words = [job.method, *where, *job.words[1:]]
    end = children.run(words, output=folder / "log.txt", show=show, environment=job.environment)
    if end.problem:
        return Outcome(job, folder, problem=end.problem)
    with write_whole(folder / "complete.json") as path:
        path.write_text(json.dumps({"options": job.words}), "utf8")
    return finished(job, root) or Outcome(job, folder, problem="left no metrics.json")
