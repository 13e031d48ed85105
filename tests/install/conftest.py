"""The package as others get it: an sdist, and the wheel that is built from it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """A folder with both."""
    folder = tmp_path_factory.mktemp("built")
    unwanted = shutil.ignore_patterns(".*", "outputs", "build", "dist", "*.egg-info", "__pycache__", "shared")
    shutil.copytree(ROOT, folder / "source", ignore=unwanted)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "source"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "dist"


@pytest.fixture(scope="session")
def wheel(built):
    (path,) = built.glob("*.whl")
    return path
