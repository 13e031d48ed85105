"""Fixtures that all tests share."""

import os

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image
from scenes import write_scene
from support import waves

from benchmarks import interpreter
from loe_field.errors import InputError

if os.environ.get("TRITON_INTERPRET") == "1":
    interpreter.mend()
settings.register_profile("same-every-time", derandomize=True, deadline=None)
settings.load_profile("same-every-time")


def pytest_ignore_collect(collection_path, config):
    """`-m "not slow"` does not even import the files that are slow as a whole: most would import the host."""
    if config.option.markexpr == "not slow" and collection_path.name.startswith("test_"):
        return "\npytestmark = pytest.mark.slow\n" in collection_path.read_text("utf8") or None
    return None


def pytest_collection_modifyitems(items):
    """What cannot run here is skipped; the tutorial, which takes minutes, comes first."""
    items.sort(key=lambda item: "tutorial" not in item.name)
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA GPU"))


@pytest.fixture(autouse=True)
def _one_thread():
    """Small tensors gain nothing from threads, and parallel test workers would fight over them."""
    torch.set_num_threads(1)


@pytest.fixture
def poisoned():
    """torch.empty is full of NaN: what a kernel forgets to write shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def call_main(monkeypatch, capsys):
    """A command within this process: (its exit status, or the host's uncaught InputError), and its output."""

    def call(main, name, *arguments):
        monkeypatch.setattr("sys.argv", [name, *map(str, arguments)])
        try:
            main()
            status = 0
        except InputError as error:
            status = str(error)
        except SystemExit as error:
            status = error.code
        return status, capsys.readouterr()

    return call


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
