"""Many small pictures by the real command: what it leaves, what it survives, and who shares it."""

import csv
import json
import os
import pickle
import shutil
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from support import run_here, start, waves
from torch.utils.data import DataLoader

from loe_field import FieldDataset, InputError, fit_images, load_field, save_field, shared_start
from loe_field.cli import export, render
from loe_field.export.shards import read_shard, shard_paths
from loe_field.runs import images
from loe_field.runs.content import content_of
from loe_field.runs.fields import FieldFolder, SetOptions, histogram_lines, items_of, statistics_of
from loe_field.runs.images import listed, place_here
from loe_field.training.many import ManyRecipe

pytestmark = pytest.mark.slow

STEPS = ("--max-num-iterations", 20)


def picture(number, height=12, width=12, channels=3, dtype=np.uint8):
    noise = np.random.default_rng(number).integers(0, 40, (height, width, channels))
    return (waves(height, width, channels, dtype) // 2 + noise).astype(dtype)


def write(folder, names, **kind):
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        Image.fromarray(picture(number, **kind).squeeze()).save(folder / f"{name}.png")


def fit(data, output, *options):
    done = run_here("ns-train", "loe-images", "--data", data, "--output-dir", output, "--num-threads", 1, *options)
    assert "Traceback" not in done.stdout + done.stderr
    return done, output / images.series_name(data) / "loe-images" / "fields"


def rows_of(folder):
    with open(folder / "results.csv", newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def stamps(folder):
    return {path.name: path.stat().st_mtime_ns for path in shard_paths(folder)}


def fitted_names(folder):
    return [member.name for path in shard_paths(folder) for member in read_shard(path).members]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Pictures of two sizes and three kinds, one of them damaged: their folder, the set's, and what was said."""
    work = tmp_path_factory.mktemp("many")
    data = work / "small"
    write(data, ["p10", "p9", "wide"])
    write(data, ["g1", "g2"], channels=1)
    write(data, ["tall"], height=16, width=10)
    write(data, ["alpha"], channels=4)
    Image.fromarray(waves(12, 12, 1, np.uint16)[..., 0]).save(data / "deep.png")
    (data / "bad.png").write_bytes((data / "p9.png").read_bytes()[:60])
    done, folder = fit(data, work / "out", *STEPS)
    return data, folder, done


def test_what_is_left(made):
    _, folder, done = made
    assert done.returncode == 1
    assert "left out bad: " in done.stderr
    assert "1 could not be fitted: bad" in done.stdout
    rows = rows_of(folder)
    assert len(rows) == 9
    assert "damaged" in rows["bad"]["problem"]
    assert rows["bad"]["psnr"] == ""
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["fitted"], summary["failed_names"], summary["fitted_here"]) == (8, ["bad"], 8)
    assert sum(summary["histogram"].values()) == 8
    psnr = [float(row["psnr"]) for name, row in rows.items() if name != "bad"]
    assert summary["psnr_mean"] == pytest.approx(np.mean(psnr), abs=1e-3)
    assert min(psnr) > 8
    assert (folder / "config.yml").is_file()
    assert {(row["size"], row["shard"].split("-", 1)[1]) for name, row in rows.items() if name != "bad"} == {
        ("12 x 12 x 3", "12x12x3-uint8"), ("12 x 12 x 1", "12x12x1-uint8"), ("10 x 16 x 3", "10x16x3-uint8"),
        ("12 x 12 x 4", "12x12x4-uint8"), ("12 x 12 x 1", "12x12x1-uint16"),
    }  # fmt: skip


def test_the_same_command_again_fits_nothing(made):
    data, folder, _ = made
    before = stamps(folder)
    done, _ = fit(data, folder.parents[2], *STEPS)
    assert done.returncode == 1
    assert "8 of 9 pictures are fitted already" in done.stdout
    assert "0 fitted here" in done.stdout
    assert stamps(folder) == before


def test_other_options_are_refused(made):
    data, folder, _ = made
    done, _ = fit(data, folder.parents[2], "--max-num-iterations", 21)
    assert done.returncode == 1
    assert "(num_steps 20, now 21)" in done.stderr


def test_the_dataset(made):
    data, folder, _ = made
    dataset = FieldDataset(folder)
    assert dataset.names == ["alpha", "deep", "g1", "g2", "p9", "p10", "tall", "wide"]
    rows = rows_of(folder)
    for name in dataset.names:
        index = dataset.index(name)
        item = dataset[index]
        assert item["psnr"] == pytest.approx(float(rows[name]["psnr"]), abs=1e-4)
        assert len(item["vector"]) == int(rows[name]["parameters"])
        for entry in dataset.layout(index):
            torch.testing.assert_close(
                item["vector"][entry.place].view(entry.shape), item["weights"][entry.name], rtol=0, atol=0
            )
        seen = dataset.render(index)
        wanted = np.atleast_3d(np.asarray(Image.open(data / f"{name}.png")))
        assert (seen.shape, seen.dtype) == (wanted.shape, wanted.dtype)
        white = np.iinfo(seen.dtype).max
        error = np.mean(((seen.astype(float) - wanted) / white) ** 2)
        assert -10 * np.log10(error) == pytest.approx(item["psnr"], abs=1e-3)
        np.testing.assert_array_equal(dataset.render(index, vector=item["vector"]), seen)
    assert dataset.render(0, (30, 20)).shape == (20, 30, 4)
    with pytest.raises(InputError, match="is not in the set"):
        dataset.index("bad")
    with pytest.raises(IndexError):
        dataset[8]
    with pytest.raises(InputError, match="there are 12 x 12 x 1"):
        FieldDataset(folder, size=(1, 2, 3))
    batch = next(iter(DataLoader(FieldDataset(folder, size=(12, 12, 3)), batch_size=3)))
    assert batch["vector"].shape[0] == 3
    assert batch["name"] == ["p9", "p10", "wide"]
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[3]["vector"], dataset[3]["vector"])


