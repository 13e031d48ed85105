"""The order of a pass, computed where it is asked for."""

import resource

import numpy as np
import pytest
import torch

from loe_field.signals.shuffle import shuffled
from loe_field.signals.signal import GridSignal


@pytest.mark.parametrize("count", [1, 2, 3, 5, 12, 997, 2**12, 2**12 + 1, 300 * 401])
def test_every_number_is_found_at_one_place_wherever_one_asks(count):
    places = torch.arange(count)
    order = shuffled(places, count, 3, 1)
    assert torch.equal(order.sort().values, places)
    some = places.flip(0)[::3]
    assert torch.equal(shuffled(some, count, 3, 1), order[some])
    if count > 12:
        assert not torch.equal(shuffled(places, count, 3, 2), order)


def test_numbers_beyond_32_bits():
    count = 2**34 - 12345
    places = torch.tensor([0, 1, 2**32, count - 1])
    found = shuffled(places, count, 0)
    assert found.min() >= 0
    assert found.max() < count
    assert len(found.unique()) == 4


@pytest.mark.parametrize("first", [0, 2**16 - 2000])
def test_neighbouring_places_lie_all_over_the_picture(first):
    """By chi-squared of the cells, as often as a shuffle that torch makes: 16 rows and columns, and each modulo 16."""
    size, drawn, cells = 512, 2**16, 256
    x, y = (lambda order: (order % size, order // size))(shuffled(torch.arange(first, first + drawn), size**2, 5, 6))
    for cell in (y // 32 * 16 + x // 32, y % 16 * 16 + x % 16, (x + y) % cells, (x - y) % cells, x // 2, y // 2):
        counts = torch.bincount(cell, minlength=cells).double()
        expected = drawn / cells
        chi_squared = float(((counts - expected) ** 2 / expected).sum()) / (1 - drawn / size**2)
        assert 150 < chi_squared < 360  # 255 on average, deviating by 23


def test_neighbouring_places_have_nothing_to_do_with_each_other():
    order = shuffled(torch.arange(2**16), 2**16, 7).double()
    for distance in (1, 2, 255, 256, 257):
        pair = torch.stack([order[:-distance], order[distance:]])
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.02


@pytest.mark.parametrize("at_once", [1, 40, 10**6])
@pytest.mark.parametrize("kept", [None, np.arange(0, 143, 2)])
def test_batches_are_the_same_however_many_are_computed_at_once(at_once, kept, monkeypatch):
    def batches():
        signal = GridSignal(np.zeros((11, 13, 1), np.float32), "cpu", samples_per_batch=10, seed=4, kept=kept)
        return [signal.draw(step)[0] for step in (*range(20), 3, 40)]

    expected = batches()
    monkeypatch.setattr("loe_field.signals.signal._SHUFFLED_AT_ONCE", {"cpu": at_once})
    assert all(map(torch.equal, batches(), expected))


def test_a_large_signal_keeps_no_order_of_all_samples():
    """An order of 2^24 samples takes 128 MiB."""
    signal = GridSignal(np.zeros((2**12, 2**12, 1), np.uint8), "cpu", samples_per_batch=2**10, seed=0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for step in (0, 5, 2**13):
        assert len(signal.draw(step)[0]) == 2**10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**14  # in KiB
