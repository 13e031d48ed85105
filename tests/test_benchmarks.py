"""The benchmarks run, check what they time, and the docs' table of speed is theirs."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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


@pytest.mark.parametrize("script", sorted((ROOT / "benchmarks").glob("*.sh")), ids=lambda path: path.name)
def test_scripts_name_files_that_exist(script):
    text = script.read_text()
    modules = [name.replace(".", "/") + ".py" for name in re.findall(r"-m (benchmarks\.\w+)", text)]
    paths = [*re.findall(r"[\w/]+\.py\b", text), *modules]
    assert paths
    assert [path for path in paths if not (ROOT / path).is_file()] == []


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
