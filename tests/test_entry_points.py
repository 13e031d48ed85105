"""How the host's tools end on bad input."""

import sys
import threading

import pytest
import torch

from loe_field.entry_points import _show, _show_of_thread
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


@pytest.mark.parametrize(("method", "said"), [("loe-image", "error: No space left on device\n"), ("nerfacto", "")])
def test_what_the_machine_lacks_is_one_line_for_methods_of_this_package(method, said, capsys, monkeypatch):
    """Also in a thread, as a logger of the host has one; other methods keep the host's traceback."""
    monkeypatch.setattr(sys, "argv", ["ns-train", method])
    passed_on, error = [], OSError(28, "No space left on device")
    _show(OSError, error, None, previous=lambda *given: passed_on.append(given))
    assert capsys.readouterr().err == said
    arguments = threading.ExceptHookArgs((OSError, error, None, None))
    _show_of_thread(arguments, previous=passed_on.append)
    assert capsys.readouterr().err == said
    assert len(passed_on) == (0 if said else 2)
    _show_of_thread(threading.ExceptHookArgs((KeyError, KeyError(), None, None)), previous=passed_on.append)
    assert isinstance(passed_on[-1].exc_value, KeyError)
