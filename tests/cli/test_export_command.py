"""loe-export on a real run, and what it says where it cannot."""

import math
import re
import shutil
import signal
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from support import FAST, read_metrics, run, run_folder, run_here

from loe_field import load_field
from loe_field.cli import export, render
from loe_field.export import traced
from loe_field.export.fields import read_details
from loe_field.image.load import load_run, load_target

pytestmark = pytest.mark.slow


def train(folder, picture, *options, method="loe-image"):
    options = ("--max-num-iterations", 200, "--output-dir", folder, *options)
    done = run_here("ns-train", method, "--data", picture, *options)
    assert done.returncode == 0, done.stderr
    return run_folder(folder, method)


@pytest.fixture(scope="module")
def fitted(small_picture, tmp_path_factory):
    return train(tmp_path_factory.mktemp("fit"), small_picture, *FAST)


@pytest.fixture(scope="module")
def siren(small_picture, tmp_path_factory):
    options = ("--pipeline.model.network", "siren", "--pipeline.model.layer-width", 16)
    return train(tmp_path_factory.mktemp("siren"), small_picture, *options)


@pytest.fixture
def call(monkeypatch, capsys):
    """The command, inside this process: its exit status and its output, that of stderr if it failed."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["loe-export", *map(str, arguments)])
        monkeypatch.setattr("signal.signal", lambda *_: None)
        try:
            export.main()
        except SystemExit as error:
            return error.code, capsys.readouterr().err
        return 0, capsys.readouterr().out

    return call


def every_pixel(width, height):
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([columns / width, rows / height], -1).view(-1, 2)


def picture_of(values):
    return (values.clamp(0, 1) * 255).round().to(torch.uint8).view(40, 60, 3).numpy()


def test_the_real_command_writes_a_field_that_shows_the_reconstruction(fitted, tmp_path):
    path = tmp_path / "new" / "f.safetensors"
    done = run("loe-export", "--load-config", fitted / "config.yml", "--format", "safetensors", "--output", path)
    assert done.returncode == 0, done.stderr
    assert f"{path.stat().st_size:,} bytes" in done.stdout
    assert read_details(path).picture_size == (40, 60, 3)
    with torch.no_grad():
        shown = picture_of(load_field(path)(every_pixel(60, 40)))
    assert np.array_equal(shown, np.asarray(Image.open(fitted / "reconstruction.png")))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_rounding_says_what_it_costs(kind, fitted, small_picture, call, tmp_path):
    path = tmp_path / "f.safetensors"
    status, said = call("--load-config", fitted / "config.yml", "--format", "safetensors", "--output", path,
                        "--quantize", kind)  # fmt: skip
    assert status == 0
    metrics = read_details(path).metrics
    assert metrics["psnr_before"] == pytest.approx(read_metrics(fitted)["psnr"], abs=1e-3)
    with torch.no_grad():
        shown = picture_of(load_field(path)(every_pixel(60, 40))).astype(float)
    psnr = -10 * math.log10(np.mean((shown - np.asarray(Image.open(small_picture))) ** 2) / 255**2)
    assert metrics["psnr"] == pytest.approx(psnr, abs=1e-3)
    assert metrics["psnr"] > metrics["psnr_before"] - 0.5
    assert metrics["file_bytes"] == path.stat().st_size
    words = f"PSNR {metrics['psnr_before']:.2f} dB before, {metrics['psnr']:.2f} dB after rounding to {kind}"
    assert words in said
    assert f"{metrics['bits_per_pixel']:.3f} bits per pixel" in said


def test_loe_render_reads_it_back(fitted, small_picture, call, call_main, tmp_path):
    path = tmp_path / "f.safetensors"
    call("--load-config", fitted / "config.yml", "--format", "safetensors", "--output", path, "--quantize", "int8")
    status, said = call_main(render.main, "loe-render", "--load-config", path, "--output", tmp_path / "a.png")
    assert status == 0, said
    error = np.asarray(Image.open(tmp_path / "a.png")).astype(float) - np.asarray(Image.open(small_picture))
    assert read_details(path).metrics["psnr"] == pytest.approx(-10 * math.log10(np.mean(error**2) / 255**2), abs=1e-3)
    status, said = call("--load-config", path, "--format", "torch-export", "--output", tmp_path / "f.pt2")
    assert status == 0, said


@pytest.mark.parametrize("network", ["fitted", "siren"])
@pytest.mark.parametrize(("kind", "reader"), [("onnx", traced.run_onnx), ("torch-export", traced.run_program)])
def test_models_show_the_reconstruction(kind, reader, network, call, tmp_path, request):
    folder = request.getfixturevalue(network)
    status, said = call("--load-config", folder / "config.yml", "--format", kind, "--output", tmp_path / "f")
    assert status == 0
    assert float(re.search(r"agrees with the field to (\S+) on 4,096 random points", said)[1]) <= 1e-4
    shown = picture_of(reader((tmp_path / "f").read_bytes(), every_pixel(60, 40))).astype(int)
    assert np.abs(shown - np.asarray(Image.open(folder / "reconstruction.png"))).max() <= 1


def test_stopped_it_leaves_what_was_there(fitted, tmp_path, monkeypatch, capsys):
    """The handlers that the command sets, called where the file is about to be written."""
    handlers, output = {}, tmp_path / "f"
    output.write_text("before")
    arguments = ("--load-config", fitted / "config.yml", "--format", "safetensors", "--output", output)
    monkeypatch.setattr(sys, "argv", ["loe-export", *map(str, arguments)])
    monkeypatch.setattr("signal.signal", handlers.__setitem__)

    def twice(*_, **__):
        try:
            handlers[signal.SIGINT](signal.SIGINT, None)
        finally:
            handlers[signal.SIGTERM](signal.SIGTERM, None)  # while it tidies: must change nothing

    monkeypatch.setattr(export, "encode_field", twice)

    def leave(status):
        raise SystemExit(status)

    monkeypatch.setattr("os._exit", leave)
    with pytest.raises(SystemExit) as stopped:
        export.main()
    assert stopped.value.code == 130
    assert capsys.readouterr().err == f"stopped: {output} was not written\n"
    assert output.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == [output.name]


def test_a_run_that_was_moved_and_lost_its_picture(fitted, small_picture, call, tmp_path):
    shutil.copytree(fitted, tmp_path / "run")
    config = tmp_path / "run" / "config.yml"
    config.write_text(config.read_text().replace(small_picture.name, "gone.png"))
    field = load_run(config)
    kind = field.picture
    assert (kind.width, kind.height, kind.channels) == (60, 40, 3)
    reconstruction = np.asarray(Image.open(fitted / "reconstruction.png"))
    centres = torch.from_numpy(np.stack(np.meshgrid(np.arange(60), np.arange(40)), -1) + 0.5).float()
    assert np.array_equal(picture_of(field(centres.view(-1, 2)).view(40, 60, 3)), reconstruction)
    with pytest.raises(ValueError, match=r"gone\.png does not exist"):
        load_target(config, kind)
    status, said = call("--load-config", config, "--format", "safetensors", "--output", tmp_path / "f",
                        "--quantize", "int8")  # fmt: skip
    assert status == 0
    assert "PSNR is not measured" in said
    assert "gone.png does not exist" in said
    assert "psnr" not in read_details(tmp_path / "f").metrics


def test_another_picture_in_its_place_is_not_measured(fitted, small_picture, tmp_path):
    shutil.copytree(fitted, tmp_path / "run")
    config = tmp_path / "run" / "config.yml"
    config.write_text(config.read_text().replace(small_picture.name, "other.png"))
    other = small_picture.with_name("other.png")
    Image.new("L", (30, 20)).save(other)
    try:
        with pytest.raises(ValueError, match="30 x 20 pixels of 1 channels, and the fit is of 60 x 40 pixels of 3"):
            load_target(config, load_run(config).picture)
    finally:
        other.unlink()


def refused(call, words, output, *arguments):
    status, said = call(*arguments, "--output", output)
    assert status == 1
    assert said.startswith("error: ")
    assert said.endswith("\n")
    assert said.count("\n") == 1
    assert words in said
    assert not output.is_file()


def test_wrong_words_are_refused_in_one_line(fitted, siren, call, tmp_path, monkeypatch):
    config, output = fitted / "config.yml", tmp_path / "f"
    good = ("--load-config", config, "--format", "safetensors")
    (tmp_path / "text.yml").write_text("a: 1")
    (tmp_path / "broken.yml").write_text("a: [")
    (tmp_path / "strange.yml").write_text("!!python/object:no.such.Thing {}")
    shutil.copy(config, tmp_path / "alone.yml")
    (tmp_path / "empty" / "nerfstudio_models").mkdir(parents=True)
    shutil.copy(config, tmp_path / "empty" / "config.yml")
    (tmp_path / "damaged" / "nerfstudio_models").mkdir(parents=True)
    shutil.copy(config, tmp_path / "damaged" / "config.yml")
    (tmp_path / "damaged" / "nerfstudio_models" / "step-000000001.ckpt").write_bytes(b"no")
    for name, words in {
        "none.yml": "is not a file: --load-config wants the config.yml",
        "text.yml": "is no config of a run",
        "broken.yml": "cannot be read (while parsing",
        "strange.yml": "is no config of a run",
        "alone.yml": "is not there: --load-config wants",
        "empty/config.yml": "holds no checkpoint",
        "damaged/config.yml": "is damaged",
    }.items():
        refused(call, words, output, "--load-config", tmp_path / name, "--format", "safetensors")
    refused(call, "network is siren: --format safetensors is for levels of experts", output,
            "--load-config", siren / "config.yml", "--format", "safetensors")  # fmt: skip
    for kind in ("onnx", "torch-export"):
        refused(call, "--quantize int8 is for --format safetensors", output,
                "--load-config", config, "--format", kind, "--quantize", "int8")  # fmt: skip
    refused(call, "is a folder: give --output the name of a file", tmp_path, *good)
    (tmp_path / "file").write_text("")
    refused(call, "cannot be written", tmp_path / "file" / "f", *good)
    monkeypatch.setattr(traced.importlib.util, "find_spec", lambda name: None)
    refused(call, "--format onnx needs onnx and onnxscript: pip install 'loe-field[export]'", output,
            "--load-config", config, "--format", "onnx")  # fmt: skip


def test_a_model_that_is_off_is_not_written(fitted, call, tmp_path, monkeypatch):
    monkeypatch.setattr(traced, "run_program", lambda content, points: torch.zeros(len(points), 3))
    refused(call, "the program differs from the field by", tmp_path / "f",
            "--load-config", fitted / "config.yml", "--format", "torch-export")  # fmt: skip
    assert not list(tmp_path.iterdir())
