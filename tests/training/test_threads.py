import pytest
import torch

from loe_field.training import threads as module
from loe_field.training.threads import ThreadTuner


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when told to."""
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


def run(tuner, clock, seconds, steps):
    """Take steps that cost seconds[threads]; return the threads of each."""
    used = []
    for _ in range(steps):
        with tuner.step():
            used.append(torch.get_num_threads())
            clock[0] += seconds[used[-1]]
    return used


def test_keeps_to_the_fastest_and_changes_its_mind(clock):
    tuner = ThreadTuner(4)
    assert tuner.candidates == [1, 2, 4]
    used = run(tuner, clock, {1: 0.06, 2: 0.04, 4: 0.2}, 200)
    assert used[:10] == [4] * 10
    assert set(used[10:19]) == {1, 2, 4}
    assert used[19:] == [2] * 181
    used = run(tuner, clock, {1: 0.06, 2: 0.04, 4: 0.02}, 200)
    assert used[19:] == [4] * 181


def test_one_slow_sample_decides_nothing(clock):
    tuner = ThreadTuner(2)
    run(tuner, clock, {1: 0.06, 2: 0.04}, 13)
    run(tuner, clock, {2: 5.0}, 1)
    assert run(tuner, clock, {1: 0.06, 2: 0.04}, 20)[2:] == [2] * 18


def test_a_single_thread_leaves_nothing_to_choose(clock):
    assert set(run(ThreadTuner(1), clock, {1: 1.0}, 300)) == {1}
