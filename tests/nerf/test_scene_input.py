"""What SceneDataManager makes of scenes that are not as they should be."""

import json

import numpy as np
import pytest
import torch
from nerfstudio.configs.method_configs import method_configs  # noqa: F401  (the host's modules import each other)
from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGPDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.scene_box import SceneBox
from PIL import Image
from scenes import write_scene
from support import run_here

from loe_field.errors import InputError
from loe_field.nerf.datamanager import SceneDataManagerConfig
from loe_field.nerf.model import LoENerfModelConfig

pytestmark = pytest.mark.slow


def opened(folder, rays=32, **options):
    parser = NerfstudioDataParserConfig(**{"train_split_fraction": 0.5, **options})
    return SceneDataManagerConfig(data=folder, dataparser=parser, train_num_rays_per_batch=rays).setup(device="cpu")


@pytest.fixture
def small_scene(tmp_path):
    return write_scene(tmp_path / "scene", views=6, height=8, width=10)


def edit(folder, change):
    path = folder / "transforms.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_sound_scene(small_scene):
    datamanager = opened(small_scene)
    assert datamanager.held_out
    assert len(datamanager.train_dataset) + len(datamanager.eval_dataset) == 6
    rays, batch = datamanager.next_train(0)
    assert len(rays) == len(batch["image"]) == 32
    assert not torch.equal(datamanager.next_train(0)[1]["indices"], batch["indices"])
    rays, batch = datamanager.next_eval(0)
    assert set(batch["indices"][:, 0].tolist()) <= set(range(len(datamanager.eval_dataset)))


def test_views_of_pictures_with_an_appearance_are_measured_with_colours_corrected_too():
    box = SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3]))
    model = LoENerfModelConfig(appearance_dim=8).setup(scene_box=box, num_train_data=3, metadata={}).eval()
    picture = torch.rand(12, 12, 3, generator=torch.Generator().manual_seed(0))
    seen = {"rgb": 0.7 * picture + 0.1, "accumulation": torch.ones(12, 12, 1), "depth": torch.ones(12, 12, 1)}
    metrics, _ = model.get_image_metrics_and_images(seen, {"image": picture})
    model.config.appearance_dim = 0
    assert metrics.keys() - model.get_image_metrics_and_images(seen, {"image": picture})[0].keys() == {"cc_psnr"}
    assert metrics["psnr"] < 25 < 60 < metrics["cc_psnr"]


def test_rays_of_a_step_that_are_left_open_are_those_for_the_device(small_scene):
    datamanager = opened(small_scene, rays=None)
    assert datamanager.config.train_num_rays_per_batch == datamanager.get_train_rays_per_batch() == 1024
    assert len(datamanager.next_train(0)[0]) == 1024


def test_missing_and_damaged_pictures_are_left_out(small_scene, capsys):
    (small_scene / "images/000.png").unlink()  # the first, by whose size the host would choose a factor
    (small_scene / "images/003.png").write_bytes(b"no picture")
    datamanager = opened(small_scene)
    used = {path.name for path in datamanager.train_dataset.image_filenames + datamanager.eval_dataset.image_filenames}
    assert used == {"001.png", "002.png", "004.png", "005.png"}
    assert "are missing or cannot be opened and left out" in " ".join(capsys.readouterr().out.split())
    assert datamanager.dataparser.downscale_factor == 1
    assert datamanager.train_dataset.cameras.shape[0] == len(datamanager.train_dataset)


def test_no_view_held_out(small_scene, capsys):
    datamanager = opened(small_scene, train_split_fraction=1.0)
    assert not datamanager.held_out
    assert len(datamanager.eval_dataset) == 6
    assert "no view is held out" in capsys.readouterr().out


def test_one_single_view_held_out_of_an_instant_ngp_scene(small_scene):
    edit(small_scene, lambda c: c.update(aabb_scale=4))

    def held_out(part):
        parser = InstantNGPDataParserConfig(train_split_fraction=1 - part)
        return SceneDataManagerConfig(data=small_scene, dataparser=parser).setup(device="cpu").eval_dataset

    assert len(held_out(0.4)) == 2
    with pytest.raises(InputError, match="one single held-out view"):
        held_out(0.2)


def test_pictures_of_several_sizes(small_scene):
    def a_camera_each(content):
        lens = {name: content.pop(name) for name in ("fl_x", "fl_y", "cx", "cy", "w", "h")}
        for number, frame in enumerate(content["frames"]):
            frame |= {name: value * (1 + number % 2) for name, value in lens.items()}

    edit(small_scene, a_camera_each)
    for number in (1, 3, 5):
        path = small_scene / f"images/{number:03d}.png"
        Image.open(path).resize((20, 16)).save(path)
    datamanager = opened(small_scene)
    widths = datamanager.train_dataset.cameras.width.flatten()
    _, batch = datamanager.next_train(0)
    camera, row, column = batch["indices"].T
    assert set(widths.tolist()) == {10, 20}
    assert (column < widths[camera]).all()
    assert (row < datamanager.train_dataset.cameras.height.flatten()[camera]).all()


