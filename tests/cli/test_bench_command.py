"""loe-bench on a small suite, through the real ns-train."""

import contextlib
import csv
import io
import json
import os
import re
import shlex
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import read_metrics, run, run_here, start

from loe_field.cli.bench import Bench
from loe_field.errors import InputError
from loe_field.files import locked
from loe_field.runs.content import content_of, good_checkpoints, read_results
from loe_field.runs.jobs import finished, was_other
from loe_field.runs.report import FIGURES
from loe_field.runs.suite import COMPARED, jobs_of, read_suite

pytestmark = pytest.mark.slow

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))

SUITE = """
title = "A small suite"
text = "Of two runs and a half."
seeds = [1]
columns = ["psnr_best", "psnr", "num_steps", "seconds_to_target"]
target_psnr = 3.5
overrides = { max_num_iterations = 12, "pipeline.model.num_layers" = 3, "pipeline.model.layer_width" = 16 }
[[runs]]
name = "quad tree"
published = "99"
overrides = { "pipeline.model.pattern" = "quad_tree" }
[[runs]]
name = "not for a baseline"
overrides = { "pipeline.model.network" = "siren", precision = "bf16" }
[[runs]]
name = "another field's"
missing = "not in yet"
[[figures]]
name = "trees"
title = "Trees"
runs = ["quad tree"]
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory, small_picture):
    """The suite's file, its output folder, the command's exit status and what it said on stderr."""
    folder = tmp_path_factory.mktemp("bench")
    path = folder / "small.toml"
    path.write_text(SUITE)
    with contextlib.redirect_stderr(io.StringIO()) as said:
        status = Bench(path, data=(small_picture,), output_dir=folder / "out").main()
    return path, folder / "out", status, said.getvalue()


def rows_of(output):
    with open(output / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_failed_run_is_a_row(suite):
    _, output, status, said = suite
    assert status == 1
    assert "Traceback" not in said
    good, bad = rows_of(output)
    assert (good["run"], good["num_steps"], good["seed"], good["problem"]) == ("quad tree", "12", "1", "")
    metrics = read_metrics(next(output.glob("quad-tree/*/*/*")))
    assert float(good["psnr"]) == metrics["psnr"]
    assert good["version_torch"] == metrics["versions"]["torch"]
    assert "bf16 is for levels of experts" in bad["problem"]
    assert bad["psnr"] == ""
    table = (output / "table.md").read_text()
    assert f"| quad tree | 99 | {metrics['psnr_best']:.2f} | {metrics['psnr']:.2f} | 12 | " in table
    assert f"| not for a baseline |  |  |  |  |  | 0, 1 failed: {bad['problem']} |" in table
    assert "| seconds to 3.5 dB |" in table
    assert "| another field's |  | not in yet |" in table
    assert np.std(Image.open(output / "curves.png")) > 10
    assert np.std(Image.open(output / "trees.png")) > 10
    page = (output / "index.html").read_text()
    sources = re.findall(r'src="([^"]+)"', page)
    assert [Path(source).name for source in sources] == ["curves.png", "reconstruction.png", "error.png"]
    assert all((output / source).is_file() for source in sources)
    assert f"quad tree, waves, seed 1: {metrics['psnr']:.2f} dB" in page


def test_what_is_done_is_not_done_again(suite, small_picture, capsys):
    path, output, *_ = suite
    (metrics,) = output.rglob("metrics.json")
    before = metrics.stat().st_mtime_ns
    assert Bench(path, data=(small_picture,), output_dir=output, runs=("Quad",)).main() == 0
    assert metrics.stat().st_mtime_ns == before
    said = capsys.readouterr().out
    assert f"quad tree, waves, seed 1: PSNR {read_metrics(metrics.parent)['psnr']:.2f} dB" in said


def test_a_stopped_run_goes_on(suite, small_picture):
    """A run's folder with a checkpoint and no end: as after a kill."""
    path, output, *_ = suite
    (metrics,) = output.rglob("metrics.json")
    (metrics.parent / "complete.json").unlink()
    assert Bench(path, data=(small_picture,), output_dir=output, runs=("quad",)).main() == 0
    assert "the checkpoint has 12 steps already" in (metrics.parent / "log.txt").read_text()
    assert json.loads((metrics.parent / "complete.json").read_text())["options"][:3] == [
        *("loe-image", "--machine.seed", "1")
    ]


