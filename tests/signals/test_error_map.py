"""The error of a reconstruction as a picture."""

import numpy as np
import pytest

from loe_field.pictures.picture import Picture
from loe_field.signals import error_map


@pytest.mark.parametrize(("most", "block"), [(100, 1), (4, 3), (1, 11)])
def test_of_a_large_picture_the_largest_error_of_each_block_is_drawn(most, block, monkeypatch):
    monkeypatch.setattr(error_map, "_MOST_DRAWN", most)
    random = np.random.default_rng(0)
    seen, wanted = (Picture(random.integers(0, 256, (11, 7, 3)).astype(np.uint8), "PNG", "RGB") for _ in range(2))
    drawn = error_map.error_figure(seen, wanted).axes[0].images[0].get_array()
    difference = np.abs(seen.values.astype(int) - wanted.values).max(-1)
    rows, columns = (range(0, side, block) for side in difference.shape)
    expected = [[difference[y : y + block, x : x + block].max() for x in columns] for y in rows]
    np.testing.assert_allclose(drawn, expected, atol=1e-3)
