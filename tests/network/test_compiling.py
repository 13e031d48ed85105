"""How the C library is had: never from a file that is not what was compiled, and with nothing left behind."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from loe_field.network.kernels import compiling, cpu
from loe_field.network.kernels.compiling import Cache, TooSlow, Unavailable

needs_compiler = pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the cache will be."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "temporary").mkdir()
    return tmp_path / "loe_field"


def script(tmp_path, text):
    """A compiler of our own."""
    path = tmp_path / "compiler"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def kept(folder):
    (path,) = folder.iterdir()
    return path


def damage(path, harm):
    content = path.read_bytes()
    path.unlink()
    if harm == "link":
        (path.parent.parent / "elsewhere").write_bytes(content)
        path.symlink_to(path.parent.parent / "elsewhere")
    elif harm == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes({"empty": b"", "cut": content[:100], "zeroed": bytes(len(content))}.get(harm, content))
        path.chmod(0o666 if harm == "writable" else 0o600)


@pytest.mark.parametrize("harm", ["empty", "cut", "zeroed", "writable", "link", "pipe"])
def test_what_is_not_what_was_kept_is_thrown_away(folder, harm):
    with Cache() as cache:
        assert cache.problem is None
        cache.put("cpu-1", b"the library" * 100)
        assert cache.get("cpu-1") == b"the library" * 100
        assert cache.get("cpu-2") is None
        damage(kept(folder), harm)
        assert cache.get("cpu-1") is None
        assert not list(folder.iterdir())
        cache.put("cpu-1", b"anew")
        assert cache.get("cpu-1") == b"anew"
    assert kept(folder).stat().st_mode & 0o777 == 0o600


def make_untrusted(folder, how, monkeypatch):
    if how == "relative":
        monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    elif how == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    elif how == "a link":
        (folder.parent / "real").mkdir(mode=0o700)
        folder.symlink_to("real")
    elif how == "a file":
        folder.touch()
    else:
        folder.mkdir()
        folder.chmod(0o777 if how == "open to all" else 0o770 if how == "open to a group" else 0o700)
        if how == "another user's":
            monkeypatch.setattr("os.geteuid", lambda: 4711)


UNTRUSTED = {
    "relative": "not an absolute path",
    "no home": "no home folder",
    "a link": "it is a link",
    "a file": "cannot be used",
    "open to all": "can be written by others",
    "open to a group": "can be written by others",
    "another user's": "is another user's",
}


@pytest.mark.parametrize("how", UNTRUSTED)
def test_a_folder_that_others_could_have_written_is_not_used_and_that_is_said(folder, how, monkeypatch):
    make_untrusted(folder, how, monkeypatch)
    before = sorted(folder.parent.rglob("*"))
    with Cache() as cache:
        assert UNTRUSTED[how] in cache.problem
        cache.put("cpu-1", b"content")
        assert cache.get("cpu-1") is None
    assert sorted(folder.parent.rglob("*")) == before


def test_a_full_disk_is_said_and_leaves_no_part(folder, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with Cache() as cache:
        cache.put("cpu-1", b"content")
        assert cache.problem == f"{folder} cannot be written: No space left on device"
    assert not list(folder.iterdir())


@needs_compiler
def test_a_library_is_loaded_from_what_was_read(folder, tmp_path):
    source = tmp_path / "answer.c"
    source.write_text("int answer(void) { return 42; }")
    content = compiling.build(source, ["cc", "-fPIC"], (), time.monotonic() + 60)
    assert compiling.load(content, ["answer"]).answer() == 42
    source.write_text("int answer(void) { return 43; }")
    other = compiling.build(source, ["cc", "-fPIC"], (), time.monotonic() + 60)
    assert compiling.load(other, ["answer"]).answer() == 43
    with pytest.raises(Unavailable, match="has no question"):
        compiling.load(content, ["answer", "question"])
    for broken in (b"", content[:100], bytes(1000)):
        with pytest.raises(OSError, match=r"/proc/|library\.so"):
            compiling.load(broken, ["answer"])
    assert not list((tmp_path / "temporary").iterdir())


@needs_compiler
@pytest.mark.slow
def test_the_kernels_are_compiled_once_anew_when_damaged_and_at_once_by_two(folder, tmp_path):
    code = "from loe_field.network.kernels import cpu; print(bool(cpu.library()), cpu.remark())"
    command = [sys.executable, "-c", code]

    def start():
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    both = [start(), start()]
    assert [p.communicate()[0] for p in both] == ["True None\n"] * 2
    first = kept(folder)
    when = first.stat().st_mtime_ns
    assert start().communicate()[0] == "True None\n"
    assert kept(folder).stat().st_mtime_ns == when
    damage(first, "zeroed")
    assert start().communicate()[0] == "True None\n"
    assert kept(folder).read_bytes()[:4] == b"\x7fELF"
    folder.chmod(0o777)
    assert "can be written by others" in start().communicate()[0]
    assert not list((tmp_path / "temporary").iterdir())


@needs_compiler
@pytest.mark.slow
def test_one_thread_without_openmp_is_said(folder, tmp_path, monkeypatch):
    words = 'case "$*" in *-fopenmp*) echo no OpenMP >&2; exit 1;; esac; exec cc "$@"'
    monkeypatch.setenv("CC", script(tmp_path, words))
    library, remark = cpu._find.__wrapped__()
    assert library.loe_has_half() in (0, 1)
    assert remark == f"on one thread, because {tmp_path}/compiler has no OpenMP"


@pytest.mark.parametrize(
    ("wanted", "words"),
    [("gcc '", "is not a command"), ("  ", "is not there"), ("/no/such compiler", "is not there")],
)
def test_a_compiler_that_is_none(wanted, words, monkeypatch):
    monkeypatch.setenv("CC", wanted)
    with pytest.raises(Unavailable, match=words):
        compiling.compiler()


def test_a_compiler_with_arguments(monkeypatch):
    monkeypatch.setenv("CC", "env 'a b' -g")
    assert compiling.compiler() == ["env", "a b", "-g"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (r"printf '\033[31mgarb\377\n\nage'; exit 3", r"compiler failed: \[31mgarb\S age$"),
        ("exit 3", "compiler failed: exit status 3"),
        ("yes", "prints without end"),
        ("kill -9 $$", "failed: exit status -9"),
    ],
)
def test_a_compiler_that_fails_is_one_line(text, words, tmp_path):
    with pytest.raises(Unavailable, match=words) as caught:
        compiling.run([script(tmp_path, text)], time.monotonic() + 20)
    assert str(caught.value).isprintable()


def test_a_compiler_that_makes_nothing(folder, tmp_path):
    with pytest.raises(Unavailable, match="made no library"):
        compiling.build(tmp_path / "x.c", [script(tmp_path, "exit 0")], (), time.monotonic() + 20)


def gone(pid):
    """Whether the process ended, or ends within a moment."""
    for _ in range(100):
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_compiler_that_hangs_is_ended_once_with_its_children(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(compiling, "COMPILE_SECONDS", 1)
    text = f"echo start >> {tmp_path}/starts; sleep 1000 & echo $! > {tmp_path}/child; wait"
    monkeypatch.setenv("CC", script(tmp_path, text))
    start = time.monotonic()
    with pytest.raises(TooSlow, match="had not ended after 1 s"):
        cpu._find.__wrapped__()
    assert time.monotonic() - start < 10
    assert (tmp_path / "starts").read_text() == "start\n"
    assert gone(int((tmp_path / "child").read_text()))


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_compiling_leaves_nothing(folder, tmp_path, number):
    words = f"sleep 1000 & echo $! > {tmp_path}/child.part; mv {tmp_path}/child.part {tmp_path}/child; wait"
    command = script(tmp_path, words)

    def interrupt():
        while not (tmp_path / "child").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit):
        compiling.build(tmp_path / "x.c", [command], (), time.monotonic() + 60)
    thread.join()
    assert gone(int((tmp_path / "child").read_text()))
    assert not list((tmp_path / "temporary").iterdir())
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