def test_stopped_in_the_middle(suite, small_picture, tmp_path):
    """The run under way is saved and nothing goes on in the background; the report stands."""
    options = ("--data", small_picture, "--output-dir", tmp_path, "--runs", "quad", "--max-num-iterations", 100000)
    process = start("loe-bench", suite[0], *options)
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob("step-*.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert "the same command goes on from here" in output
    assert "Traceback" not in output
    (log,) = tmp_path.rglob("log.txt")
    assert "stopping after this step" in log.read_text()
    assert read_metrics(log.parent)["num_steps"] >= 100
    assert not (log.parent / "complete.json").exists()
    assert re.search(r"\| quad tree \|.*\| 0 \|$", (tmp_path / "table.md").read_text(), re.MULTILINE)


def test_seconds_in_place_of_steps(small_picture, tmp_path):
    (tmp_path / "seconds.toml").write_text(
        """
        title = "Seconds"
        train_seconds = 2
        columns = ["num_steps", "train_seconds"]
        overrides = { "pipeline.model.num_layers" = 4 }
        [[runs]]
        name = "narrow"
        overrides = { "pipeline.model.layer_width" = 16 }
        """
    )
    assert Bench(tmp_path / "seconds.toml", data=(small_picture,), output_dir=tmp_path / "out").main() == 0
    (row,) = rows_of(tmp_path / "out")
    assert "--max-train-seconds 2" in row["options"]
    assert 2 <= float(row["train_seconds"]) < 10
    (checkpoint,) = (tmp_path / "out").rglob("step-*.ckpt")
    rates = torch.load(checkpoint, weights_only=True)["schedulers"]["experts"]["_last_lr"]
    assert max(rates) < 0.2 * 0.015  # the schedule ended with the clock


def test_dry_run(suite, small_picture, tmp_path, capsys):
    picture = Path(shutil.copy(small_picture, tmp_path / "my picture.png"))
    options = {"data": (picture,), "output_dir": tmp_path / "out", "dry_run": True, "seeds": (5, 6)}
    assert Bench(suite[0], **options, max_num_iterations=3, runs=("quad",)).main() == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [words[:4] for words in lines] == [["ns-train", "loe-image", "--machine.seed", s] for s in ("5", "6")]
    assert all("--max-num-iterations 3 " in " ".join(words) for words in lines)
    assert all(str(picture) in words for words in lines)  # a shell gets it as one word
    assert not (tmp_path / "out").exists()


def test_methods_for_comparison_are_shown_to_their_runs(tmp_path, monkeypatch, capsys):
    """The printed command works as it stands: the host finds the method."""
    monkeypatch.setenv("NERFSTUDIO_METHOD_CONFIGS", "mine=loe_field.methods:loe_nerf")
    (tmp_path / "s.toml").write_text(
        """
        title = "Scenes"
        method = "baseline-nerfacto"
        overrides = { max_num_iterations = 1 }
        [[runs]]
        name = "nerfacto"
        """
    )
    assert Bench(tmp_path / "s.toml", data=(tmp_path,), dry_run=True).main() == 0
    (line,) = capsys.readouterr().out.splitlines()
    variable, command, method, *_ = shlex.split(line)
    assert (command, method) == ("ns-train", "baseline-nerfacto")
    name, _, value = variable.partition("=")
    assert value.split(",")[1] == "mine=loe_field.methods:loe_nerf"
    monkeypatch.setenv(name, value)
    done = run("ns-train", method, "--help")
    assert done.returncode == 0, done.stderr
    assert "--pipeline.model.average-init-density" in done.stdout
    monkeypatch.delenv(name)
    listed = run_here("ns-train", "--help").stdout
    assert "loe-nerf" in listed
    for method in COMPARED:
        assert method not in listed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"runs": ("cubic",)}, "no run is named like cubic"),
        ({"data": (Path("no.png"),)}, "no.png is not there"),
        ({"data": (Path("/dev/null"),)}, "/dev/null is no file"),
        ({"max_num_iterations": 0}, "must be at least 1"),
        ({"max_num_iterations": 9, "train_seconds": 9}, "give one"),
        ({"train_seconds": float("nan")}, "--train-seconds is nan: it must be above 0, and finite"),
        ({"seeds": (3, -1)}, r"--seeds = \[3, -1\]: give at least one"),
        ({"output_dir": Path("/proc/none")}, "/proc/none cannot be written"),
    ],
)
def test_bad_options(tmp_path, options, words):
    (tmp_path / "s.toml").write_text(SUITE)
    with pytest.raises(InputError, match=words):
        Bench(tmp_path / "s.toml", **options).main()


