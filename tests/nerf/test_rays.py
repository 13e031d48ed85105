"""Rays made once are the host's rays."""

import itertools
import json
import threading

import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.configs.method_configs import method_configs  # noqa: F401  (the host's modules import each other)
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.model_components.ray_generators import RayGenerator
from PIL import Image
from scenes import write_scene

from loe_field.errors import InputError
from loe_field.nerf import rays as rays_module
from loe_field.nerf.pictures import PosedPictures
from loe_field.nerf.rays import RayTable

pytestmark = pytest.mark.slow


def dataset_of(folder):
    config = NerfstudioDataParserConfig(data=folder, downscale_factor=1, eval_mode="all")
    return InputDataset(config.setup().get_dataparser_outputs("train"))


def edited(folder, edit):
    """The scene with another transforms.json."""
    path = folder / "transforms.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    return folder


def distort(content):
    content |= {"k1": 0.1, "k2": -0.02, "p1": 0.003, "p2": -0.002}


def masked(content):
    for i, frame in enumerate(content["frames"]):
        frame["mask_path"] = "mask.png" if i else "all.png"


def a_lens_each(content):
    for i, frame in enumerate(content["frames"]):
        frame |= {"fl_x": 50.0 + i % 3, "fl_y": 52.0, "cx": 25.0, "cy": 20.0, "w": 50, "h": 40}


def scaled(content):
    for frame in content["frames"]:
        frame["transform_matrix"] = (np.array(frame["transform_matrix"]) @ np.diag([3.0, 3, 3, 1])).tolist()


def orthographic(content):
    content["camera_model"] = "ORTHOPHOTO"


def a_distorted_lens_each(content):
    distort(content)
    a_lens_each(content)


def a_fisheye_each(content):
    a_distorted_lens_each(content)
    content["camera_model"] = "OPENCV_FISHEYE"


@pytest.mark.parametrize("computed", [False, True], ids=["table", "computed"])
@pytest.mark.parametrize(
    "edit",
    [
        lambda content: None,
        distort,
        a_lens_each,
        masked,
        scaled,
        orthographic,
        a_distorted_lens_each,
        a_fisheye_each,
    ],
    ids=["plain", "distorted", "lenses", "masked", "scaled", "orthographic", "distorted lenses", "fisheyes"],
)
def test_rays_are_the_hosts(edit, computed, tmp_path, monkeypatch):
    if computed:
        monkeypatch.setattr("loe_field.nerf.rays._SMALL_TABLE", 0)
    folder = write_scene(tmp_path / "s", views=5)
    left_half = np.zeros((40, 50), np.uint8)
    left_half[:, :25] = 255
    Image.fromarray(left_half).save(folder / "mask.png")
    Image.fromarray(np.full_like(left_half, 255)).save(folder / "all.png")
    dataset = dataset_of(edited(folder, edit))
    table = RayTable(dataset, "cpu", num_rays_per_batch=400, seed=1)
    assert (table._lens is not None) == (computed and edit is not orthographic)
    rays, batch = table.rays(table.draw(3))
    expected = RayGenerator(dataset.cameras)(batch["indices"])
    torch.testing.assert_close(rays.origins, expected.origins)
    torch.testing.assert_close(rays.directions, expected.directions, atol=2e-6, rtol=0)
    torch.testing.assert_close(rays.pixel_area, expected.pixel_area, atol=1e-7, rtol=1e-3)
    assert torch.equal(rays.camera_indices, expected.camera_indices)
    if edit is masked:
        camera, _, column = batch["indices"].T
        assert (column[camera > 0] < 25).all()
        assert (column[camera == 0] >= 25).any()
    images = [dataset.get_data(i)["image"] for i in range(len(dataset))]
    colours = torch.stack([images[c][y, x] for c, y, x in batch["indices"].tolist()])
    torch.testing.assert_close(batch["image"], colours)


def test_a_lens_is_undistorted_once_for_each_pixel(tmp_path, monkeypatch):
    undistorted = []
    of = rays_module.radial_and_tangential_undistort
    monkeypatch.setattr(
        rays_module,
        "radial_and_tangential_undistort",
        lambda at, k: undistorted.append(at[..., 0].numel()) or of(at, k),
    )
    RayTable(dataset_of(edited(write_scene(tmp_path / "s", views=4), distort)), "cpu", num_rays_per_batch=9, seed=1)
    assert 40 * 50 < sum(undistorted) < 1.2 * 40 * 50


