"""A wheel and an sdist: complete, and of use in an environment of their own."""

import subprocess
import sys
import sysconfig
import tarfile
import zipfile

import pytest
from support import read_metrics, run_folder

pytestmark = pytest.mark.slow
SOURCES = "loe_field/network/kernels"


def test_the_c_source_travels(built, wheel):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as file:
        names = {name.split("/", 1)[-1] for name in file.getnames()}
    packed = set(zipfile.ZipFile(wheel).namelist())
    for files in (names, packed):
        assert any(name.startswith(SOURCES) and name.endswith(".c") for name in files)
    viewer = {
        f"loe_field/render/openseadragon/{name}" for name in ("index.html", "openseadragon.min.js", "LICENSE.txt")
    }
    assert viewer <= names & packed
    assert {"pyproject.toml", "README.md", "LICENSE"} <= names
    assert not any(name.startswith(("tests/", "outputs/")) for name in packed)


def test_the_wheel_fits_a_picture(wheel, small_picture, tmp_path):
    """In a new environment, which borrows all other packages from this one."""
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    borrowed = [path for path in sys.path if path.endswith("site-packages")] or [sysconfig.get_path("purelib")]
    with open(f"{packages}/borrowed.pth", "w") as file:
        file.write("\n".join(borrowed))
    code = "import loe_field; from nerfstudio.scripts.train import entrypoint; print(loe_field.__file__); entrypoint()"
    options = ["--data", small_picture, "--output-dir", tmp_path / "out", "--max-num-iterations", "20"]
    done = subprocess.run(
        [python, "-c", code, "loe-image", *options], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(environment))
    assert read_metrics(run_folder(tmp_path / "out"))["num_steps"] == 20
