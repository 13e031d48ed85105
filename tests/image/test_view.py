"""The picture in space: rays that meet it and rays that do not, and where one looks from."""

import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.configs.base_config import ViewerConfig

from loe_field.image.view import SIDE, WholePicture, distance_to_see, hits, picture_camera
from loe_field.signals.signal import grid_coords

pytestmark = pytest.mark.slow

SIZES = [(512, 512), (256, 256), (300, 200), (1, 1), (7, 200), (1000, 3)]
sizes = st.sampled_from(SIZES)
part = st.floats(0.01, 0.99)
away = st.floats(0.01, 50) | st.floats(-50, -0.01)
sideways = st.floats(-20, 20)


def in_scene(place, width, height):
    """A place in pixels as a point of the scene, in double precision: x to the camera's right is -x, y is down."""
    longer = max(width, height)
    return torch.tensor(
        [(width / 2 - place[0]) * SIDE / longer, 0.0, (height / 2 - place[1]) * SIDE / longer], dtype=torch.float64
    )


@given(sizes, part, part, sideways, away, sideways, st.floats(0.1, 10))
def test_a_ray_aimed_at_a_place_meets_it(size, across, down, x, y, z, length):
    width, height = size
    wanted = torch.tensor([across * width, down * height], dtype=torch.float64)
    origin = torch.tensor([x, y, z], dtype=torch.float64)
    way = in_scene(wanted, width, height) - origin
    direction = way / way.norm() * length
    coords, distance, on_picture = hits(origin[None], direction[None], width, height)
    assert on_picture.all()
    torch.testing.assert_close(coords[0], wanted, atol=1.5e-6 * max(size), rtol=0)
    assert distance.item() == pytest.approx(way.norm().item() / length)
    behind = hits(origin[None], -direction[None], width, height)
    assert not behind.on_picture.any()


@given(sizes, st.floats(0.01, 5), st.integers(0, 3), part, sideways, away, sideways)
def test_a_ray_aimed_beside_the_picture_misses_it(size, outside, side, along, x, y, z):
    width, height = size
    beside = [
        (-outside * width, along * height),
        ((1 + outside) * width, along * height),
        (along * width, -outside * height),
        (along * width, (1 + outside) * height),
    ][side]
    origin = torch.tensor([x, y, z], dtype=torch.float64)
    direction = in_scene(beside, width, height) - origin
    assert not hits(origin[None], direction[None], width, height).on_picture.any()


@given(sizes, sideways, st.floats(-50, 50), sideways, st.floats(0, 2 * math.pi))
def test_rays_along_the_plane_miss_it(size, x, y, z, angle):
    origin = torch.tensor([[x, y, z]])
    direction = torch.tensor([[math.cos(angle), 0.0, math.sin(angle)]])
    assert not hits(origin, direction, *size).on_picture.any()


@pytest.mark.parametrize(("width", "height"), [*SIZES, (20_000, 40), (8191, 64)])
def test_the_pictures_camera_sees_the_very_centres_of_its_pixels(width, height):
    """To the last bit: the cells of a field may have their borders there, as those of 256 x 256 pixels have."""
    rays = picture_camera(width, height).generate_rays(camera_indices=0, keep_shape=True)
    seen = hits(rays.origins.flatten(0, 1), rays.directions.flatten(0, 1), width, height)
    assert torch.equal(seen.coords, grid_coords(torch.arange(width * height), (height, width)))
    assert seen.on_picture.all()


@pytest.mark.parametrize(("width", "height"), [(300, 200), (200, 300), (1000, 40)])
@pytest.mark.parametrize("aspect", [0.5, 1.0, 2.5])
def test_the_first_look_is_at_the_whole_picture_and_at_little_else(width, height, aspect):
    fov = math.radians(75)
    distance = distance_to_see(width, height, fov=fov, aspect=aspect)
    rows, columns = 100, round(100 * aspect)
    focal = rows / 2 / math.tan(fov / 2)
    pose = picture_camera(width, height).camera_to_worlds.clone()
    pose[..., 1, 3] = distance
    camera = Cameras(camera_to_worlds=pose, fx=focal, fy=focal, cx=columns / 2, cy=rows / 2, width=columns, height=rows)
    rays = camera.generate_rays(camera_indices=0, keep_shape=True)
    seen = hits(rays.origins.flatten(0, 1), rays.directions.flatten(0, 1), width, height)
    on_picture = seen.on_picture.view(rows, columns)
    assert not on_picture[0].any()
    assert not on_picture[-1].any()
    assert not on_picture[:, 0].any()
    assert not on_picture[:, -1].any()
    across, down = on_picture.any(0).float().mean(), on_picture.any(1).float().mean()
    assert max(across, down) > 0.85


class Camera:
    """A browser's camera, as much of it as is used."""

    fov, position, look_at, up_direction = math.radians(75), (3.0, 3.0, 3.0), (0.0, 0.0, 0.0), (0.0, 0.0, 1.0)

    def __init__(self, aspect):
        self.aspect = aspect
        self.told = []
        self.on_update = self.told.append

    def moves(self, **changes):
        for name, value in changes.items():
            setattr(self, name, value)
        for callback in self.told:
            callback(self)


def open_viewer(*clients):
    """A viewer with browsers at it: (the control, the viewer)."""
    control = WholePicture(300, 200)
    browsers = dict(enumerate(clients))
    server = SimpleNamespace(
        get_clients=lambda: browsers, on_client_connect=lambda welcome: [welcome(client) for client in clients]
    )
    viewer = SimpleNamespace(config=ViewerConfig(), viser_server=server)
    control._setup(viewer)
    return control, viewer


def browser(aspect):
    return SimpleNamespace(camera=Camera(aspect), atomic=nullcontext)


def test_the_viewer_opens_on_the_whole_picture_and_follows_the_window_until_somebody_moves():
    client = browser(1.2)
    open_viewer(client)
    camera = client.camera
    first = camera.position
    assert first == (0, pytest.approx(10 * distance_to_see(300, 200, fov=camera.fov, aspect=1.2)), 0)
    camera.moves(aspect=0.8)  # the control panel has taken its room
    assert camera.position == (0, pytest.approx(10 * distance_to_see(300, 200, fov=camera.fov, aspect=0.8)), 0)
    camera.moves(position=(1.0, 5.0, 2.0))
    camera.moves(aspect=1.5)
    assert camera.position == (1.0, 5.0, 2.0)


def test_the_button_shows_the_whole_picture_to_everybody():
    clients = browser(1.2), browser(0.5)
    control, _ = open_viewer(*clients)
    opened = [client.camera.position for client in clients]
    for client in clients:
        client.camera.moves(position=(0.0, 0.1, 0.0))
    control.button.cb_hook(control.button)
    assert [client.camera.position for client in clients] == opened
    assert opened[0] != opened[1]


def test_the_viewer_draws_the_camera_at_the_scenes_scale_and_leaves_the_users_options_alone():
    config = ViewerConfig()
    _, viewer = open_viewer()
    assert viewer.config.camera_frustum_scale == pytest.approx(SIDE * config.camera_frustum_scale)
    assert ViewerConfig() == config
