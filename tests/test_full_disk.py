"""A full disk, one that can only be read, no memory: one line, the old file, and nothing half written."""

import errno
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from support import FAST, read_metrics, run_folder, waves

from loe_field.cli import bench, export, render
from loe_field.errors import InputError, shortage
from loe_field.files import write_whole
from loe_field.network.layers import LoEMLP
from loe_field.pictures.write import DTYPES, Sheet, write_rows

pytestmark = pytest.mark.slow

FULL = "No space left on device|File too large"


@contextmanager
def files_end_at(size):
    """Let no file of this process grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def disk(tmp_path):
    """(a folder, a context in which only so many bytes more go into it): a tmpfs, or a limit where none is allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
    if (
        sys.platform != "linux"
        or shutil.which("mount") is None
        or subprocess.run(mount, capture_output=True).returncode
    ):
        yield folder, files_end_at
        return

    @contextmanager
    def only(free):
        space = os.statvfs(folder)
        (folder / "filling").write_bytes(bytes(space.f_bavail * space.f_frsize - free))
        try:
            yield
        finally:
            (folder / "filling").unlink()

    try:
        yield folder, only
    finally:
        subprocess.run(["umount", folder], check=True)


def files_in(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != "filling")


@pytest.mark.parametrize(("kind", "bits"), [*((k, b) for k, depths in DTYPES.items() for b in depths), ("BMP", 8)])
def test_a_picture_that_does_not_fit_by_a_byte(kind, bits, tmp_path):
    dtype = np.dtype(DTYPES.get(kind, {8: np.uint8})[bits])
    values = np.random.default_rng(0).random((90, 70, 3))
    values = values.astype(dtype) if dtype.kind == "f" else (values * np.iinfo(dtype).max).astype(dtype)
    sheet = Sheet(kind, 70, 90, ("R", "G", "B"), dtype)
    path = tmp_path / "a.picture"
    write_rows(path, sheet, [values])
    size = path.stat().st_size
    path.write_text("old")
    for limit in (0, 100, size // 2, size - 4096, size - 1):
        words = r"a\.picture cannot be written: File too large"
        with files_end_at(limit), pytest.raises(InputError, match=words), write_whole(path) as temporary:
            write_rows(temporary, sheet, [values])
        assert path.read_text() == "old"
        assert files_in(tmp_path) == ["a.picture"]
    with files_end_at(size), write_whole(path) as temporary:
        write_rows(temporary, sheet, [values])
    assert path.stat().st_size == size


@pytest.fixture
def train(call_main):
    from nerfstudio.scripts.train import entrypoint

    return lambda *arguments: call_main(entrypoint, "ns-train", "loe-image", *FAST, *arguments)


@pytest.fixture
def exported(tmp_path):
    """A field that loe-render and loe-export take."""
    from loe_field.export.fields import save_field

    torch.manual_seed(0)
    network = LoEMLP(dim=2, out_features=3, num_layers=4, layer_width=16, num_frequencies=4, tile_size=2)
    save_field(network, tmp_path / "field.safetensors", picture_size=(40, 60, 3))
    return tmp_path / "field.safetensors"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp", ".exr", ".npy"])
def test_render(suffix, exported, call_main, disk):
    folder, only = disk
    output = folder / f"a{suffix}"
    output.write_text("old")
    with only(2048):
        status, console = call_main(
            render.main, "loe-render", "--load-config", exported, "--output", output, "--size", 240, 160
        )
    assert status == 1
    assert re.fullmatch(rf"error: {output} cannot be written: ({FULL})\n", console.err)
    assert output.read_text() == "old"
    assert files_in(folder) == [output.name]


@pytest.mark.parametrize("kind", ["safetensors", "onnx", "torch-export"])
def test_export(kind, exported, call_main, disk):
    if kind == "onnx":
        pytest.importorskip("onnxscript")
    folder, only = disk
    output = folder / "field"
    output.write_text("old")
    with only(2048):
        arguments = ("--load-config", exported, "--output", output, "--format", kind)
        status, console = call_main(export.main, "loe-export", *arguments)
    assert status == 1
    assert re.fullmatch(rf"error: {output} cannot be written: ({FULL})\n", console.err)
    assert output.read_text() == "old"
    assert files_in(folder) == ["field"]


def a_run(train, data, output, *options):
    return train("--data", data, "--output-dir", output, "--num-threads", 1, "--timestamp", "a", *options)


def test_training_that_cannot_begin(train, small_picture, disk):
    folder, only = disk
    with only(0):
        status, _ = a_run(train, small_picture, folder / "out", "--max-num-iterations", 3)
    assert re.search(rf"config.yml cannot be written: ({FULL})", status)
    assert not (folder / "out").exists()


def test_training_that_cannot_go_on(train, small_picture, disk, monkeypatch):
    """The disk is full from the 20th step on: the run ends there, evaluated, and can be resumed."""
    from loe_field.adapter.trainer import SignalTrainer

    folder, only = disk
    save, held = SignalTrainer.save_checkpoint, []

    def save_and_fill(self, step):
        if step == 19 and not held:
            held.append(only(0))
            held[0].__enter__()
        save(self, step)

    monkeypatch.setattr(SignalTrainer, "save_checkpoint", save_and_fill)
    options = ("--max-num-iterations", 40, "--steps-per-save", 10)
    status, console = a_run(train, small_picture, folder / "out", *options)
    held[0].__exit__(None, None, None)
    run = run_folder(folder / "out")
    models = run / "nerfstudio_models"
    assert re.search(rf"step-000000019.ckpt cannot be written: ({FULL}). The last good checkpoint is ", status)
    assert status.endswith(f"{models}/step-000000009.ckpt: go on with --load-dir {models}")
    assert "\n" not in status
    assert "after 20 steps" in console.out
    assert files_in(run) == ["config.yml", "nerfstudio_models/step-000000009.ckpt"]
    monkeypatch.undo()
    status, _ = a_run(train, small_picture, folder / "out", *options, "--load-dir", models)
    assert status == 0
    assert read_metrics(run)["num_steps"] == 40


def test_a_report_that_fits_in_part(train, small_picture, disk, monkeypatch):
    """Figures are written where pictures do not fit."""
    from loe_field.signals.picture import PictureReconstruction

    folder, _ = disk
    write = PictureReconstruction.write

    def write_little(self, folder):
        with files_end_at(2000):
            return write(self, folder)

    monkeypatch.setattr(PictureReconstruction, "write", write_little)
    status, console = a_run(train, small_picture, folder / "out", "--max-num-iterations", 3)
    run = run_folder(folder / "out")
    words = "reconstruction.png cannot be written: File too large, nor can error.png. The last good checkpoint is"
    assert words in status
    assert "PSNR" in console.out
    assert read_metrics(run)["num_steps"] == 3
    assert files_in(run) == [
        "config.yml", "curve.csv", "curve.png", "metrics.json", "nerfstudio_models/step-000000002.ckpt"
    ]  # fmt: skip


def test_an_events_file_that_cannot_grow(train, small_picture, tmp_path, monkeypatch):
    from nerfstudio.utils import writer

    monkeypatch.setattr(writer, "EVENT_WRITERS", [])
    told = []
    monkeypatch.setattr(threading, "excepthook", lambda of: told.append(of.exc_value))
    options = ("--vis", "tensorboard", "--max-num-iterations", 3000, "--logging.steps-per-log", 1)
    from loe_field.adapter.trainer import SignalTrainer

    train_all = SignalTrainer.train

    def train_on_full_disk(self):
        with files_end_at(10):
            return train_all(self)

    monkeypatch.setattr(SignalTrainer, "train", train_on_full_disk)
    status, console = a_run(train, small_picture, tmp_path / "out", *options)
    assert "cannot be written: File too large" in status
    assert "PSNR" in console.out
    assert all(error.errno == errno.EFBIG for error in told)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        np.core._exceptions._ArrayMemoryError((2**40,), np.dtype(float)),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4398046511104 bytes. Error"),
    ],
)
def test_memory_that_runs_out_in_training(error, train, small_picture, tmp_path, monkeypatch):
    from loe_field.training.step import TrainStep

    step = TrainStep.__call__

    def fail(self, number):
        if number == 5:
            raise error
        return step(self, number)

    monkeypatch.setattr(TrainStep, "__call__", fail)
    status, _ = a_run(train, small_picture, tmp_path / "out", "--max-num-iterations", 9, "--steps-per-save", 5)
    assert status.startswith("memory ran out")
    assert status.endswith("nerfstudio_models")
    assert "step-000000004.ckpt: go on with --load-dir" in status


