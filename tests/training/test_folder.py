"""A run's folder is its own."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from loe_field.errors import InputError
from loe_field.training.checkpoints import packed, write_checkpoint
from loe_field.training.config import LoETrainerConfig
from loe_field.training.folder import RunFolder

pytestmark = pytest.mark.slow

CLOCK = "2026-01-01_000000"


def config_of(folder, timestamp, **options):
    return LoETrainerConfig(
        output_dir=folder / "out", experiment_name="x", method_name="loe", timestamp=timestamp, **options
    )


def holding(folder, timestamp):
    """A folder with a run's checkpoint in it."""
    models = config_of(folder, timestamp).get_base_dir() / "nerfstudio_models"
    write_checkpoint(models, 9, packed({"step": 9, "pipeline": {}, "optimizers": {}}), only_latest=True)
    return models


def test_runs_of_the_same_second_have_folders_of_their_own(tmp_path, capsys):
    configs = [config_of(tmp_path, CLOCK) for _ in range(3)]
    folders = [RunFolder(config) for config in configs]
    names = [CLOCK, f"{CLOCK}-2", f"{CLOCK}-3"]
    assert [folder.path.name for folder in folders] == [config.timestamp for config in configs] == names
    assert all(folder.path.is_dir() for folder in folders)
    assert f"{CLOCK} is taken: this run's folder is" in capsys.readouterr().out.replace("\n", "")


def test_runs_that_start_at_once(tmp_path):
    barrier = threading.Barrier(8)

    def claim(_):
        config = config_of(tmp_path, CLOCK)
        barrier.wait()
        return RunFolder(config)

    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(claim, range(8)))
    assert len({folder.path for folder in folders}) == 8


def test_a_timestamp_of_ones_own_that_is_taken(tmp_path):
    models = holding(tmp_path, "mine")
    with pytest.raises(InputError, match=rf"holds a run: give another --timestamp, or .* --load-dir {models}$"):
        RunFolder(config_of(tmp_path, "mine"))
    for options in ({"load_dir": models}, {"load_checkpoint": models / "step-000000009.ckpt"}):
        folder = RunFolder(config_of(tmp_path, "mine", **options))
        assert folder.path == models.parent
        with pytest.raises(InputError, match="is being written by"):
            RunFolder(config_of(tmp_path, "mine", **options))
        folder.release()
    assert (models / "step-000000009.ckpt").exists()


def test_a_run_that_goes_on_in_a_folder_of_the_clock(tmp_path):
    models = holding(tmp_path, CLOCK)
    config = config_of(tmp_path, CLOCK, load_dir=models)
    assert RunFolder(config).path == models.parent
    assert config.timestamp == CLOCK


def test_a_folder_without_checkpoints_may_be_used(tmp_path):
    folder = config_of(tmp_path, "mine").get_base_dir()
    folder.mkdir(parents=True)
    (folder / "log.txt").touch()
    RunFolder(config_of(tmp_path, "mine")).discard()
    assert (folder / "log.txt").exists()


def test_what_was_made_is_removed_and_nothing_else(tmp_path):
    (tmp_path / "out").mkdir()
    folder = RunFolder(config_of(tmp_path, "mine"))
    (folder.path / "config.yml").touch()
    folder.discard()
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_in_its_place(tmp_path):
    (tmp_path / "out" / "x" / "loe").mkdir(parents=True)
    (tmp_path / "out" / "x" / "loe" / "mine").touch()
    with pytest.raises(InputError, match="is a file: give another --timestamp"):
        RunFolder(config_of(tmp_path, "mine"))
    with pytest.raises(InputError, match="cannot be made"):
        RunFolder(config_of(tmp_path / "out" / "x" / "loe" / "mine", "other"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"experiment_name": "../../x"}, "--experiment-name ../../x and --timestamp mine lead out of the folder"),
        ({"timestamp": "../../../.."}, "lead out of the folder"),
        ({"load_dir": Path("a"), "load_checkpoint": Path("b")}, "are both given"),
        ({"load_step": 3}, "--load-step 3 is a checkpoint of --load-dir"),
    ],
)
def test_options_that_contradict(options, words, tmp_path):
    config = config_of(tmp_path, "mine")
    for name, value in options.items():
        setattr(config, name, value)
    with pytest.raises(InputError) as caught:
        config.check()
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "a", "--data", "b"], "--data is given 2 times (a, b): give one"),
        (["--data=a", "--pipeline.datamanager.data", "b"], "2 times"),
        (["--data", ""], "--data is empty"),
        (["--data="], "--data is empty"),
    ],
)
def test_data_that_is_empty_or_given_twice(words, said, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ns-train", "loe", *words])
    with pytest.raises(InputError) as caught:
        config_of(tmp_path, "mine").save_config()
    assert said in str(caught.value)


def test_a_folder_that_another_run_takes_first_keeps_its_content(tmp_path, monkeypatch):
    def taken(path):
        (path / "step-000000009.ckpt").touch()
        raise InputError("another run is quicker")

    monkeypatch.setattr("loe_field.training.folder.locked", taken)
    with pytest.raises(InputError, match="quicker"):
        RunFolder(config_of(tmp_path, "mine"))
    assert (config_of(tmp_path, "mine").get_base_dir() / "step-000000009.ckpt").exists()
