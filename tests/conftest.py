"""Shared by the tests: small real pictures, and the real commands on them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image
from scenes import write_scene

SCRIPTS = Path(sys.executable).parent
FAST = (
    "--pipeline.model.num-layers",
    "5",
    "--pipeline.model.layer-width",
    "16",
    "--pipeline.model.num-frequencies",
    "4",
)
"""A network that fits a small picture in seconds."""


settings.register_profile("same-every-time", derandomize=True, deadline=None)
settings.load_profile("same-every-time")


def pytest_collection_modifyitems(items):
    """Tests marked gpu are skipped where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA GPU"))


@pytest.fixture(autouse=True)
def _one_thread():
    """Small tensors gain nothing from threads, and parallel test workers would fight over them."""
    torch.set_num_threads(1)


def run(tool, *arguments, cwd=None, timeout=300, **options):
    """Run an installed command to its end."""
    return subprocess.run(
        [SCRIPTS / tool, *map(str, arguments)], cwd=cwd, timeout=timeout, capture_output=True, text=True, **options
    )


def start(tool, *arguments, cwd=None):
    """Start an installed command."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [SCRIPTS / tool, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_folder(output, method="loe-image"):
    """The one run folder under an output folder."""
    (folder,) = output.glob(f"*/{method}/*")
    return folder


def read_metrics(folder):
    """metrics.json, read as strictly as JSON is defined."""

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return json.loads((folder / "metrics.json").read_text(), parse_constant=refuse)


def waves(height, width, channels, dtype=np.uint8):
    """A smooth picture with all channels different."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    planes = [0.5 + 0.4 * np.sin(5 * x * (c + 1) + 3 * y) * np.cos(4 * y * (c + 1)) for c in range(channels)]
    return (np.stack(planes, -1) * np.iinfo(dtype).max).round().astype(dtype)


@pytest.fixture(scope="session")
def small_picture(tmp_path_factory):
    """A 60 x 40 RGB PNG, with noise so that no quick fit is exact."""
    path = tmp_path_factory.mktemp("pictures") / "waves.png"
    noise = np.random.default_rng(0).integers(-20, 21, (40, 60, 3))
    Image.fromarray((waves(40, 60, 3) + noise).clip(0, 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="session")
def scene(tmp_path_factory):
    """20 posed views of 50 x 40 pixels, RGBA."""
    return write_scene(tmp_path_factory.mktemp("scenes") / "things")
