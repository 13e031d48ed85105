"""loe-render on runs of every kind of picture: equal to the reconstruction, with or without the picture."""

import re
import shutil
import sys

import numpy as np
import OpenImageIO as oiio
import pytest
import tifffile
import torch
from PIL import Image
from support import FAST, SMALL, run_folder, waves

from loe_field.errors import InputError
from loe_field.image.load import load_run
from loe_field.pictures import write as rows
from loe_field.pictures.picture import Picture
from loe_field.pictures.read import read_picture

pytestmark = pytest.mark.slow

CHANNELS = {"grey": 1, "rgb": 3, "rgba": 4}
KINDS = [f"{name}{bits}.png" for name in CHANNELS for bits in (8, 16)] + [
    "float.tif",
    "palette.png",
    "two.png",
    "light.tif",
    "light.exr",
    "half.exr",
    "lighta.exr",
]


def write_picture(path):
    name = path.stem.rstrip("0123456789")
    channels = CHANNELS.get(name, 3)
    if path.stem.endswith("16"):
        values = waves(20, 30, channels, np.uint16)
        rows.write_picture(path, Picture(values, "PNG", {1: "L", 3: "RGB", 4: "RGBA"}[channels]))
    elif name == "float":
        tifffile.imwrite(path, (waves(20, 30, 3, np.uint16) / 65535).astype(np.float32), photometric="rgb")
    elif name in ("light", "half", "lighta"):
        values = 30 * (waves(20, 30, 4 if name == "lighta" else 3, np.uint16) / np.float32(65535)) ** 3
        values[..., 3:] = values[..., 3:].clip(0.1, 1)
        if path.suffix == ".tif":
            tifffile.imwrite(path, values, photometric="rgb")
        else:
            rows.write_picture(path, Picture(values.astype(np.float16 if name == "half" else np.float32), "EXR", "RGB"))
    else:
        values = waves(20, 30, 1 if name == "two" else channels)
        image = Image.fromarray(values[..., 0] if values.shape[2] == 1 else values)
        image = image.convert("P", palette=Image.Palette.ADAPTIVE, colors=12) if name == "palette" else image
        (image.convert("1") if name == "two" else image).save(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of all kinds of picture, made when they are asked for; the pictures are gone, the folders were moved."""
    from nerfstudio.scripts import train
    from nerfstudio.utils import writer

    work, made = tmp_path_factory.mktemp("runs"), {}

    def fitted(name, *options, method="loe-image"):
        if (name, method, options) not in made:
            torch.set_num_threads(1)
            folder = work / str(len(made))
            folder.mkdir()
            write_picture(folder / name)
            writer.EVENT_WRITERS.clear()
            with pytest.MonkeyPatch.context() as patch:
                arguments = ("--data", folder / name, "--output-dir", folder / "out", "--max-num-iterations", 20)
                network = SMALL if "siren" in options else FAST
                patch.setattr("sys.argv", ["ns-train", method, *map(str, arguments), *network, *options])
                train.entrypoint()
            (folder / name).unlink()
            shutil.move(run_folder(folder / "out", method), folder / "moved")
            made[name, method, options] = folder / "moved"
        return made[name, method, options]

    return fitted


@pytest.fixture
def render(monkeypatch, capsys):
    from loe_field.cli.render import main

    def render(folder, output, *options):
        arguments = ("--load-config", folder / "config.yml", "--output", output, *options)
        monkeypatch.setattr(sys, "argv", ["loe-render", *map(str, arguments)])
        monkeypatch.setattr("signal.signal", lambda *_: None)
        try:
            main()
        except SystemExit:
            return capsys.readouterr().err
        return capsys.readouterr().out

    return render


def values_of(path):
    return np.load(path) if path.suffix == ".npy" else read_picture(path).values


@pytest.mark.parametrize("name", KINDS)
def test_at_scale_1_it_is_the_reconstruction(name, runs, render, tmp_path):
    folder = runs(name)
    (file,) = folder.glob("reconstruction.*")
    expected = read_picture(file).values
    output = tmp_path / file.name
    assert "30 x 20 pixels" in render(folder, output)
    np.testing.assert_array_equal(values_of(output), expected)
    assert values_of(output).dtype == expected.dtype
    render(folder, output, "--crop", 7, 3, 20, 11, "--chunk-size", 17)
    np.testing.assert_array_equal(values_of(output), expected[3:11, 7:20])


def test_the_implementation_of_torch_too(runs, render, tmp_path):
    """Its products differ in the last bit where rows are few; 16 bits would show it."""
    folder = runs("rgb16.png", "--pipeline.model.implementation", "torch")
    expected = read_picture(folder / "reconstruction.png").values
    render(folder, tmp_path / "a.png", "--crop", 0, 19, 3, 20)
    np.testing.assert_array_equal(values_of(tmp_path / "a.png"), expected[19:, :3])


@pytest.mark.parametrize(
    ("method", "options"),
    [("loe-image-paper", ()), ("loe-image-smooth", ()), ("loe-image", ("--pipeline.model.network", "siren"))],
)
def test_every_method_and_network(method, options, runs, render, tmp_path):
    folder = runs("rgb8.png", *options, method=method)
    render(folder, tmp_path / "a.png")
    expected = read_picture(folder / "reconstruction.png").values
    assert np.abs(values_of(tmp_path / "a.png").astype(int) - expected).max() == 0


def test_a_crop_equals_the_crop_of_the_whole(runs, render, tmp_path):
    folder = runs("rgba16.png")
    for options in (("--upscaling", "field"), ()):
        render(folder, tmp_path / "a.png", "--scale", 3, *options)
        render(folder, tmp_path / "b.png", "--scale", 3, "--crop", 4, 5, 16, 18, *options)
        whole, part = values_of(tmp_path / "a.png"), values_of(tmp_path / "b.png")
        np.testing.assert_array_equal(part, whole[15:54, 12:48])


def test_smaller_is_the_mean(runs, render, tmp_path):
    folder = runs("rgb16.png")
    render(folder, tmp_path / "a.npy")
    console = render(folder, tmp_path / "b.npy", "--scale", 0.5)
    whole = np.load(tmp_path / "a.npy")
    assert whole.dtype == np.float32
    assert "mean of 2 x 2 samples" in console
    np.testing.assert_allclose(np.load(tmp_path / "b.npy"), whole.reshape(10, 2, 15, 2, 3).mean((1, 3)), atol=2e-7)


@pytest.mark.parametrize("suffix", rows.SUFFIXES)
def test_every_format(suffix, runs, render, tmp_path):
    folder = runs("rgb8.png")
    expected = read_picture(folder / "reconstruction.png").values / 255
    output = tmp_path / f"a{suffix}"
    console = render(folder, output)
    assert str(output) in console
    if suffix == ".exr":
        values = oiio.ImageBuf(str(output)).get_pixels(oiio.FLOAT)
    else:
        values = values_of(output) if suffix == ".npy" else values_of(output) / 255
    np.testing.assert_allclose(values, expected, atol=0.6 / 255 if suffix in (".exr", ".npy") else 4 / 255)


def test_depths(runs, render, tmp_path):
    for name, suffix, options, dtype in (
        ("rgb8.png", "png", ("--bit-depth", 16), np.uint16),
        ("rgb16.png", "png", ("--bit-depth", 8), np.uint8),
        ("rgb16.png", "webp", (), np.uint8),
        ("float.tif", "png", (), np.uint16),
        ("rgb8.png", "tif", ("--bit-depth", 32), np.float32),
    ):
        render(runs(name), tmp_path / f"a.{suffix}", *options)
        assert values_of(tmp_path / f"a.{suffix}").dtype == dtype
    assert "has 8" in render(runs("rgb8.png"), tmp_path / "b.jpg", "--bit-depth", 16)
    assert not (tmp_path / "b.jpg").exists()


def test_light_is_averaged_as_light_and_shown_on_its_curve(runs, render, tmp_path):
    folder = runs("light.exr")
    expected = read_picture(folder / "reconstruction.exr").values
    assert expected.max() > 1
    render(folder, tmp_path / "a.npy", "--scale", 0.5)
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), expected.reshape(10, 2, 15, 2, 3).mean((1, 3)), rtol=1e-5)
    console = render(folder, tmp_path / "a.png")
    peak = load_run(folder / "config.yml").picture.peak
    assert "tone-mapped" in console
    shown = np.log1p(5000 * expected / peak) / np.log1p(5000)
    np.testing.assert_allclose(values_of(tmp_path / "a.png") / 65535, shown.clip(0, 1), atol=2e-5)


def test_few_colours_are_kept_only_where_nothing_lies_between(runs, render, tmp_path):
    assert "black and white" in render(runs("two.png"), tmp_path / "a.png", "--scale", 2)
    assert len(np.unique(values_of(tmp_path / "a.png"))) > 2


def test_derivatives_as_numbers_and_as_pictures(runs, render, tmp_path):
    folder = runs("rgb8.png")
    console = render(folder, tmp_path / "g.npy", "--derivative", "gradient")
    slopes = np.load(tmp_path / "g.npy")
    assert slopes.shape == (20, 30, 6)
    assert "R.dx R.dy G.dx" in console
    render(folder, tmp_path / "l.exr", "--derivative", "laplacian")
    assert oiio.ImageBuf(str(tmp_path / "l.exr")).nchannels == 3
    console = render(folder, tmp_path / "g.png", "--derivative", "gradient")
    white = float(re.search(r"white is (\S+) a pixel", console)[1])
    strength = np.sqrt(np.square(slopes).sum(-1)) / white
    np.testing.assert_allclose(values_of(tmp_path / "g.png")[..., 0] / 255, strength.clip(0, 1), atol=0.01)
    assert "Laplacian" in render(folder, tmp_path / "l.jpg", "--derivative", "laplacian", "--scale", 2)
    assert "leave --upscaling" in render(folder, tmp_path / "x.png", "--derivative", "gradient",
                                         "--upscaling", "spline")  # fmt: skip
    relu = runs("rgb8.png", "--pipeline.model.activation", "relu")
    assert "straight pieces" in render(relu, tmp_path / "x.png", "--derivative", "laplacian")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("pattern: fine_to_coarse", "pattern: zzz", "pattern is 'zzz': one of fine_to_coarse"),
        ("layer_width: 16", "layer_width: -1", "cannot be understood"),
        ("network: loe", "network: x", "network is 'x': one of loe, siren"),
    ],
)
def test_a_config_that_was_changed(runs, tmp_path, old, new, words):
    shutil.copytree(runs("rgb8.png"), tmp_path / "run")
    config = tmp_path / "run" / "config.yml"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    with pytest.raises(InputError, match=words):
        load_run(config)


def test_a_checkpoint_that_does_not_say_its_pictures_kind(runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs("rgb8.png"), folder)
    (path,) = (folder / "nerfstudio_models").iterdir()
    state = torch.load(path, weights_only=True)
    assert state.pop("signal")["shape"] == [20, 30, 3]
    torch.save(state, path)
    with pytest.raises(InputError, match="does not say which kind"):
        load_run(folder / "config.yml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1", "cannot be read"),
        ("a: 1", "no config of a run"),
        ("!!python/object:loe_field.nerf.trainer.NerfTrainerConfig\nmethod_name: loe-nerf", "a run of loe-nerf"),
    ],
)
def test_configs_that_are_none(text, words, tmp_path):
    (tmp_path / "config.yml").write_text(text)
    with pytest.raises(InputError, match=words):
        load_run(tmp_path / "config.yml")
    with pytest.raises(InputError, match="is a folder"):
        load_run(tmp_path)


def test_a_config_alone_and_an_unknown_option(runs, tmp_path):
    shutil.copy(runs("rgb8.png") / "config.yml", tmp_path)
    with pytest.raises(InputError, match="is not there"):
        load_run(tmp_path / "config.yml")
    shutil.copytree(runs("rgb8.png") / "nerfstudio_models", tmp_path / "nerfstudio_models")
    text = (tmp_path / "config.yml").read_text()
    (tmp_path / "config.yml").write_text(text.replace("tile_size:", "not_known:", 1))
    with pytest.raises(InputError, match="not_known"):
        load_run(tmp_path / "config.yml")


def test_nothing_is_written_where_it_cannot_be(runs, render, tmp_path):
    folder = runs("rgba8.png")
    assert "alpha" in render(folder, tmp_path / "a.jpg")
    (tmp_path / "file").touch()
    assert "cannot be written" in render(folder, tmp_path / "file" / "a.png")
    assert ".webp" in render(folder, tmp_path / "a.gif")
    assert "at least 1" in render(folder, tmp_path / "a.png", "--chunk-size", 0)
    assert "65,500" in render(runs("rgb8.png"), tmp_path / "a.jpg", "--size", 65501, 1)
    (tmp_path / "taken.png").mkdir()
    assert "is a folder" in render(folder, tmp_path / "taken.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "taken.png"]
