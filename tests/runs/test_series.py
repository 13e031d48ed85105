"""A folder or a pattern as --data: which pictures are meant, and the real command on them."""

import csv
import json
import os
import re
import shutil
import signal
import sys
import time

import numpy as np
import pytest
from PIL import Image
from support import FAST, read_metrics, run_here, start, waves

from loe_field.errors import InputError
from loe_field.files import locked
from loe_field.runs.series import _natural, is_series, pictures_of, series_name

pytestmark = pytest.mark.slow

QUICK = (*FAST, "--max-num-iterations", 20, "--num-threads", 1)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "my.photos"
    names = ("10.png", "2.JPG", "a.b.png", "cat.png", "cat.webp", ".hidden.png", "notes.txt", "inner/deep.png")
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_a_folder_in_natural_order(photos, capsys):
    found = pictures_of(photos)
    assert list(found) == ["2", "10", "a.b", "cat.png", "cat.webp"]
    assert [path.name for path in found.values()] == ["2.JPG", "10.png", "a.b.png", "cat.png", "cat.webp"]
    said = capsys.readouterr().out
    assert "notes.txt" in said
    assert "hidden" not in said


def test_patterns(photos):
    assert list(pictures_of(photos / "*.png")) == ["10", "a.b", "cat"]
    assert list(pictures_of(photos / "**" / "*.png")) == ["10", "a.b", "cat", "inner/deep"]
    assert list(pictures_of(photos / "inner" / "*")) == ["deep"]
    assert list(pictures_of(photos / "[ac]*.png")) == ["a.b", "cat"]


def test_what_is_several(photos, monkeypatch):
    odd = photos / "odd[1].png"
    odd.touch()
    monkeypatch.chdir(photos)
    assert is_series(photos)
    assert is_series(photos / "*.png")
    assert not is_series(odd)
    assert not is_series(photos / "absent.png")
    assert not is_series(None)
    for data in (photos, photos / "*.png", photos / "*" / "d?ep.png", photos / "inner" / ".."):
        assert series_name(data) == "my.photos"
    assert series_name(type(photos)("*.png")) == series_name(type(photos)(".")) == "my.photos"


@pytest.mark.parametrize("name", ["empty", "empty/*.png", "*.nothing"])
def test_no_picture_at_all(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".hidden.png").touch()
    with pytest.raises(InputError, match="picture"):
        pictures_of(tmp_path / name)


def test_numbers_count_as_numbers(tmp_path):
    names = ["b1", "B2", "b10", "1x", "01y", "x", "1", "²"]
    ordered = sorted((tmp_path / name for name in names), key=_natural)
    assert [path.name for path in ordered] == ["1", "1x", "01y", "b1", "B2", "b10", "x", "²"]


