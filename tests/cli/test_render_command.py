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

pytestmark = pytest.mark.slow


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
