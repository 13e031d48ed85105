"""ns-train loe-nerf on the small scene."""

from conftest import read_metrics, run, run_folder

SMALL = (
    *("--pipeline.model.num-layers", 3, "--pipeline.model.layer-width", 16, "--pipeline.model.proposal-layers", 3),
    *("--pipeline.datamanager.train-num-rays-per-batch", 256, "--pipeline.model.eval-num-rays-per-chunk", 2000),
)


def test_a_run_measures_held_out_views(scene, tmp_path):
    options = ("--max-num-iterations", 40, "--output-dir", tmp_path, *SMALL)
    done = run("ns-train", "loe-nerf", *options, "--data", scene, "nerfstudio-data", "--downscale-factor", 1)
    assert done.returncode == 0, done.stderr
    folder = run_folder(tmp_path, "loe-nerf")
    metrics = read_metrics(folder)
    assert metrics["num_steps"] == 40
    assert metrics["psnr"] > 8
    assert metrics["rays_per_second"] > 0
    assert "held-out views after 40 steps" in done.stdout
    done = run("ns-eval", "--load-config", folder / "config.yml", "--output-path", tmp_path / "eval.json")
    assert done.returncode == 0, done.stderr
    assert abs(metrics["psnr"] - read_psnr(tmp_path / "eval.json")) < 0.01


def read_psnr(path):
    import json

    return json.loads(path.read_text())["results"]["psnr"]
