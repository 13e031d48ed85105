"""Broken and hostile files of every kind that is read: each gives what it holds, or an InputError and nothing else.

File number n of a seed is always the same one. LOE_FUZZ=100000 makes so many instead of 2,000, LOE_FUZZ_SEED other
ones; a failure names the seed and the number, and LOE_FUZZ_FIRST starts there.
"""

import io
import json
import os
import re
import struct
import zipfile
import zlib

import numpy as np
import OpenImageIO as oiio
import pytest
import tifffile
import torch
from PIL import Image
from safetensors.torch import save
from support import waves

from loe_field import LoEMLP
from loe_field.errors import InputError
from loe_field.export.fields import encode_field, read_field
from loe_field.pictures import memory
from loe_field.pictures.picture import Picture
from loe_field.pictures.read import read_picture
from loe_field.runs.suite import read_suite

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

COUNT = int(os.environ.get("LOE_FUZZ", "2000"))
SEED = int(os.environ.get("LOE_FUZZ_SEED", "1"))
FIRST = int(os.environ.get("LOE_FUZZ_FIRST", "0"))
MEMORY = 2**27
"""What the readers believe to be free, so that a header that claims more is refused and not decoded."""
EXTREMES = (
    0,
    1,
    2**7 - 1,
    2**7,
    2**8 - 1,
    2**15 - 1,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**64 - 1,
)
WORDS = (
    *("-1", "0", "1e999", "-1e999", "NaN", "null", "true", '"x"', '""', "[]", "{}", "[[]]", "1e18", "1.5", "1" * 400),
    *("[" * 1500, "2147483648", "18446744073709551616", '"\\ud800"', '"[/red]\\u001b[2J"', "-0.0", "1e-320"),
)

CONFIG = """!!python/object:loe_field.runs.series.PicturesTrainerConfig
method_name: loe-image
relative_model_dir: !!python/object/apply:pathlib.PosixPath
- models
pipeline: !!python/object:loe_field.image.config.ImagePipelineConfig
  datamanager: !!python/object:loe_field.image.config.ImageDataManagerConfig
    _target: !!python/name:loe_field.adapter.datamanager.SignalDataManager ''
    data: null
  model: !!python/object:loe_field.adapter.model.SignalModelConfig
    network: loe
    baseline: null
    loe: !!python/object:loe_field.adapter.network.LoEConfig
      num_layers: 3
      layer_width: 4
      tile_size: 2
      pattern: fine_to_coarse
      levels: null
      omega_0: 1.0
      num_frequencies: 2
      implementation: auto
"""
SUITE = """title = "t"
method = "loe-image"
seeds = [1, 2]
data = ["a.png"]
target_psnr = 30.0
overrides = { max_num_iterations = 5 }
[[runs]]
name = "a"
overrides = { "pipeline.model.tile_size" = 2, "optimizers.fields.optimizer.lr" = 0.1 }
[[runs]]
name = "b"
[search]
options = ["a"]
values = [1.0]
seed = 3
"""


def field(**options):
    torch.manual_seed(0)
    return LoEMLP(num_layers=3, layer_width=4, num_frequencies=2, out_features=3, **options)


def pillow(values, file_format, **options):
    content = io.BytesIO()
    image = values if isinstance(values, Image.Image) else Image.fromarray(values)
    image.save(content, file_format, **options)
    return content.getvalue()


def tiff(values, **options):
    content = io.BytesIO()
    tifffile.imwrite(content, values, **options)
    return content.getvalue()


def exr(folder, values, kind, compression):
    spec = oiio.ImageSpec(values.shape[1], values.shape[0], values.shape[2], kind)
    spec.attribute("compression", compression)
    path = folder / "a.exr"
    file = oiio.ImageOutput.create(str(path))
    file.open(str(path), spec)
    file.write_image(values)
    file.close()
    return path.read_bytes()


def checkpoint(folder):
    kind = {"shape": [6, 9, 3], "dtype": "uint8", "palette": None, "format": "PNG", "mode": "RGB", "icc_profile": None}
    pipeline = {f"_model.field.{name}": value for name, value in field().state_dict().items()}
    state = {"step": 9, "pipeline": pipeline, "optimizers": {}, "signal": {**kind, "peak": None}}
    path = folder / "a.ckpt"
    torch.save(state, path)
    return path.read_bytes()


def scene():
    pose = np.eye(4)
    frames = []
    for number in range(3):
        pose[:3, 3] = number
        frames.append({"file_path": f"{number}.png", "transform_matrix": pose.tolist()})
    lens = {"w": 9, "h": 6, "fl_x": 9.0, "fl_y": 9.0, "cx": 4.5, "cy": 3.0, "camera_model": "OPENCV", "k1": 0.1}
    return json.dumps({**lens, "frames": frames}).encode()


