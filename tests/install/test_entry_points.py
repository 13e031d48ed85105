"""nerfstudio's tools with this package in them, whole or not: they start, and bad input is one line."""

import subprocess
import sys

import pytest
from support import run

HIDE = """
import sys
from importlib.abc import MetaPathFinder

class Hidden(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())
"""
METHODS = ("loe_image", "loe_image_smooth", "loe_image_paper", "loe_images", "loe_nerf")


def python_without(*hidden, code, arguments=()):
    """Run code in a Python that cannot import some modules."""
    command = [sys.executable, "-W", "ignore", "-c", HIDE.format(hidden=hidden) + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_without_a_package_the_methods_of_the_host_go_on():
    code = """
from nerfstudio.configs.method_configs import all_descriptions, all_methods
assert "nerfacto" in all_methods
for name in ("loe-image", "loe-image-smooth", "loe-image-paper"):
    assert "is not installed" in all_descriptions[name]
print("so far")
all_methods["loe-image"].setup(local_rank=0, world_size=1)
"""
    done = python_without("tifffile", code=code)
    assert done.stdout.endswith("so far\n"), done.stderr
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: loe-image cannot start: tifffile is not installed. `pip install loe-field` installs what is missing"
    ]


@pytest.mark.slow
def test_without_a_package_the_command_ends_with_one_line():
    """Options that only the real method has are not what it complains of."""
    code = "from nerfstudio.scripts.train import entrypoint; entrypoint()"
    done = python_without("tifffile", code=code, arguments=("loe-image", "--pipeline.model.tile-size", "4"))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: loe-image cannot start: ")


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["nerfstudio", "nerfstudio.plugins.types", "safetensors"])
def test_whatever_is_missing_it_is_imported(missing):
    code = f"from loe_field import entry_points; print([hasattr(entry_points, name) for name in {METHODS}])"
    done = python_without(missing, code=code)
    assert done.stdout == "[True, True, True, True, True]\n", done.stderr


def test_other_errors_keep_their_traceback():
    code = "from loe_field import entry_points, InputError; raise {}('no such thing')"
    done = python_without("nerfstudio", code=code.format("InputError"))
    assert (done.returncode, done.stderr) == (1, "error: no such thing\n")
    done = python_without("nerfstudio", code=code.format("KeyError"))
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.slow
def test_the_real_command_ends_with_one_line(tmp_path):
    done = run("ns-train", "loe-image", "--data", tmp_path / "none.png", "--output-dir", tmp_path / "out")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path / 'none.png'} does not exist")
