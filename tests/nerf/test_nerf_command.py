"""ns-train loe-nerf on the small scene, and the host's tools on what it leaves."""

import json
import shutil
import subprocess
import sys

import pytest
from PIL import Image
from support import read_metrics, run, run_folder, run_here

pytestmark = pytest.mark.slow

SMALL = (
    *("--pipeline.model.num-layers", 3, "--pipeline.model.layer-width", 16, "--pipeline.model.proposal-layers", 3),
    *("--pipeline.datamanager.train-num-rays-per-batch", 256, "--pipeline.model.eval-num-rays-per-chunk", 2000),
)


@pytest.fixture(scope="module")
def trained(scene, tmp_path_factory):
    """Output of a run of 40 steps, its folder, and what it printed."""
    output = tmp_path_factory.mktemp("nerf")
    options = ("--max-num-iterations", 40, "--output-dir", output, *SMALL)
    done = run("ns-train", "loe-nerf", *options, "--data", scene, "nerfstudio-data", "--downscale-factor", 1)
    assert done.returncode == 0, done.stderr
    return run_folder(output, "loe-nerf"), done.stdout


def test_a_run_measures_held_out_views(trained):
    folder, printed = trained
    metrics = read_metrics(folder)
    assert metrics["num_steps"] == 40
    assert metrics["psnr"] > 8
    assert metrics["rays_per_second"] > 0
    assert metrics["measured_on"] == "held-out views"
    assert "held-out views after 40 steps" in printed
    views = sorted((folder / "views").iterdir())
    assert len(views) == metrics["num_views"] == 2
    assert Image.open(views[0]).size == (100, 40)  # the picture, and the field's view of it


def test_a_scene_that_is_no_numbers_any_more_is_an_error(scene, tmp_path):
    """Its samples have no weight then, so that its views are the background: numbers, but none of the network's."""
    options = ("--max-num-iterations", 12, "--output-dir", tmp_path, *SMALL, "--optimizers.fields.optimizer.lr", "1e38")
    done = run_here("ns-train", "loe-nerf", *options, "--data", scene, "nerfstudio-data", "--downscale-factor", 1)
    assert done.returncode == 1
    assert "no numbers any more" in done.stderr


def test_ns_eval_measures_the_same(trained, tmp_path):
    folder, _ = trained
    done = run_here("ns-eval", "--load-config", folder / "config.yml", "--output-path", tmp_path / "eval.json")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "eval.json").read_text())["results"]
    assert results["psnr"] == pytest.approx(read_metrics(folder)["psnr"], abs=0.01)


def test_it_goes_on_from_a_checkpoint_that_fits_and_refuses_another(trained, scene, tmp_path):
    folder, _ = trained
    options = ("--data", scene, "--load-dir", folder / "nerfstudio_models", "--output-dir", tmp_path)
    done = run_here("ns-train", "loe-nerf", *options, *SMALL, "--max-num-iterations", 50)
    assert done.returncode == 0, done.stderr
    assert read_metrics(run_folder(tmp_path, "loe-nerf"))["num_steps"] == 50
    done = run_here("ns-train", "loe-nerf", *options, *SMALL, "--pipeline.model.layer-width", 8)
    assert done.returncode == 1
    assert "the checkpoint is of another shape" in done.stderr
    assert "Traceback" not in done.stderr
    done = run_here("ns-train", "loe-nerf", *options, *SMALL, "--pipeline.model.scene", "unbounded")
    assert done.returncode == 1
    assert "the checkpoint's scene is box, and here it is unbounded" in done.stderr


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ns-render needs ffmpeg")
def test_ns_render(trained, tmp_path):
    folder, _ = trained
    options = ("--load-config", folder / "config.yml", "--output-path", tmp_path, "--image-format", "png")
    done = run("ns-render", "dataset", *options, "--rendered-output-names", "rgb", "depth", "accumulation")
    assert done.returncode == 0, done.stderr
    for name in ("rgb", "depth", "accumulation"):
        pictures = list((tmp_path / "test" / name).iterdir())
        assert len(pictures) == 2
        assert Image.open(pictures[0]).size == (50, 40)


def test_ns_export(trained, tmp_path):
    if subprocess.run([sys.executable, "-c", "import open3d"], capture_output=True).returncode:
        pytest.skip("ns-export needs open3d, which needs system libraries that are not here (libusb-1.0-0, libgl1)")
    folder, _ = trained
    options = ("--num-points", 500, "--num-rays-per-batch", 500, "--normal-method", "open3d")
    where = ("--load-config", folder / "config.yml", "--output-dir", tmp_path)
    done = run("ns-export", "pointcloud", *where, *options, "--remove-outliers", "False")
    assert done.returncode == 0, done.stderr
    head = (tmp_path / "point_cloud.ply").read_bytes()[:400].decode("ascii", "replace")
    assert int(head.split("element vertex ")[1].split()[0]) >= 500