def test_render_and_export_of_a_member(made, tmp_path, call_main):
    folder = made[1]
    dataset = FieldDataset(folder)
    for member in ("p10", str(dataset.index("p10"))):
        options = ("--member", member, "--output", tmp_path / "a.png", "--scale", 2)
        status, said = call_main(render.main, "loe-render", "--load", folder, *options)
        assert status == 0, said.err
        np.testing.assert_array_equal(Image.open(tmp_path / "a.png"), dataset.render(dataset.index("p10"), (24, 24)))
    options = ("--member", "p10", "--output", tmp_path / "a.safetensors", "--format", "safetensors")
    status, said = call_main(export.main, "loe-export", "--load-config", folder, *options, "--quantize", "fp16")
    assert status == 0, said.err
    assert "after rounding to fp16" in said.out
    field = load_field(tmp_path / "a.safetensors")
    expected = dataset.network(dataset.index("p10"))
    assert field.options == expected.options
    torch.testing.assert_close(field.head.weight, expected.head.weight, rtol=1e-3, atol=1e-3)
    for options, said in {(): "give --member", ("--member", "bad"): "a number from 0 to 7"}.items():
        status, printed = call_main(
            render.main, "loe-render", "--load", folder, "--output", tmp_path / "b.png", *options
        )
        assert status == 1
        assert said in printed.err


def test_a_stopped_process_keeps_its_pictures_and_a_dead_one_does_not(tmp_path, monkeypatch):
    """Of three pairs the first belongs to a process that is halted; once it is killed the other one takes them."""
    data = tmp_path / "small"
    write(data, list("abcdef"))
    folder = tmp_path / "out" / "small" / "loe-images" / "fields"
    options = ("--max-num-iterations", 400, "--group-size", 2)
    other = start("ns-train", "loe-images", "--data", data, "--output-dir", tmp_path / "out", "--num-threads", 1,
                  *options)  # fmt: skip
    claims, deadline = folder / ".claims", time.time() + 200
    while not (claims.is_dir() and any(claims.iterdir())):
        assert other.poll() is None, other.stdout.read()
        assert time.time() < deadline
        time.sleep(0.005)
    other.send_signal(signal.SIGSTOP)
    halted = [json.loads(path.read_text()) for path in claims.iterdir()]
    done_by_it = fitted_names(folder)
    waited = []

    def kill(show):
        waited.append(fitted_names(folder))
        other.kill()
        other.wait()

    monkeypatch.setattr(images.Show, "waiting", kill)
    done, _ = fit(data, tmp_path / "out", *options)
    other.stdout.close()
    assert done.returncode == 0, done.stderr
    (halted,) = halted
    assert waited
    assert sorted(waited[0]) == sorted({*"abcdef"} - {*halted})
    assert fitted_names(folder)[: len(done_by_it)] == done_by_it
    assert sorted(fitted_names(folder)) == [*"abcdef"]
    assert not any(claims.iterdir())
    alone = fit_images([picture(2)], names=["c"], num_steps=400, num_threads=1)
    assert alone.member(0).psnr == pytest.approx(float(rows_of(folder)["c"]["psnr"]), abs=1e-3)


