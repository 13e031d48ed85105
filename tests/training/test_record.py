import math

import pytest

from loe_field.training.progress import duration
from loe_field.training.record import RunRecord

pytestmark = pytest.mark.slow


def test_curve_best_and_target():
    record = RunRecord()
    assert record.psnr_best == -math.inf
    record.start()
    for step, psnr in ((10, 20.0), (20, 31.0), (30, 30.0)):
        record.add(step, psnr)
    assert record.psnr_best == 31.0
    assert record.seconds_to(30.5) == record.curve[1].seconds
    assert record.seconds_to(40) is None
    assert record.seconds_to(None) is None
    record.add(30, 32.0)
    assert [point.psnr for point in record.curve] == [20, 31, 32]


def test_a_resumed_record_goes_on():
    first = RunRecord()
    first.start()
    first.add(10, 20.0)
    second = RunRecord()
    second.load_state_dict(first.state_dict())
    before = second.seconds
    assert before > 0
    second.start()
    second.add(20, 25.0)
    assert [point.step for point in second.curve] == [10, 20]
    assert second.curve[1].seconds > before
    lines = second.to_csv().splitlines()
    assert lines[0] == "step,seconds,psnr"
    assert lines[2].startswith("20,")


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (61.4, "1:01"), (3600, "1:00:00")])
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_the_clock_stands_while_evaluating(monkeypatch):
    now = [10.0]
    monkeypatch.setattr("loe_field.training.record.time.perf_counter", lambda: now[0])
    record = RunRecord()
    with record.clock_stopped():
        now[0] = 11.0
    record.start()
    now[0] = 14.0
    with record.clock_stopped():
        now[0] = 100.0
    now[0] = 101.0
    assert record.seconds == 4.0
