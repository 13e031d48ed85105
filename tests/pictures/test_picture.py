"""Pictures in and out: what was read can be written, and reads back the same."""

import io
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from loe_field.errors import InputError
from loe_field.pictures import memory
from loe_field.pictures import tiff as tiff_reading
from loe_field.pictures.picture import Picture
from loe_field.pictures.read import decode_picture, read_picture
from loe_field.pictures.write import encode

RNG = np.random.default_rng(0)
EIGHT = RNG.integers(0, 256, (6, 9, 4), dtype=np.uint8)
SIXTEEN = RNG.integers(0, 65536, (6, 9, 4), dtype=np.uint16)
CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}


def encoded(image, file_format, **options):
    content = io.BytesIO()
    image.save(content, format=file_format, **options)
    return content.getvalue()


def eight_bit(mode):
    values = EIGHT[..., : CHANNELS[mode]]
    return Image.fromarray(values[..., 0] if mode == "L" else values)


def png(width, height, depth, colour_type, rows, interlaced=0):
    def chunk(name, data):
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, colour_type, 0, 0, interlaced])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def deep_png(values, colour_type):
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(width, height, 16, colour_type, rows)


def tiff(values, **options):
    content = io.BytesIO()
    tifffile.imwrite(content, values, **options)
    return content.getvalue()


@pytest.mark.parametrize(
    ("file_format", "mode"),
    [("PNG", m) for m in CHANNELS]
    + [("TIFF", m) for m in CHANNELS]
    + [("BMP", m) for m in ("L", "RGB")]
    + [("WEBP", m) for m in ("RGB", "RGBA")],
)
def test_eight_bits_come_back_as_they_were(file_format, mode):
    options = {"lossless": True, "exact": True} if file_format == "WEBP" else {}
    read = decode_picture(encoded(eight_bit(mode), file_format, **options), name="p")
    assert (read.format, read.mode, read.bits) == (file_format, mode, 8)
    np.testing.assert_array_equal(read.values, EIGHT[..., : CHANNELS[mode]])
    content = encode(read)
    again = Image.open(io.BytesIO(content))
    assert (again.format, again.mode) == (file_format, mode)
    np.testing.assert_array_equal(decode_picture(content, name="p").values, read.values)


def test_bmp_with_alpha():
    """Pillow reads the alpha of a BMP but writes none; it reads what we write."""
    read = Picture(EIGHT, "BMP", "RGBA")
    image = Image.open(io.BytesIO(encode(read)))
    assert (image.format, image.mode) == ("BMP", "RGBA")
    np.testing.assert_array_equal(np.asarray(image), EIGHT)
    np.testing.assert_array_equal(decode_picture(encode(read), name="p").values, EIGHT)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_is_written_at_its_best(mode):
    smooth = np.linspace(0, 255, 32 * 48).reshape(32, 48).astype(np.uint8)
    image = Image.fromarray(smooth if mode == "L" else np.stack([smooth, smooth[::-1], smooth[:, ::-1]], -1))
    read = decode_picture(encoded(image, "JPEG", quality=95), name="p")
    again = decode_picture(encode(read), name="p")
    assert (again.format, again.mode, again.values.shape) == ("JPEG", mode, read.values.shape)
    assert np.abs(again.values.astype(int) - read.values).max() <= 4


DEEP_PNG = pytest.mark.parametrize(("colour_type", "mode"), [(0, "L"), (2, "RGB"), (4, "LA"), (6, "RGBA")])


@DEEP_PNG
def test_sixteen_bit_png(colour_type, mode):
    values = SIXTEEN[..., : CHANNELS[mode]]
    read = decode_picture(deep_png(values, colour_type), name="p")
    assert (read.format, read.mode, read.bits, read.white, read.note) == ("PNG", mode, 16, 65535, "")
    np.testing.assert_array_equal(read.values, values)
    content = encode(read)
    assert (content[24], content[25]) == (16, colour_type)
    np.testing.assert_array_equal(decode_picture(content, name="p").values, values)


@DEEP_PNG
def test_interlaced_sixteen_bit_png(colour_type, mode):
    values = SIXTEEN[..., : CHANNELS[mode]]
    passes = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))
    parts = [values[top::down, left::across] for top, down, left, across in passes]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for part in parts if part.shape[1] for row in part)
    content = png(9, 6, 16, colour_type, rows, interlaced=1)
    np.testing.assert_array_equal(decode_picture(content, name="p").values, values)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
