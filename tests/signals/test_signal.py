"""The seam: signals on grids of one to four dimensions."""

import itertools

import numpy as np
import pytest
import torch

from loe_field.signals.signal import GridSignal, grid_coords


def values(*shape, channels=2):
    return np.random.default_rng(0).random((*shape, channels), dtype=np.float32)


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4), (2, 3, 2, 3)])
def test_a_pass_visits_every_sample_once_at_its_own_coordinates(shape):
    array = values(*shape)
    signal = GridSignal(array, "cpu", samples_per_batch=4, seed=1)
    assert (signal.dim, signal.channels, signal.num_samples) == (len(shape), 2, array[..., 0].size)
    batches = [signal.batch(step) for step in range(signal.batches_per_pass)]
    coords, targets = (torch.cat(parts) for parts in zip(*batches))
    assert ((coords > 0) & (coords < 1)).all()
    # The last axis comes first: (x, y) of [height, width], (x, y, z) of [depth, height, width].
    index = (coords * torch.tensor(shape[::-1])).long().flip(-1)
    assert sorted(map(tuple, index.tolist())) == list(itertools.product(*map(range, shape)))
    np.testing.assert_array_equal(targets, array[tuple(index.T.numpy())])


def test_coordinates_are_centres_of_cells():
    torch.testing.assert_close(grid_coords(torch.tensor([0, 5]), (2, 3)), torch.tensor([[0.5, 0.5], [2.5, 1.5]]))
    signal = GridSignal(values(4), "cpu", samples_per_batch=None, seed=0)
    torch.testing.assert_close(signal.batch(7)[0][:, 0], torch.tensor([0.125, 0.375, 0.625, 0.875]))


def test_the_exact_field_is_measured_as_exact_and_written(tmp_path):
    array = values(3, 4, 5)
    signal = GridSignal(array, "cpu", samples_per_batch=None, seed=0)

    def field(coords):
        x, y, z = (coords * torch.tensor([5, 4, 3])).long().T
        return torch.from_numpy(array)[z, y, x]

    assert signal.measure(field) == {"psnr": float("inf")}
    paths = signal.write(field, tmp_path)
    np.testing.assert_array_equal(np.load(paths["reconstruction"]), array)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_psnr_of_a_constant_field(chunk):
    array = values(6, 5)
    signal = GridSignal(array, "cpu", samples_per_batch=None, seed=0)
    psnr = signal.reconstruct(lambda coords: torch.full((len(coords), 2), 0.5), chunk=chunk).psnr
    assert psnr == pytest.approx(-10 * np.log10(np.square(array - 0.5).mean()), abs=1e-4)


def test_sixteen_bits_are_whole():
    array = np.array([0, 1, 32767, 32768, 65535], np.uint16).reshape(5, 1)
    signal = GridSignal(array, "cpu", white=65535, samples_per_batch=None, seed=0)
    assert (signal.batch(0)[1].flatten() * 65535).round().int().tolist() == array.flatten().tolist()


def test_five_axes_are_refused():
    with pytest.raises(ValueError, match="1 to 4 axes"):
        GridSignal(values(1, 1, 1, 1, 1), "cpu", samples_per_batch=None, seed=0)


@pytest.mark.parametrize("kind", ["batches", "whole", "kept"])
@pytest.mark.parametrize("size", [2, 3])
def test_the_parts_of_a_step_are_the_step(kind, size):
    signal = GridSignal(
        np.random.default_rng(0).random((7, 9, 2)),
        "cpu",
        samples_per_batch=None if kind == "whole" else 20,
        seed=1,
        kept=np.arange(0, 63, 2) if kind == "kept" else None,
    )
    for step in range(5):
        drawn = signal.draw(step)
        whole = torch.cat(signal.at(*drawn), 1)
        parts = [torch.cat(signal.at(*signal.part(drawn, rank, size)), 1) for rank in range(size)]
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert torch.equal(torch.cat(parts), whole)
