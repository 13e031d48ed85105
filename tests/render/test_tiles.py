"""Renderings as pyramids of tiles."""

import io
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from loe_field.pictures.picture import EXR_CHANNELS, codes
from loe_field.pictures.write import Sheet
from loe_field.render import tiles
from loe_field.render.tiles import Pyramid, halved, write_tiles


def write(folder, values, *, rows=7, kind="PNG", icc_profile=None):
    """Tiles of values [height, width, channels], whose bands have so many rows."""
    height, width, channels = values.shape
    sheet = Sheet(kind, width, height, EXR_CHANNELS[channels], np.dtype(np.uint8), icc_profile)
    pyramid = Pyramid(folder, sheet, sheet.has_alpha, lambda band: codes(band, np.uint8))
    write_tiles(pyramid, np.split(values, range(rows, height, rows)), "a <picture>")
    return pyramid


def level_of(folder, number, size, *, tile, overlap=1):
    """A level put together from its tiles, which must agree where they overlap."""
    width, height = size
    whole, paths = None, list((folder / "picture_files" / str(number)).iterdir())
    for path in paths:
        column, row = map(int, path.stem.split("_"))
        part = np.asarray(Image.open(path)).reshape(*Image.open(path).size[::-1], -1)
        whole = np.full((height, width, part.shape[-1]), -1) if whole is None else whole
        left, top = (max(0, k * tile - overlap) for k in (column, row))
        right, bottom = (min((k + 1) * tile + overlap, n) for k, n in ((column, width), (row, height)))
        assert part.shape[:2] == (bottom - top, right - left)
        there = whole[top:bottom, left:right]
        assert ((there == -1) | (there == part)).all()
        there[:] = part
    assert len(paths) == -(-width // tile) * -(-height // tile)
    assert (whole >= 0).all()
    return whole


def smaller(values):
    """Every pixel the mean of the four under it, of those that are there."""
    height, width, channels = values.shape
    padded = np.full((height + height % 2, width + width % 2, channels), np.nan, np.float64)
    padded[:height, :width] = values
    return np.nanmean(padded.reshape(len(padded) // 2, 2, -1, 2, channels), (1, 3))


@pytest.mark.parametrize("shape", [(37, 53, 3), (1, 1, 1), (16, 16, 1), (40, 9, 3), (1, 33, 3), (64, 32, 4)])
@pytest.mark.parametrize("rows", [1, 5, 100])
def test_each_level_is_the_mean_of_the_one_above(shape, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(tiles, "_TILE", 8)
    values = np.random.default_rng(0).random(shape, dtype=np.float32)
    pyramid = write(tmp_path, values, rows=rows)
    assert pyramid.sizes[0] == (1, 1)
    assert pyramid.sizes[-1] == shape[1::-1]
    expected = values.astype(np.float64)
    if alpha := shape[2] == 4:
        expected[..., :3] *= expected[..., 3:]
    for number, size in reversed(list(enumerate(pyramid.sizes))):
        straight = np.concatenate([expected[..., :3] / expected[..., 3:], expected[..., 3:]], -1) if alpha else expected
        np.testing.assert_allclose(level_of(tmp_path, number, size, tile=8), 255 * straight, atol=0.5001)
        expected = smaller(expected)
    assert sum(len(list(folder.iterdir())) for folder in (tmp_path / "picture_files").iterdir()) == pyramid.num_tiles


def test_halving_an_odd_number_of_rows_and_columns():
    rows = torch.tensor([[1.0, 3.0, 10.0]])[..., None]
    assert halved(rows).flatten().tolist() == [2, 10]
    assert halved(torch.cat([rows, 3 * rows])).flatten().tolist() == [4, 20]


def test_only_some_rows_of_tiles_are_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(tiles, "_TILE", 8)
    kept = []
    add = tiles._Level.add

    def watched(self, values):
        add(self, values)
        kept.append(sum(map(len, self._codes)))

    monkeypatch.setattr(tiles._Level, "add", watched)
    write(tmp_path, np.zeros((300, 20, 1), np.float32), rows=3)
    assert max(kept) < 8 + 3 + 2


def test_page_and_description_say_the_same_and_need_no_network(tmp_path):
    write(tmp_path, np.zeros((20, 30, 3), np.float32), kind="JPEG")
    page = (tmp_path / "index.html").read_text("utf8")
    image = json.loads(re.search(r"tileSources: (.*),\n", page)[1])["Image"]
    tree = ElementTree.parse(tmp_path / "picture.dzi").getroot()
    assert tree.tag == f"{{{image['xmlns']}}}Image"
    assert tree.attrib == {name: image[name] for name in ("Format", "Overlap", "TileSize")}
    assert tree[0].attrib == image["Size"] == {"Width": "30", "Height": "20"}
    assert tree.attrib["Format"] == "jpg"
    assert page.count("a &lt;picture&gt;") == 2
    assert [Path(src).name for src in re.findall(r'(?:src|href)="(.*?)"', page)] == ["openseadragon.min.js"]
    assert (tmp_path / "openseadragon.min.js").stat().st_size > 10**5
    assert "CodePlex Foundation" in (tmp_path / "LICENSE.txt").read_text()


def test_tiles_have_the_colour_profile(tmp_path):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    write(tmp_path, np.zeros((2, 3, 3), np.float32), icc_profile=profile)
    tile = (tmp_path / "picture_files" / "0" / "0_0.png").read_bytes()
    assert Image.open(io.BytesIO(tile)).info["icc_profile"] == profile