@pytest.mark.parametrize("planar", [False, True])
def test_deep_and_float_tiff(channels, dtype, planar):
    values = SIXTEEN[..., :channels]
    values = values if dtype == np.uint16 else (values / 65535).astype(np.float32)
    raw = values[..., 0] if channels == 1 else np.moveaxis(values, -1, 0) if planar else values
    options = {} if channels == 1 else {"photometric": "rgb", "planarconfig": "separate" if planar else "contig"}
    read = decode_picture(tiff(raw, compression="zlib", **options), name="p")
    assert (read.format, read.values.dtype) == ("TIFF", dtype)
    np.testing.assert_array_equal(read.values, values)
    again = decode_picture(encode(read), name="p")
    assert (again.mode, again.bits) == (read.mode, read.bits)
    np.testing.assert_array_equal(again.values, values)


@pytest.mark.parametrize("transparent", [False, True])
def test_palette_pictures_stay_palette_pictures(transparent):
    image = Image.fromarray(RNG.integers(0, 5, (6, 9), dtype=np.uint8)).convert("P")
    colours = RNG.integers(0, 256, (5, 3), dtype=np.uint8)
    image.putpalette(colours.tobytes())
    options = {"transparency": bytes([0, 50, 100, 200, 255])} if transparent else {}
    read = decode_picture(encoded(image, "PNG", **options), name="p")
    assert (read.mode, read.channels) == ("P", 4 if transparent else 3)
    np.testing.assert_array_equal(read.values[..., :3], colours[np.asarray(image)])
    content = encode(read.like(read.values / 255 + RNG.normal(0, 0.005, read.values.shape)))
    assert Image.open(io.BytesIO(content)).mode == "P"
    np.testing.assert_array_equal(decode_picture(content, name="p").values, read.values)


def test_black_and_white():
    bits = EIGHT[..., 0] > 127
    read = decode_picture(encoded(Image.fromarray(bits), "PNG"), name="p")
    assert (read.mode, read.bits) == ("1", 1)
    content = encode(read.like(read.values / 255 * 0.6 + 0.2))
    assert Image.open(io.BytesIO(content)).mode == "1"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), bits)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("deep", [False, True])
def test_exif_orientation_is_respected(orientation, deep):
    """Eight and sixteen bits are turned by different code; both must agree with what Pillow does."""
    upright = EIGHT[..., :3]
    exif = Image.Exif()
    exif[0x0112] = orientation
    shallow = encoded(Image.fromarray(upright), "PNG", exif=exif)
    read = decode_picture(shallow, name="p")
    if deep:
        at = shallow.index(b"eXIf") - 4
        chunk = shallow[at : at + 12 + int.from_bytes(shallow[at : at + 4], "big")]
        plain = deep_png(upright.astype(np.uint16) * 257, 2)
        expected = read.values.astype(np.uint16) * 257
        read = decode_picture(plain[:33] + chunk + plain[33:], name="p")
        np.testing.assert_array_equal(read.values, expected)
    assert read.values.shape == ((9, 6, 3) if orientation >= 5 else (6, 9, 3))
    assert np.array_equal(read.values, upright.astype(np.uint16) * 257 if deep else upright) == (orientation == 1)
    assert Image.open(io.BytesIO(encode(read))).getexif().get(0x0112, 1) == 1


def test_a_colour_profile_is_carried_along():
    profile = b"not a real profile, but bytes that must survive"
    read = decode_picture(encoded(eight_bit("RGB"), "PNG", icc_profile=profile), name="p")
    assert Image.open(io.BytesIO(encode(read))).info["icc_profile"] == profile


def test_cmyk_is_converted_with_a_word():
    read = decode_picture(encoded(Image.fromarray(EIGHT, "CMYK"), "TIFF"), name="p.tif")
    assert read.mode == "RGB"
    assert "converted to RGB" in read.note


def test_rounding_and_clamping():
    read = decode_picture(encoded(eight_bit("L"), "PNG"), name="p")
    row = np.array([-0.5, 0.0, 0.4 / 255, 0.6 / 255, 1.0, 7.0])
    like = read.like(row[None, :, None])
    assert like.values.flatten().tolist() == [0, 0, 0, 1, 255, 255]


