"""The chain as a user runs it: ns-train, ns-eval, resume, stop; on small real pictures."""

import csv
import io
import json
import math
import os
import shutil
import signal
import socket
import time
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image
from support import FAST, SMALL, read_metrics, run, run_folder, run_here, start, waves
from websockets.sync.client import connect

from loe_field.baselines import recipe
from loe_field.image.load import load_run

pytestmark = pytest.mark.slow

LEFT_BEHIND = {"reconstruction.png", "error.png", "curve.csv", "curve.png", "metrics.json", "config.yml"}
KEYS = set(
    "method data width height channels psnr psnr_best ssim num_parameters num_targets parameters_per_target "  # noqa: SIM905
    "macs_per_pixel num_steps train_seconds seconds_to_target seed device versions".split()
)


def psnr_of_files(a, b, white=255):
    a, b = (np.asarray(Image.open(path)).astype(float) for path in (a, b))
    return -10 * math.log10(np.mean((a - b) ** 2) / white**2)


def read_curve(folder):
    with open(folder / "curve.csv") as file:
        return [(int(r["step"]), float(r["seconds"]), float(r["psnr"])) for r in csv.DictReader(file)]


@pytest.fixture(scope="module")
def fitted(small_picture, tmp_path_factory):
    """A finished run on the small picture, started with relative paths: (its folder, what the console said)."""
    work = tmp_path_factory.mktemp("work")
    shutil.copy(small_picture, work)
    options = ("--max-num-iterations", 300, "--steps-per-eval-all-images", 100, "--output-dir", "out", *FAST)
    done = run("ns-train", "loe-image", "--data", small_picture.name, *options, cwd=work)
    assert done.returncode == 0, done.stderr
    return run_folder(work / "out"), done.stdout


def test_a_run_leaves_what_it_promises(fitted, small_picture):
    folder, console = fitted
    assert folder.parts[-3:-1] == ("waves", "loe-image")
    assert {p.name for p in folder.iterdir() if p.is_file()} == LEFT_BEHIND
    metrics = read_metrics(folder)
    assert metrics.keys() >= KEYS
    assert (metrics["width"], metrics["height"], metrics["channels"]) == (60, 40, 3)
    assert metrics["num_targets"] == 60 * 40 * 3
    assert metrics["num_steps"] == 300
    assert metrics["psnr"] == pytest.approx(psnr_of_files(folder / "reconstruction.png", small_picture), abs=1e-3)
    assert metrics["psnr"] > 25
    assert metrics["psnr_best"] >= metrics["psnr"]
    curve = read_curve(folder)
    assert [step for step, _, _ in curve] == [100, 200, 300]
    assert curve[-1][2] == pytest.approx(metrics["psnr"], abs=1e-3)
    assert curve[-1][1] == pytest.approx(metrics["train_seconds"], abs=1e-3)
    for name in ("error.png", "curve.png"):
        Image.open(folder / name).verify()
    last_lines = "\n".join(console.splitlines()[-8:])
    assert all(str(folder / name) in last_lines for name in LEFT_BEHIND)
    assert "PSNR" in console
    assert "ETA" in console


def test_checkpoints_need_no_trust(fitted):
    (path,) = (fitted[0] / "nerfstudio_models").iterdir()
    assert torch.load(path, weights_only=True)["step"] == 299


def test_ns_eval_from_another_folder(fitted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_here("ns-eval", "--load-config", fitted[0] / "config.yml", "--output-path", "e/o.json",
                    "--render-output-path", "e")  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "e" / "o.json").read_text())["results"]
    metrics = read_metrics(fitted[0])
    assert results["psnr"] == pytest.approx(metrics["psnr"], abs=1e-3)
    assert results["ssim"] == pytest.approx(metrics["ssim"], abs=1e-4)
    assert results["psnr_std"] == 0
    assert (tmp_path / "e" / "reconstruction.png").read_bytes() == (fitted[0] / "reconstruction.png").read_bytes()


