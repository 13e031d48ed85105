"""Whether a picture fits into memory."""

import pytest

from loe_field.errors import InputError
from loe_field.pictures import memory


@pytest.mark.parametrize(("side", "spline", "gib"), [(8192, False, 1.2), (16384, False, 4.6), (8192, True, 2.7)])
def test_large_pictures_are_fitted_in_little_memory(side, spline, gib, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: int(gib * 2**30))
    memory.check_picture_memory(side, side, 3, 1, "it", spline=spline)
    with pytest.raises(InputError, match="too large"):
        memory.check_picture_memory(side, round(1.1 * side), 3, 1, "it", spline=spline)
