"""Commands killed at random moments: nothing is lost, nothing goes on running, the next start leaves no temporary file.

`LOE_FIELD_KILLS=50` spreads so many over all commands that write, which takes a quarter of an hour.
"""

import contextlib
import functools
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import FAST, SCRIPTS, waves

from loe_field import fit_image, load_field

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("LOE_FIELD_KILLS", 0))
KINDS = ("render", "export", "train", "bench", "folder")
TAG = "LOE_FIELD_KILLED"
LONG = (*FAST, "--num-threads", "1", "--steps-per-save", "20", "--steps-per-eval-all-images", "100")
LONG = (*LONG, "--max-num-iterations", "800")


def alive(tag):
    """Commands with the tag in their environment, which is handed on to all that they start."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            tagged = f"{TAG}={tag}".encode() in (process / "environ").read_bytes().split(b"\0")
            if tagged and (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append((process / "cmdline").read_bytes())
        except OSError:
            continue
    return found


class Command:
    """A command of a user's, killed and started again in one folder."""

    def __init__(self, folder, *words):
        self.folder, self.words, self.tag = folder, [SCRIPTS / words[0], *map(str, words[1:])], str(folder)
        (folder / "tmp").mkdir()

    def start(self, *more):
        environment = os.environ | {TAG: self.tag, "TMPDIR": str(self.folder / "tmp"), "OMP_NUM_THREADS": "1"}
        with open(self.folder / "console.txt", "ab") as console:
            return subprocess.Popen(
                [*self.words, *more], env=environment, stdout=console, stderr=console, cwd=self.folder
            )

    def saved(self):
        """When the last checkpoint was written."""
        times = [0]
        for path in self.folder.glob("out/**/step-*.ckpt"):
            with contextlib.suppress(FileNotFoundError):  # the next one has taken its place
                times.append(path.stat().st_mtime_ns)
        return max(times)

    def kill_in_the_work(self, seconds, *more):
        """So many seconds after the first checkpoint."""
        self.kill_at(seconds, *more, once=self.saved())

    def kill_at(self, seconds, *more, once=None):
        process = self.start(*more)
        while once is not None and self.saved() == once and process.poll() is None:
            time.sleep(0.02)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        deadline = time.monotonic() + 10
        while (left := alive(self.tag)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not left, f"after a kill at {seconds:.2f} s"

    def finish(self, *more):
        process = self.start(*more)
        assert process.wait(600) == 0, (self.folder / "console.txt").read_text()[-3000:]
        assert alive(self.tag) == []
        assert [str(path) for path in self.folder.rglob("*") if path.name.startswith((".", "loe_field-"))] == []


def whole(folder):
    """Everything in a run's folder can be read; the steps of its checkpoints."""
    for path in folder.glob("[!.]*.json"):  # names with a dot are temporary files, which the next start sweeps
        json.loads(path.read_text())
    for path in folder.glob("[!.]*.png"):
        Image.open(path).load()
    return [torch.load(path, weights_only=True)["step"] for path in folder.glob("nerfstudio_models/*.ckpt")]


@functools.cache
def pace():
    """Seconds that the host takes to start on this machine, as busy as it is; of a few kills just a guess."""
    if not KILLS:
        return 8.0
    start = time.monotonic()
    subprocess.run([sys.executable, "-W", "ignore", "-c", "import loe_field.methods"], check=True)
    return time.monotonic() - start


def moments(kind, last, few):
    """When to kill: seconds from the start of the command on, up to `last` times the host's own start."""
    number = KILLS // len(KINDS) if KILLS else few
    if not number:
        pytest.skip("LOE_FIELD_KILLS=50 runs it")
    source = random.Random(f"kills of {kind}")
    return [source.uniform(0.01, last) * pace() for _ in range(number)]


def kill(command, number, moment, *more):
    """Every second time the command is killed in its work, so that a slow start does not hide that."""
    if number % 2:
        command.kill_at(moment, *more)
    else:
        command.kill_in_the_work(moment % 1.5, *more)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A run's folder."""
    output = tmp_path_factory.mktemp("fitted")
    return fit_image(waves(16, 16, 3), num_steps=20, num_layers=5, layer_width=16, output_dir=output).folder


def test_render(fitted, tmp_path):
    command = Command(
        tmp_path, "loe-render", "--load-config", fitted / "config.yml", "--output", tmp_path / "r.png", "--scale", "60"
    )
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "r.png")
    for moment in moments("render", 0.9, few=2):
        command.kill_at(moment)
        with Image.open(tmp_path / "r.png") as picture:
            picture.load()
            assert picture.size in ((8, 8), (960, 960))
    command.finish()
    assert Image.open(tmp_path / "r.png").size == (960, 960)


