"""Runs a suite's jobs, one ns-train after the other, and remembers what is done."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loe_field.bench.suite import Job
from loe_field.files import last_line, write_whole

_POLL_SECONDS = 0.5
_TAIL = 2**16
"""Bytes of a log's end in which its last line is looked for; tyro's boxes of similar options are long."""


@dataclass
class Outcome:
    """What came of a job."""

    job: Job
    folder: Path
    metrics: dict[str, Any] = field(default_factory=dict)
    """The content of metrics.json; empty if the run failed."""
    problem: str = ""
    """Why it failed, one line; empty if it did not."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: the run under way has been saved."""


def finished(job: Job, root: Path) -> Outcome | None:
    """The outcome of a job that ran to its end before, else None. A failed one is tried again."""
    folder = job.folder(root)
    try:
        metrics = json.loads((folder / "metrics.json").read_text("utf8"))
        complete = json.loads((folder / "complete.json").read_text("utf8"))["options"] == job.options
    except (OSError, ValueError, KeyError):
        return None
    return Outcome(job, folder, metrics) if complete else None


def run_job(job: Job, root: Path, show: Any) -> Outcome:
    """Run ns-train to its end, or on from its last checkpoint.

    Args:
        job: what to run.
        root: the suite's output folder.
        show: called with the run's last line whenever there may be a new one.

    Raises:
        Interrupted: Ctrl-C or SIGTERM.
    """
    folder = job.folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "complete.json").unlink(missing_ok=True)
    command = [*ns_train(), *job.options, *_where(folder)]
    if any(folder.glob("nerfstudio_models/step-*.ckpt")):
        command += ["--load-dir", str(folder / "nerfstudio_models")]
    command += job.dataparser
    with open(folder / "log.txt", "ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            while process.poll() is None:
                show(_last_line(folder / "log.txt"))
                time.sleep(_POLL_SECONDS)
        except KeyboardInterrupt:
            process.terminate()  # ns-train ends after its step, evaluates and saves
            process.wait()
            raise Interrupted from None
        finally:
            if process.poll() is None:
                process.kill()
    if process.returncode != 0:
        return Outcome(job, folder, problem=f"exit {process.returncode}: {_last_line(folder / 'log.txt')}")
    with write_whole(folder / "complete.json") as path:
        path.write_text(json.dumps({"options": job.options}), "utf8")
    return finished(job, root) or Outcome(job, folder, problem="ns-train left no metrics.json")


def ns_train() -> list[str]:
    """The command beside this Python."""
    return [str(Path(sys.executable).with_name("ns-train"))]


def _where(folder: Path) -> list[str]:
    """Options that make `folder` the run's folder: <output-dir>/<experiment>/<method>/<timestamp>."""
    output, experiment, _, timestamp = (*folder.parts[:-3],), *folder.parts[-3:]
    return ["--output-dir", str(Path(*output)), "--experiment-name", experiment, "--timestamp", timestamp]


def _last_line(path: Path) -> str:
    with open(path, "rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - _TAIL))
        return last_line(file.read())
