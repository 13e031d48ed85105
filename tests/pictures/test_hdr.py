"""HDR: EXR and floats beyond 1, on the curve on which they are fitted."""

import io
import struct

import numpy as np
import OpenImageIO as oiio
import pytest
import tifffile

from loe_field.errors import InputError
from loe_field.pictures.metrics import picture_psnr
from loe_field.pictures.picture import MU, blank_picture
from loe_field.pictures.read import decode_picture
from loe_field.pictures.write import encode

RNG = np.random.default_rng(0)
COLOURS = {1: ("Y",), 2: ("Y", "A"), 3: ("R", "G", "B"), 4: ("R", "G", "B", "A")}


def light(channels, dtype=np.float32, height=9, width=14):
    """Four decades of it, alpha within [0.2, 1]."""
    values = 10 ** RNG.uniform(-2, 2, (height, width, channels))
    if channels in (2, 4):
        values[..., -1] = RNG.uniform(0.2, 1, (height, width))
    return values.astype(dtype)


def exr(values, tmp_path, names=None):
    """The file's content; alpha is multiplied in."""
    channels = values.shape[2]
    spec = oiio.ImageSpec(values.shape[1], values.shape[0], channels, "half" if values.dtype == np.float16 else "float")
    spec.channelnames = names or COLOURS[channels]
    if spec.channelnames[-1] == "A":
        values = np.concatenate([values[..., :-1] * values[..., -1:], values[..., -1:]], -1)
    output = oiio.ImageOutput.create("exr")
    assert output.open(str(tmp_path / "a.exr"), spec)
    assert output.write_image(np.ascontiguousarray(values))
    assert output.close()
    return (tmp_path / "a.exr").read_bytes()


def tiff(values):
    content = io.BytesIO()
    tifffile.imwrite(content, values, photometric="rgb")
    return content.getvalue()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_an_exr_reads_back_as_it_was_written(channels, dtype, tmp_path):
    values = light(channels, dtype)
    picture = decode_picture(exr(values, tmp_path), name="a")
    assert (picture.format, picture.suffix, picture.values.dtype) == ("EXR", ".exr", dtype)
    tolerance = {"rtol": 3e-3 if dtype == np.float16 else 1e-6}
    np.testing.assert_allclose(picture.values, values, **tolerance)
    again = decode_picture(encode(picture), name="b")
    np.testing.assert_allclose(again.values, picture.values, **tolerance)


def test_the_curve_and_back(tmp_path):
    picture = decode_picture(exr(light(4), tmp_path), name="a")
    colours = picture.values[..., :3]
    assert picture.peak == pytest.approx(np.percentile(colours, 99.9))
    expected = np.log1p(MU * colours.astype(float) / picture.peak) / np.log1p(MU)
    np.testing.assert_allclose(picture.unit[..., :3], expected, rtol=1e-5)
    np.testing.assert_array_equal(picture.unit[..., 3], picture.values[..., 3])
    assert picture.unit.max() > 1  # above the percentile
    np.testing.assert_allclose(picture.like(picture.unit).values, picture.values, rtol=1e-5)
    assert picture.like(np.full_like(picture.unit, -0.1)).values.max() == 0
    wild = picture.like(np.full_like(picture.unit, 50.0)).values
    assert np.isfinite(wild).all()
    assert wild[..., 3].max() == 1
    assert blank_picture(picture.kind).peak == picture.peak


def test_psnr_is_that_of_the_curve(tmp_path):
    picture = decode_picture(exr(light(3), tmp_path), name="a")
    assert picture_psnr(picture, picture) == np.inf
    off = picture.like(picture.unit + 0.01)
    assert picture_psnr(off, picture) == pytest.approx(40, abs=0.01)


def test_floats_in_tiff_beyond_1_are_hdr_and_others_are_not():
    beyond, within = light(3), light(3) / 200
    picture = decode_picture(tiff(beyond), name="a")
    assert picture.peak is not None
    np.testing.assert_array_equal(decode_picture(encode(picture), name="b").values, beyond)
    assert decode_picture(tiff(within), name="a").peak is None


def test_what_is_no_light(tmp_path):
    values = light(3)
    values[0, 0] = -0.25
    picture = decode_picture(exr(values, tmp_path), name="a")
    assert "3 negative values, down to -0.25" in picture.note
    assert picture.values.min() == 0
    values[1, 1, 0] = np.nan
    with pytest.raises(InputError, match="1 values that are NaN"):
        decode_picture(exr(values, tmp_path), name="a")
    black = decode_picture(exr(np.zeros((4, 5, 3), np.float32), tmp_path), name="a")
    assert black.unit.max() == 0
    assert black.peak == 1


