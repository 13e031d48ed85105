"""Files written row by row hold what they were given."""

import cv2
import numpy as np
import OpenImageIO as oiio
import pytest
import tifffile
from PIL import Image

from loe_field.errors import InputError
from loe_field.image import rows
from loe_field.image.picture import read_picture
from loe_field.image.rows import DTYPES, SUFFIXES, Sheet, check_sheet, file_format, write_rows

RNG = np.random.default_rng(0)
COLOURS = {1: ("Y",), 2: ("Y", "A"), 3: ("R", "G", "B"), 4: ("R", "G", "B", "A")}
CASES = [
    (kind, bits, channels)
    for kind, depths in DTYPES.items()
    for bits in depths
    for channels in COLOURS
    if not (kind == "JPEG" and channels in (2, 4)) and not (kind == "WEBP" and channels < 3)
]


def noise(channels, dtype, height=37, width=29):
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return RNG.random((height, width, channels)).astype(dtype)
    return RNG.integers(0, np.iinfo(dtype).max + 1, (height, width, channels)).astype(dtype)


def bands(values, heights=(5, 1, 20, 11)):
    first = 0
    for height in heights:
        yield values[first : first + height]
        first += height
    assert first == len(values)


def read_back(path, kind):
    if kind == "NPY":
        return np.load(path)
    if kind == "EXR":
        return np.atleast_3d(oiio.ImageBuf(str(path)).get_pixels(oiio.FLOAT))
    return read_picture(path).values


@pytest.mark.parametrize(("kind", "bits", "channels"), CASES)
def test_what_is_written_reads_back(kind, bits, channels, tmp_path):
    values = noise(channels, DTYPES[kind][bits])
    path = tmp_path / f"a.{kind.lower()}"
    sheet = Sheet(kind, 29, 37, COLOURS[channels], values.dtype)
    check_sheet(sheet)
    write_rows(path, sheet, bands(values))
    back = read_back(path, kind)
    if kind == "EXR" and channels in (2, 4):
        values = np.concatenate([values[..., :-1] * values[..., -1:], values[..., -1:]], -1)
    if kind == "PNG" and bits == 16 and channels == 2:  # how OpenCV reads it
        values = values[..., [0, 0, 0, 1]]
    if kind == "JPEG":
        assert np.abs(back.astype(int) - values).max() <= 4
        ours, theirs = tmp_path / "o.jpg", Image.fromarray(values.squeeze())
        theirs.save(ours, quality=100, subsampling=0)
        np.testing.assert_array_equal(back, read_picture(ours).values)
    else:
        np.testing.assert_array_equal(back, values)
        assert back.dtype == values.dtype or kind == "EXR"


def test_the_profile_comes_along(tmp_path):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for kind in ("PNG", "JPEG", "TIFF", "WEBP"):
        path = tmp_path / f"a.{kind.lower()}"
        values = noise(3, np.uint8)
        write_rows(path, Sheet(kind, 29, 37, COLOURS[3], values.dtype, profile), bands(values))
        assert read_picture(path).icc_profile == profile


def test_names_that_are_no_colours(tmp_path):
    values = noise(4, np.float32)
    names = ("Y.dx", "Y.dy", "A.dx", "A.dy")
    for kind in ("EXR", "TIFF"):
        write_rows(tmp_path / f"a.{kind}", Sheet(kind, 29, 37, names, values.dtype), bands(values))
    image = oiio.ImageBuf(str(tmp_path / "a.EXR"))
    order = [image.spec().channelnames.index(name) for name in names]
    np.testing.assert_array_equal(image.get_pixels(oiio.FLOAT)[..., order], values)
    with tifffile.TiffFile(tmp_path / "a.TIFF") as tiff:
        assert tiff.pages[0].description == "Y.dx Y.dy A.dx A.dy"
        np.testing.assert_array_equal(tiff.asarray(), values)


def test_a_tiff_of_many_strips(tmp_path):
    values = noise(3, np.uint16, height=400, width=500)
    heights = [7] * 57 + [1]
    write_rows(tmp_path / "a.tif", Sheet("TIFF", 500, 400, COLOURS[3], values.dtype), bands(values, heights))
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        assert len(tiff.pages[0].dataoffsets) > 4
        np.testing.assert_array_equal(tiff.asarray(), values)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "a.tif"), cv2.IMREAD_UNCHANGED)[..., ::-1], values)


def test_suffixes():
    from pathlib import Path

    assert file_format(Path("A.JPG")) == "JPEG"
    assert set(SUFFIXES.values()) == set(DTYPES)
    with pytest.raises(InputError, match=r"\.exr"):
        file_format(Path("a.gif"))


@pytest.mark.parametrize(
    ("sheet", "words"),
    [
        (Sheet("WEBP", 16384, 10, COLOURS[3], np.dtype(np.uint8)), "16,383"),
        (Sheet("JPEG", 10, 65501, COLOURS[3], np.dtype(np.uint8)), "65,500"),
        (Sheet("PNG", 1_000_001, 10, COLOURS[3], np.dtype(np.uint8)), "1,000,000"),
        (Sheet("JPEG", 10, 10, COLOURS[4], np.dtype(np.uint8)), "alpha"),
    ],
)
def test_what_a_format_cannot_hold(sheet, words):
    with pytest.raises(InputError, match=words):
        check_sheet(sheet)


def test_an_encoder_that_wants_the_whole_picture_is_asked_first(monkeypatch):
    sheet = Sheet("WEBP", 10_000, 10_000, COLOURS[3], np.dtype(np.uint8))
    monkeypatch.setattr(rows, "available_memory", lambda: 2**30)
    with pytest.raises(InputError, match=r"3\.7 GiB .* row by row"):
        check_sheet(sheet)
    monkeypatch.setattr(rows, "available_memory", lambda: 2**33)
    check_sheet(sheet)


def test_the_longest_sides_can_be_written(tmp_path):
    for kind in ("PNG", "JPEG", "WEBP"):
        width = rows._LONGEST_SIDE[kind]
        values = np.zeros((1, width, 3), np.uint8)
        path = tmp_path / f"a.{kind.lower()}"
        write_rows(path, Sheet(kind, width, 1, COLOURS[3], values.dtype), [values])
        assert read_picture(path).width == width


def test_a_disk_that_fails_is_an_error(tmp_path):
    values = noise(3, np.uint8)
    for kind in DTYPES:
        dtype = np.dtype(next(iter(DTYPES[kind].values())))
        with pytest.raises(OSError, match=r".+"):
            write_rows(tmp_path / "no" / "a", Sheet(kind, 29, 37, COLOURS[3], dtype), bands(values.astype(dtype)))


def test_16_bits_in_png_are_read_alike_by_others(tmp_path):
    values = noise(3, np.uint16)
    write_rows(tmp_path / "a.png", Sheet("PNG", 29, 37, COLOURS[3], values.dtype), bands(values))
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)[..., ::-1], values)
