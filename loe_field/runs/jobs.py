"""The jobs of a suite, each an ns-train of its own; one that is done is remembered, one that was stopped goes on."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loe_field.files import write_whole
from loe_field.runs.child import Children
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
    """The outcome of a job that ran to its end before, else None. A failed one is tried again."""
    folder = job.folder(root)
    try:
        metrics = json.loads((folder / "metrics.json").read_text("utf8"))
        complete = json.loads((folder / "complete.json").read_text("utf8"))["options"] == job.words
    except (OSError, ValueError, KeyError):
        return None
    return Outcome(job, folder, metrics) if complete else None


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
    if any(folder.glob("nerfstudio_models/step-*.ckpt")):
        where += ["--load-dir", str(folder / "nerfstudio_models")]
    words = [job.method, *where, *job.words[1:]]
    end = children.run(words, output=folder / "log.txt", show=show, environment=job.environment)
    if end.problem:
        return Outcome(job, folder, problem=end.problem)
    with write_whole(folder / "complete.json") as path:
        path.write_text(json.dumps({"options": job.words}), "utf8")
    return finished(job, root) or Outcome(job, folder, problem="left no metrics.json")