def test_export(fitted, tmp_path):
    path = tmp_path / "f.safetensors"
    command = Command(
        tmp_path, "loe-export", "--load-config", fitted / "config.yml", "--format", "safetensors", "--output", path
    )
    for moment in moments("export", 0.9, few=1):
        command.kill_at(moment)
        assert not path.exists() or load_field(path)
    command.finish()
    assert load_field(path)


def test_train(tmp_path):
    """Each start goes on from the last checkpoint of the newest run that has one, in a folder of its own."""
    kills = moments("train", 2.2, few=0)
    Image.fromarray(waves(16, 16, 3)).save(tmp_path / "p.png")
    command = Command(tmp_path, "ns-train", "loe-image", "--data", "p.png", "--output-dir", "out", *LONG)

    def going_on():
        runs = sorted(tmp_path.glob("out/p/loe-image/*/nerfstudio_models/step-*.ckpt"), key=os.path.getmtime)
        return ("--load-dir", str(runs[-1].parent)) if runs else ()

    reached = 0
    for number, moment in enumerate(kills):
        kill(command, number, moment, *going_on())
        steps = [step for run in tmp_path.glob("out/p/loe-image/*") for step in whole(run)]
        assert max(steps, default=0) >= reached
        reached = max(steps, default=0)
    command.finish(*going_on())


def finished(root):
    """The runs below a folder that came to their end, and when."""
    return {path: path.stat().st_mtime_ns for path in root.rglob("metrics.json") if done(path.parent)}


def done(run):
    if (run / "run.json").exists():
        return json.loads((run / "run.json").read_text())["finished"]
    return (run / "complete.json").exists()


def killed_and_gone_on(command, kills, root, going_on=tuple):
    """Kill, look and start again; what is finished is not touched any more. Returns the metrics that are left."""
    before = {}
    for number, moment in enumerate(kills):
        kill(command, number, moment, *going_on())
        for run in {path.parent for path in root.rglob("config.yml")}:
            whole(run)
        now = finished(root)
        assert before.items() <= now.items()
        before = now
    command.finish(*going_on())
    after = finished(root)
    assert before.items() <= after.items()
    return after


def test_bench(tmp_path):
    kills = moments("bench", 3.2, few=0)
    (tmp_path / "s.toml").write_text(
        'title = "t"\nseeds = [1, 2]\ndata = ["p.png"]\n'
        'overrides = { "num_threads" = 1, "max_num_iterations" = 800, "steps_per_save" = 20 }\n'
        '[[runs]]\nname = "small"\noverrides = { "pipeline.model.layer_width" = 16, "pipeline.model.num_layers" = 4 }\n'
        '[[runs]]\nname = "other"\noverrides = { "pipeline.model.layer_width" = 24, "pipeline.model.num_layers" = 4 }\n'
    )
    Image.fromarray(waves(16, 16, 3)).save(tmp_path / "p.png")
    command = Command(tmp_path, "loe-bench", "s.toml", "--output-dir", "out")
    assert len(killed_and_gone_on(command, kills, tmp_path / "out")) == 4


def test_folder(tmp_path):
    kills = moments("folder", 3.2, few=0)
    (tmp_path / "photos").mkdir()
    for number in range(5):
        Image.fromarray(np.roll(waves(16, 16, 3), number, 0)).save(tmp_path / "photos" / f"{number}.png")
    command = Command(tmp_path, "ns-train", "loe-image", "--data", "photos", "--output-dir", "out", *LONG)

    def going_on():
        series = sorted(tmp_path.glob("out/photos/loe-image/*/summary.csv"))
        return ("--load-dir", str(series[-1].parent)) if series else ()

    assert len(killed_and_gone_on(command, kills, tmp_path / "out", going_on)) == 5
