"""Scenes as the host gets them: looked at, mended where there is one way to, and refused in one true line."""

import json
import os

import numpy as np
import pytest
import torch
from nerfstudio.configs.method_configs import method_configs  # noqa: F401  (the host's modules import each other)
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGPDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import Nerfstudio, NerfstudioDataParserConfig
from PIL import Image
from scenes import write_blender_scene, write_colmap_scene, write_scene

from loe_field.errors import InputError
from loe_field.nerf import pictures
from loe_field.nerf.datamanager import SceneDataManagerConfig

pytestmark = pytest.mark.slow

UTM, EARTH = (500_000.0, 5_400_000.0, 300.0), (4_075_539.0, 931_735.0, 4_801_629.0)


def opened(folder, parser=NerfstudioDataParserConfig, **options):
    config = SceneDataManagerConfig(data=folder, dataparser=parser(**options), train_num_rays_per_batch=32)
    return config.setup(device="cpu")


def edit(folder, change, name="transforms.json"):
    path = folder / name
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def each(change):
    return lambda content: [change(frame) for frame in content["frames"]]


@pytest.fixture
def small_scene(tmp_path):
    return write_scene(tmp_path / "scene", views=6, height=8, width=10)


@pytest.mark.parametrize("offset", [UTM, EARTH], ids=["UTM", "earth"])
@pytest.mark.parametrize("kind", ["nerfstudio", "colmap"])
@pytest.mark.parametrize("method", [("up", "poses"), ("none", "focus")], ids=["up", "focus"])
def test_poses_far_away_are_those_near_by(offset, kind, method, tmp_path):
    """Against the poses without the offset, to 1e-6 of the scene; the way back finds the offset again."""
    options = {"eval_mode": "all", "orientation_method": method[0], "center_method": method[1]}
    found = {}
    for name, shift in (("near", (0, 0, 0)), ("far", offset)):
        if kind == "colmap":
            folder, parser = write_colmap_scene(tmp_path / name, offset=shift), ColmapDataParserConfig
            options |= {"colmap_path": "sparse/0", "data": folder}
        else:
            folder, parser = write_scene(tmp_path / name, views=6, height=8, width=10), NerfstudioDataParserConfig
            edit(
                folder,
                each(
                    lambda f, by=shift: [
                        f["transform_matrix"][i].__setitem__(3, f["transform_matrix"][i][3] + by[i]) for i in range(3)
                    ]
                ),
            )
            edit(
                folder, lambda c: c.update(applied_transform=[[0, 1, 0, 2], [1, 0, 0, 3], [0, 0, -1, 4], [0, 0, 0, 1]])
            )
        outputs = opened(folder, parser, **options).train_dataparser_outputs
        back = outputs.transform_poses_to_original_space(outputs.cameras.camera_to_worlds, "opengl")
        found[name] = outputs.cameras.camera_to_worlds, back.double()
    torch.testing.assert_close(found["far"][0], found["near"][0], atol=2e-6, rtol=0)
    moved = (found["far"][1] - found["near"][1])[:, :, 3]
    wanted = torch.tensor(offset)
    if kind == "nerfstudio":  # the offset is one of the saved coordinates, the way back goes to those before
        wanted = torch.stack([wanted[1], wanted[0], -wanted[2]])
    torch.testing.assert_close(moved, wanted.double().expand_as(moved), atol=1e-5, rtol=1e-12)


def test_poses_near_by_are_the_hosts_own_to_the_last_bit(small_scene):
    config = NerfstudioDataParserConfig(data=small_scene, downscale_factor=1)
    host = Nerfstudio(config).get_dataparser_outputs("train").cameras
    ours = opened(small_scene).train_dataparser_outputs.cameras
    assert torch.equal(ours.camera_to_worlds, host.camera_to_worlds)


def test_far_away_and_not_to_be_centred(small_scene):
    edit(small_scene, each(lambda f: f["transform_matrix"][0].__setitem__(3, 5e6 + f["transform_matrix"][0][3])))
    with pytest.raises(InputError, match="from the origin, too far for the 32 bits of the host: leave out"):
        opened(small_scene, center_method="none")


def without_endings(frame):
    frame["file_path"] = frame["file_path"].removesuffix(".png")


def backslashes(frame):
    frame["file_path"] = ".\\" + frame["file_path"].replace("/", "\\")


def three_rows(frame):
    frame["transform_matrix"] = frame["transform_matrix"][:3]


