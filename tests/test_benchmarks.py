"""The benchmarks run, check what they time, and the docs' table of speed is theirs."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import FAST

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def benchmark(name, *arguments):
    command = [sys.executable, "-m", f"benchmarks.{name}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("name", "options"),
    [("layer", ()), ("step", ("--what", "network", "--dim", 3)), ("step", ("--what", "step", "--precision", "bf16"))],
)
def test_rows_with_provenance(name, options, tmp_path):
    common = ("--points", 200, "--repeats", 10, "--threads", 1, "--device", "cpu", "--output", tmp_path / "out.csv")
    done = benchmark(name, *common, *options, "--implementations", "loe", "masked loop", "dense")
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["implementation"] for row in rows] == ["loe", "masked loop", "dense"]
    assert rows[2]["times_dense"] == "1.000"
    for row in rows:
        assert float(row["p20_ms"]) <= float(row["median_ms"]) <= float(row["p80_ms"])
        assert row["device"]
        assert row["torch"]
        assert row["commit"]


def test_a_case_that_fails_or_is_wrong_has_a_row_and_stops_no_other(tmp_path):
    from benchmarks.common import Case, measure, refuse_wrong, rows_of, write

    def fails_when_timed():
        if later.peak_bytes is not None:
            raise RuntimeError("no memory\nand more")

    later = Case("later", fails_when_timed, lambda: 0.0, 1.0, 1.0)
    cases = [
        Case("absent", lambda: None, lambda: 1 / 0, 1.0, 1.0),
        later,
        Case("wrong", lambda: None, lambda: 0.5, 1.0, 1.0),
        Case("dense", lambda: None, lambda: 0.0, 1.0, 1.0),
    ]
    cpu = torch.device("cpu")
    rows = rows_of(measure(cases, "fp32", cpu, 3), {}, against="dense", precision="fp32", device=cpu)
    assert [row["note"] for row in rows] == [
        "not timed, ZeroDivisionError: division by zero",
        "not timed, RuntimeError: no memory",
        "not timed, wrong by 5.0e-01 against fp64",
        "error 0.0e+00",
    ]
    assert [bool(row["median_ms"]) for row in rows] == [False, False, False, True]
    write(rows, tmp_path / "rows.csv")
    refuse_wrong([row for row in rows if row["implementation"] != "wrong"])
    with pytest.raises(SystemExit, match=r"error: wrong: not timed, wrong by 5.0e-01 against fp64"):
        refuse_wrong(rows)


def test_bf16_is_bf16_on_a_gpu_too():
    from benchmarks.common import set_up

    before = torch.get_autocast_dtype("cuda")
    try:
        set_up("cuda:0", None, "bf16")
        assert torch.get_autocast_dtype("cuda") == torch.bfloat16
    finally:
        torch.set_autocast_dtype("cuda", before)


def test_several_fits_in_one_process_and_one_that_fails(small_picture, tmp_path, monkeypatch):
    import io

    from benchmarks import fits

    fast = " ".join(FAST)
    runs = f"loe-image --data {tmp_path}/none.png\n\nloe-image --data {small_picture} --max-num-iterations 2 {fast}\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(runs))
    monkeypatch.setattr("sys.argv", ["fits", "--output", f"{tmp_path}/fits.jsonl", "--pictures", str(tmp_path)])
    monkeypatch.delenv("NERFSTUDIO_METHOD_CONFIGS", raising=False)
    with pytest.raises(SystemExit, match="error: 1 of 2 runs failed"):
        fits.main()
    monkeypatch.delenv("NERFSTUDIO_METHOD_CONFIGS")
    bad, good = (json.loads(line) for line in (tmp_path / "fits.jsonl").read_text().splitlines())
    assert "none.png does not exist" in bad["problem"]
    assert good["num_steps"] == 2
    assert good["psnr"] > 0
    assert good["arguments"] == runs.splitlines()[2]
    assert (tmp_path / "loe-image.png").is_file()


def test_ns_train_is_found_wherever_its_scripts_lie(tmp_path):
    from loe_field.runs.child import ns_train

    done = subprocess.run(ns_train("loe-image", "--help"), env={"PATH": str(tmp_path), "HOME": str(tmp_path)},
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "usage: ns-train loe-image" in done.stdout


def test_a_visit_goes_on_after_a_failure_and_ends_what_takes_too_long(tmp_path, capsys):
    from benchmarks.visit import Part, run

    def of(code, seconds=60.0, **options):
        return run(Part("a part", seconds, ("-c", code), **options), seconds, tmp_path / "log.txt")

    assert of("print('first'); raise SystemExit(3)") == ("exit status 3", "first")
    assert "    first" in capsys.readouterr().out
    assert of("print(input()); print('last')", stdin="said\n", beside=[("-c", "raise SystemExit(4)")]) == ("ok", "last")
    assert "exit status 4: -c raise" in capsys.readouterr().out
    sleeps = "import subprocess; subprocess.run(['sleep', '100'])"
    assert of(f"print('begun', flush=True); {sleeps}", 0.5) == ("time is up", "begun")
    log = (tmp_path / "log.txt").read_text()
    assert all(
        word in log for word in ("first", "said", "last", "begun", "beside a part: python -c raise SystemExit(4)")
    )


def test_all_parts_of_a_visit_run_what_exists_and_leave_few_files(tmp_path):
    from benchmarks.visit import TINY, VISITS, Sizes

    for parts, _ in VISITS.values():
        for sizes in (Sizes(), TINY):
            made = list(parts(tmp_path, sizes, Path("data"), Path("scratch")))
            names = [part.words[1] for part in made]
            assert len(names) > 2
            assert [n for n in names if n != "pytest" and not (ROOT / f"{n.replace('.', '/')}.py").is_file()] == []
            files = {word for part in made for word in part.words if str(tmp_path) in word}
            assert len(files - {str(tmp_path)}) <= 3  # beside log, parts, summary and two pictures


def test_the_summary_shows_every_table(tmp_path):
    from benchmarks.summary import summary

    heads = "implementation,what,points,precision,median_ms,times_dense,gflop_per_s,gb_per_s,times_floor,peak_mib,note"
    cases = [
        "loe,step,9,bf16,0.500,0.4,52000,2000.0,1.5,100,error 1e-3",
        'masked loop,step,9,bf16,,,,,,,"not timed, no memory"',
        "dense compiled,step,9,bf16,2.000,1.0,13000,500.0,6.0,200,error 1e-3",
    ]
    step = "".join([f"{heads},device,commit\n", *(f"{case},H100,abc\n" for case in cases)])
    (tmp_path / "step.csv").write_text(step)
    runs = [
        {
            "arguments": "loe-image --pipeline.datamanager.pixels-per-batch 9 --data /a/b/c.png",
            "psnr": 47.254,
            "num_steps": 6000,
            "train_seconds": 2.5,
            "seconds_to_target": None,
        },
        {"arguments": "loe-nerf", "problem": "no disk"},
    ]
    (tmp_path / "fits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in runs))
    rows = [f"forward,{'tried' if k else 'own'},bf16,64,4,2,{k},{10.0 - k},9,\n" for k in range(6)]
    (tmp_path / "blocks.csv").write_text(
        "kernel,cut,precision,block_rows,warps,stages,programs,microseconds,gb_per_s,note\n" + "".join(rows)
    )
    (tmp_path / "parts.csv").write_text("part,seconds,status,last_line\ntests,60,ok,3 passed\n")
    (tmp_path / "other.csv").write_text("kernel,ms,device\nwhole,0.25,H100\n")
    text = summary(tmp_path)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "tests 60 ok 3 passed" in lines
    assert "loe step 9 bf16 0.500 0.25 52.0 2000.0 1.5 100 error 1e-3" in lines
    assert "masked loop step 9 bf16 not timed, no memory" in lines
    assert "47.25 6000 2.50 loe-image --pixels-per-batch 9 --data c.png" in lines
    assert "loe-nerf no disk" in lines
    assert [line.split()[6] for line in lines if line.startswith("forward")] == ["5", "4", "3", "0"]
    assert "whole 0.25" in lines
    assert summary(tmp_path / "none") == "\n"


@pytest.mark.parametrize("script", sorted((ROOT / "benchmarks").glob("*.sh")), ids=lambda path: path.name)
def test_scripts_name_files_that_exist(script):
    text = script.read_text()
    modules = [name.replace(".", "/") + ".py" for name in re.findall(r"-m (benchmarks\.\w+)", text)]
    paths = [*re.findall(r"[\w/]+\.(?:py|sh)\b", text), *modules]
    assert paths
    assert [path for path in paths if not (ROOT / path).is_file()] == []
    assert subprocess.run(["bash", "-n", script]).returncode == 0


def test_the_docs_have_the_table_of_the_results():
    done = benchmark("table", "--check")
    assert done.returncode == 0, done.stderr


def test_more_bits_are_fewer_errors_and_whole_files_are_counted(small_picture):
    from benchmarks.rate_distortion import codec_points
    from loe_field.pictures.read import read_picture

    for name in ("JPEG", "WEBP"):
        rows = codec_points(read_picture(small_picture), name)
        sizes, decibels = ([float(row[key]) for row in rows] for key in ("file_bytes", "psnr"))
        assert sizes == sorted(sizes)
        assert decibels == sorted(decibels)
        assert float(rows[0]["bits_per_pixel"]) == pytest.approx(8 * sizes[0] / (60 * 40), abs=1e-4)


def test_the_sweep_of_blocks_runs_in_the_interpreter_and_tells_of_a_table_that_fails(tmp_path, monkeypatch):
    """Also with a numpy that Triton's interpreter does not know."""
    output = tmp_path / "blocks.csv"
    words = ("--rows", "40", "--width", "16", "--device", "cpu", "--seconds", "0.1", "--output", output)
    command = [sys.executable, "-m", "benchmarks.kernel_blocks", *map(str, words)]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with open(output, newline="") as file:
        assert next(csv.DictReader(file))["microseconds"] != ""

    from benchmarks import kernel_blocks

    rows = [{"kernel": "forward", "cut": cut, "microseconds": time} for cut, time in (("own", ""), ("tried", "2.0"))]
    monkeypatch.setattr(kernel_blocks, "sweep", lambda options: iter(rows))
    monkeypatch.setattr(sys, "argv", ["kernel_blocks", "--device", "cpu"])
    with pytest.raises(SystemExit, match="error: the tables' own cut fails: forward"):
        kernel_blocks.main()


