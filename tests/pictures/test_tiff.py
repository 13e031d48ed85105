"""TIFF: every kind of numbers, colours, layout, compression, orientation and alpha, against files written by hand."""

import io
import lzma
import random
import struct
import zlib

import imagecodecs
import numpy as np
import OpenImageIO as oiio
import pytest
import tifffile
from PIL import Image, ImageCms, ImageOps

from loe_field.errors import InputError
from loe_field.pictures import memory
from loe_field.pictures.read import decode_picture
from loe_field.pictures.write import encode

WHITE, BLACK, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8
COLOURS = {WHITE: 1, BLACK: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3, LAB: 3}
NONE, LZW, JPEG, DEFLATE, OLD_DEFLATE, PACKBITS, LZMA, ZSTD = 1, 5, 7, 8, 32946, 32773, 34925, 50000


def packbits(rows, height):
    """Each row for itself, as the format wants it."""
    size = len(rows) // height
    return b"".join(imagecodecs.packbits_encode(rows[i * size : (i + 1) * size]) for i in range(height))


COMPRESS = {
    NONE: bytes, LZW: imagecodecs.lzw_encode, DEFLATE: zlib.compress, OLD_DEFLATE: zlib.compress,
    PACKBITS: packbits, LZMA: lzma.compress, ZSTD: imagecodecs.zstd_encode,
}  # fmt: skip
UNSPECIFIED, ASSOCIATED, STRAIGHT, UNTOLD = 0, 1, 2, "untold"
BITS = [1, 2, 4, 6, 8, 10, 12, 14, 16, "f16", "f32", "f64"]
RNG = np.random.default_rng(0)


def packed(values, bits, order):
    """Rows of numbers of any number of bits, each row filled up to whole bytes."""
    if isinstance(bits, str) or bits in (8, 16):
        return values.astype(values.dtype.newbyteorder(order)).tobytes()
    digits = values.reshape(len(values), -1, 1) >> np.arange(bits)[::-1] & 1
    return np.packbits(digits.reshape(len(values), -1).astype(np.uint8), axis=1).tobytes()


def packbits(rows, height):
    """Each row for itself, as the format wants it."""
    size = len(rows) // height
    return b"".join(imagecodecs.packbits_encode(rows[i * size : (i + 1) * size]) for i in range(height))


def predicted(values, order):
    """Differences to the pixel on the left; of floats, those of their bytes, the high ones first."""
    if values.dtype.kind == "u":
        return np.diff(values, axis=1, prepend=np.zeros_like(values[:, :1])).astype(values.dtype)
    rows, size = len(values), values.dtype.itemsize
    by_weight = values.astype(values.dtype.newbyteorder(">")).reshape(rows, -1).view(np.uint8).reshape(rows, -1, size)
    spread = by_weight.swapaxes(1, 2).reshape(rows, -1, values.shape[2])
    return np.diff(spread, axis=1, prepend=np.zeros_like(spread[:, :1])).astype(np.uint8)


def tiff(values, bits, kind, *, planar=1, compression=NONE, orientation=1, extra=None, predictor=1, rows=None,
         tile=None, order="<", big=False, tags=None):  # fmt: skip
    """A TIFF of [height, width, channels], by hand."""
    height, width, channels = values.shape
    step, across = (tile, tile) if tile else (rows or height, width)
    segments = []
    for plane in [values] if planar == 1 else np.split(values, channels, axis=2):
        for top in range(0, height, step):
            for left in range(0, width, across):
                part = plane[top : top + step, left : left + across]
                if tile:
                    part = np.pad(part, ((0, tile - part.shape[0]), (0, tile - part.shape[1]), (0, 0)), mode="edge")
                part = predicted(part, order) if predictor > 1 else part
                rows_of = [len(part)] if compression == PACKBITS else []
                segments.append(COMPRESS[compression](packed(part, bits, order), *rows_of))
    depth = int(bits[1:]) if isinstance(bits, str) else bits
    fields = {
        256: ("I", [width]), 257: ("I", [height]), 258: ("H", [depth] * channels), 262: ("H", [kind]),
        259: ("H", [compression]), 274: ("H", [orientation]), 277: ("H", [channels]),
        284: ("H", [planar]), 317: ("H", [predictor]), 339: ("H", [3 if isinstance(bits, str) else 1] * channels),
    }  # fmt: skip
    fields |= {322: ("I", [tile]), 323: ("I", [tile])} if tile else {278: ("I", [step])}
    fields |= {338: ("H", [extra])} if extra in (UNSPECIFIED, ASSOCIATED, STRAIGHT) else {}
    fields |= {530: ("H", [1, 1])} if kind == YCBCR else {}
    fields |= tags or {}
    return assembled(fields, segments, tiled=bool(tile), order=order, big=big)


