"""A rendering of any size as a pyramid of tiles that a browser shows piece by piece: Microsoft's Deep Zoom.

    index.html                              a page with OpenSeadragon, which works without a network
    picture.dzi                             size, tiles and format, for other viewers
    picture_files/<level>/<column>_<row>.png
    openseadragon.min.js, LICENSE.txt       of OpenSeadragon

Level 0 is one pixel, every further one twice as large up to the rendering itself. A pixel of a level is the mean of the
four under it (of those that are there, at the right and lower border), taken before anything is rounded; HDR as light,
colours by their alpha.
"""

import html
import io
import json
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from loe_field.pictures.write import Sheet
from loe_field.render.window import premultiplied, straight

TileFormat = Literal["png", "jpg"]

_TILE, _OVERLAP = 510, 1
"""Pixels along a tile's side, and how many more it has of each neighbour: together 512."""
_QUALITY = 90
_XMLNS = "http://schemas.microsoft.com/deepzoom/2008"


@dataclass(frozen=True)
class Pyramid:
    """Where tiles go, and of what.

    Attributes:
        folder: is there, and empty.
        sheet: of the rendering, with 8 bits.
        alpha: whether the last channel is alpha that counts in means.
        encode: float32 [rows, width, channels] to uint8 of the same shape.
    """

    folder: Path
    sheet: Sheet
    alpha: bool
    encode: Callable[[np.ndarray], np.ndarray]

    @property
    def suffix(self) -> TileFormat:
        """Of the tiles."""
        return "png" if self.sheet.format == "PNG" else "jpg"

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Width and height of each level, the smallest first."""
        width, height = self.sheet.width, self.sheet.height
        levels = (max(width, height) - 1).bit_length() + 1
        return [(-(-width >> k), -(-height >> k)) for k in reversed(range(levels))]

    @property
    def num_tiles(self) -> int:
        """Of all levels."""
        return sum(-(-width // _TILE) * -(-height // _TILE) for width, height in self.sizes)


def write_tiles(pyramid: Pyramid, bands: Iterable[np.ndarray], caption: str) -> None:
    """Write page and tiles of a rendering, or raise OSError.

    In memory there are two rows of tiles of each level.

    Args:
        pyramid: where, and of what.
        bands: of the rendering, float32 [rows, width, channels], top to bottom.
        caption: a line below the picture.
    """
    _write_page(pyramid, caption)
    below: _Level | None = None
    with ThreadPoolExecutor() as threads:
        for number, size in enumerate(pyramid.sizes):
            below = _Level(pyramid, number, size, below, threads)
        assert below is not None
        for band in bands:
            values = torch.from_numpy(band)
            below.add(premultiplied(values) if pyramid.alpha else values)
        below.end()


class _Level:
    """A level that gets its rows from above, and hands the means of two of them down to the next smaller one."""

    def __init__(
        self,
        pyramid: Pyramid,
        number: int,
        size: tuple[int, int],
        smaller: "_Level | None",
        threads: ThreadPoolExecutor,
    ) -> None:
        self._pyramid, self._smaller, self._threads = pyramid, smaller, threads
        self._width, self._height = size
        self._folder = pyramid.folder / "picture_files" / str(number)
        self._folder.mkdir(parents=True)
        self._codes: list[np.ndarray] = []  # from row self._first on
        self._first = self._row = self._known = 0
        self._odd: Tensor | None = None
        self._writing: list[Future[None]] = []

    def add(self, values: Tensor) -> None:
        """Take rows [rows, width, channels], colours multiplied by their alpha."""
        self._codes.append(self._pyramid.encode((straight(values) if self._pyramid.alpha else values).numpy()))
        self._known += len(values)
        while self._row * _TILE < self._height and self._known >= self._end(self._row):
            self._write_row()
        if self._smaller is None:
            return
        rows = values if self._odd is None else torch.cat([self._odd, values])
        even = len(rows) - len(rows) % 2
        self._odd = rows[even:].clone() if even < len(rows) else None
        if even:
            self._smaller.add(halved(rows[:even]))

    def end(self) -> None:
        """There are no more rows: finish this level and those below it."""
        if self._smaller is not None:
            if self._odd is not None:
                self._smaller.add(halved(self._odd))
            self._smaller.end()
        for future in self._writing:
            future.result()

    def _end(self, row: int) -> int:
        """The first row of pixels that is not in a row of tiles any more."""
        return min((row + 1) * _TILE + _OVERLAP, self._height)

    def _write_row(self) -> None:
        """Write a row of tiles in threads, once the one before is written."""
        row, codes = self._row, np.concatenate(self._codes)
        top = max(row * _TILE - _OVERLAP, 0)
        strip = codes[top - self._first : self._end(row) - self._first]
        self._row += 1
        first = self._row * _TILE - _OVERLAP
        self._codes, self._first = [codes[first - self._first :].copy()], first
        for future in self._writing:
            future.result()
        starts = range(0, self._width, _TILE)
        self._writing = [
            self._threads.submit(
                self._write,
                strip[:, max(left - _OVERLAP, 0) : left + _TILE + _OVERLAP],
                self._folder / f"{column}_{row}.{self._pyramid.suffix}",
            )
            for column, left in enumerate(starts)
        ]

    def _write(self, tile: np.ndarray, path: Path) -> None:
        image = Image.fromarray(tile[..., 0] if tile.shape[-1] == 1 else tile)
        content = io.BytesIO()
        options = {"icc_profile": self._pyramid.sheet.icc_profile}
        if self._pyramid.suffix == "png":
            image.save(content, format="PNG", **options)
        else:
            image.save(content, format="JPEG", quality=_QUALITY, **options)
        path.write_bytes(content.getbuffer())


def halved(rows: Tensor) -> Tensor:
    """Means of 2 x 2 pixels of [rows, width, channels]; of those that are there, where a number is odd."""
    rows = torch.stack([rows[0::2], rows[1::2]]).mean(0) if len(rows) > 1 else rows
    width = rows.shape[1]
    even = rows[:, : width - width % 2].unflatten(1, (-1, 2)).mean(2)
    return torch.cat([even, rows[:, width - width % 2 :]], 1)


def _write_page(pyramid: Pyramid, caption: str) -> None:
    sheet, folder = pyramid.sheet, pyramid.folder
    size = {"Width": str(sheet.width), "Height": str(sheet.height)}
    image = {"Format": pyramid.suffix, "Overlap": str(_OVERLAP), "TileSize": str(_TILE)}
    words = " ".join(f'{name}="{value}"' for name, value in image.items())
    (folder / "picture.dzi").write_text(
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Image xmlns="{_XMLNS}" {words}>\n'
        f'  <Size Width="{sheet.width}" Height="{sheet.height}"/>\n</Image>\n',
        "utf8",
    )
    viewer = files("loe_field.render") / "openseadragon"
    for name in ("openseadragon.min.js", "LICENSE.txt"):
        (folder / name).write_bytes((viewer / name).read_bytes())
    # The description stands in the page too: a browser lets no page that is opened as a file read another file.
    source = json.dumps({"Image": {"xmlns": _XMLNS, "Url": "picture_files/", **image, "Size": size}})
    page = (viewer / "index.html").read_text("utf8")
    page = page.replace("CAPTION", html.escape(caption)).replace("SOURCE", source)
    (folder / "index.html").write_text(page, "utf8")
