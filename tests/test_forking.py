"""The files of tests that fork, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "name", ["training/test_distributed.py", pytest.param("test_train.py", marks=pytest.mark.slow)]
)
def test_in_a_process_of_its_own(name):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            Path(__file__).parent / name,
        ],
        env=os.environ | {"LOE_FIELD_FORKS": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
