"""The files of tests that fork, each in a process of its own."""

from pathlib import Path

import pytest
from support import run_tests


@pytest.mark.parametrize(
    "name", ["training/test_distributed.py", pytest.param("test_train.py", marks=pytest.mark.slow)]
)
def test_in_a_process_of_its_own(name):
    run_tests(Path(__file__).parent / name, timeout=500, LOE_FIELD_FORKS="1")