def assembled(fields, segments, *, tiled=False, order="<", big=False):
    """A file of one page with these tags, {code: (type, values)}, and strips or tiles."""
    codes = {"H": 3, "I": 4, "Q": 16, "B": 7, "2I": 5}
    word, count, inline = ("Q", "Q", 8) if big else ("I", "H", 4)
    where, sizes = (324, 325) if tiled else (273, 279)
    fields = {where: (word, []), sizes: (word, [len(part) for part in segments])} | fields
    fields[where] = (word, [0] * len(segments))
    start = 16 if big else 8
    behind = start + struct.calcsize("=" + count) + len(fields) * (20 if big else 12) + inline

    def data(kind, values):
        return np.asarray(values, f"{order}u{struct.calcsize('=' + kind[-1])}").tobytes()

    for _ in range(2):  # the second time with the places
        table, more = b"", b""
        for code, (kind, values) in sorted(fields.items()):
            content = data(kind, values)
            place = struct.pack(order + word, behind + len(more)) if len(content) > inline else b""
            table += struct.pack(order + "HH" + word, code, codes[kind], len(values)) + (place or content).ljust(
                inline, b"\0"
            )
            more += content + b"\0" * (len(content) % 2) if place else b""
        places = [behind + len(more) + sum(len(part) for part in segments[:i]) for i in range(len(segments))]
        fields[where] = (word, places)
    mark = b"II" if order == "<" else b"MM"
    head = struct.pack(order + "HHHQ", 43, 8, 0, 16) if big else struct.pack(order + "HI", 42, 8)
    directory = struct.pack(order + count, len(fields)) + table + struct.pack(order + word, 0)
    return mark + head + directory + more + b"".join(segments)


