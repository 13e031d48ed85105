import pytest
import torch

from loe_field.errors import InputError
from loe_field.files import write_whole
from loe_field.training.checkpoints import (
    checkpoint_path,
    checkpoint_steps,
    find_checkpoint,
    packed,
    read_checkpoint,
    require_same_shapes,
    write_checkpoint,
)


def state(step):
    return {"step": step, "pipeline": {"w": torch.ones(3)}, "optimizers": {}}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "models"
    for step in (9, 19):
        write_checkpoint(folder, step, packed(state(step)), only_latest=False)
    return folder


def test_latest_is_found_and_read(folder):
    assert find_checkpoint(folder) == checkpoint_path(folder, 19)
    assert find_checkpoint(folder, 9) == checkpoint_path(folder, 9)
    assert read_checkpoint(find_checkpoint(folder))["step"] == 19


def test_only_the_latest_is_kept_if_so_wanted(folder):
    write_checkpoint(folder, 29, packed(state(29)), only_latest=True)
    assert checkpoint_steps(folder) == [29]
    assert [p.name for p in folder.parent.iterdir()] == ["models"], "no temporary file is left"


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write_half():
        with write_whole(path) as temporary:
            temporary.write_text("ne")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("harm", ["cut", "text", "other", "code"])
def test_a_damaged_one_is_named_and_the_older_good_one_offered(folder, harm):
    path = checkpoint_path(folder, 19)
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:200])
    elif harm == "text":
        path.write_text("not a checkpoint")
    else:
        torch.save([1, 2] if harm == "other" else {"step": print}, path)
    with pytest.raises(
        InputError, match=r"000000019.ckpt is damaged .*step-000000009.ckpt beside it is good"
    ) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert "weights" not in str(caught.value), "torch's words lead to a way of reading that runs what is in a file"
    checkpoint_path(folder, 9).write_bytes(b"")
    with pytest.raises(InputError, match="no older good one"):
        read_checkpoint(path)


def test_missing_ones_are_named(folder, tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        find_checkpoint(tmp_path / "none")
    with pytest.raises(InputError, match="has no checkpoint of step 5: it has 9, 19"):
        find_checkpoint(folder, 5)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no checkpoint"):
        find_checkpoint(tmp_path / "empty")
    (tmp_path / "run/nerfstudio_models").mkdir(parents=True)
    with pytest.raises(InputError, match="a run's folder"):
        find_checkpoint(tmp_path / "run")
    with pytest.raises(InputError, match="does not exist"):
        read_checkpoint(tmp_path / "none.ckpt")


def test_shapes_are_compared_by_name():
    wanted = {"_model.field.w": torch.zeros(2, 3)}
    require_same_shapes({"module._model.field.w": torch.zeros(2, 3)}, wanted)
    with pytest.raises(InputError, match=r"field.w is \[4, 3\] in it and \[2, 3\] in this network"):
        require_same_shapes({"_model.field.w": torch.zeros(4, 3)}, wanted)
    with pytest.raises(InputError, match="has no field"):
        require_same_shapes({}, wanted)
    with pytest.raises(InputError, match="also has field"):
        require_same_shapes({"_model.field.w": torch.zeros(2, 3), "_model.field.v": torch.zeros(1)}, wanted)