def rows_of(folder):
    with open(folder / "summary.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def series(small_picture, tmp_path_factory):
    """Two good pictures and a bad one between them: the series' folder, and what the command said."""
    work = tmp_path_factory.mktemp("series")
    (work / "photos").mkdir()
    shutil.copy(small_picture, work / "photos" / "10.png")
    Image.fromarray(waves(12, 9, 1)[..., 0]).save(work / "photos" / "1 [b].png")
    (work / "photos" / "2.jpg").write_bytes(b"\xff\xd8\xff no picture")
    done = run_here("ns-train", "loe-image", "--data", work / "photos", "--output-dir", work / "out", *QUICK)
    (folder,) = (work / "out").glob("photos/loe-image/*")
    return folder, done


def test_each_picture_has_its_run(series):
    folder, done = series
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert {path.name for path in folder.iterdir()} == {"1 [b]", "2", "10", "summary.csv"}
    assert [path.name for path in (folder / "2").iterdir()] == ["run.json"]
    for name in ("1 [b]", "10"):
        assert (folder / name / "config.yml").is_file()
        assert read_metrics(folder / name)["num_steps"] == 20


def test_the_table_holds_the_bad_one_too(series):
    folder, done = series
    first, bad, last = rows_of(folder)
    assert [first["name"], bad["name"], last["name"]] == ["1 [b]", "2", "10"]
    metrics = read_metrics(folder / "10")
    assert float(last["psnr"]) == pytest.approx(metrics["psnr"], abs=1e-4)
    assert float(last["ssim"]) == pytest.approx(metrics["ssim"], abs=1e-5)
    assert int(last["parameters"]) == metrics["num_parameters"]
    assert float(last["seconds"]) == pytest.approx(metrics["train_seconds"], abs=1e-3)
    assert (last["size"], last["problem"]) == ("60 x 40 x 3", "")
    assert (first["size"], first["ssim"]) == ("9 x 12 x 1", "")
    assert "is damaged or cut short" in bad["problem"]
    assert (bad["size"], bad["psnr"]) == ("", "")
    assert "is damaged or cut short" in done.stderr
    table = done.stdout.split("seconds")[-1]
    assert re.search(rf"10 +│ 60 x 40 x 3 │ +{metrics['psnr']:.2f} ", table)
    assert str(folder / "summary.csv") in table


def test_a_run_of_a_series_is_that_of_the_picture_alone(series, small_picture, tmp_path):
    done = run_here("ns-train", "loe-image", "--data", small_picture, "--output-dir", tmp_path, *QUICK)
    assert done.returncode == 0, done.stderr
    (alone,) = tmp_path.glob("*/*/*/reconstruction.png")
    np.testing.assert_array_equal(Image.open(alone), Image.open(series[0] / "10" / "reconstruction.png"))


def test_stopped_in_the_middle(tmp_path):
    """The first of two pictures would go on for long."""
    (tmp_path / "photos").mkdir()
    for name in ("a", "b"):
        Image.fromarray(waves(40, 60, 3)).save(tmp_path / "photos" / f"{name}.png")
    process = start("ns-train", "loe-image-paper", "--data", tmp_path / "photos" / "*.png", "--output-dir", tmp_path,
                    *map(str, FAST), "--steps-per-save", 20)  # fmt: skip
    deadline = time.time() + 200
    while not list(tmp_path.glob("photos/*/*/a/nerfstudio_models/*.ckpt")):
        assert process.poll() is None, process.stdout.read()
        assert time.time() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    console, _ = process.communicate(timeout=120)
    assert "Traceback" not in console
    (folder,) = tmp_path.glob("photos/loe-image-paper/*")
    assert process.returncode == 130, console
    (row,) = rows_of(folder)
    assert (row["name"], row["problem"]) == ("a", "stopped before its end")
    assert float(row["psnr"]) > 5
    assert f"1 of 2 pictures were begun; the same command with --load-dir {folder} goes on" in console


# Below, inside this process.


@pytest.fixture
def refused(monkeypatch):
    """What ns-train says to options that it refuses."""
    from nerfstudio.scripts import train

    def refused(*arguments):
        monkeypatch.setattr(sys, "argv", ["ns-train", "loe-image", *map(str, arguments)])
        with pytest.raises(InputError) as error:
            train.entrypoint()
        return str(error.value)

    return refused


@pytest.mark.parametrize("option", ["--load-checkpoint"])
def test_going_on_is_for_one_picture(refused, photos, option):
    said = refused("--data", photos, option, 3, "--output-dir", photos / "out")
    assert option in said
    assert "one picture" in said
    assert not (photos / "out").exists()


def test_going_on_wants_the_folder_of_a_series_of_this_method(refused, photos, series):
    assert "is no folder of a series, which holds summary.csv" in refused("--data", photos, "--load-dir", photos)
    other = photos.parent / "loe-nerf" / "t"
    other.mkdir(parents=True)
    (other / "summary.csv").touch()
    assert "was made by loe-nerf, not by loe-image" in refused("--data", photos, "--load-dir", other)


def test_a_second_command_in_the_folder_of_a_series(refused, photos, series):
    with locked(series[0]):
        said = refused("--data", photos, "--load-dir", series[0])
    assert f"{series[0]} is being written by process {os.getpid()}" in said


def test_going_on_fits_what_is_new_and_nothing_twice(series, small_picture, tmp_path, monkeypatch, capsys):
    from nerfstudio.scripts import train

    folder = tmp_path / "out" / "photos" / "loe-image" / "t"
    shutil.copytree(series[0], folder)
    (tmp_path / "photos").mkdir()
    shutil.copy(small_picture, tmp_path / "photos" / "10.png")
    Image.fromarray(waves(9, 12, 1)[..., 0]).save(tmp_path / "photos" / "1 [b].png")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    options = ["--data", tmp_path / "photos", "--load-dir", folder, *QUICK]
    monkeypatch.setattr(sys, "argv", ["ns-train", "loe-image", *map(str, options)])
    train.entrypoint()
    said = capsys.readouterr().out
    assert f"fitted before: {folder / '10'}" in said.replace("\n", "")
    assert "fitted anew in 1 [b]-2" in said.replace("\n", "")
    kept = {path: path.stat().st_mtime_ns for path in before}
    del before[folder / "summary.csv"], kept[folder / "summary.csv"]
    assert kept == before
    assert [(row["name"], row["size"], row["problem"]) for row in rows_of(folder)] == [
        ("1 [b]", "12 x 9 x 1", ""),
        ("10", "60 x 40 x 3", ""),
    ]
    assert read_metrics(folder / "1 [b]-2")["width"] == 12


def test_a_folder_without_pictures(refused, tmp_path):
    assert "holds no picture" in refused("--data", tmp_path, "--output-dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_ns_eval_of_one_of_them(series, tmp_path, monkeypatch):
    from nerfstudio.scripts import eval as host_eval

    config, output = series[0] / "10" / "config.yml", tmp_path / "e.json"
    monkeypatch.setattr(sys, "argv", ["ns-eval", "--load-config", str(config), "--output-path", str(output)])
    host_eval.entrypoint()
    psnr = json.loads(output.read_text())["results"]["psnr"]
    assert psnr == pytest.approx(read_metrics(series[0] / "10")["psnr"], abs=1e-3)