def test_ctrl_c_ends_between_two_steps(tmp_path, monkeypatch):
    write(tmp_path / "small", list("abcd"))
    watch = images.Show.watch

    def interrupted(show, part):
        if show.here:
            os.kill(os.getpid(), signal.SIGINT)
        watch(show, part)

    monkeypatch.setattr(images.Show, "watch", interrupted)
    done, folder = fit(tmp_path / "small", tmp_path / "out", *STEPS, "--group-size", 2)
    assert done.returncode == 130
    assert "stopped; the same command goes on" in done.stdout
    assert fitted_names(folder) == ["a", "b"]
    assert rows_of(folder)["c"]["problem"] == "not fitted yet"


def test_a_picture_that_has_changed_is_fitted_again(tmp_path):
    write(tmp_path / "small", list("ab"))
    _, folder = fit(tmp_path / "small", tmp_path / "out", *STEPS)
    before = FieldDataset(folder)
    Image.fromarray(picture(7)).save(tmp_path / "small" / "b.png")
    write(tmp_path / "small", ["a", "_", "c"])
    content_of.cache_clear()
    done, _ = fit(tmp_path / "small", tmp_path / "out", *STEPS)
    after = FieldDataset(folder)
    assert after.names == ["_", "a", "b", "c"]
    assert "3 fitted here" in done.stdout
    assert torch.equal(after[1]["vector"], before[0]["vector"])
    assert not torch.equal(after[2]["vector"], before[1]["vector"])


def test_a_list_of_paths(tmp_path):
    write(tmp_path / "one", ["a"])
    write(tmp_path / "two", ["a", "b"])
    (tmp_path / "list.txt").write_text(f"one/a.png\n\n{tmp_path}/two/a.png\none/absent.png\n")
    found = listed(tmp_path / "list.txt")
    assert list(found) == ["one/a", "two/a", "one/absent"]
    problems = {}
    assert [item.name for item in items_of(found, problems)] == ["one/a", "two/a"]
    assert list(problems) == ["one/absent"]
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(InputError, match="names no picture"):
        listed(tmp_path / "empty.txt")
    with pytest.raises(InputError, match="does not exist"):
        listed(tmp_path / "absent")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--max-num-iterations", 0), "--max-num-iterations is 0"),
        (("--tile-size", 4), "2 levels or more"),
        (("--experts-lr", 0), "--experts-lr is 0"),
        (("--parameters-per-target", "nan"), "--parameters-per-target is nan"),
        (("--target-psnr", "nan"), "--target-psnr is nan"),
        (("--timestamp", "../../.."), "lead out of the folder"),
        (("--machine.num-devices", 2), "torchrun"),
        (("--init-from", "absent.safetensors"), "absent.safetensors is not a file"),
    ],
)
def test_options_that_cannot_be(tmp_path, options, said):
    write(tmp_path / "small", ["a"])
    done, _ = fit(tmp_path / "small", tmp_path / "out", *options)
    assert done.returncode == 1
    assert said in done.stderr
    assert not (tmp_path / "out").exists()


# Below without the host.


def items(tmp_path, count=8):
    names = [f"{number:02d}" for number in range(count)]
    write(tmp_path / "data", names)
    return items_of({name: tmp_path / "data" / f"{name}.png" for name in names}, {})