HEAD = 'title = "t"\n[[runs]]\nname = "a b"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEAD + 'method = "loe-imag"', "says method = 'loe-imag': known are baseline-nerfacto, .*loe-image, "),
        (HEAD + 'method = "nerfacto"', "says method = 'nerfacto': known are"),
        (HEAD + 'baseline = ["sirne"]', "run 'a b': Unrecognized options: sirne"),
        (HEAD + 'baseline = ["siren", "--omega-0", "x"]', "run 'a b': .*--omega-0.*'x'"),
        (HEAD + 'overrides = { "pipeline.model.pattern" = "spiral" }', "run 'a b': .*'spiral'.*pipeline.model.pattern"),
        (HEAD + "overrides = { max_num_iteration = 3 }", "run 'a b': .*--max-num-iteration, 3"),
        (HEAD + "overrides = { max_num_iterations = -3 }", "run 'a b': --max-num-iterations is -3"),
        (HEAD + "overrides = { max_num_iterations = 2.5 }", "run 'a b': .*--max-num-iterations.*'2.5'"),
        (HEAD + 'overrides = { "machine.num_devices" = 9 }', "run 'a b': --machine.num-devices is 9: there is"),
        (HEAD + '[search]\noptions = ["lr"]\nvalues = [1]\nseed = 1', "run 'a b': .*--lr"),
        ('columns = ["psnrr"]\n' + HEAD, "says 'psnrr' in columns: known are psnr, "),
        ('dataparser = ["blender-data"]\n' + HEAD, "run 'a b': Unrecognized options: blender-data"),
        ('data = ["no.png"]\n' + HEAD, r"no.png is not there \(.*s.toml says it in data\)"),
        ('data = ["."]\n' + HEAD, "is a folder: loe-image takes pictures"),
    ],
)
def test_a_suite_that_its_methods_do_not_take_is_refused_before_the_first_fit(tmp_path, text, words):
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(InputError, match=words) as error:
        Bench(tmp_path / "s.toml", output_dir=tmp_path / "out", dry_run=True).main()
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_shipped_suite_is_taken(path, tmp_path):
    for method in {row.method for row in read_suite(path).runs}:
        assert method is None or method in COMPARED or method.startswith("loe-")
    data = (tmp_path,) if "scene" in path.stem else ()
    assert Bench(path, data=data, dry_run=True).main() == 0


def test_a_dataparser_ends_every_command(tmp_path, capsys):
    path = CONFIGS[0].with_name("parts_scene.toml")
    assert Bench(path, data=(tmp_path,), dataparser="blender-data", dry_run=True).main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * len(read_suite(path).runs)
    assert all(line.endswith(" blender-data") for line in lines)


def test_figures_are_all_that_runs_leave(suite):
    (metrics,) = suite[1].rglob("metrics.json")
    assert {name for name in read_metrics(metrics.parent) if name != "versions"} <= set(FIGURES)


def test_a_second_bench_in_one_folder(suite):
    with locked(suite[1]), pytest.raises(InputError, match=f"{suite[1]} is being written by process {os.getpid()}"):
        Bench(suite[0], output_dir=suite[1]).main()


def test_a_changed_picture_is_fitted_again_beside_the_old_run(suite, small_picture, tmp_path, capsys):
    """The old run stays as it is; that what has not changed is not fitted again is tested above."""
    (old,) = suite[1].rglob("complete.json")
    root = tmp_path / "out"
    data, read = tmp_path / small_picture.name, read_suite(suite[0])
    shutil.copy(small_picture, data)
    (job,) = jobs_of(read, read.runs[0], data)
    shutil.copytree(old.parent, job.folder(root))
    (job.folder(root) / "complete.json").write_text(json.dumps({"options": job.words}))
    before = finished(job, root)
    assert before is not None
    assert not was_other(job, root)
    content_of.cache_clear()
    Image.open(data).transpose(Image.Transpose.ROTATE_180).save(data)
    assert finished(job, root) is None
    assert was_other(job, root)
    assert read_results(before.folder) == before.metrics


@pytest.mark.parametrize("spoil", [*("metrics.json", "curve.csv"), "{", "null", '{"psnr": 3}'])
def test_results_that_are_not_whole_are_not_taken_for_done(suite, tmp_path, spoil):
    (old,) = suite[1].rglob("complete.json")
    run = tmp_path / "run"
    shutil.copytree(old.parent, run)
    assert read_results(run) is not None
    if spoil.endswith(("json", "csv")):
        (run / spoil).unlink()
    else:
        (run / "metrics.json").write_text(spoil)
    assert read_results(run) is None


def test_a_damaged_checkpoint_is_put_aside(suite, tmp_path):
    (old,) = suite[1].rglob("complete.json")
    run = tmp_path / "run"
    shutil.copytree(old.parent, run)
    assert good_checkpoints(run) == run / "nerfstudio_models"
    (checkpoint,) = (run / "nerfstudio_models").iterdir()
    later = checkpoint.with_name("step-000000099.ckpt")
    later.write_bytes(checkpoint.read_bytes()[:500])
    assert good_checkpoints(run) == run / "nerfstudio_models"
    assert (run / f"damaged-{later.name}").stat().st_size == 500
    checkpoint.write_bytes(b"")
    assert good_checkpoints(run) is None
    assert list((run / "nerfstudio_models").iterdir()) == []
