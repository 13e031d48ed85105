"""Files that are there whole or not at all."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support import GROUND

from loe_field import files
from loe_field.errors import InputError
from loe_field.files import LOCK, locked, sweep, temporary_folder, write_whole


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


WRITER = f"""{GROUND}
import time
from pathlib import Path
from loe_field.files import locked, temporary_folder, write_whole
folder = Path(sys.argv[1])
with locked(folder), temporary_folder() as work, write_whole(folder / "f.txt") as path:
    (work / "more").touch()
    path.write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def writer(tmp_path, monkeypatch):
    """Another process in the middle of writing into out, with its temporary folder in tmp."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp")}
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, tmp_path / "out"], stdout=subprocess.PIPE, env=environment
    )
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()


def sweep_all(tmp_path):
    files._swept.clear()
    sweep(tmp_path / "out")
    with temporary_folder():
        pass
    return {path.name for place in ("out", "tmp") for path in (tmp_path / place).iterdir()}


def test_what_a_living_writer_has_is_not_swept_and_what_a_dead_one_left_is(tmp_path, writer):
    def look():
        return {path.name for place in ("out", "tmp") for path in (tmp_path / place).iterdir()}

    before = look()
    assert len(before) == 3
    (tmp_path / "out" / "mine.tmp.txt").touch()
    assert sweep_all(tmp_path) == before | {"mine.tmp.txt"}
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    assert sweep_all(tmp_path) == {"mine.tmp.txt"}


def test_a_folder_has_one_writer(tmp_path, writer):
    with pytest.raises(InputError, match=rf"{tmp_path / 'out'} is being written by process {writer.pid}\b"):
        locked(tmp_path / "out").__enter__()
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    with locked(tmp_path / "out"):
        assert (tmp_path / "out" / LOCK).read_text() == str(os.getpid())
        with pytest.raises(InputError, match=f"by process {os.getpid()}"):
            locked(tmp_path / "out").__enter__()
    assert not (tmp_path / "out" / LOCK).exists()
    with locked(tmp_path / "out"):
        pass


def test_a_writer_sweeps_where_it_writes(tmp_path):
    files._swept.clear()
    left = tmp_path / ".0123456789abcdef.tmp.png"
    left.touch()
    with write_whole(tmp_path / "f.txt") as path:
        path.write_text("new")
    assert {path.name for path in tmp_path.iterdir()} == {"f.txt"}


@pytest.mark.parametrize("place", ["file/in", "readonly"])
def test_a_folder_that_cannot_be_locked(tmp_path, place):
    (tmp_path / "file").touch()
    (tmp_path / "readonly").symlink_to("/proc/1/nothing")
    with pytest.raises(InputError, match="cannot be written"):
        locked(tmp_path / place).__enter__()