def test_what_is_lacking():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert re.fullmatch(r"memory ran out \(\d+ bytes more were wanted\)", shortage(caught.value))
    with pytest.raises(MemoryError) as caught:
        np.empty(2**50)
    assert shortage(caught.value) == "memory ran out (8.00 PiB more were wanted)"
    assert shortage(OSError(errno.ENOSPC, "No space left on device", "a.txt")) == "a.txt: No space left on device"
    assert shortage(RuntimeError("another")) is None


def test_fit_image_leaves_nothing_where_its_picture_does_not_fit(disk):
    from loe_field import fit_image

    folder, only = disk
    with only(0), pytest.raises(InputError, match=rf"picture.png cannot be written: ({FULL})"):
        fit_image(waves(8, 8, 3), num_steps=2, output_dir=folder / "out")
    assert not (folder / "out").exists()


SUITE = """
title = "One"
seeds = [1]
columns = ["psnr"]
[[runs]]
name = "a run"
overrides = { max_num_iterations = 3 }
"""


def test_bench(call_main, small_picture, disk):
    """A suite whose run is done: its report does not fit, and the old one stays."""
    from loe_field.runs.suite import jobs_of, read_suite

    folder, only = disk
    (folder / "one.toml").write_text(SUITE)
    suite = read_suite(folder / "one.toml")
    (job,) = jobs_of(suite, suite.runs[0], small_picture)
    done = job.folder(folder / "out")
    done.mkdir(parents=True)
    metrics = {"psnr": 3.0, "device": "cpu", "versions": {"torch": "2"}, "precision": "fp32"}
    (done / "metrics.json").write_text(json.dumps(metrics))
    (done / "complete.json").write_text(json.dumps({"options": job.words}))
    (done / "curve.csv").write_text("step,seconds,psnr\n3,1.0,3.0\n")
    (folder / "out" / "table.md").write_text("old")
    with only(2000):
        arguments = (folder / "one.toml", "--data", small_picture, "--output-dir", folder / "out")
        status, console = call_main(bench.main, "loe-bench", *arguments)
    assert status == 1
    assert re.fullmatch(rf"error: \S+/out/\S+ cannot be written: ({FULL})(, nor can .*)?\n", console.err)
    assert not [name for name in files_in(folder) if ".tmp" in name]


def test_a_folder_of_pictures(train, disk, tmp_path):
    """Either the table does not fit, or what the run of a picture is told through the folder for temporary files."""
    from PIL import Image

    folder, only = disk
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.fromarray(waves(12, 16, 3)).save(pictures / "a.png")
    with only(0):
        status, _ = a_run(train, pictures, folder / "out", "--max-num-iterations", 3)
    assert re.fullmatch(rf"\S+/summary.csv cannot be written: ({FULL})", status)
    assert files_in(folder) == []
    with files_end_at(1000):
        status, _ = a_run(train, pictures, folder / "out", "--max-num-iterations", 3)
    assert re.fullmatch(rf"{tempfile.gettempdir()}\S+/config.yml cannot be written: File too large", status)


def test_loe_bench_says_at_once_that_its_folder_cannot_be_written(call_main, small_picture, tmp_path):
    (tmp_path / "one.toml").write_text(SUITE)
    (tmp_path / "file").touch()
    arguments = (tmp_path / "one.toml", "--data", small_picture, "--output-dir", tmp_path / "file" / "out")
    status, console = call_main(bench.main, "loe-bench", *arguments)
    assert status == 1
    assert "give --output-dir another folder" in console.err
