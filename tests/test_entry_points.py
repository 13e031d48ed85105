"""How the host's tools end on bad input."""

import pytest
import torch

from loe_field.entry_points import _show
from loe_field.errors import InputError

pytestmark = pytest.mark.slow


def _refuse(rank):
    raise InputError(f"no picture for process {rank}")


def _break(rank):
    raise RuntimeError("of the host")


@pytest.mark.parametrize(("work", "said"), [(_refuse, "error: no picture for process 0\n"), (_break, None)])
def test_bad_input_that_a_process_on_another_device_meets_is_one_line(work, said, capsys):
    """As `--machine.num-devices 2` has it: the host spawns the processes, and the error comes to the first as text."""
    passed_on = []
    try:
        torch.multiprocessing.start_processes(work, nprocs=1, start_method="fork")
    except torch.multiprocessing.ProcessRaisedException as error:
        _show(type(error), error, error.__traceback__, previous=lambda *given: passed_on.append(given))
    assert (said is None) == bool(passed_on)
    assert capsys.readouterr().err.endswith(said or "")