def numbers(bits, kind, channels, extra, height=5, width=7):
    """Random values that a file of this kind may hold; associated colours are no greater than their alpha."""
    if isinstance(bits, str):
        values = RNG.random((height, width, channels)).astype(bits[0] + str(int(bits[1:]) // 8))
    else:
        values = RNG.integers(0, 2**bits, (height, width, channels)).astype(np.uint8 if bits <= 8 else np.uint16)
    if extra == ASSOCIATED:
        values[..., :-1] = np.minimum(values[..., :-1], values[..., -1:])
    return values


def turned(values, orientation):
    """Upright, as Pillow turns."""
    places = Image.fromarray(np.arange(values.shape[0] * values.shape[1], dtype=np.int32).reshape(values.shape[:2]))
    places.getexif()[274] = orientation
    return values.reshape(-1, values.shape[2])[np.asarray(ImageOps.exif_transpose(places))]


def srgb(lab):
    """Of CIELAB in its own units, by littleCMS without its tables."""
    stored = np.stack([lab[..., 0] * 2.55, lab[..., 1] % 256, lab[..., 2] % 256], -1).round().astype(np.uint8)
    profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(*profiles, "LAB", "RGB", flags=ImageCms.Flags.NOOPTIMIZE)
    return np.asarray(ImageCms.applyTransform(Image.fromarray(stored, "LAB"), transform)) / 255


def seen(values, bits, kind, extra, palette=None):
    """What a file shows, on [0, 1], in doubles, by the definition of each kind; and what differences are rounding."""
    if kind == PALETTE:
        return palette[values[..., 0]] / 65535, 1 / 255 if bits <= 8 else 0
    unit = values.astype(float) / (1 if isinstance(bits, str) else 2**bits - 1)
    colours, alpha = unit[..., : COLOURS[kind]], unit[..., COLOURS[kind] :]
    step = 0 if isinstance(bits, str) else 0.5 / (255 if bits <= 8 else 65535)
    if extra == ASSOCIATED:
        colours = np.where(alpha > 0, colours / np.maximum(alpha, 1e-9), 0)
        step = 1e-6 + step * (1 + 2 * (bits not in (8, 16)) / np.maximum(alpha, 1e-9))
    if kind == WHITE:
        colours = 1 - colours
    elif kind == CMYK:
        colours, step = (1 - colours[..., :3]) * (1 - colours[..., 3:]), 4 * step
    elif kind == YCBCR:
        y, b, r = colours[..., 0], colours[..., 1] - 128 / 255, colours[..., 2] - 128 / 255
        colours = np.stack([y + 1.402 * r, y - 0.344136 * b - 0.714136 * r, y + 1.772 * b], -1).clip(0, 1)
        step = 2 / 255
    elif kind == LAB:
        signed = values.view(f"i{values.dtype.itemsize}").astype(float) / (1 if bits == 8 else 256)
        colours, step = srgb(np.dstack([colours[..., 0] * 100, signed[..., 1:3]])), 1.01 / 255
    return np.concatenate([colours, alpha], -1) if extra not in (None, UNSPECIFIED) else colours, step


def refusal(bits, kind, extra):
    """Words of the line that refuses a kind; None if it is read."""
    if kind == PALETTE and extra is not None:
        return "2 channels of PALETTE"
    if isinstance(bits, str):
        return None if kind in (BLACK, RGB) else "holds floats of"
    if kind == YCBCR and (bits != 8 or extra is not None):
        return "is YCBCR"
    if kind == LAB and (bits not in (8, 16) or extra is not None):
        return "is CIELAB of"
    return None


def cells(bits):
    """The table: all colours, planes and kinds of alpha, each with three draws of everything else."""
    draw = random.Random(str(bits))
    for kind in COLOURS:
        for extra in (None, UNSPECIFIED, ASSOCIATED, STRAIGHT, UNTOLD):
            for planar in (1, 2):
                for _ in range(3):
                    predictor = draw.choice([1, {8: 2, 16: 2}.get(bits, 3 if isinstance(bits, str) else 1)])
                    compression = draw.choice([code for code in COMPRESS if code > 1 or predictor == 1])
                    layout = draw.choice([{}, {"rows": 2}, {"tile": 16}])
                    yield kind, extra, {
                        "planar": planar, "compression": compression, "orientation": draw.randint(1, 8),
                        "predictor": predictor, "order": draw.choice("<>"), "big": draw.random() < 0.2, **layout,
                    }  # fmt: skip


@pytest.mark.parametrize("bits", BITS)
def test_the_table(bits):
    """Each cell as its definition says, or refused in one true line; and what is written back shows the same."""
    for kind, extra, how in cells(bits):
        channels = COLOURS[kind] + (extra is not None)
        if kind == PALETTE and isinstance(bits, str):
            continue
        values = numbers(bits, kind, channels, extra)
        palette, tags = None, {}
        if kind == LAB and bits in (8, 16):  # few colours outside sRGB, and numbers that 8 bits can hold, for littleCMS
            values = (values & 255).astype(np.uint8)
            values[..., 1:3] = (values[..., 1:3].view(np.int8) // 4).view(np.uint8)
            if bits == 16:
                values = values.astype(np.uint16) * np.array([257, 256, 256, 257][:channels], np.uint16)
        if kind == PALETTE:
            palette = RNG.integers(0, 256, (2**bits, 3)).astype(np.uint16) * 257
            tags = {320: ("H", palette.T.ravel())}
        cell = (bits, kind, extra, how)
        content = tiff(values, bits, kind, extra=extra, tags=tags, **how)
        if words := refusal(bits, kind, extra):
            with pytest.raises(InputError, match=words) as caught:
                decode_picture(content, name="p")
            assert "\n" not in str(caught.value), cell
            continue
        picture = decode_picture(content, name="p")
        expected, step = seen(values, bits, kind, extra, palette)
        expected = turned(expected, how["orientation"])
        step = turned(step, how["orientation"]) if np.ndim(step) else step
        assert picture.values.shape == expected.shape, cell
        float_step = {"f16": 0, "f32": 1e-7, "f64": 1e-7}.get(bits, 0)
        if picture.peak is None:
            off = np.abs(picture.values / picture.white - expected)
            assert (off <= step + float_step + 1e-9).all(), cell
        plain = (
            kind in (WHITE, BLACK, RGB, PALETTE) and extra in (None, STRAIGHT) and bits in (8, 16, "f16", "f32", "f64")
        )
        plain |= channels == 1 and bits == 1 and extra is None
        plain = bits <= 8 if kind == PALETTE else plain
        assert bool(picture.note) != plain, cell
        again = decode_picture(encode(picture), name="p")
        np.testing.assert_array_equal(again.values, picture.values, str(cell))
        assert (again.note, again.mode) == ("", picture.mode), cell


SHOWN = [
    (bits, kind, extra)
    for bits in BITS
    for kind in (WHITE, BLACK, RGB, PALETTE, YCBCR)
    for extra in (None, STRAIGHT)
    if refusal(bits, kind, extra) is None
]


@pytest.mark.parametrize("compression", [LZW, DEFLATE, PACKBITS])
def test_others_see_the_same(compression, tmp_path):
    """What OpenImageIO and Pillow read of the same files, where they can: so the files are what they should be."""
    compared = {"OpenImageIO": 0, "Pillow": 0}
    for bits, kind, extra in SHOWN:
        values = numbers(bits, kind, COLOURS[kind] + (extra is not None), extra)
        palette = RNG.integers(0, 256, (2**bits, 3)).astype(np.uint16) * 257 if kind == PALETTE else None
        tags = {320: ("H", palette.T.ravel())} if kind == PALETTE else {}
        content = tiff(values, bits, kind, extra=extra, compression=compression, rows=2, tags=tags)
        picture = decode_picture(content, name="p")
        ours, step = picture.values / picture.white, 1.01 / (255 if picture.bits <= 8 else 2**10)
        (tmp_path / "a.tif").write_bytes(content)
        hints = oiio.ImageSpec()
        hints.attribute("oiio:UnassociatedAlpha", 1)
        theirs = oiio.ImageInput.open(str(tmp_path / "a.tif"), hints).read_image("float")
        # It inverts alpha along with white-is-zero, and not more than 8 bits; its palettes have 1, 2, 4 or 8.
        at_fault = (kind == WHITE and (extra or picture.bits > 8)) or (kind == PALETTE and bits not in (1, 2, 4, 8))
        if not at_fault:
            assert np.abs(theirs.reshape(ours.shape) - ours).max() <= step, (bits, kind, extra)
            compared["OpenImageIO"] += 1
        try:
            image = Image.open(io.BytesIO(content))
        except OSError:
            continue
        if picture.values.dtype == np.uint8:
            theirs = np.asarray(image.convert({1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[picture.channels]))
            assert np.abs(theirs.reshape(ours.shape) / 255 - ours).max() <= step, (bits, kind, extra)
            compared["Pillow"] += 1
    assert compared == {"OpenImageIO": 58, "Pillow": 16}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_fax_and_raw_ycbcr(orientation):
    """Which libtiff decodes: turned once, and black stays black."""
    bits = np.add.outer(np.arange(5) ** 2, np.arange(7)) % 3 == 0
    for compression in ("group3", "group4", "tiff_ccitt"):
        content = io.BytesIO()
        Image.fromarray(bits).save(content, "TIFF", compression=compression, tiffinfo={274: orientation})
        for kind in (BLACK, WHITE):
            content.seek(0)
            with tifffile.TiffFile(content, mode="r+") as file:
                file.pages[0].tags[262].overwrite(kind)
            picture = decode_picture(content.getvalue(), name="p")
            assert (picture.mode, picture.note) == ("1", "")
            np.testing.assert_array_equal(
                picture.values[..., 0] > 0, turned(bits[..., None], orientation)[..., 0] ^ (kind == WHITE)
            )
    light, colour = RNG.integers(0, 256, (6, 10), dtype=np.uint8), RNG.integers(0, 256, (3, 5, 2), dtype=np.uint8)
    blocks = np.dstack([light[::2, ::2], light[::2, 1::2], light[1::2, ::2], light[1::2, 1::2], colour])
    fields = {256: [10], 257: [6], 258: [8, 8, 8], 259: [LZW], 262: [YCBCR], 274: [orientation], 277: [3], 278: [6]}
    fields = {code: ("H", values) for code, values in fields.items()} | {530: ("H", [2, 2])}
    fields[532] = ("2I", [[0, 1], [255, 1], [128, 1], [255, 1], [128, 1], [255, 1]])
    picture = decode_picture(assembled(fields, [imagecodecs.lzw_encode(blocks.tobytes())]), name="p")
    expected = Image.fromarray(np.dstack([light, colour.repeat(2, 0).repeat(2, 1)]), "YCbCr").convert("RGB")
    assert np.abs(picture.values - turned(np.asarray(expected), orientation).astype(int)).max() <= 1
    assert "is YCbCr: converted to RGB" in picture.note


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "jpeg", "compressionargs": {"level": 100}},
        {"compression": "jpeg", "compressionargs": {"level": 100}, "planarconfig": "separate"},
        {"compression": "webp", "compressionargs": {"lossless": True}},
        {"compression": "jpeg2000"},
        {"compression": "jpegxl", "compressionargs": {"lossless": True}},
        {"compression": "png"},
        {"compression": "lerc"},
    ],
)
def test_compressions_that_are_pictures_themselves(options):
    values = (np.add.outer(np.arange(32) * 2, np.arange(48) * 2)[..., None] + [0, 20, 40]).astype(np.uint8)
    content = io.BytesIO()
    stored = np.moveaxis(values, -1, 0) if "planarconfig" in options else values
    tifffile.imwrite(content, stored, photometric="rgb", tile=(16, 16), **options)
    read = decode_picture(content.getvalue(), name="p").values
    assert np.abs(read - values.astype(int)).max() <= (6 if options["compression"] == "jpeg" else 0)


def pages(*kinds, **options):
    """A file of pictures, each half as large as the one before, of these kinds (NewSubfileType)."""
    content = io.BytesIO()
    with tifffile.TiffWriter(content) as file:
        for i in range(len(kinds)):
            values = np.full((16 >> i, 32 >> i, 3), 10 * i, np.uint16)
            file.write(values, photometric="rgb", subfiletype=1, **options)
    content.seek(0)
    with tifffile.TiffFile(content, mode="r+") as file:
        for page, kind in zip(file.pages, kinds):
            page.tags[254].overwrite(kind)
    return content.getvalue()


def test_overviews_and_masks_are_passed_over():
    for kinds, note in (((0, 1, 1), ""), ((1, 0, 1), ""), ((0, 4), "p has a mask beside it: left out")):
        picture = decode_picture(pages(*kinds, tile=(16, 16), compression="zlib"), name="p")
        full = kinds.index(0)
        assert picture.values.shape == (16 >> full, 32 >> full, 3)
        assert (picture.values == 10 * full).all()
        assert picture.note == note
    stack = io.BytesIO()
    tifffile.imwrite(stack, np.zeros((3, 4, 5), np.uint16), imagej=True, truncate=True)
    for content, words in ((pages(0, 0, 1), "2 pictures"), (pages(1, 1), "reduced"), (stack.getvalue(), "3 pictures")):
        with pytest.raises(InputError, match=words):
            decode_picture(content, name="p")


def test_a_strip_or_tile_that_is_larger_than_the_picture(monkeypatch):
    """Nothing is inflated beyond what the picture takes."""
    fields = {256: [7], 257: [5], 258: [16], 259: [DEFLATE], 262: [BLACK], 277: [1]}
    fields = {code: ("H", values) for code, values in fields.items()}
    bomb = zlib.compress(bytes(2**26))
    with pytest.raises(InputError, match="cannot be read"):
        decode_picture(assembled(fields | {278: ("H", [5])}, [bomb]), name="p")
    monkeypatch.setattr(memory, "available_memory", lambda: 2**30)
    tiled = assembled(fields | {322: ("I", [2**16]), 323: ("I", [2**16])}, [bomb], tiled=True)
    with pytest.raises(InputError, match="too large for memory"):
        decode_picture(tiled, name="p")


@pytest.mark.parametrize("compression", [NONE, LZW, DEFLATE, ZSTD])
def test_cut_anywhere_it_is_refused(compression):
    content = tiff(numbers(16, RGB, 3, None), 16, RGB, compression=compression, rows=2)
    for length in range(8, len(content) - 1, 3):  # LZW's last byte may hold nothing but its end
        with pytest.raises(InputError):
            decode_picture(content[:length], name="p")
    with pytest.raises(InputError, match="1 of its 3 strips or tiles are not there"):
        decode_picture(tiff(numbers(16, RGB, 3, None), 16, RGB, rows=2, tags={279: ("I", [84, 0, 42])}), name="p")


@pytest.mark.parametrize(
    ("values", "bits", "kind", "tags", "words"),
    [
        (numbers(8, CMYK, 4, None), 8, CMYK, {332: ("H", [2])}, "other inks than CMYK"),
        (numbers(8, RGB, 3, None), 8, 9, {}, "3 channels of ICCLAB"),
        (numbers(8, RGB, 3, None), 8, 77, {}, "3 channels of 77"),
        (numbers(8, RGB, 3, None), 8, RGB, {258: ("H", [5, 6, 5])}, r"holds \(5, 6, 5\)-bit numbers"),
        (numbers(16, BLACK, 1, None), 16, BLACK, {339: ("H", [2])}, "holds int16 numbers"),
        (numbers(8, BLACK, 1, None), 8, BLACK, {259: ("H", [34676])}, "SGILOG"),
    ],
)
def test_what_is_refused_is_named(values, bits, kind, tags, words):
    with pytest.raises(InputError, match=words) as caught:
        decode_picture(tiff(values, bits, kind, tags=tags), name="p")
    assert "\n" not in str(caught.value)


def test_no_photometric_and_reversed_bits():
    """Without the tag, as libtiff guesses it; FillOrder 2 has the first pixel in the lowest bit."""
    values = numbers(1, BLACK, 1, None)
    reversed_bits = bytes(int(f"{byte:08b}"[::-1], 2) for byte in packed(values, 1, "<"))
    fields = {256: [7], 257: [5], 258: [1], 259: [NONE], 266: [2], 277: [1], 278: [5]}
    content = assembled({code: ("H", value) for code, value in fields.items()}, [reversed_bits])
    np.testing.assert_array_equal(decode_picture(content, name="p").values, values * 255)
