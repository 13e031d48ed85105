"""Pictures in and out: what was read can be written, and reads back the same."""

import io
import os
import struct
import zlib
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from loe_field.errors import InputError
from loe_field.pictures import memory, pillow
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


def chunk(name, data):
    return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")


def png(width, height, depth, colour_type, rows, interlaced=0, before=b""):
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, colour_type, 0, 0, interlaced])
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + before
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


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
        exif_chunk = shallow[at : at + 12 + int.from_bytes(shallow[at : at + 4], "big")]
        plain = deep_png(upright.astype(np.uint16) * 257, 2)
        expected = read.values.astype(np.uint16) * 257
        read = decode_picture(plain[:33] + exif_chunk + plain[33:], name="p")
        np.testing.assert_array_equal(read.values, expected)
    assert read.values.shape == ((9, 6, 3) if orientation >= 5 else (6, 9, 3))
    assert np.array_equal(read.values, upright.astype(np.uint16) * 257 if deep else upright) == (orientation == 1)
    assert Image.open(io.BytesIO(encode(read))).getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize(("colour_type", "depth"), [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16), (3, 4)])
def test_a_transparent_colour_of_a_png_becomes_alpha(colour_type, depth):
    channels = 3 if colour_type == 2 else 1
    values = RNG.integers(0, 2**depth, (6, 9, channels))
    key = values[2, 3]
    rows = values.astype(">u2").view(np.uint8) if depth == 16 else values[..., None] >> np.arange(depth)[::-1] & 1
    rows = rows.reshape(6, -1) if depth == 16 else np.packbits(rows.reshape(6, -1).astype(np.uint8), axis=1)
    palette = RNG.integers(0, 256, (16, 3), dtype=np.uint8)
    before = chunk(b"tRNS", key.astype(">u2").tobytes())
    if colour_type == 3:
        before = chunk(b"PLTE", palette.tobytes()) + chunk(b"tRNS", bytes(10) + b"\x80")
    content = png(9, 6, depth, colour_type, b"".join(b"\0" + row.tobytes() for row in rows), before=before)
    read = decode_picture(content, name="p")
    if colour_type == 3:
        clear = np.append([0] * 10 + [128], [255] * 5)
        np.testing.assert_array_equal(read.values, np.concatenate([palette, clear[:, None]], 1)[values[..., 0]])
        return
    assert read.note == "p has one transparent colour: read as alpha, and written back as alpha"
    np.testing.assert_array_equal(read.values[..., :-1], values * (read.white // (2**depth - 1)))
    np.testing.assert_array_equal(read.values[..., -1] > 0, (values != key).any(-1))
    again = decode_picture(encode(read), name="p")
    np.testing.assert_array_equal(again.values, read.values)


@pytest.mark.parametrize("depth", [8, 16])
def test_a_profile_and_texts_of_megabytes(depth, monkeypatch):
    """Pillow alone refuses more than 1 MB of either; a bomb is refused still."""
    monkeypatch.setattr(pillow, "_LONGEST_TEXT", 2**22)
    profile = RNG.bytes(2**21)
    rows = b"\0" * (1 + 3 * depth // 8)

    def with_chunks(*chunks):
        before = b"".join(chunk(name, start + zlib.compress(content)) for name, start, content in chunks)
        return png(1, 1, depth, 2, rows, before=before)

    text = (b"zTXt", b"a\0\0", bytes(2**21)), (b"iTXt", b"b\0\1\0\0\0", b"c" * 2**21)
    read = decode_picture(with_chunks((b"iCCP", b"d\0\0", profile), *text), name="p")
    assert (read.values.shape, read.icc_profile) == ((1, 1, 3), profile)
    for name in (b"iCCP", b"zTXt"):
        with pytest.raises(InputError, match=r"(?i)data too large"):
            decode_picture(with_chunks((name, b"a\0\0", bytes(2**22 + 1))), name="p")


@pytest.mark.parametrize("channels", ["YCCK", "CMYK"])
def test_jpeg_of_four_inks(channels):
    """As Adobe stores it, inverted; OpenCV agrees."""
    smooth = (np.add.outer(np.arange(48) * 2, np.arange(40) * 2)[..., None] + [0, 20, 40, 10]).astype(np.uint8)
    options = {"level": 100, "colorspace": "CMYK", "outcolorspace": channels, "subsampling": "444"}
    content = imagecodecs.jpeg8_encode(255 - smooth, **options)
    read = decode_picture(content, name="p")
    light = 1 - smooth / 255
    assert np.abs(read.values - light[..., :3] * light[..., 3:] * 255).max() < 2
    assert np.abs(cv2.imdecode(np.frombuffer(content, np.uint8), 1)[..., ::-1].astype(int) - read.values).max() <= 1
    assert "is CMYK: converted to RGB" in read.note


def claiming(side, end=b""):
    """A JPEG of a few hundred bytes that claims to be a square of this side."""
    content = encoded(eight_bit("RGB"), "JPEG", progressive=True)
    at = content.index(b"\xff\xc2") + 5
    return content[:at] + side.to_bytes(2, "big") * 2 + content[at + 4 :] + end


def bmp(values, bits, masks, header=108):
    """Rows of pixels, bottom up, with channel masks."""
    rows = b"".join(row.tobytes() + bytes(-row.nbytes % 4) for row in values[::-1])
    layout = (header, values.shape[1], len(values), 1, bits, 3, len(rows), 2835, 2835, 0, 0)
    head = struct.pack("<IiiHHIIiiII4I", *layout, *masks).ljust(header, b"\0")
    return struct.pack("<2sIHHI", b"BM", 14 + len(head) + len(rows), 0, 0, 14 + len(head)) + head + rows


@pytest.mark.parametrize("order", ["BGRA", "RGBA", "ABGR"])
def test_alpha_masks_of_a_bmp(order):
    masks = [0xFF << 8 * order.index(name) for name in "RGBA"]
    read = decode_picture(bmp(EIGHT, 32, masks), name="p")
    np.testing.assert_array_equal(read.values, EIGHT[..., [order.index(name) for name in "RGBA"]])
    five = RNG.integers(0, 2**16, (6, 9)).astype("<u2")
    read = decode_picture(bmp(five, 16, [0x7C00, 0x3E0, 0x1F, 0x8000]), name="p")
    np.testing.assert_array_equal(read.values, (five[..., None] >> np.array([10, 5, 0]) & 31) * 255 // 31)
    assert read.note == "p has alpha in 16 bits per pixel: left out"


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
        (encoded(eight_bit("RGB"), "PNG", save_all=True, append_images=[eight_bit("L")]), "holds 2 pictures"),
        (encoded(eight_bit("RGB"), "WEBP", save_all=True, append_images=[eight_bit("RGBA")]), "holds 2 pictures"),
        (imagecodecs.jpeg8_encode(SIXTEEN[..., 0] >> 4, bitspersample=12), "cannot handle 12-bit layers"),
        (imagecodecs.jpegls_encode(EIGHT[..., 0]), "of a kind that cannot be read"),
        (bmp(EIGHT, 32, [0x3FF00000, 0xFFC00, 0x3FF, 0]), "Unsupported BMP bitfields"),
        (claiming(10_000), "bytes do not hold 10000 x 10000 pixels"),
        (claiming(10_000, end=b"\xff\xd9"), "bytes do not hold 10000 x 10000 pixels"),
        (png(36_000, 36_000, 8, 3, b"", before=chunk(b"PLTE", bytes(768))), r"36000 x 36000 pixels of 4 channels"),
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
    os.mkfifo(tmp_path / "pipe.png")  # to open it would wait for ever
    for path in (tmp_path / "pipe.png", Path("/dev/null"), tmp_path):
        with pytest.raises(InputError, match="is not a file"):
            read_picture(path)
    with pytest.raises(InputError, match="cannot be read: File name too long"):
        read_picture(tmp_path / ("a" * 300))
    with pytest.raises(InputError, match="does not exist"):
        read_picture(tmp_path / "empty.png" / "a.png")
    (tmp_path / "junk.exr").write_bytes(b"v/1\x01" + bytes(range(200)))
    with pytest.raises(InputError, match="damaged or cut short") as caught:
        read_picture(tmp_path / "junk.exr")
    assert "loe_field-" not in str(caught.value)  # the name of our copy


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