def test_ns_render_flies_over_the_picture(call, fitted, tmp_path, monkeypatch):
    """Two views: the dataset's camera, which sees pixel by pixel, and one half as far away, which sees the middle."""
    fov = math.degrees(2 * math.atan(40 / 60 / 2))
    poses = [[-1, 0, 0, 0, 0, 0, 1, distance, 0, 1, 0, 0, 0, 0, 0, 1] for distance in (10, 5)]
    views = [{"camera_to_world": pose, "fov": fov, "aspect": 1.5} for pose in poses]
    path = {"camera_type": "perspective", "render_height": 40, "render_width": 60, "camera_path": views, "seconds": 1}
    (tmp_path / "path.json").write_text(json.dumps(path))
    (tmp_path / "ffmpeg").touch(mode=0o755)  # the host asks for it even where no film is made
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    status, console = call("ns-render", "camera-path", "--load-config", fitted[0] / "config.yml",
                           "--camera-path-filename", tmp_path / "path.json", "--output-path", tmp_path / "fly",
                           "--output-format", "images", "--image-format", "png")  # fmt: skip
    assert status == 0, console
    whole, middle = (np.asarray(Image.open(p)).astype(int) for p in sorted((tmp_path / "fly").iterdir()))
    reconstruction = np.asarray(Image.open(fitted[0] / "reconstruction.png")).astype(int)
    assert np.abs(whole - reconstruction).max() <= 1  # the host cuts off where rounding is due
    assert np.abs(middle[::2, ::2] - reconstruction[10:30, 15:45]).mean() < 6


def test_resume_counts_steps_absolutely(fitted, small_picture, tmp_path):
    options = ("--data", small_picture, "--output-dir", tmp_path, "--steps-per-eval-all-images", 100, *FAST)
    (path,) = (fitted[0] / "nerfstudio_models").iterdir()
    done = run_here("ns-train", "loe-image", *options, "--load-checkpoint", path, "--max-num-iterations", 350)
    assert done.returncode == 0, done.stderr
    folder = run_folder(tmp_path)
    assert read_metrics(folder)["num_steps"] == 350
    assert [step for step, _, _ in read_curve(folder)] == [100, 200, 300, 350]
    assert "going on after step 300" in done.stdout
    assert "(100 %)" in done.stdout


def test_a_checkpoint_of_a_gpu_goes_on_without_one(fitted, small_picture, tmp_path):
    """Its optimizer states say how they were computed there; here they are computed as this machine does it."""
    (path,) = (fitted[0] / "nerfstudio_models").iterdir()
    state = torch.load(path, weights_only=True)
    for group in state["optimizers"]["fields"]["param_groups"]:
        group |= {"fused": True, "capturable": True}
    torch.save(state, tmp_path / path.name)
    options = ("--data", small_picture, "--output-dir", tmp_path / "out", "--load-checkpoint", tmp_path / path.name)
    last = ("--max-num-iterations", 302, "--machine.device-type", "cpu")
    done = run_here("ns-train", "loe-image", *options, *last, *FAST)
    assert done.returncode == 0, done.stderr
    assert read_metrics(run_folder(tmp_path / "out"))["num_steps"] == 302


def test_a_finished_run_is_evaluated_again(call, fitted, small_picture, tmp_path):
    folder = fit(call, small_picture, tmp_path, "--load-dir", fitted[0] / "nerfstudio_models",
                 "--max-num-iterations", 300)  # fmt: skip
    again, before = read_metrics(folder), read_metrics(fitted[0])
    assert again["psnr"] == pytest.approx(before["psnr"], abs=1e-6)
    assert again["num_steps"] == 300


def wait_for(condition, process, seconds=120):
    deadline = time.time() + seconds
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.time() < deadline
        time.sleep(0.02)


