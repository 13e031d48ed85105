"""Windows and sizes: which points a pixel of the result is made of."""

from inspect import signature

import numpy as np
import pytest
import torch

from loe_field.errors import InputError
from loe_field.pictures.picture import Picture
from loe_field.pictures.spline import CubicSpline
from loe_field.render.window import (
    SplineOfPixels,
    evaluated,
    on_grid,
    pictured,
    premultiplied,
    rendered_rows,
    straight,
    view_of,
)

SIZE = (40, 150)
PIXELS = torch.from_numpy(np.random.default_rng(0).random((SIZE[1], SIZE[0], 3)).astype(np.float32))


def table(coords):
    """A field that is a table of pixels."""
    x, y = coords.floor().to(torch.int64).unbind(-1)
    return PIXELS[y, x]


def drawn(function, view, chunk=1000, alpha=False):
    of_grid = len(signature(function).parameters) == 2
    function = function if of_grid else on_grid(function)
    return np.concatenate(list(rendered_rows(function, view, chunk=chunk, alpha=alpha)))


def test_at_scale_1_every_pixel_is_asked_for_at_its_centre():
    asked = []
    view = view_of(SIZE, crop=(5, 7, 15, 9))
    drawn(lambda coords: asked.append(coords) or table(coords), view)
    assert view.is_of_own_pixels
    assert not view_of(SIZE, crop=(5.5, 7, 15.5, 9)).is_of_own_pixels
    x, y = np.meshgrid(np.arange(5, 15) + 0.5, np.arange(7, 9) + 0.5)
    np.testing.assert_array_equal(torch.cat(asked).numpy(), np.stack([x, y], -1).reshape(-1, 2))


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, (40, 150)),
        ({"scale": 2.5}, (100, 375)),
        ({"scale": 0.001}, (1, 1)),
        ({"size": (7, 3)}, (7, 3)),
        ({"crop": (1.5, 2, 3.5, 2.25), "scale": 8}, (16, 2)),
    ],
)
def test_sizes(options, size):
    view = view_of(SIZE, **options)
    assert (view.width, view.height) == size
    assert drawn(table, view).shape == (*size[::-1], 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"crop": (0, 0, 41, 10)}, "X1 <= 40"),
        ({"crop": (5, 5, 5, 10)}, "X0 < X1"),
        ({"crop": (float("nan"), 0, 5, 10)}, "X0 < X1"),
        ({"scale": 0}, "positive"),
        ({"scale": float("inf")}, "positive"),
        ({"size": (0, 5)}, "at least 1"),
        ({"size": (5, 5), "scale": 2}, "one of them"),
    ],
)
def test_refusals(options, words):
    with pytest.raises(InputError, match=words):
        view_of(SIZE, **options)


def test_a_smaller_picture_is_the_mean_of_the_pixels_under_it():
    small = drawn(table, view_of(SIZE, size=(10, 30)))
    np.testing.assert_allclose(small, PIXELS.view(30, 5, 10, 4, 3).mean((1, 3)).numpy(), atol=1e-6)
    odd = view_of(SIZE, scale=0.4)
    assert odd.samples == (3, 3)


@pytest.mark.parametrize(
    ("options", "leaves"),
    [
        ({}, False),
        ({"crop": (3, 4, 9, 10), "scale": 0.5}, False),
        ({"size": (10, 30)}, False),
        ({"size": (39, 150)}, True),
        ({"scale": 0.4}, True),
        ({"crop": (0.5, 4, 8.5, 10)}, True),
        ({"crop": (0.5, 4, 8.5, 10), "scale": 0.5}, True),
        ({"scale": 2}, True),
    ],
)
def test_the_field_is_asked_at_the_centres_of_pixels_only(options, leaves):
    """Between them a field of loe-image is noise: whatever the size or the window, the spline stands there."""

    def untaught(coords):
        centre = (coords % 1 == 0.5).all(-1, keepdim=True)
        return torch.where(centre, table(coords), torch.nan)

    view = view_of(SIZE, **options)
    assert view.leaves_centres == leaves
    picture = Picture(PIXELS.numpy(), "TIFF", "RGB")
    values = drawn(pictured(on_grid(untaught), picture, view, "spline"), view)
    assert np.isfinite(values).all()
    assert np.isnan(drawn(pictured(on_grid(untaught), picture, view, "field"), view)).any() == leaves


def test_hidden_colours_do_not_bleed_into_a_mean():
    def half(coords):
        seen = (coords[:, :1].floor() % 2 == 0).float()
        return torch.cat([seen, 1 - seen, 1 - seen, seen], -1)  # red, beside it cyan that nobody sees

    mean = drawn(half, view_of((4, 4), scale=0.5), alpha=True)
    np.testing.assert_allclose(mean, np.broadcast_to([1, 0, 0, 0.5], (2, 2, 4)), atol=1e-6)


def test_straight_undoes_premultiplied():
    values = torch.rand(50, 4)
    torch.testing.assert_close(straight(premultiplied(values)), values)
    assert straight(torch.zeros(1, 4)).eq(0).all()


@pytest.mark.parametrize("scale", [1, 3, 0.37])
def test_bands_and_windows_do_not_matter(scale):
    """Also not to the last bit, which 16 bits would show; the picture has several blocks of rows."""
    view = view_of(SIZE, scale=scale)
    for function in (
        evaluated(table, torch.device("cpu"), 64),
        SplineOfPixels(on_grid(table), SIZE, view, alpha=False),
    ):
        whole = drawn(function, view)
        np.testing.assert_array_equal(drawn(function, view, chunk=1), whole)
    if scale >= 1:
        crop = view_of(SIZE, scale=scale, crop=(30, 60, 40, 135))
        part = drawn(SplineOfPixels(on_grid(table), SIZE, crop, alpha=False), crop)
        np.testing.assert_array_equal(part, whole[60 * scale : 135 * scale, 30 * scale : 40 * scale])


def test_the_spline_is_that_of_the_whole_picture():
    view = view_of(SIZE, scale=2.3)
    whole = drawn(lambda coords: CubicSpline(PIXELS.numpy())(coords.float()), view)
    np.testing.assert_allclose(drawn(SplineOfPixels(on_grid(table), SIZE, view, alpha=False), view), whole, atol=2e-5)


def test_the_spline_of_alpha_hides_hidden_colours():
    def picture(coords):
        seen = (coords[:, :1] < 5).float()
        return torch.cat([torch.ones_like(seen), 1 - seen, seen], -1)

    view = view_of((10, 10), scale=4)
    values = drawn(SplineOfPixels(on_grid(picture), (10, 10), view, alpha=True), view)
    assert values[values[..., 2] > 0.1][:, 1].max() < 0.05