@pytest.mark.parametrize(
    "save",
    [
        lambda rgb: rgb.convert("P", palette=Image.Palette.ADAPTIVE),
        lambda rgb: rgb.convert("CMYK"),
        lambda rgb: Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257),
        lambda rgb: rgb.convert("LA"),
        lambda rgb: rgb.convert("1"),
        lambda rgb: rgb.convert("RGBA"),
    ],
    ids=["palette", "CMYK", "16 bit", "grey with alpha", "black and white", "opaque"],
)
def test_pictures_of_every_kind_have_their_colours(save, small_scene):
    for path in (small_scene / "images").iterdir():
        rgb = Image.new("RGB", (10, 8), (255, 255, 255))
        rgb.paste((40, 40, 40), (3, 2, 7, 6))
        save(rgb).save(path, format="TIFF")
    datamanager = opened(small_scene)
    expected = np.asarray(save(rgb).convert("RGB")) if save(rgb).mode != "I;16" else np.asarray(rgb)
    np.testing.assert_allclose(datamanager.train_dataset[0]["image"][..., :3] * 255, expected, atol=1)
    assert datamanager.train_dataparser_outputs.metadata["background"] is None


def test_pictures_of_floats_are_refused(small_scene):
    Image.new("F", (10, 8)).save(small_scene / "images/002.png", format="TIFF")
    with pytest.raises(InputError, match=r"002\.png cannot be read .it holds floats"):
        opened(small_scene)


def test_a_picture_that_ends_too_early(small_scene, capsys):
    for number, split in ((0, "held-out"), (1, "training")):
        path = small_scene / f"images/{number:03d}.png"
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        if split == "training":
            with pytest.raises(InputError, match=r"001\.png cannot be read .*delete it to train without it"):
                opened(small_scene, eval_mode="interval", eval_interval=5)
        else:
            used = opened(small_scene, eval_mode="interval", eval_interval=5).eval_dataset.image_filenames
            assert [path.name for path in used] == ["005.png"]
            assert "1 of 2 pictures of the held-out views" in " ".join(capsys.readouterr().out.split())


def test_views_that_are_trained_on_are_not_held_out(small_scene):
    assert not opened(small_scene, eval_mode="all").held_out


@pytest.mark.parametrize("bright", [1, 60, 255])
def test_a_mask_keeps_what_is_brighter_than_half_of_it(bright, tmp_path):
    """A JPEG's black is not 0 beside an edge; masks of 0 and 1 count too."""
    folder = write_scene(tmp_path / "scene", views=6, height=24, width=32)
    kept = np.zeros((24, 32), bool)
    kept[5:14, 3:17] = True
    Image.fromarray(kept.astype(np.uint8) * bright).save(folder / "mask.png")
    Image.fromarray(kept.astype(np.uint8) * 255).save(folder / "mask.jpg", quality=75)
    for name in ("mask.png", "mask.jpg"):
        edit(folder, lambda c, name=name: [frame.update(mask_path=name) for frame in c["frames"]])
        datamanager = opened(folder)
        assert np.array_equal(datamanager.train_dataset[0]["mask"][..., 0].numpy(), kept)
        assert datamanager.train_pixel_sampler.num_pixels == kept.sum() * len(datamanager.train_dataset)


def test_masks_that_do_not_fit(small_scene):
    mask = small_scene / "mask.png"
    edit(small_scene, lambda c: [frame.update(mask_path="mask.png") for frame in c["frames"]])
    for picture, words in (
        (None, "the mask .* cannot be read"),
        (Image.new("L", (5, 4), 255), "5x4 with 1 channels: it must be 10x8"),
        (Image.new("RGB", (10, 8)), "with 3 channels"),
        (Image.new("L", (10, 8)), "the masks leave no pixel"),
    ):
        if picture is not None:
            picture.save(mask)
        with pytest.raises(InputError, match=words):
            opened(small_scene)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(frames=[]), "lists no frames"),
        (lambda c: c["frames"][2]["transform_matrix"][0].__setitem__(3, float("nan")), "frame 2 .* not finite"),
        (lambda c: c["frames"][1].update(transform_matrix=[1, 2]), "frame 1 .* not 4 rows of 4"),
        (lambda c: c["frames"][0].pop("file_path"), "frame 0 has no file_path"),
        (lambda c: c["frames"][0].update(file_path=3), "file_path is 3, not the path"),
        (lambda c: c.update(camera_model="LOMO"), "camera_model is 'LOMO', the host knows"),
        (lambda c: c.update(train_filenames=5), "train_filenames is 5: a list is wanted"),
        (lambda c: c.update(fl_x=0), "fl_x is 0: a focal length is above 0"),
        (lambda c: c.update(k1=float("nan")), "k1 of the lens is nan, not a number that is finite"),
        (lambda c: c["frames"][3].update(transform_matrix=[[0, 0, 0, 1]] * 4), r"003\.png is singular"),
        (lambda c: c.update(w=12), "10x8 and its camera 12x8"),
        (lambda c: c.pop("fl_x"), "cannot be read as a scene: fx not specified"),
        (lambda c: [f.update(file_path="gone/" + f["file_path"]) for f in c["frames"]], "not one of the 6 pictures"),
    ],
)
def test_refused(small_scene, change, words):
    edit(small_scene, change)
    with pytest.raises(InputError, match=words):
        opened(small_scene)


def test_refused_folders(small_scene, tmp_path):
    with pytest.raises(InputError, match="no scene was given"):
        opened(None)
    with pytest.raises(InputError, match="is not there"):
        opened(tmp_path / "nowhere")
    (small_scene / "transforms.json").rename(small_scene / "transforms_train.json")
    with pytest.raises(InputError, match="append blender-data"):
        opened(small_scene)
    (small_scene / "transforms.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        opened(small_scene)


def test_the_command_says_one_line_and_leaves_nothing(tmp_path):
    done = run_here("ns-train", "loe-nerf", "--data", tmp_path / "nowhere", "--output-dir", tmp_path / "out")
    assert done.returncode == 1
    assert "nowhere is not there" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
