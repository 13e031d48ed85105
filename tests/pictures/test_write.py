"""Files written row by row hold what they were given."""

from dataclasses import replace

import cv2
import numpy as np
import OpenImageIO as oiio
import pytest
import tifffile
from PIL import Image
from support import waves

from loe_field.errors import InputError
from loe_field.pictures import write as rows
from loe_field.pictures.picture import Picture
from loe_field.pictures.read import decode_picture, read_picture
from loe_field.pictures.write import (
    DTYPES,
    SUFFIXES,
    Sheet,
    check_sheet,
    encode,
    file_format,
    write_picture,
    write_rows,
)

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


@pytest.mark.parametrize("channels", [1, 3])
def test_a_jpeg_of_many_strips(channels, tmp_path):
    """Restart markers count to 8; the last strip and the last block of a row are cut."""
    values = waves(150, 75, channels)
    write_rows(tmp_path / "a.jpg", Sheet("JPEG", 75, 150, COLOURS[channels], values.dtype), [values])
    Image.fromarray(values.squeeze()).save(tmp_path / "b.jpg", quality=100, subsampling=0)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.jpg").values, read_picture(tmp_path / "b.jpg").values)
    assert cv2.imread(str(tmp_path / "a.jpg"), cv2.IMREAD_UNCHANGED).shape[:2] == (150, 75)


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


PALETTES = {3: RNG.integers(0, 256, (11, 3), dtype=np.uint8), 4: RNG.integers(0, 256, (11, 4), dtype=np.uint8)}
MODES = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}
KINDS = [
    *(("PNG", mode, dtype) for mode in MODES for dtype in (np.uint8, np.uint16)),
    *(("TIFF", mode, dtype) for mode in MODES for dtype in (np.uint8, np.uint16, np.float32)),
    *(("BMP", mode, np.uint8) for mode in ("L", "RGB", "RGBA")),
    *(("WEBP", mode, np.uint8) for mode in ("RGB", "RGBA")),
    *(("JPEG", mode, np.uint8) for mode in ("L", "RGB")),
    *(("EXR", mode, dtype) for mode in MODES for dtype in (np.float16, np.float32)),
    *((kind, mode, np.uint8) for kind in ("PNG", "TIFF", "BMP") for mode in ("1", "P")),
    ("PNG", "PA", np.uint8),
]


def picture_of(kind, mode, dtype, profile=None):
    palette = PALETTES.get({"P": 3, "PA": 4}.get(mode))
    if mode == "1":
        values = RNG.choice(np.array([0, 255], np.uint8), (37, 29, 1))
    elif palette is not None:
        values = palette[RNG.integers(0, len(palette), (37, 29))]
    elif kind == "JPEG":
        values = waves(37, 29, MODES[mode])
    else:
        values = noise(MODES[mode], dtype)
    profile = None if kind in ("BMP", "EXR") else profile
    return Picture(values, kind, mode[:1] if palette is not None else mode, palette, profile)


@pytest.mark.parametrize(("kind", "mode", "dtype"), KINDS)
@pytest.mark.parametrize("size", [47, 200_000])
def test_every_kind_reads_back_as_what_it_was(kind, mode, dtype, size, monkeypatch):
    """Also in many blocks of rows, and with a colour profile of any bytes and length."""
    monkeypatch.setattr(rows, "_BLOCK", 400)
    picture = picture_of(kind, mode, dtype, profile=RNG.bytes(size))
    read = decode_picture(encode(picture), name="it")
    assert (read.bits, read.values.dtype, read.note) == (picture.bits, dtype, "")
    changes = {"peak": picture.peak}
    if picture.palette is not None:
        np.testing.assert_array_equal(read.palette[: len(picture.palette)], picture.palette)
        changes["palette"] = picture.palette
    assert replace(read, **changes).kind == picture.kind
    tolerance = {"JPEG": 4, "EXR": 2e-3 if dtype == np.float16 else 1e-6}.get(kind, 0)
    np.testing.assert_allclose(read.values.astype(float), picture.values, atol=tolerance)


@pytest.mark.parametrize(("kind", "mode", "dtype"), [kind for kind in KINDS if kind[0] in ("PNG", "BMP", "TIFF")])
def test_others_read_the_same(kind, mode, dtype, tmp_path):
    picture = picture_of(kind, mode, dtype)
    path = tmp_path / f"a{picture.suffix}"
    write_picture(path, picture)
    values = picture.values.squeeze()
    if kind == "TIFF" and mode != "P":
        with tifffile.TiffFile(path) as tiff:
            assert list(tiff.pages[0].extrasamples) == [tifffile.EXTRASAMPLE.UNASSALPHA] * picture.has_alpha
            np.testing.assert_array_equal(tiff.asarray(), values > 0 if mode == "1" else values)
    if dtype == np.uint8:
        with Image.open(path) as image:
            assert image.mode == picture.mode
            np.testing.assert_array_equal(image.convert(dict(zip(MODES.values(), MODES))[picture.channels]), values)
    if kind != "TIFF" and mode in ("L", "RGB", "RGBA"):  # of TIFF it multiplies 8-bit alpha in
        order = {"L": [0], "RGB": [2, 1, 0], "RGBA": [2, 1, 0, 3]}[mode]
        np.testing.assert_array_equal(np.atleast_3d(cv2.imread(str(path), -1))[..., order].squeeze(), values)