def sources(folder):
    """Good files by name; the part before the first dash says which reader they are for."""
    rgb, grey = waves(6, 9, 3), waves(6, 9, 1)[..., 0]
    rgba, deep = np.dstack([rgb, grey]), waves(6, 9, 3, np.uint16)
    light = (waves(6, 9, 4) / 200).astype(np.float32)
    return {
        "picture-png": pillow(rgb, "PNG"),
        "picture-png-grey": pillow(grey, "PNG"),
        "picture-png-alpha": pillow(rgba, "PNG"),
        "picture-png-palette": pillow(Image.fromarray(rgb).quantize(7), "PNG"),
        "picture-png-bits": pillow(Image.fromarray(grey).convert("1"), "PNG"),
        "picture-png-16": pillow(Image.fromarray(deep[..., 0]), "PNG"),
        "picture-jpeg": pillow(rgb, "JPEG"),
        "picture-jpeg-progressive": pillow(rgb, "JPEG", progressive=True),
        "picture-jpeg-cmyk": pillow(Image.fromarray(rgb).convert("CMYK"), "JPEG"),
        "picture-bmp": pillow(rgb, "BMP"),
        "picture-bmp-palette": pillow(Image.fromarray(rgb).quantize(7), "BMP"),
        "picture-webp": pillow(rgb, "WEBP"),
        "picture-webp-lossless": pillow(rgba, "WEBP", lossless=True),
        "picture-tiff": tiff(rgb, photometric="rgb"),
        "picture-tiff-lzw": pillow(rgb, "TIFF", compression="tiff_lzw", tiffinfo={274: 6}),
        "picture-tiff-16": tiff(deep, photometric="rgb", compression="zlib", predictor=True),
        "picture-tiff-planes": tiff(np.moveaxis(deep, -1, 0), photometric="rgb", planarconfig="separate"),
        "picture-tiff-floats": tiff(light[..., :3], photometric="rgb"),
        "picture-tiff-tiles": tiff(waves(40, 40, 3), photometric="rgb", tile=(16, 16), compression="zlib"),
        "picture-tiff-big": tiff(grey, bigtiff=True),
        "picture-exr": exr(folder, light, "half", "zip"),
        "picture-exr-piz": exr(folder, light[..., :3], "float", "piz"),
        "field": encode_field(field(), picture_size=(6, 9, 3)),
        "field-hdr": encode_field(field(), picture_size=(6, 9, 3), radiance_peak=2.0, metrics={"psnr": 30.0}),
        "field-int8": encode_field(field(), picture_size=(6, 9, 3), quantization="int8"),
        "field-fp16": encode_field(field(blending="linear"), quantization="fp16"),
        "field-other": save({"a": torch.zeros(2)}),
        "checkpoint": checkpoint(folder),
        "config": CONFIG.encode(),
        "suite": SUITE.encode(),
        "scene": scene(),
    }


def flip(rng, content, others):
    """Some bits, more often near the beginning, where heads are."""
    changed = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        end = len(changed) if rng.random() < 0.5 else min(len(changed), 80)
        changed[rng.integers(end)] ^= 1 << rng.integers(8)
    return bytes(changed)


def cut(rng, content, others):
    """A part of the file, or the file with something behind it."""
    at = rng.integers(len(content))
    return content[:at] if rng.random() < 0.7 else content + content[:at]


def splice(rng, content, others):
    """A piece of this or another file in the place of a piece."""
    other = content if rng.random() < 0.5 else others[rng.integers(len(others))]
    a, b = np.sort(rng.integers(len(content) + 1, size=2))
    c, d = np.sort(rng.integers(len(other) + 1, size=2))
    return content[:a] + other[c:d] + content[b:]


def extreme(rng, content, others):
    """Numbers of 1 to 8 bytes set to the ends of their range."""
    changed = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        size = int(rng.choice([1, 2, 4, 8]))
        if len(changed) > size:
            value = EXTREMES[rng.integers(len(EXTREMES))] % 2 ** (8 * size)
            at = rng.integers(len(changed) - size)
            changed[at : at + size] = value.to_bytes(size, "little" if rng.random() < 0.5 else "big")
    return bytes(changed)


def reworded(rng, content, others):
    """A number, a word or a list of the text set to something else."""
    found = [*re.finditer(rb'-?\d[\d.e+-]*|"[^"]*"|\b[a-z_0-9]+\b|\[[^\]]*\]', content)]
    if not found:
        return flip(rng, content, others)
    match, word = found[rng.integers(len(found))], WORDS[rng.integers(len(WORDS))]
    return content[: match.start()] + word.encode() + content[match.end() :]


CHANGES = (flip, cut, splice, extreme)


