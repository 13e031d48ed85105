"""loe-render as a user runs it: on a run of ns-train, and stopped in the middle."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from support import FAST, SCRIPTS, run, run_folder, run_here

from loe_field.cli import render

pytestmark = pytest.mark.slow

TILES = ("--tiles", "png")


@pytest.fixture(scope="module")
def fitted(small_picture, tmp_path_factory):
    """A run whose picture is gone and whose folder was moved."""
    work = tmp_path_factory.mktemp("render")
    picture = shutil.copy(small_picture, work)
    options = ("--output-dir", work, "--max-num-iterations", 30, *FAST)
    done = run_here("ns-train", "loe-image", "--data", picture, *options)
    assert done.returncode == 0, done.stderr
    os.unlink(picture)
    return shutil.move(run_folder(work), work / "moved")


def test_the_command(fitted, tmp_path):
    done = run("loe-render", "--load-config", fitted / "config.yml", "--output", "new/a.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("new/a.png: 60 x 40 pixels, RGB, 8 bit")
    assert "Warning" not in done.stderr
    ours, theirs = (np.asarray(Image.open(p)) for p in (tmp_path / "new" / "a.png", fitted / "reconstruction.png"))
    np.testing.assert_array_equal(ours, theirs)


def test_a_run_is_read_without_the_host(fitted):
    code = (
        "import sys; from pathlib import Path; import loe_field.cli.render, loe_field.cli.export; "
        "import loe_field.render.render, loe_field.render.window; from loe_field.image.load import load_run; "
        "load_run(Path(sys.argv[1])); assert 'nerfstudio' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, fitted / "config.yml"], check=True)


@pytest.mark.parametrize("options", [(), ("--scale", "2.5", "--derivative", "gradient")])
def test_tiles(options, fitted, tmp_path, call_main):
    words = ("--load-config", fitted / "config.yml", "--output", tmp_path / "it", *TILES, *options)
    status, out = call_main(render.main, "loe-render", *words)
    assert status == 0
    width, height = (150, 100) if options else (60, 40)
    assert out.out.startswith(f"{tmp_path}/it/index.html: {width} x {height} pixels, {'Y' if options else 'RGB'}, 8")
    assert (", 9 tiles in 9 levels" if options else ", 7 tiles in 7 levels") in out.out
    largest = np.asarray(Image.open(tmp_path / "it" / "picture_files" / ("8" if options else "6") / "0_0.png"))
    assert largest.shape[:2] == (height, width)
    if not options:
        np.testing.assert_array_equal(largest, np.asarray(Image.open(fitted / "reconstruction.png")))
    status, out = call_main(render.main, "loe-render", *words)
    assert status == 1
    assert "is there already" in out.err
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def test_stopped_it_leaves_no_tiles(fitted, tmp_path):
    output = tmp_path / "it"
    command = [SCRIPTS / "loe-render", "--load-config", fitted / "config.yml", "--output", output, *TILES]
    process = subprocess.Popen([*command, "--scale", "400"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 120
    while not list(tmp_path.glob("*/picture_files/15/*")):
        assert process.poll() is None, process.stderr.read()
        assert time.time() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", f"stopped: {output} was not written\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("number", "status", "suffix"),
    [(signal.SIGINT, 130, "png"), (signal.SIGTERM, 143, "tif"), (signal.SIGTERM, 143, "npy")],
)
def test_stopped_it_leaves_nothing(number, status, suffix, fitted, tmp_path):
    output = tmp_path / f"a.{suffix}"
    output.write_text("what was there before")
    command = [SCRIPTS / "loe-render", "--load-config", fitted / "config.yml", "--output", output, "--scale", "400"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 120
    while len(list(tmp_path.iterdir())) < 2:  # the temporary file
        assert process.poll() is None, process.stderr.read()
        assert time.time() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert (out, err.splitlines()) == ("", [f"stopped: {output} was not written"])
    assert [p.name for p in tmp_path.iterdir()] == [output.name]
    assert output.read_text() == "what was there before"


def test_an_error_is_one_line(fitted, tmp_path):
    done = run("loe-render", "--load-config", fitted / "config.yml", "--output", tmp_path / "a.gif")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
