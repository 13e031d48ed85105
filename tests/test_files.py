"""Files that are there whole or not at all."""

import errno
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support import GROUND

from loe_field import files
from loe_field.errors import InputError
from loe_field.files import (
    LOCK,
    check_output,
    check_output_folder,
    locked,
    write_each,
    write_folder,
    write_output,
    write_whole,
)


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
    with write_whole(tmp_path / "out" / "g.txt") as path:
        path.write_text("new")
    (tmp_path / "out" / "g.txt").unlink()
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


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder"])
def test_only_a_file_is_ever_replaced(kind, tmp_path):
    path = tmp_path / "a.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    before = os.stat(path)
    for check in (check_output, lambda path: write_whole(path).__enter__()):
        with pytest.raises(InputError, match=rf"a\.png is a .*{kind}"):
            check(path)
    assert os.path.samestat(os.stat(path), before)
    assert list(tmp_path.iterdir()) == [path]


def test_a_device_is_refused():
    with pytest.raises(InputError, match="/dev/null is a device"):
        check_output(Path("/dev/null"))


@pytest.mark.parametrize("target", ["there", "dangling"])
def test_a_link_stays_and_its_target_is_written(target, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    aim, path = tmp_path / "elsewhere" / "real.txt", tmp_path / "link.txt"
    if target == "there":
        aim.write_text("old")
        os.link(aim, tmp_path / "other name")
    path.symlink_to("elsewhere/real.txt")
    assert check_output(path) == path
    with write_output(path) as temporary:
        assert temporary.parent == aim.parent
        temporary.write_text("new")
    assert os.readlink(path) == "elsewhere/real.txt"
    assert aim.read_text() == "new"
    assert target != "there" or (tmp_path / "other name").read_text() == "old"


def test_a_loop_of_links_and_a_name_too_long(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for path in (tmp_path / "a", tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match="cannot be written"):
            check_output(path)


def test_an_empty_file_is_never_left(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(InputError, match="nothing of it came to the disk"), write_whole(path):
        pass
    assert path.read_text() == "old"


def test_the_others_are_written_too(tmp_path):
    def write(path):
        path.write_text("new")

    (tmp_path / "b").mkdir()
    with pytest.raises(InputError, match=r"b is a folder: .*, nor can c$"):
        write_each({tmp_path / name: write for name in ("a", "b", "d")} | {tmp_path / "none" / "c": write})
    assert [(tmp_path / name).read_text() for name in "ad"] == ["new", "new"]


def test_a_temporary_file_that_is_made_anew_while_it_is_swept_stays(tmp_path, monkeypatch):
    left = tmp_path / ".0123456789abcdef.tmp"
    left.touch()

    def later(*_):
        left.unlink()
        left.write_text("another's")

    monkeypatch.setattr(files.fcntl, "flock", later)
    files._remove_dead(left, os.O_RDWR)
    assert left.read_text() == "another's"


def fill_half(path):
    with write_folder(path) as folder:
        (folder / "a").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_is_there_whole_or_not_at_all(there, tmp_path):
    path = tmp_path / "new" / "it"
    if there:
        path.mkdir(parents=True)
    with pytest.raises(InputError, match="it cannot be written: No space left"):
        fill_half(path)
    assert [entry.name for entry in path.parent.iterdir()] == ["it"] * there
    with write_folder(check_output_folder(path)) as folder:
        (folder / "part").mkdir()
        (folder / "part" / "a").write_text("whole")
        assert [entry.name for entry in path.parent.iterdir()] != ["it"]
    assert (path / "part" / "a").read_text() == "whole"
    assert [entry.name for entry in path.parent.iterdir()] == ["it"]
    assert path.stat().st_mode == path.parent.stat().st_mode
    with pytest.raises(InputError, match="is there already"):
        check_output_folder(path)