def test_claims_never_overlap_and_come_back(tmp_path):
    every, options = items(tmp_path), SetOptions(ManyRecipe(1), 0)
    first, second = (FieldFolder(tmp_path / "set", every, options) for _ in range(2))
    with first.claim(lambda _: 3) as (number, mine), second.claim(lambda _: 3) as (other, theirs):
        assert [item.name for item in mine + theirs] == ["00", "01", "02", "03", "04", "05"]
        assert number != other
        assert second.others_at_work()
        with first.claim(lambda _: 3) as (_, rest), second.claim(lambda _: 3) as (_, nothing):
            assert [item.name for item in rest] == ["06", "07"]
            assert nothing == []
    assert not first.others_at_work()
    with second.claim(lambda _: 99) as (_, again):
        assert len(again) == 8
    with pytest.raises(InputError, match="seed 0, now 1"):
        FieldFolder(tmp_path / "set", every, replace(options, seed=1))


@pytest.mark.parametrize("target", [None, 22.0])
def test_together_as_alone(target):
    arrays = [picture(0), picture(1)[..., 0], picture(2), picture(3, 20, 14), picture(4) / 255, picture(5)]
    options = {"num_steps": 40, "target_psnr": target}
    many = fit_images(arrays, **options)
    assert many.names == ["0", "1", "2", "3", "4", "5"]
    if target is not None:
        assert len({many.member(i).num_steps for i in range(6)}) > 1
    for i, array in enumerate(arrays):
        alone = fit_images([array], names=[str(i)], **options)
        torch.testing.assert_close(alone[0]["vector"], many[i]["vector"], rtol=0, atol=1e-5)
        assert alone[0]["num_steps"] == many[i]["num_steps"]
        assert alone[0]["seed"] == many[i]["seed"]
        if target is not None and many[i]["num_steps"] < 40:
            assert many[i]["psnr"] >= target
    assert len({many[i]["seed"] for i in range(6)}) == 6


def test_batches_of_a_larger_picture(monkeypatch):
    """Several batches a pass, seen by all fields alike."""
    monkeypatch.setattr("loe_field.training.many.PIXELS_PER_BATCH", 100)
    arrays = [picture(i, 16, 20) for i in range(2)]
    many = fit_images(arrays, num_steps=80)
    alone = fit_images(arrays[1:], names=["1"], num_steps=80)
    torch.testing.assert_close(alone[0]["vector"], many[1]["vector"], rtol=0, atol=1e-5)
    assert many[0]["psnr"] > 15


def test_light():
    arrays = [(picture(i) / 20.0).astype(np.float32) for i in range(2)]
    with pytest.raises(InputError, match=r"arrays\[0\] holds floats"):
        fit_images(arrays)
    fits = fit_images(arrays, num_steps=150, hdr=True)
    assert fits.member(0).radiance_peak == pytest.approx(np.percentile(arrays[0], 99.9), rel=1e-5)
    assert np.abs(fits.render(0) - arrays[0]).mean() < 1.5


def test_a_shared_start(tmp_path):
    arrays = [picture(i) for i in range(4)]
    start = shared_start(arrays, rounds=4, num_steps=20, arrays_per_round=2)
    same = fit_images(arrays, num_steps=20, same_start=True)
    fits = fit_images(arrays, num_steps=20, start=start)
    assert np.mean([fits[i]["psnr"] for i in range(4)]) > np.mean([same[i]["psnr"] for i in range(4)]) + 1
    assert shared_start(arrays[:1], rounds=1, num_steps=1, experts_lr=0.03).options == start.options
    with pytest.raises(InputError, match="has not the shape of a network for 20 x 16 pixels"):
        fit_images([picture(0, 16, 20)], start=start)
    write(tmp_path / "small", list("ab"))
    save_field(start, tmp_path / "start.safetensors")
    done, folder = fit(tmp_path / "small", tmp_path / "out", *STEPS, "--init-from", tmp_path / "start.safetensors")
    assert done.returncode == 0
    dataset = FieldDataset(folder)
    assert torch.equal(dataset[0]["vector"], fit_images([arrays[0]], num_steps=20, start=start)[0]["vector"])
    _, mean = fit(tmp_path / "small", tmp_path / "other", "--max-num-iterations", 1, "--init-from", folder,
                  "--experts-lr", 1e-9, "--fields-lr", 1e-9)  # fmt: skip
    expected = (dataset[0]["vector"] + dataset[1]["vector"]) / 2
    torch.testing.assert_close(FieldDataset(mean)[0]["vector"], expected, rtol=0, atol=1e-5)


