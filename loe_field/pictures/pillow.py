"""Pillow without its own limits."""

from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, PngImagePlugin

_LONGEST_TEXT = 2**26  # bytes of a PNG's colour profile, or of one text, inflated


@contextmanager
def unlimited() -> Iterator[None]:
    """Let Pillow open pictures of any size, and profiles and texts of more than 1 MB.

    The real limit, memory, is looked at before anything is decoded.
    """
    was = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    Image.MAX_IMAGE_PIXELS = None
    PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = _LONGEST_TEXT, 4 * _LONGEST_TEXT
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = was
