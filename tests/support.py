"""Helpers of the tests: small real pictures, and the real commands on them."""

import contextlib
import importlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch

import loe_field
from loe_field.errors import InputError

SCRIPTS = Path(sys.executable).parent
SMALL = ("--pipeline.model.num-layers", "5", "--pipeline.model.layer-width", "16")
"""A network of any kind that fits a small picture in seconds."""
FAST = (*SMALL, "--pipeline.model.num-frequencies", "4")
"""The same with levels of experts."""
GROUND = f"""
import sys, types
sys.modules["loe_field"] = types.ModuleType("loe_field")
sys.modules["loe_field"].__path__ = {list(loe_field.__path__)}
"""
"""First lines of a process that imports modules of the package which need no torch, in no time."""


def run_tests(path, *, timeout=300, **environment):
    """A file of tests, all of which pass, in a process of its own with more in its environment."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", path]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def run(tool, *arguments, cwd=None, timeout=300, **options):
    """Run an installed command to its end."""
    return subprocess.run(
        [SCRIPTS / tool, *map(str, arguments)], cwd=cwd, timeout=timeout, capture_output=True, text=True, **options
    )


def run_here(tool, *arguments):
    """The same for a tool of the host inside this process, which imports the host once: ten seconds a start less."""
    entry_point = importlib.import_module(f"nerfstudio.scripts.{tool.removeprefix('ns-')}").entrypoint
    from nerfstudio.utils import writer  # cannot be imported first

    writer.EVENT_WRITERS.clear()
    words, status = [tool, *map(str, arguments)], 0
    out, err = io.StringIO(), io.StringIO()
    with mock.patch("sys.argv", words), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            entry_point()
        except InputError as error:  # what entry_points.py prints
            status = 1
            print(f"error: {error}", file=err)
        except SystemExit as ended:
            status = ended.code or 0
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())


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


def spread(field):
    """The field with the vectors of its bias tiles apart, which start as one."""
    with torch.no_grad():
        for layer in field.layers:
            if layer.bias_tile is not None:
                layer.bias.uniform_(-1, 1)
    return field


def waves(height, width, channels, dtype=np.uint8):
    """A smooth picture with all channels different."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    planes = [0.5 + 0.4 * np.sin(5 * x * (c + 1) + 3 * y) * np.cos(4 * y * (c + 1)) for c in range(channels)]
    return (np.stack(planes, -1) * np.iinfo(dtype).max).round().astype(dtype)