def test_a_broken_shard_is_named(made, tmp_path):
    shutil.copytree(made[1], tmp_path / "set")
    path = shard_paths(tmp_path / "set")[0]
    content = path.read_bytes()
    broken = {
        content[:-20]: "cannot be read as safetensors",
        content.replace(b'\\"format_version\\":1', b'\\"format_version\\":9'): "format version 9",
        content.replace(b'\\"layer_width\\":4', b'\\"layer_width\\":5'): "contradicts itself",
        content.replace(b"loe_field_set", b"loe_field_sec"): "is no shard",
    }
    for bad, said in broken.items():
        assert bad != content
        path.write_bytes(bad)
        with pytest.raises(InputError, match=said):
            FieldDataset(tmp_path / "set")
    with pytest.raises(InputError, match="holds no shards"):
        FieldDataset(tmp_path)


def test_fields_that_come_to_nothing(tmp_path):
    write(tmp_path / "small", list("ab"))
    done, folder = fit(tmp_path / "small", tmp_path / "out", *STEPS, "--fields-lr", 1e30)
    assert done.returncode == 1
    assert "2 could not be fitted: a, b" in done.stdout
    assert "came to nothing" in rows_of(folder)["a"]["problem"]
    assert json.loads((folder / "summary.json").read_text())["psnr_mean"] is None
    assert shard_paths(folder) == []


@pytest.mark.parametrize("change", ["order", "sign", "period", "half period"])
def test_the_symmetries_that_the_docs_name(change):
    fits = fit_images([picture(0)], num_steps=20)
    network, coords = fits.network(0), torch.rand(200, 2)
    expected = network(coords)
    with torch.no_grad():
        level, following = network.layers[1], network.layers[2]
        weight, bias, outgoing = level.weight, level.bias, following.weight
        if change == "order":
            order = torch.randperm(len(bias))
            weight.copy_(weight[:, order]), bias.copy_(bias[order]), outgoing.copy_(outgoing[:, :, order])
        if change == "sign":
            weight[:, 1].neg_(), bias[1].neg_(), outgoing[:, :, 1].neg_()
        if change == "period":
            bias[1] += 2 * np.pi
        if change == "half period":
            bias[1] += np.pi
            outgoing[:, :, 1].neg_()
    assert not torch.equal(fits[0]["vector"], torch.cat([p.reshape(-1) for p in network.state_dict().values()]))
    torch.testing.assert_close(network(coords), expected, rtol=0, atol=1e-4)


def test_processes_of_torchrun_do_not_wait_for_each_other(tmp_path, monkeypatch):
    """Two that the environment tells of: this one joins nothing, and takes no more than its share at once."""
    from loe_field import train

    write(tmp_path / "small", list("abcd"))
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    options = ["--data", tmp_path / "small", "--output-dir", tmp_path / "out", *STEPS]
    monkeypatch.setattr("sys.argv", ["train", "loe-images", *map(str, options)])
    quiet = images.CONSOLE.quiet
    try:
        train.main()
    finally:
        images.CONSOLE.quiet = quiet
    folder = tmp_path / "out" / "small" / "loe-images" / "fields"
    assert [len(read_shard(path).members) for path in shard_paths(folder)] == [2, 2]


def test_statistics():
    found = statistics_of([30.2, 30.9, 41.5, float("inf")])
    assert (found["fitted"], found["exact"], found["histogram"]) == (4, 1, {"30": 2, "41": 1})
    lines = histogram_lines(found["histogram"])
    assert sum(int(line.rsplit(" ", 1)[1]) for line in lines) == 3
    assert histogram_lines({}) == []


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, (0, 1, 0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, (3, 4, 1, 2)),
        (
            {
                "SLURM_PROCID": "5",
                "SLURM_STEP_NUM_TASKS": "6",
                "SLURM_LOCALID": "1",
                "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
            },
            (5, 6, 1, 2),
        ),
    ],
)
def test_which_process_this_is(monkeypatch, environment, place):
    for name in list(os.environ):
        if name.startswith("SLURM_") or name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert place_here() == place