def inner(change):
    """The change within a member of a zip archive, or the text of a safetensors file; the frame stays whole."""

    def changed(rng, content, others):
        if content[:2] == b"PK":
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                members = {name: archive.read(name) for name in archive.namelist()}
            pickled = next(name for name in members if name.endswith("data.pkl"))
            name = pickled if rng.random() < 0.8 else [*members][-1]
            members[name] = change(rng, members[name], others)
            made = io.BytesIO()
            with zipfile.ZipFile(made, "w") as archive:
                for name, member in members.items():
                    archive.writestr(name, member)
            return made.getvalue()
        length = struct.unpack("<Q", content[:8])[0]
        head, tensors = json.loads(content[8 : 8 + length]), content[8 + length :]
        if "__metadata__" in head and rng.random() < 0.8:
            text = change(rng, head["__metadata__"].get("loe_field", "").encode() or b"0", others)
            head["__metadata__"] = {"loe_field": text.decode("utf8", "replace")}
            text = json.dumps(head).encode()
        else:
            text = change(rng, content[8 : 8 + length], others)
        return struct.pack("<Q", len(text)) + text + tensors

    return changed


def with_checksums(content):
    """A PNG whose checksums are right again: decoders look at nothing behind a wrong one."""
    made, at = bytearray(content), 8
    while at + 12 <= len(made):
        (length,) = struct.unpack(">I", made[at : at + 4])
        end = at + 8 + length
        if end + 4 > len(made):
            break
        made[end : end + 4] = struct.pack(">I", zlib.crc32(made[at + 4 : end]))
        at = end + 4
    return bytes(made)


def broken(rng, name, content, others):
    """The content, changed."""
    change = CHANGES[rng.integers(len(CHANGES))]
    framed = name.startswith(("field", "checkpoint"))
    if (framed or name in ("config", "suite", "scene")) and rng.random() < 0.6:
        change = reworded
    if framed and (change is reworded or rng.random() < 0.5):
        change = inner(change)
    changed = change(rng, content, others)
    return with_checksums(changed) if name.startswith("picture-png") and rng.random() < 0.7 else changed


def read(name, content, folder):
    """Read it as the commands do."""
    kind = name.split("-")[0]
    if kind == "picture":
        path = folder / "a.bin"
        path.write_bytes(content)
        assert isinstance(read_picture(path), Picture)
    elif kind == "field":
        from loe_field.image.load import load_run

        path = folder / "a.safetensors"
        path.write_bytes(content)
        read_field(path) if name in ("field-fp16", "field-other") else load_run(path)
    elif kind in ("checkpoint", "config"):
        from loe_field.image.load import load_run

        good = SOURCES["config" if kind == "checkpoint" else "checkpoint"]
        config, checkpoint = (good, content) if kind == "checkpoint" else (content, good)
        (folder / "models").mkdir(exist_ok=True)
        (folder / "models/step-000000009.ckpt").write_bytes(checkpoint)
        (folder / "config.yml").write_bytes(config)
        load_run(folder / "config.yml")
    elif kind == "suite":
        (folder / "a.toml").write_bytes(content)
        read_suite(folder / "a.toml")
    else:
        from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

        from loe_field.nerf.parser import parser_class
        from loe_field.nerf.scene import check_scene

        (folder / "transforms.json").write_bytes(content)
        for number in range(3):
            (folder / f"{number}.png").write_bytes(SOURCES["picture-png"])
        config = NerfstudioDataParserConfig(data=folder, downscale_factor=1)
        check_scene(config)
        parser_class(config._target)(config).get_dataparser_outputs("train")


SOURCES: dict[str, bytes] = {}


def test_every_good_file_is_read(tmp_path):
    SOURCES.update(sources(tmp_path))
    for name, content in SOURCES.items():
        if name != "field-other":
            read(name, content, tmp_path)


def test_nothing_but_an_input_error_comes_of_a_broken_file(tmp_path, monkeypatch, capfd):
    SOURCES.update(sources(tmp_path))
    monkeypatch.setattr(memory, "available_memory", lambda: MEMORY)
    names, others = [*SOURCES], [*SOURCES.values()]
    said = []
    for number in range(FIRST, FIRST + COUNT):
        (tmp_path / "number").write_text(str(number))  # for a fault that ends the process
        rng, name = np.random.default_rng([SEED, number]), names[number % len(names)]
        content = broken(rng, name, SOURCES[name], others)
        try:
            read(name, content, tmp_path)
        except InputError as error:
            said.append(str(error))
        except BaseException as error:
            raise AssertionError(f"{name}: LOE_FUZZ_SEED={SEED} LOE_FUZZ_FIRST={number} LOE_FUZZ=1") from error
    assert len(said) >= COUNT // 2
    assert max(map(len, said)) < 1000
    assert not [words for words in said if "weights_only" in words]
