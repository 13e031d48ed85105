"""Between the pixels: the spline, what is measured against it, and batches off the grid."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from loe_field.pictures.picture import Picture
from loe_field.pictures.spline import CubicSpline
from loe_field.signals.between import between_pixels
from loe_field.signals.picture import PictureSignal, checkerboard, fill_checkerboard
from loe_field.signals.signal import grid_coords


def noise(height, width, channels):
    return np.random.default_rng(0).random((height, width, channels))


@pytest.mark.parametrize("shape", [(5, 7, 2), (1, 4, 1), (2, 3, 3), (3, 2, 1), (1, 1, 1)])
def test_the_spline_is_the_interpolating_cubic_one(shape):
    height, width, channels = shape
    colours = noise(*shape)
    spline = CubicSpline(colours)
    coords = (
        torch.rand(200, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([width + 2.0, height + 2]) - 1
    )
    x, y = coords.numpy().T - 0.5
    expected = [map_coordinates(colours[..., c], [y, x], order=3, mode="mirror") for c in range(channels)]
    np.testing.assert_allclose(spline(coords), np.stack(expected, -1), atol=1e-6)
    centers = spline(grid_coords(torch.arange(height * width), (height, width)))
    np.testing.assert_allclose(centers, colours.reshape(-1, channels), atol=1e-6)


def test_the_spline_itself_has_no_error_and_no_jumps():
    spline = CubicSpline(noise(9, 12, 3))
    psnr, jump = between_pixels(spline, spline, chunk=50)
    assert psnr == float("inf")
    assert jump < 0.1


def test_a_table_of_pixels_jumps_as_its_neighbours_differ():
    colours = noise(9, 12, 1)
    table = torch.from_numpy(colours).float()

    def nearest(coords):
        x, y = coords.long().T
        return table[y, x]

    psnr, jump = between_pixels(nearest, CubicSpline(colours), chunk=64)
    assert jump == pytest.approx(1, abs=1e-5)
    y, x = np.mgrid[-0.25:8.5:0.5, -0.25:11.5:0.5]
    between = map_coordinates(colours[..., 0], [y, x], order=3, mode="mirror").clip(0, 1)
    error = between - colours[..., 0].repeat(2, 0).repeat(2, 1)
    assert psnr == pytest.approx(-10 * np.log10(np.mean(error**2)), abs=1e-3)


def test_of_large_pictures_a_part_is_measured():
    spline = CubicSpline(noise(600, 600, 1))
    seen = []
    psnr, _ = between_pixels(lambda p: seen.append(len(p)) or spline(p) + 0.1 * (p[:, :1] > 300), spline)
    assert sum(seen) <= 2**20 + 4 * 2**18
    assert psnr == pytest.approx(23.4, abs=0.5)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (5, 1)])
def test_a_picture_without_neighbours(height, width):
    spline = CubicSpline(np.full((height, width, 1), 0.5))
    psnr, jump = between_pixels(spline, spline)
    assert jump is None
    assert psnr == float("inf")


SIZE = torch.tensor([8.0, 6.0])


def batches(hold_out="none", **options):
    picture = Picture((noise(6, 8, 3) * 255).astype(np.uint8), "PNG", "RGB")
    return picture, PictureSignal(
        picture, "cpu", samples_per_batch=12, seed=1, hold_out=hold_out, **{"off_grid": 0.5, **options}
    )


def test_off_the_grid_lies_the_spline():
    picture, pixels = batches()
    spline = CubicSpline(picture.values / 255)
    visited = []
    for step in range(pixels.batches_per_pass):
        coords, colours = pixels.batch(step)
        coords = coords * SIZE
        torch.testing.assert_close(colours, spline(coords), atol=1e-5, rtol=0)
        off_grid = ((coords - 0.5 - (coords - 0.5).round()).abs() > 1e-5).any(-1)
        assert off_grid.sum() == 6
        visited.append(coords.long())
    assert len({tuple(p) for p in torch.cat(visited).tolist()}) == 48, "every square once a pass"
    _, again = batches()
    again.batch(2)
    assert torch.equal(again.batch(9)[0], pixels.batch(9)[0]), "a step's batch depends on nothing before it"
    assert not torch.equal(pixels.batch(0)[0], pixels.batch(4)[0])


def test_off_the_grid_with_the_whole_picture_every_step_differs():
    _, pixels = batches(off_grid=1.0)
    whole = PictureSignal(batches()[0], "cpu", samples_per_batch=None, seed=1, off_grid=1.0)
    assert len(whole.batch(0)[0]) == 48
    assert not torch.equal(whole.batch(0)[0], whole.batch(1)[0])
    assert ((pixels.batch(0)[0] * SIZE - 0.5).frac().abs() > 1e-5).any(-1).all()


def test_held_out_pixels_are_never_seen():
    picture, pixels = batches("checkerboard", off_grid=0.0)
    seen = torch.cat([pixels.batch(step)[0] for step in range(pixels.batches_per_pass)])
    x, y = (seen * SIZE).long().T
    assert len(seen) == 24
    assert torch.from_numpy(checkerboard(6, 8))[y, x].all()
    other = Picture(np.where(checkerboard(6, 8)[..., None], picture.values, 0), "PNG", "RGB")
    for off_grid in (0.0, 0.5):
        mine, blind = (
            PictureSignal(p, "cpu", samples_per_batch=12, seed=1, hold_out="checkerboard", off_grid=off_grid)
            for p in (picture, other)
        )
        for step in range(4):
            for a, b in zip(mine.batch(step), blind.batch(step)):
                assert torch.equal(a, b)


def test_off_the_checkerboard_the_whole_plane_is_visited():
    _, pixels = batches("checkerboard", off_grid=1.0)
    coords = torch.cat([pixels.batch(step)[0] for step in range(2000)]) * SIZE
    inside = coords[((coords > 1) & (coords < torch.tensor([7.0, 5.0]))).all(-1)]
    counts = torch.bincount((inside[:, 1].long() - 1) * 6 + inside[:, 0].long() - 1, minlength=24)
    assert counts.min() > 0.85 * counts.max()


def test_filled_pixels_are_the_mean_of_their_neighbours():
    colours = noise(4, 5, 2)
    filled = fill_checkerboard(colours)
    kept = checkerboard(4, 5)
    assert np.array_equal(filled[kept], colours[kept])
    np.testing.assert_allclose(filled[1, 2], (colours[0, 2] + colours[2, 2] + colours[1, 1] + colours[1, 3]) / 4)
    np.testing.assert_allclose(filled[0, 1], (colours[0, 0] + colours[0, 2] + colours[1, 1]) / 3)
