"""The pixels of a picture as batches."""

import numpy as np
import pytest
import torch

from loe_field.pictures.picture import Picture
from loe_field.signals.picture import PictureSignal

VALUES = np.arange(7 * 5 * 3, dtype=np.uint8).reshape(7, 5, 3)
PICTURE = Picture(VALUES, "PNG", "RGB")


def collect(batches, steps):
    return [batches.batch(step) for step in steps]


@pytest.mark.parametrize("size", [1, 4, 12, 34])
def test_a_pass_visits_every_pixel_once_with_its_own_colour(size):
    batches = PictureSignal(PICTURE, "cpu", samples_per_batch=size, seed=3)
    drawn = collect(batches, range(batches.batches_per_pass))
    sizes = {len(centers) for centers, _ in drawn}
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1
    centers = torch.cat([c for c, _ in drawn])
    colours = torch.cat([c for _, c in drawn])
    assert len({tuple(c) for c in centers.tolist()}) == 35
    x, y = (centers * torch.tensor([5.0, 7.0])).long().T
    torch.testing.assert_close(colours, torch.from_numpy(VALUES).float()[y, x] / 255)


def test_batches_depend_on_seed_and_step_only():
    one = PictureSignal(PICTURE, "cpu", samples_per_batch=10, seed=3)
    in_order = collect(one, range(12))
    jumped = collect(PictureSignal(PICTURE, "cpu", samples_per_batch=10, seed=3), [9, 2, 11])
    for step, (centers, _) in zip([9, 2, 11], jumped):
        assert torch.equal(centers, in_order[step][0])
    other = collect(PictureSignal(PICTURE, "cpu", samples_per_batch=10, seed=4), range(12))
    assert not torch.equal(other[0][0], in_order[0][0])
    assert not torch.equal(in_order[0][0], in_order[4][0]), "passes have orders of their own"


@pytest.mark.parametrize("size", [None, 35, 1000])
def test_the_whole_picture_at_every_step(size):
    batches = PictureSignal(PICTURE, "cpu", samples_per_batch=size, seed=0)
    centers, colours = batches.batch(5)
    torch.testing.assert_close(centers[0], torch.tensor([0.5 / 5, 0.5 / 7]))
    torch.testing.assert_close(centers[6], torch.tensor([1.5 / 5, 1.5 / 7]))
    assert centers.shape == (35, 2)
    torch.testing.assert_close(colours, torch.from_numpy(VALUES).view(35, 3).float() / 255)


def test_sixteen_bits_and_floats_keep_their_steps():
    deep = Picture(np.array([[[0], [1], [65535]]], dtype=np.uint16), "PNG", "L")
    _, colours = PictureSignal(deep, "cpu", samples_per_batch=None, seed=0).batch(0)
    torch.testing.assert_close(colours[:, 0], torch.tensor([0, 1 / 65535, 1.0]))


def test_sixteen_bits_are_whole():
    values = np.array([0, 1, 32767, 32768, 65535], np.uint16).reshape(1, 5, 1)
    pixels = PictureSignal(Picture(values, "PNG", "L"), "cpu", samples_per_batch=None, seed=0)
    assert (pixels.batch(0)[1].flatten() * 65535).round().int().tolist() == values.flatten().tolist()


@pytest.mark.parametrize("off_grid", [0.3, 1.0])
def test_the_parts_of_a_step_off_the_grid_are_the_step(off_grid):
    picture = Picture(np.random.default_rng(0).integers(0, 255, (9, 7, 3), np.uint8), "PNG", "RGB")
    pixels = PictureSignal(picture, "cpu", samples_per_batch=20, seed=1, off_grid=off_grid)
    for step in range(5):
        drawn = pixels.draw(step)
        whole = torch.cat(pixels.at(*drawn), 1)
        parts = [torch.cat(pixels.at(*pixels.part(drawn, rank, 3)), 1) for rank in range(3)]
        assert max(map(len, parts)) - min(map(len, parts)) <= 2
        order, expected = (x[x[:, 0].argsort()] for x in (torch.cat(parts), whole))
        torch.testing.assert_close(order, expected, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("palette", [None, np.array([[0, 0, 0], [9, 9, 9]], np.uint8)])
def test_a_field_without_numbers_is_seen_in_whole_steps_too(palette):
    """They cannot hold NaN, which a cast makes black."""
    values = VALUES if palette is None else palette[np.arange(35).reshape(7, 5) % 2]
    signal = PictureSignal(Picture(values, "PNG", "RGB", palette), "cpu", samples_per_batch=None, seed=0)

    def field(coords):
        out = torch.zeros(len(coords), 3)
        out[len(out) // 2, 1] = torch.nan
        return out

    assert np.isnan(signal.reconstruct(field).psnr)