def test_pictures_are_read_by_several_threads_in_their_order(scene, monkeypatch):
    dataset, together = dataset_of(scene), threading.Barrier(2)
    of, alone = dataset.get_data, RayTable(dataset, "cpu", num_rays_per_batch=9, seed=1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    waits = iter([True] * 2 + [False] * len(dataset))
    dataset.get_data = lambda *args, **options: (next(waits) and together.wait(20), of(*args, **options))[1]
    both = RayTable(dataset, "cpu", num_rays_per_batch=9, seed=1)
    assert torch.equal(alone._colours, both._colours)


def test_a_fisheyes_axis_through_the_middle_of_a_pixel(tmp_path):
    def fisheye(content):
        content |= {"camera_model": "OPENCV_FISHEYE", "cx": 25.5, "cy": 20.5}

    config = NerfstudioDataParserConfig(data=edited(write_scene(tmp_path / "s", views=4), fisheye), downscale_factor=1)
    dataset = PosedPictures(config.setup().get_dataparser_outputs("train"))
    rays = dataset.cameras.generate_rays(camera_indices=0, keep_shape=True)
    assert rays.directions.isfinite().all()
    table = RayTable(dataset, "cpu", num_rays_per_batch=20_000, seed=1)
    assert table.rays(table.draw(0))[0].directions.isfinite().all()


def test_batches_depend_on_seed_and_step_only(scene):
    dataset = dataset_of(scene)
    one, two = (RayTable(dataset, "cpu", num_rays_per_batch=50, seed=5) for _ in range(2))
    one.draw(0)
    seventh = one.draw(7)
    assert torch.equal(seventh, two.draw(7))
    assert not torch.equal(seventh, one.draw(8))
    assert not torch.equal(seventh, one.draw(7, repeat=1))


def test_steps_drawn_at_once_are_fewer_where_they_are_large(scene, monkeypatch):
    monkeypatch.setattr(rays_module, "_PIXELS_AT_ONCE", 1000)
    made = []
    table = RayTable(dataset_of(scene), "cpu", num_rays_per_batch=400, seed=5)
    monkeypatch.setattr(table, "_random", lambda *sizes, of=table._random: made.append(sizes[0]) or of(*sizes))
    steps = [table.draw(step) for step in range(4)]
    assert made == [2, 2]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(steps, 2))
    table.num_rays_per_batch = 5000
    assert table.draw(3).shape == (5000,)
    assert made == [2, 2, 1]


def test_every_pixel_is_drawn_alike(scene):
    table = RayTable(dataset_of(scene), "cpu", num_rays_per_batch=100_000, seed=5)
    counts = table.draw(0).bincount(minlength=table.num_pixels).float()
    assert len(counts) == table.num_pixels
    assert abs(counts.std() / counts.mean() ** 0.5 - 1) < 0.05  # as Poisson's distribution has it
    table.num_rays_per_batch = 7
    assert len(table.draw(0)) == 7


class ManyLenses:
    """A scene of large pictures, each with a lens of its own, of which only one is in memory at a time."""

    def __init__(self, views, height, width):
        self.cameras = Cameras(
            camera_to_worlds=torch.eye(3, 4).repeat(views, 1, 1),
            fx=torch.linspace(1000, 1100, views),
            fy=torch.linspace(1000, 1100, views),
            cx=width / 2,
            cy=height / 2,
            width=width,
            height=height,
            distortion_params=torch.tensor([0.05, 0, 0, 0, 0, 0]),
        )
        self._picture = torch.zeros(height, width, 3, dtype=torch.uint8)

    def __len__(self):
        return len(self.cameras)

    def get_data(self, index, image_type):
        return {"image": self._picture}


def test_a_lens_for_each_picture_takes_few_bytes_a_pixel():
    table = RayTable(ManyLenses(20, 600, 800), "cpu", num_rays_per_batch=10, seed=0)
    kept = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in vars(table).values() if torch.is_tensor(t)
    }
    assert sum(kept.values()) < 3.1 * table.num_pixels


def test_a_scene_that_memory_does_not_hold(monkeypatch):
    monkeypatch.setattr("loe_field.pictures.memory.available_memory", lambda: 2**20)
    with pytest.raises(InputError, match=r"9,600,000 pixels take about 0\.0 GiB and 0\.0 GiB are free.* 0\.\d\d\)"):
        RayTable(ManyLenses(20, 600, 800), "cpu", num_rays_per_batch=10, seed=0)
