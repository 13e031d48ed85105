"""Files that are there whole or not at all."""

import os
from pathlib import Path

import pytest

from loe_field.files import write_whole


def test_the_new_file_takes_the_old_ones_place_with_the_users_own_mode(tmp_path):
    path = tmp_path / "f.txt"
    path.write_text("old")
    umask = os.umask(0o027)
    try:
        with write_whole(path) as temporary:
            assert temporary.suffix == ".txt"
            temporary.write_text("new")
            assert path.read_text() == "old"
    finally:
        os.umask(umask)
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("moment", ["made", "written"])
def test_a_stop_leaves_the_old_file_alone(moment, tmp_path, monkeypatch):
    path = tmp_path / "f.txt"
    path.write_text("old")
    touch = Path.touch

    def touch_and_stop(self, **options):
        touch(self, **options)
        raise KeyboardInterrupt

    if moment == "made":
        monkeypatch.setattr(Path, "touch", touch_and_stop)

    def write():
        with write_whole(path) as temporary:
            temporary.write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "old"