@pytest.mark.parametrize(
    "change",
    [
        each(without_endings),
        each(backslashes),
        each(three_rows),
        lambda c: three_rows(c["frames"][2]),
        lambda c: c["frames"].extend(c["frames"][:2]),
        lambda c: c.update(applied_transform=np.eye(4).tolist(), author={"name": [1]}),
    ],
    ids=["no endings", "backslashes", "three rows", "one of three rows", "twice", "4x4 applied_transform"],
)
def test_what_can_be_mended_is_the_sound_scene(change, small_scene):
    sound = opened(small_scene).train_dataparser_outputs
    edit(small_scene, change)
    mended = opened(small_scene).train_dataparser_outputs
    assert [p.resolve() for p in mended.image_filenames] == [p.resolve() for p in sound.image_filenames]
    assert torch.equal(mended.cameras.camera_to_worlds, sound.cameras.camera_to_worlds)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks(encoding, small_scene, tmp_path):
    for folder in (small_scene, write_blender_scene(tmp_path / "blender", views=6, height=8, width=10)):
        for path in folder.glob("*.json"):
            path.write_text(path.read_text(), encoding=encoding)
    assert len(opened(small_scene).train_dataset) == 6
    assert len(opened(tmp_path / "blender", BlenderDataParserConfig).train_dataset) == 4


def only_an_angle(content):
    for name in ("fl_x", "fl_y", "cx", "cy", "w", "h"):
        del content[name]
    content["camera_angle_x"] = 0.9


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(camera_model=["OPENCV"]), r"camera_model is \['OPENCV'\], the host knows"),
        (lambda c: c["frames"][1]["transform_matrix"][0].__setitem__(3, 10**400), "frame 1 .* not finite"),
        (each(lambda f: f.update(transform_matrix=np.transpose(f["transform_matrix"]).tolist())), "looks transposed"),
        (
            lambda c: c["frames"].append(c["frames"][0] | {"transform_matrix": np.eye(4).tolist()}),
            "frames 0 and 6 have",
        ),
        (only_an_angle, "as Blender's scenes do: append instant-ngp-data"),
        (lambda c: c.update(w=8, h=10), "10x8 and its camera 8x10 pixels: w and h are exchanged"),
        (lambda c: c.update(w=20, h=16), "the pictures were scaled by 0.5"),
        (lambda c: c.update(fl_x=-5), "fl_x is -5: a focal length is above 0"),
        (lambda c: c.update(fl_x=1e-30), "a focal length of 1e-30 and 11"),
        (lambda c: c.update(fl_y=10**400), "fl_y of the lens is 1000.*, not a number that is finite"),
        (lambda c: c.update(w=10**9), "w is 1000000000: a picture has"),
        (lambda c: c.update(cx=None), "cx of the lens is None"),
        (lambda c: c.update(k1=1e10), "the distortion of a lens cannot be undone for 100% of its picture"),
        (lambda c: c.update(k6=0.1), "undistort the pictures first"),
        (lambda c: c.update(camera_model="FISHEYE624"), "distortion_params is None: this camera_model has 12"),
        (lambda c: c.update(applied_transform=[1, 2]), "applied_transform is not 3 rows of 4"),
        (lambda c: c.update(orientation_override="q"), "cannot be read as a scene: Unknown value for method: q"),
        (each(lambda f: f.update(file_path=f["file_path"] * 40)), "not one of the 6 pictures is there"),
    ],
)
def test_refused(change, words, small_scene):
    edit(small_scene, change)
    with pytest.raises(InputError, match=words) as refused:
        opened(small_scene)
    assert "\n" not in str(refused.value)


def test_deep_json(small_scene):
    (small_scene / "transforms.json").write_text('{"frames": ' + "[" * 100_000)
    with pytest.raises(InputError, match=r"cannot be read as JSON .maximum recursion depth"):
        opened(small_scene)


@pytest.mark.parametrize("name", ["transforms.json", "images/000.png", "images/003.png", "mask.png"])
@pytest.mark.parametrize("parser", [NerfstudioDataParserConfig, InstantNGPDataParserConfig])
def test_a_fifo_does_not_hang(name, parser, small_scene):
    edit(small_scene, each(lambda f: f.update(mask_path="mask.png")))
    Image.new("L", (10, 8), 255).save(small_scene / "mask.png")
    (small_scene / name).unlink()
    os.mkfifo(small_scene / name)
    if name.startswith("images") and parser is NerfstudioDataParserConfig:
        assert len(opened(small_scene, parser).train_dataset) == 5
    else:
        with pytest.raises(InputError, match="is not a file"):
            opened(small_scene, parser)