def test_the_bricks_are_drawn_where_every_ray_meets_them(monkeypatch):
    import numpy as np

    from benchmarks import bricks

    monkeypatch.setattr(bricks, "SHADOW_SIDE", 256)
    boxes, side, eye = bricks.bricks(), 12, np.array([2.0, -3.0, 1.5])
    light = bricks.shadow_map(boxes)
    drawn = bricks.picture(boxes, light, eye, side)
    assert np.array_equal(drawn, bricks.picture(bricks.bricks(), light, eye, side))
    focal = side / np.tan(0.5 * bricks.ANGLE)
    x, y = np.meshgrid(np.arange(2 * side) + 0.5 - side, side - 0.5 - np.arange(2 * side))
    local = np.stack([x, y, np.full_like(x, -focal)], -1).reshape(-1, 1, 3)
    ray = (local / np.linalg.norm(local, axis=-1, keepdims=True)) @ bricks.looking(eye).T
    near, far = (boxes.low - eye) / ray, (boxes.high - eye) / ray
    hit = np.minimum(near, far).max(-1) < np.maximum(near, far).min(-1)
    covered = hit.any(1).reshape(side, 2, side, 2).mean((1, 3))
    assert 0.2 < covered.mean() < 0.8
    assert np.abs(drawn[..., 3] / 255 - covered).max() < 1e-2
    # A place that sees the light past everything else is lit, one behind a box is not.
    rays, until = light
    first = rays.origin + until[..., None] * rays.direction
    row, column = np.argwhere(np.isfinite(until))[100]
    shades = [
        bricks._shaded(boxes, light, point + bricks.LIGHT, -bricks.LIGHT[None], np.ones(1), np.array([0]))[0, :3].max()
        for point in (first[row, column], first[row, column] - 0.2 * bricks.LIGHT)
    ]
    assert shades[0] > 1.2 * shades[1]