def test_a_picture_of_one_row():
    read = decode_picture(encoded(Image.fromarray(EIGHT[:1, :, 0]), "PNG"), name="p")
    assert read.values.shape == (1, 9, 1)


whole_png = encoded(eight_bit("RGB").resize((64, 64)), "PNG")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"just some text\n" * 20, "is not a picture that can be read"),
        (whole_png[: len(whole_png) // 2], "damaged or cut short"),
        (whole_png[:20], "damaged or cut short"),
        (deep_png(SIXTEEN[..., :3], 2)[:150], "damaged or cut short"),
        (encoded(eight_bit("RGB").resize((64, 64)), "JPEG")[:900], "damaged or cut short"),
        (encoded(eight_bit("RGB").resize((64, 64)), "BMP")[:900], "damaged or cut short"),
        (encoded(eight_bit("RGB").resize((64, 64)), "WEBP")[:200], "damaged or cut short"),
        (tiff(SIXTEEN[..., :3], photometric="rgb")[:120], "damaged or cut short"),
        (encoded(eight_bit("RGB"), "TIFF")[:150], "damaged or cut short"),
        (png(0, 5, 8, 0, b""), "has no pixels"),
        (encoded(eight_bit("RGB"), "GIF"), "is a GIF picture: convert it"),
        (encoded(eight_bit("L"), "TIFF", save_all=True, append_images=[eight_bit("L")]), "holds 2 pictures"),
        (tiff(np.stack([SIXTEEN[..., 0]] * 3), photometric="minisblack"), "holds 3 pictures"),
        (tiff(np.full((4, 4), np.nan, np.float32)), "16 values that are NaN or infinite"),
        (tiff(SIXTEEN / np.float32(65535), photometric="separated"), "floats of SEPARATED"),
        (tiff(np.zeros((4, 4), np.int32)), "int32 numbers: convert it"),
        (
            tiff(np.zeros((4, 4, 6), np.uint16), photometric="minisblack", planarconfig="contig"),
            "6 channels of MINISBLACK",
        ),
        (png(200_000, 200_000, 8, 2, b""), r"200000 x 200000 pixels of 3 channels take about .* GiB"),
        (png(200_000, 200_000, 16, 2, b""), r"too large for memory"),
    ],
)
def test_bad_content_is_named(content, words):
    with pytest.raises(InputError, match=words) as caught:
        decode_picture(content, name="the picture")
    assert "\n" not in str(caught.value)


def test_bad_paths_are_named(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_picture(tmp_path / "none.png")
    with pytest.raises(InputError, match="is not a file"):
        read_picture(tmp_path)
    (tmp_path / "empty.png").touch()
    with pytest.raises(InputError, match="is empty"):
        read_picture(tmp_path / "empty.png")


def test_too_large_says_what_would_fit(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 2**20)
    content = encoded(eight_bit("RGB").resize((400, 300)), "PNG")
    with pytest.raises(InputError, match=r"scale it to at most \d+ x \d+"):
        decode_picture(content, name="p")


@pytest.mark.parametrize(("dtype", "channels"), [(np.uint8, 3), (np.uint16, 1), (np.uint16, 4)])
def test_a_large_plain_tiff_is_mapped(tmp_path, monkeypatch, dtype, channels):
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (9, 7, channels), dtype)
    options = {"photometric": "rgb" if channels > 2 else "minisblack", "extrasamples": ["unassalpha"] * (channels == 4)}
    tifffile.imwrite(tmp_path / "plain.tif", values.squeeze(), **options)
    tifffile.imwrite(tmp_path / "packed.tif", values.squeeze(), compression="zlib", **options)
    read = read_picture(tmp_path / "plain.tif")
    monkeypatch.setattr(tiff_reading, "_MAPPED_FROM", 1)
    mapped, packed = (read_picture(tmp_path / f"{name}.tif") for name in ("plain", "packed"))
    assert isinstance(mapped.values, np.memmap)
    assert not isinstance(packed.values, np.memmap)
    for picture in (read, packed):
        assert (picture.values == mapped.values).all()
        assert picture.kind == mapped.kind