def test_exif_that_turns(small_scene):
    edit(small_scene, lambda c: c.update(w=8, h=10))
    turned = Image.Exif()
    turned[0x0112] = 6
    for path in (small_scene / "images").iterdir():
        Image.open(path).convert("RGB").save(path, format="JPEG", exif=turned)
    with pytest.raises(InputError, match="its EXIF orientation turns it for viewers"):
        opened(small_scene)


def test_the_first_missing_and_the_next_unreadable(small_scene, capsys):
    (small_scene / "images/000.png").unlink()
    (small_scene / "images/001.png").write_bytes(b"no picture")
    assert len(opened(small_scene).train_dataset) == 4
    assert "000.png (it is not there)" in " ".join(capsys.readouterr().out.split())


def test_more_pixels_than_pillow_allows(small_scene, monkeypatch):
    monkeypatch.setattr(pictures.Image, "MAX_IMAGE_PIXELS", 20)
    assert len(opened(small_scene).train_dataset) == 6
    assert pictures.Image.MAX_IMAGE_PIXELS == 20


def test_one_view_trains(small_scene, tmp_path, capsys):
    edit(small_scene, lambda c: c.update(frames=c["frames"][:1]))
    blender = write_blender_scene(tmp_path / "blender", views=6, height=8, width=10)
    edit(blender, lambda c: c.update(frames=c["frames"][:1]), "transforms_train.json")
    colmap = write_colmap_scene(tmp_path / "colmap", views=1)
    for folder, parser, options in (
        (small_scene, NerfstudioDataParserConfig, {}),
        (small_scene, NerfstudioDataParserConfig, {"eval_mode": "interval"}),
        (blender, BlenderDataParserConfig, {}),
        (colmap, ColmapDataParserConfig, {"colmap_path": "sparse/0"}),
    ):
        datamanager = opened(folder, parser, **options)
        printed = " ".join(capsys.readouterr().out.split())
        assert len(datamanager.train_dataset) == 1
        assert "one single training view: its colours can be learned, depth cannot" in printed
        assert datamanager.held_out == ("no view is held out" not in printed)
        assert datamanager.next_train(0)[0].directions.isfinite().all()


def test_all_cameras_in_one_place(small_scene, capsys):
    edit(small_scene, each(lambda f: [row.__setitem__(3, 7.0) for row in f["transform_matrix"][:3]]))
    assert opened(small_scene).train_dataset.cameras.camera_to_worlds.isfinite().all()
    assert "all cameras are in one place" in capsys.readouterr().out


@pytest.mark.parametrize("at", ["colmap/sparse/0", "sparse/0", "sparse"])
def test_the_hint_to_colmap_is_a_command_that_works(at, tmp_path):
    folder = write_colmap_scene(tmp_path / "scene", at=at)
    with pytest.raises(InputError, match="append colmap") as refused:
        opened(folder)
    _, *options = str(refused.value).split("append ")[1].removesuffix(" to the command").split()
    given = dict(zip(options[::2], options[1::2]))
    assert len(
        opened(folder, ColmapDataParserConfig, **{k[2:].replace("-", "_"): v for k, v in given.items()}).train_dataset
    )
    if options:
        with pytest.raises(InputError, match=f"append colmap --colmap-path {at}"):
            opened(folder, ColmapDataParserConfig)


@pytest.mark.parametrize("folders", [False, True])
def test_large_pictures_of_colmap_are_no_question(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("loe_field.nerf.parser.MAX_AUTO_RESOLUTION", 6)
    scene = write_colmap_scene(tmp_path / "scene")
    if folders:
        (scene / "images_2").mkdir()
        for path in (scene / "images").iterdir():
            Image.open(path).resize((5, 4)).save(scene / "images_2" / path.name)
    datamanager = opened(scene, ColmapDataParserConfig, colmap_path="sparse/0")
    printed = " ".join(capsys.readouterr().out.split())
    assert ("pictures are scaled to 1/2 as they are read" in printed) == (not folders)
    assert datamanager.train_dataset[0]["image"].shape[:2] == (4, 5)
    assert datamanager.train_dataset.cameras.width.unique().tolist() == [5]
    assert datamanager.train_dataset.cameras.fx[0].item() == pytest.approx(5.5)
