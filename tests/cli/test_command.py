"""The frame around the commands."""

import os
import signal
import subprocess
import sys

import pytest

SCRIPT = """
import sys
from dataclasses import dataclass
from pathlib import Path
from loe_field.cli.command import run_command
from loe_field.errors import InputError

@dataclass
class Say:
    '''Say something.'''
    what: str
    '''Word.'''
    output: Path | None = None

    def main(self) -> int | None:
        if self.what == "error":
            raise InputError("--what is error: give another word")
        if self.what == "fault":
            raise ValueError("a fault of the program's own")
        if self.what == "kill":
            import os, signal
            try:
                os.kill(os.getpid(), signal.SIGINT)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                self.output.with_suffix(".tidy").touch()
        print(self.what)
        return 3 if self.what == "three" else None

run_command(Say, "say")
"""


def say(*arguments, **options):
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    return subprocess.run(command, text=True, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options})


@pytest.mark.parametrize(
    ("what", "status", "out", "err"),
    [
        ("hello", 0, "hello\n", ""),
        ("three", 3, "three\n", ""),
        ("error", 1, "", "error: --what is error: give another word\n"),
    ],
)
def test_how_it_ends(what, status, out, err):
    done = say("--what", what)
    assert (done.returncode, done.stdout, done.stderr) == (status, out, err)


@pytest.mark.slow
def test_a_fault_of_the_program_keeps_its_traceback():
    done = say("--what", "fault")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert not done.stderr.startswith("error: ")


@pytest.mark.slow
def test_a_stop_says_what_was_not_written_and_lets_the_tidying_end(tmp_path):
    done = say("--what", "kill", "--output", tmp_path / "f")
    expected = (130, "", f"stopped: {tmp_path / 'f'} was not written\n")
    assert (done.returncode, done.stdout, done.stderr) == expected
    assert (tmp_path / "f.tidy").exists()


@pytest.mark.slow
def test_a_pipe_that_nobody_reads(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    done = say("--what", "hello", stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.slow
def test_help_says_what_it_is_for():
    done = say("--help")
    assert done.returncode == 0
    assert "Say something." in done.stdout
    assert "usage: say " in done.stdout