def test_exr_that_cannot_be_fitted(tmp_path):
    with pytest.raises(InputError, match="channels U, V"):
        decode_picture(exr(light(2), tmp_path, names=("U", "V")), name="a")
    content = exr(light(3, height=200, width=200), tmp_path)
    for damaged in (content[:100], content[: len(content) // 2]):
        with pytest.raises(InputError, match="damaged"):
            decode_picture(damaged, name="a")
    layered = decode_picture(exr(light(3), tmp_path, names=("view.R", "view.G", "view.B")), name="a")
    assert layered.channels == 3


def test_nothing_to_be_seen_is_black(tmp_path):
    values = light(4)
    values[0, 0, 3] = 0
    picture = decode_picture(exr(values, tmp_path), name="a")
    assert picture.values[0, 0].max() == 0


def written(spec, tmp_path, values=None):
    """The content of an EXR by a spec of OpenImageIO."""
    output = oiio.ImageOutput.create("exr")
    assert output.open(str(tmp_path / "a.exr"), spec), output.geterror()
    if spec.deep:
        pixels = oiio.DeepData()
        pixels.init(spec.width * spec.height, spec.nchannels, spec.channelformats, spec.channelnames)
        assert output.write_deep_image(pixels)
    else:
        assert output.write_image(
            light(spec.nchannels, height=spec.height, width=spec.width) if values is None else values
        )
    assert output.close()
    return (tmp_path / "a.exr").read_bytes()


def test_windows_of_an_exr_that_differ_are_said(tmp_path):
    spec, values = oiio.ImageSpec(14, 9, 3, "float"), light(3)
    spec.x, spec.full_x, spec.full_y, spec.full_width, spec.full_height = 2, -5, -6, 40, 30
    picture = decode_picture(written(spec, tmp_path, values), name="a")
    np.testing.assert_array_equal(picture.values, values)
    assert picture.note.startswith("a has 14x9 pixels from (2, 0) on and shows 40x30 from (-5, -6) on")


def test_exr_of_other_kinds(tmp_path):
    """Tiles and every compression are read; deep pixels and whole numbers are named."""
    spec, values = oiio.ImageSpec(64, 64, 3, "float"), light(3, height=64, width=64)
    spec.tile_width = spec.tile_height = 16
    np.testing.assert_array_equal(decode_picture(written(spec, tmp_path, values), name="a").values, values)
    for compression in ("none", "rle", "zips", "piz", "pxr24", "b44", "dwaa"):
        spec = oiio.ImageSpec(64, 64, 3, "float")
        spec.attribute("compression", compression)
        picture = decode_picture(written(spec, tmp_path, values), name="a")
        lossless = compression in ("none", "rle", "zips", "piz", "b44")  # which leaves floats of 32 bits alone
        np.testing.assert_allclose(picture.values, values, rtol=1e-6 if lossless else 0.2)
    deep = oiio.ImageSpec(4, 3, 3, "float")
    deep.deep, deep.channelformats = True, (oiio.TypeDesc("float"),) * 3
    for spec, words in ((deep, "deep pixels"), (oiio.ImageSpec(4, 3, 3, "uint"), "holds uint numbers")):
        with pytest.raises(InputError, match=words):
            decode_picture(written(spec, tmp_path), name="a")


def test_luminance_and_chroma_become_rgb():
    """Y of every pixel, RY and BY of every fourth, as OpenEXR's RgbaOutputFile writes them."""

    def attribute(name, kind, content):
        return name + b"\0" + kind + b"\0" + struct.pack("<I", len(content)) + content

    channels = [(b"BY", 2), (b"RY", 2), (b"Y", 1)]
    layout = b"".join(name + b"\0" + struct.pack("<iIii", 1, 0, step, step) for name, step in channels) + b"\0"
    window = struct.pack("<4i", 0, 0, 3, 3)
    head = b"v/1\1" + struct.pack("<I", 2) + attribute(b"channels", b"chlist", layout)
    head += attribute(b"compression", b"compression", b"\0") + attribute(b"dataWindow", b"box2i", window)
    head += attribute(b"displayWindow", b"box2i", window) + attribute(b"lineOrder", b"lineOrder", b"\0")
    head += attribute(b"pixelAspectRatio", b"float", struct.pack("<f", 1))
    head += attribute(b"screenWindowCenter", b"v2f", bytes(8))
    head += attribute(b"screenWindowWidth", b"float", struct.pack("<f", 1)) + b"\0"
    chroma, rows = np.full(2, [-0.5], np.float16).tobytes() + np.full(2, [0.25], np.float16).tobytes(), []
    for y in range(4):
        row = (b"" if y % 2 else chroma) + np.full(4, 0.5, np.float16).tobytes()
        rows.append(struct.pack("<iI", y, len(row)) + row)
    places = np.cumsum([len(head) + 32, *map(len, rows[:-1])]).astype("<u8").tobytes()
    picture = decode_picture(head + places + b"".join(rows), name="a")
    assert picture.note == "a is luminance and chroma: converted to RGB, and written back as RGB"
    red, blue = 0.5 * (1 + 0.25), 0.5 * (1 - 0.5)
    green = (0.5 - 0.2126 * red - 0.0722 * blue) / 0.7152
    np.testing.assert_allclose(picture.values.astype(float), np.broadcast_to([red, green, blue], (4, 4, 3)), rtol=2e-3)
