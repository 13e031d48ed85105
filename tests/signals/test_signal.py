"""The seam: signals on grids of one to four dimensions."""

import itertools

import numpy as np
import pytest
import torch

from loe_field.pictures.picture import Picture, as_hdr
from loe_field.signals.picture import PictureSignal
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


@pytest.fixture
def few_are_many(monkeypatch):
    """Signals of more than 100 samples count as large; 64 of theirs are measured."""
    monkeypatch.setattr("loe_field.signals.signal._MOST_MEASURED", 100)
    monkeypatch.setattr("loe_field.signals.signal._SOME_MEASURED", 64)


def test_the_quick_measure_of_a_large_signal_takes_samples_of_it(few_are_many):
    array = values(20, 30)
    signal = GridSignal(array, "cpu", samples_per_batch=50, seed=3)
    asked = []

    def field(coords):
        asked.append(coords)
        return torch.full((len(coords), 2), 0.5)

    psnr = signal.quick_psnr(field, chunk=10)
    x, y = (torch.cat(asked) * torch.tensor([30, 20])).long().T.numpy()
    assert max(map(len, asked)) == 10
    assert len(set(zip(x, y))) == len(x) == signal.num_measured == 64
    assert psnr == pytest.approx(-10 * np.log10(np.square(array[y, x] - 0.5).mean()), abs=1e-4)
    assert signal.quick_psnr(field) == pytest.approx(psnr), "always the same samples"
    assert psnr != signal.reconstruct(field).psnr

    small = GridSignal(array[:10, :10], "cpu", samples_per_batch=50, seed=3)
    assert small.num_measured is None
    assert small.quick_psnr(field) == small.reconstruct(field).psnr


@pytest.mark.parametrize("kind", ["eight bits", "hdr", "palette"])
def test_the_quick_measure_sees_a_picture_as_its_file_holds_it(kind, few_are_many, monkeypatch):
    """Over all pixels, if as many are taken as there are, it is that of the reconstruction."""
    random = np.random.default_rng(0)
    palette = random.integers(0, 256, (5, 3)).astype(np.uint8)
    picture = {
        "eight bits": lambda: Picture(random.integers(0, 256, (12, 11, 3)).astype(np.uint8), "PNG", "RGB"),
        "hdr": lambda: as_hdr(Picture(random.exponential(2, (12, 11, 3)).astype(np.float32), "EXR", "RGB"), "it"),
        "palette": lambda: Picture(palette[random.integers(0, 5, (12, 11))], "PNG", "P", palette),
    }[kind]()
    monkeypatch.setattr("loe_field.signals.signal._SOME_MEASURED", 132)
    signal = PictureSignal(picture, "cpu", samples_per_batch=50, seed=3)

    def field(coords):
        return torch.stack([coords[:, 0], coords[:, 1], 1.2 - coords[:, 0]], -1)

    assert signal.quick_psnr(field) == pytest.approx(signal.reconstruct(field).psnr, abs=1e-5)
    assert np.isnan(signal.quick_psnr(lambda coords: torch.full((len(coords), 3), torch.nan)))


@pytest.mark.parametrize(("num_samples", "shape"), [(20, (3, 2, 3)), (40, (4, 3, 3)), (10**6, (8, 6, 3))])
def test_a_preview_is_a_small_picture_of_means(num_samples, shape):
    signal = PictureSignal(Picture(np.zeros((8, 6, 3), np.uint8), "PNG", "RGB"), "cpu", samples_per_batch=9, seed=0)
    asked = []

    def field(coords):
        asked.append(coords)
        return torch.stack([coords[:, 0], 1 - coords[:, 1], 2 + coords[:, 0]], -1)

    seen = signal.preview(field, num_samples, chunk=7)
    assert (seen.shape, seen.dtype) == (shape, np.uint8)
    centres = torch.cat(asked) * torch.tensor([6, 8]) - 0.5
    torch.testing.assert_close(centres, centres.round(), atol=1e-4, rtol=0)
    height, width, _ = shape
    expected = (np.arange(width) + 0.5) / width, 1 - (np.arange(height) + 0.5) / height
    np.testing.assert_allclose(seen[0, :, 0] / 255, expected[0], atol=0.09)
    np.testing.assert_allclose(seen[:, 0, 1] / 255, expected[1], atol=0.09)
    assert (seen[..., 2] == 255).all()