def test_the_bricks_are_a_scene_on_white(tmp_path, monkeypatch):
    from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig

    from benchmarks import bricks

    monkeypatch.setattr(bricks, "SHADOW_SIDE", 128)
    bricks.write(tmp_path / "scene", views=10, side=8)
    views = BlenderDataParserConfig(data=tmp_path / "scene").setup().get_dataparser_outputs
    assert [len(views(split).image_filenames) for split in ("train", "val", "test")] == [9, 1, 1]
    assert views("train").alpha_color.tolist() == [1, 1, 1]


def test_a_scene_is_disturbed_as_it_is_told(tmp_path):
    import json

    import numpy as np
    from scenes import write_scene
    from scipy.spatial.transform import Rotation

    from benchmarks import disturbed

    whole = write_scene(tmp_path / "whole", views=40, height=8, width=10)
    disturbed.write(whole, tmp_path / "off", turn=0.5, move=0.01, stops=0.3, seed=1)
    content, original = (json.loads((folder / "transforms.json").read_text()) for folder in (tmp_path / "off", whole))
    names = [frame["file_path"] for frame in content["frames"]]
    held_out = [names.index(name) for name in content["val_filenames"]]
    assert held_out == [5, 15, 25, 35]
    assert sorted(content["train_filenames"] + content["test_filenames"]) == names
    poses, were = (np.array([f["transform_matrix"] for f in c["frames"]])[:, :3] for c in (content, original))
    assert np.array_equal(poses[held_out], were[held_out])
    turns = Rotation.from_matrix(poses[:, :, :3] @ were[:, :, :3].swapaxes(1, 2)).as_rotvec(degrees=True)
    moves = poses[:, :, 3] - were[:, :, 3]
    extent = np.abs(were[:, :, 3] - were[:, :, 3].mean(0)).max()
    assert (turns**2).sum(1).mean() ** 0.5 == pytest.approx(0.5, rel=0.3)
    assert (moves**2).sum(1).mean() ** 0.5 == pytest.approx(0.01 * extent, rel=0.3)
    assert np.abs(turns.mean(0)).max() < 1e-3
    grey = np.full((2, 2, 3), 100, np.uint8)
    assert np.abs(disturbed.brighter(disturbed.brighter(grey, 0.5), -0.5).astype(int) - grey).max() <= 1
    assert disturbed.brighter(grey, 1.0)[0, 0, 0] == 138  # twice the light of 100 in sRGB


def test_the_figure_of_biases_is_drawn(tmp_path, monkeypatch, capsys):
    from benchmarks import bias_figure

    monkeypatch.setattr(bias_figure, "FOLDER", tmp_path / "figure")
    bias_figure.main(steps=1)
    assert (tmp_path / "figure" / "row.png").stat().st_size > 10_000
    assert len(capsys.readouterr().out.splitlines()) == 2