def test_a_killed_run_goes_on_to_the_same_end(small_picture, tmp_path):
    options = ("--data", small_picture, "--max-num-iterations", 400, "--steps-per-save", 20, *FAST)
    process = start("ns-train", "loe-image", *options, "--output-dir", tmp_path / "killed")
    wait_for(lambda: list((tmp_path / "killed").glob("*/*/*/nerfstudio_models/*.ckpt")), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed = run_folder(tmp_path / "killed")
    assert not (killed / "metrics.json").exists()
    done = run_here("ns-train", "loe-image", *options, "--output-dir", tmp_path / "resumed",
                    "--load-dir", killed / "nerfstudio_models")  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = run_here("ns-train", "loe-image", *options, "--output-dir", tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    resumed, whole = (read_metrics(run_folder(tmp_path / name)) for name in ("resumed", "whole"))
    assert resumed["num_steps"] == whole["num_steps"] == 400
    assert resumed["psnr"] == pytest.approx(whole["psnr"], abs=0.2)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_everything(small_picture, tmp_path, number, status):
    options = ("--data", small_picture, "--output-dir", tmp_path, "--steps-per-save", 100, *FAST)
    process = start("ns-train", "loe-image", *options)
    wait_for(lambda: list(tmp_path.glob("*/*/*/nerfstudio_models/*.ckpt")), process)
    process.send_signal(number)
    console, _ = process.communicate(timeout=120)
    assert process.returncode == status, console
    assert "Traceback" not in console
    folder = run_folder(tmp_path)
    assert {p.name for p in folder.iterdir() if p.is_file()} == LEFT_BEHIND
    (path,) = (folder / "nerfstudio_models").iterdir()
    steps = read_metrics(folder)["num_steps"]
    assert torch.load(path, weights_only=True)["step"] == steps - 1
    assert 100 <= steps < 6000


def test_ns_viewer_serves_a_grey_fit(tmp_path):
    """Grey, because the viewer's own picture of the data set must have three channels."""
    image_of(waves(16, 24, 1)).save(tmp_path / "grey.png")
    options = ("--output-dir", tmp_path / "out", "--max-num-iterations", 2, *FAST)
    done = run_here("ns-train", "loe-image", "--data", tmp_path / "grey.png", *options)
    assert done.returncode == 0, done.stderr
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = start("ns-viewer", "--load-config", run_folder(tmp_path / "out") / "config.yml",
                    "--viewer.websocket-port", port, "--viewer.websocket-host", "127.0.0.1")  # fmt: skip
    try:

        def page():
            try:
                return urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5).read()
            except OSError:
                return b""

        wait_for(page, process)
        assert b"<html" in page().lower()
        with connect(f"ws://127.0.0.1:{port}", max_size=None) as browser:  # the page is there before the scene is
            wait_for(lambda: b"/cameras/camera_" in browser.recv(timeout=120), process)
        assert process.poll() is None, process.stdout.read()
    finally:
        process.kill()
        process.wait()


# The commands below run inside this process, which imports the host once: `call` is the same entry point.


@pytest.fixture
def call(call_main):
    from nerfstudio.scripts import eval as host_eval
    from nerfstudio.scripts import render as host_render
    from nerfstudio.scripts import train as host_train
    from nerfstudio.utils import writer

    hosts = {"ns-train": host_train, "ns-eval": host_eval, "ns-render": host_render}
    entry_points = {name: host.entrypoint for name, host in hosts.items()}

    def call(tool, *arguments):
        writer.EVENT_WRITERS.clear()
        return call_main(entry_points[tool], tool, *arguments)

    return call


def fit(call, data, output, *options, method="loe-image", network=FAST):
    status, console = call("ns-train", method, "--data", data, "--output-dir", output, *network, *options)
    assert status == 0, (status, console)
    return run_folder(output, method)


def image_of(values, mode=None):
    return Image.fromarray(values[..., 0] if values.shape[2] == 1 else values, mode)


PALETTE = image_of(waves(20, 30, 3)).convert("P", palette=Image.Palette.ADAPTIVE, colors=12)
KINDS = {
    "grey.png": image_of(waves(20, 30, 1)),
    "rgba.png": image_of(waves(20, 30, 4)),
    "deep.png": image_of(waves(20, 30, 1, np.uint16)),
    "palette.png": PALETTE,
    "line.png": image_of(waves(1, 200, 1)),
    "photo.jpg": image_of(waves(30, 20, 3)),
    "tall.bmp": image_of(waves(40, 10, 3)),
    "grey.tif": image_of(waves(20, 30, 1, np.uint16)),
    "rgba.webp": image_of(waves(20, 30, 4)),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_picture_comes_back_in_its_own_kind(name, call, tmp_path):
    path = tmp_path / name
    KINDS[name].save(path, **({"lossless": True} if name.endswith("webp") else {}))
    folder = fit(call, path, tmp_path / "out", "--max-num-iterations", 40)
    metrics = read_metrics(folder)
    (written,) = folder.glob("reconstruction.*")
    before, after = Image.open(path), Image.open(written)
    assert (after.format, after.mode, after.size) == (before.format, before.mode, before.size)
    colours = [im.convert("RGB") if im.mode == "P" else im for im in (before, after)]
    a, b = (np.asarray(im).astype(float) for im in colours)
    white = 65535 if before.mode.startswith("I") else 255
    expected = -10 * math.log10(np.mean((a - b) ** 2) / white**2)
    assert metrics["psnr"] == pytest.approx(expected, abs=0.01)
    assert (metrics["ssim"] is None) == (min(before.size) < 11)
    status, _ = call("ns-eval", "--load-config", folder / "config.yml", "--output-path", tmp_path / "e.json")
    assert status == 0
    assert json.loads((tmp_path / "e.json").read_text())["results"]["psnr"] == pytest.approx(expected, abs=0.1)


def test_an_exact_fit_is_infinite_in_valid_json(call, tmp_path):
    Image.new("L", (12, 12), 255).save(tmp_path / "white.png")
    metrics = read_metrics(fit(call, tmp_path / "white.png", tmp_path / "out", "--max-num-iterations", 400))
    assert metrics["psnr"] == math.inf
    assert metrics["psnr_unrounded"] < math.inf
    assert "inf" in (run_folder(tmp_path / "out") / "curve.csv").read_text()


def test_the_default_picture_is_camera(call, tmp_path):
    options = ("--max-num-iterations", 2, "--output-dir", tmp_path)
    for method in ("loe-image", "loe-image-paper"):
        status, _ = call("ns-train", method, *options)
        assert status == 0
        metrics = read_metrics(run_folder(tmp_path, method))
        assert metrics["data"].endswith("camera.png")
        assert (metrics["width"], metrics["height"], metrics["channels"]) == (512, 512, 1)
        assert metrics["num_parameters"] == (132_225 if method.endswith("paper") else 139_393)


def test_early_stop_at_the_target(call, small_picture, tmp_path):
    options = ("--target-psnr", 22, "--steps-per-eval-all-images", 10)
    folder = fit(call, small_picture, tmp_path, *options)
    metrics = read_metrics(folder)
    assert metrics["num_steps"] < 1000
    assert metrics["psnr_best"] >= 22
    reached = next(seconds for _, seconds, psnr in read_curve(folder) if psnr >= 22)
    assert metrics["seconds_to_target"] == pytest.approx(reached, abs=2e-3)


def test_the_seed_decides_the_run(call, small_picture, tmp_path):
    psnrs = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        folder = fit(call, small_picture, tmp_path / name, "--max-num-iterations", 20, "--machine.seed", seed)
        psnrs.append(read_metrics(folder)["psnr_unrounded"])
    assert psnrs[0] == psnrs[1] != psnrs[2]


def test_the_schedule_stretches_to_every_run_of_its_own(call, small_picture, tmp_path):
    """Two runs in one process, as a benchmark makes them: the first leaves nothing behind in the second's schedule."""
    for steps in (4, 8):
        folder = fit(call, small_picture, tmp_path / str(steps), "--max-num-iterations", steps)
        (path,) = (folder / "nerfstudio_models").iterdir()
        rates = [state["_last_lr"][0] for state in torch.load(path, weights_only=True)["schedulers"].values()]
        assert rates == [0.0, 0.0]
        assert f"max_steps: {steps}" in (folder / "config.yml").read_text()


def test_a_network_with_a_grid(call, small_picture, tmp_path):
    """One matrix for all points: what is local comes from the grid."""
    options = ("--pipeline.model.tile-size", 1, "--max-num-iterations", 150)
    psnr = []
    for levels in (0, 4):
        grid = ("--pipeline.model.grid-levels", levels, "--optimizers.grid.optimizer.lr", 0.02)
        folder = fit(call, small_picture, tmp_path / str(levels), *options, *grid)
        psnr.append(read_metrics(folder)["psnr"])
        assert (load_run(folder / "config.yml").network.grid is None) == (levels == 0)
    assert psnr[1] > psnr[0] + 1


@pytest.mark.parametrize("network", ["siren", "relu-pe", "fourier", "finer", "wire", "gauss", "bacon", "hash-grid"])
def test_every_baseline_from_the_same_command(network, call, small_picture, tmp_path):
    """With its authors' learning rate and schedule, unless told otherwise; resumable and evaluated like the rest."""
    size = () if network == "bacon" else ("--pipeline.model.num-layers", 4)
    own = {"bacon": ("--resolution", 32), "hash-grid": ("--log2-hashmap-size", 10)}.get(network, ())
    steps = ("--max-num-iterations", 30, "--steps-per-eval-all-images", 10)
    size = ("--pipeline.model.layer-width", 16, *size)
    folder = fit(call, small_picture, tmp_path, *steps, network, *own, network=size)
    metrics = read_metrics(folder)
    assert metrics["network"] == network
    assert metrics["pixels_per_batch"] == 60 * 40
    psnr = [float(line.split(",")[2]) for line in (folder / "curve.csv").read_text().splitlines()[1:]]
    assert psnr[-1] > psnr[0] + 0.1
    config = (folder / "config.yml").read_text()
    assert f"lr: {recipe(network).lr}" in config
    assert f"kind: {recipe(network).schedule}" in config


def test_a_baseline_without_options_of_its_own_by_a_flag(call, small_picture, tmp_path):
    options = ("--pipeline.model.network", "siren", "--max-num-iterations", 2)
    folder = fit(call, small_picture, tmp_path, *options, network=SMALL)
    assert read_metrics(folder)["network"] == "siren"


def test_several_steps_in_one_turn_are_the_same_steps(call, small_picture, tmp_path):
    """Counted one by one everywhere: evaluations, checkpoints and the end fall where they would have fallen."""
    options = (
        "--max-num-iterations",
        50,
        "--steps-per-eval-all-images",
        15,
        "--steps-per-save",
        20,
        "--num-threads",
        1,
    )
    runs = []
    for steps in (1, 7):
        turns = ("--steps-per-iteration", steps, "--save-only-latest-checkpoint", "False")
        folder = fit(call, small_picture, tmp_path / str(steps), *options, *turns)
        metrics = read_metrics(folder)
        curve = [line.split(",")[0] for line in (folder / "curve.csv").read_text().splitlines()[1:]]
        checkpoints = sorted(path.name for path in folder.rglob("*.ckpt"))
        runs.append((metrics["psnr_unrounded"], metrics["num_steps"], curve, checkpoints))
    assert runs[0] == runs[1]
    assert runs[0][1:3] == (50, ["15", "30", "45", "50"])


def test_bf16_trains_and_is_evaluated_in_fp32(call, small_picture, tmp_path):
    folder = fit(call, small_picture, tmp_path, "--max-num-iterations", 150, "--precision", "bf16", *FAST)
    metrics = read_metrics(folder)
    assert metrics["precision"] == "bf16"
    assert metrics["psnr"] > 25
    assert (folder / "config.yml").read_text().count("precision: bf16") == 2  # the run's, and with it Muon's


def test_loggers_of_the_host(call, small_picture, tmp_path):
    folder = fit(call, small_picture, tmp_path, "--vis", "tensorboard", "--max-num-iterations", 20)
    assert list(folder.glob("events.out.tfevents*"))


def test_own_levels_and_whole_picture_steps(call, small_picture, tmp_path):
    levels = ("--pipeline.model.levels", 16, 0, 8, 0.5, 4, 0, 2, 0, "--pipeline.datamanager.pixels-per-batch", "None")
    tiles = ("--pipeline.model.tile-size", 1, 1, 2, 2, "--pipeline.model.bias-tile-size", 5, 3, 1, 2)
    scales = ("--pipeline.model.bias-levels", "fine")
    folder = fit(call, small_picture, tmp_path, "--max-num-iterations", 5, *levels, *tiles, *scales)
    assert "alpha" not in (folder / "metrics.json").read_text()
    field = load_run(folder / "config.yml").network
    assert (field.tile_sizes, [len(layer.bias) for layer in field.layers[:2]]) == ((1, 1, 2, 2), [25, 9])
    assert field.bias_tiles[0].level.alpha == 2 * field.bias_tiles[1].level.alpha


def test_between_the_pixels(call, tmp_path):
    """On a smooth picture: nearest cells alone are a table of pixels, off the grid a surface comes out of them."""
    path = tmp_path / "smooth.png"
    image_of(waves(40, 60, 1)).save(path)
    measured = {}
    for method in ("loe-image", "loe-image-smooth"):
        options = ("--max-num-iterations", 300, "--pipeline.model.num-layers", 8)  # cells smaller than pixels
        folder = fit(call, path, tmp_path / method, *options, method=method)
        measured[method] = read_metrics(folder)
    plain, smooth = measured["loe-image"], measured["loe-image-smooth"]
    assert smooth["psnr_half_pixel"] > plain["psnr_half_pixel"]
    assert smooth["border_jump"] < plain["border_jump"]
    assert smooth["psnr_held_out"] is None


def test_pixels_held_out(call, tmp_path):
    path = tmp_path / "smooth.png"
    image_of(waves(40, 60, 3)).save(path)
    options = ("--max-num-iterations", 200, "--pipeline.datamanager.hold-out", "checkerboard")
    metrics = read_metrics(fit(call, path, tmp_path, "--pipeline.datamanager.off-grid", 0.5, *options))
    assert metrics["psnr_held_out"] > 20


def write(path, content):
    path.write_bytes(content)
    return path


def whole_png():
    content = io.BytesIO()
    image_of(waves(64, 64, 3)).save(content, "PNG")
    return content.getvalue()


def nan_tiff():
    content = io.BytesIO()
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(content, "TIFF")
    return content.getvalue()


BAD_DATA = {
    "missing": (lambda d: d / "none.png", "does not exist"),
    "folder": (lambda d: d, "holds no picture"),
    "text": (lambda d: write(d / "x.png", b"hello\n" * 30), "is not a picture that can be read"),
    "truncated": (lambda d: write(d / "x.png", whole_png()[:500]), "damaged or cut short"),
    "nan": (lambda d: write(d / "x.tif", nan_tiff()), "64 values that are NaN"),
    "empty": (lambda d: write(d / "x.png", b""), "is empty"),
    "zero size": (lambda d: write(d / "x.png", whole_png()[:16] + bytes(4) + whole_png()[20:]), "has no pixels"),
    "huge": (
        lambda d: write(d / "x.bmp", b"BM" + bytes(12) + bytes.fromhex("28000000a0860100a086010001001800") + bytes(24)),
        "100000 x 100000 pixels of 3 channels take about",
    ),
}
BAD_OPTIONS = {
    "width": (("--pipeline.model.layer-width", 0), "layer_width is 0"),
    "tile": (("--pipeline.model.tile-size", 0), "tile_size is 0"),
    "levels": (("--pipeline.model.levels", 2, 0), "lists 1"),
    "batch": (("--pipeline.datamanager.pixels-per-batch", 0), "pixels_per_batch is 0"),
    "off grid": (("--pipeline.datamanager.off-grid", 1.5), "off_grid is 1.5: it is a part of the pixels, give 0 to 1"),
    "steps": (("--max-num-iterations", 0), "max-num-iterations is 0"),
    "evaluations": (("--steps-per-eval-all-images", 0), "steps-per-eval-all-images is 0"),
    "rate": (("--optimizers.experts.optimizer.lr", -1), "lr is -1"),
    "pause": (("--start-paused", "True"), "give --vis viewer"),
    "output": (("--output-dir", "/proc/no-such-place"), "cannot be written"),
    "checkpoint": (("--load-checkpoint", "none.ckpt"), "none.ckpt does not exist"),
    "folder as checkpoint": (("--load-checkpoint", "/tmp"), "/tmp is a folder: --load-checkpoint wants a step-*.ckpt"),
    "a name that leads out": (("--experiment-name", "../../x"), "lead out of the folder"),
    "turns": (("--steps-per-iteration", 0), "steps-per-iteration is 0"),
    "tf32": (("--precision", "tf32", "--machine.device-type", "cpu"), "an NVIDIA GPU's"),
    "triton": (
        ("--pipeline.model.implementation", "triton", "--machine.device-type", "cpu"),
        "need an NVIDIA GPU; choose 'auto' or 'torch'",
    ),
    "baseline in bf16": (("--pipeline.model.network", "siren", "--precision", "bf16"), "trained in fp32"),
    "load dir": (("--load-dir", "nowhere"), "nowhere is not a folder"),
    "seed": (("--machine.seed", -1), "machine.seed is -1"),
    "target": (("--target-psnr", "nan"), "target-psnr is nan"),
    "device": (("--machine.device-type", "mps"), "give cpu or cuda"),
    "devices": (("--machine.device-type", "cpu", "--machine.num-devices", 2), "num-devices is 2: there is one CPU"),
    "no device": (("--machine.num-devices", 0), "machine.num-devices is 0: it must be at least 1"),
    "two baselines": (("--pipeline.model.network", "finer", "siren"), "is finer and the command ends with siren"),
    "grid": (("hash-grid", "--max-resolution", 0), "max_resolution is 0"),
}


def refused(call, output, words, *arguments):
    """The command ends with one clear line and leaves nothing behind."""
    status, console = call("ns-train", "loe-image", "--output-dir", output, *arguments)
    assert isinstance(status, str), console
    assert words in status
    assert "\n" not in status
    assert not output.exists()


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_pictures_are_refused(case, call, tmp_path):
    make, words = BAD_DATA[case]
    refused(call, tmp_path / "out", words, "--data", make(tmp_path))


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options_are_refused(case, call, small_picture, tmp_path):
    options, words = BAD_OPTIONS[case]
    refused(call, tmp_path / "out", words, "--data", small_picture, *options)


def test_a_step_too_large_for_memory(call, small_picture, tmp_path, monkeypatch):
    from loe_field.pictures import memory

    monkeypatch.setattr(memory, "available_memory", lambda: 2**20)
    refused(call, tmp_path / "out", "give --pipeline.datamanager.pixels-per-batch", "--data", small_picture)


def test_nothing_is_left_behind_when_the_viewer_was_wanted(call, small_picture, tmp_path):
    options = ("--vis", "viewer", "--load-checkpoint", "none.ckpt")
    refused(call, tmp_path / "out", "does not exist", "--data", small_picture, *options)


def test_an_output_folder_that_is_a_file(call, small_picture, tmp_path):
    (tmp_path / "file").touch()
    status, _ = call("ns-train", "loe-image", "--data", small_picture, "--output-dir", tmp_path / "file" / "out")
    assert "cannot be written" in status


def test_a_gpu_that_is_not_there(call, small_picture, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(call, tmp_path / "out", "no CUDA GPU", "--data", small_picture, "--machine.device-type", "cuda")


def test_an_unknown_pattern_names_the_known_ones(call, small_picture, tmp_path):
    status, console = call("ns-train", "loe-image", "--data", small_picture, "--output-dir", tmp_path / "out",
                           "--pipeline.model.pattern", "spiral")  # fmt: skip
    assert status == 2
    assert "fine_to_coarse" in console.out + console.err
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_shape(call, fitted, small_picture, tmp_path):
    arguments = ("--data", small_picture, "--load-dir", fitted[0] / "nerfstudio_models")
    refused(call, tmp_path / "out", "is of another shape", *arguments)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--pipeline.model.activation", "relu"), "the checkpoint's activation is sine, and here it is relu"),
        (("--pipeline.model.pattern", "quad_tree"), "the checkpoint's list of levels (alpha, beta) is"),
    ],
)
def test_a_checkpoint_of_the_same_shape_and_another_network(call, fitted, small_picture, tmp_path, options, words):
    arguments = ("--data", small_picture, "--load-dir", fitted[0] / "nerfstudio_models", *FAST, *options)
    refused(call, tmp_path / "out", words, *arguments)


def test_a_damaged_checkpoint_with_a_good_one_beside_it(call, fitted, small_picture, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(fitted[0] / "nerfstudio_models", folder)
    (good,) = folder.iterdir()
    damaged = write(folder / "step-000000400.ckpt", good.read_bytes()[:1000])
    arguments = ("--data", small_picture, "--load-dir", folder, *FAST)
    refused(call, tmp_path / "out", f"{good.name} beside it is good", *arguments)
    assert damaged.exists()


def test_ns_eval_on_a_run_that_was_copied(call, small_picture, tmp_path):
    folder = fit(call, small_picture, tmp_path / "out", "--max-num-iterations", 3)
    copied = shutil.copytree(folder, tmp_path / "copied")
    shutil.rmtree(tmp_path / "out")
    status, console = call("ns-eval", "--load-config", copied / "config.yml", "--output-path", tmp_path / "e.json")
    assert status == 0
    assert str(copied / "nerfstudio_models") in console.out.replace("\n", "")


def test_a_checkpoint_of_a_picture_of_another_size(call, fitted, small_picture, tmp_path):
    Image.fromarray(waves(30, 60, 3)).save(tmp_path / "other.png")
    arguments = ("--data", tmp_path / "other.png", "--load-dir", fitted[0] / "nerfstudio_models", *FAST)
    words = "was trained on 60 x 40 pixels of 3 channels, and {} has 60 x 30 pixels of 3 channels: give the --data"
    refused(call, tmp_path / "out", words.format(tmp_path / "other.png"), *arguments)


def test_ns_eval_on_a_damaged_checkpoint(call, small_picture, tmp_path):
    folder = fit(call, small_picture, tmp_path, "--max-num-iterations", 3)
    (path,) = (folder / "nerfstudio_models").iterdir()
    path.write_bytes(path.read_bytes()[:1000])
    status, _ = call("ns-eval", "--load-config", folder / "config.yml", "--output-path", tmp_path / "e.json")
    assert "is damaged" in status
    assert not (tmp_path / "e.json").exists()
