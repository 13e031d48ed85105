"""The scene that the tests of radiance fields share."""

import pytest
from scenes import write_scene


@pytest.fixture(scope="session")
def scene(tmp_path_factory):
    """20 views of 50 x 40 pixels, RGBA."""
    return write_scene(tmp_path_factory.mktemp("scenes") / "things")
