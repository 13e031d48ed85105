"""The picture as a thing in space: its plane, the rays that meet it, and the first look at it."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox, SceneBox
from nerfstudio.model_components.renderers import RGBRenderer
from nerfstudio.viewer.viewer_elements import ViewerButton, ViewerControl
from torch import Tensor

from loe_field.signals.picture import PictureSignal
from loe_field.signals.signal import Field

if TYPE_CHECKING:
    from nerfstudio.viewer.viewer import Viewer
    from viser import CameraHandle, ClientHandle

SIDE = 10.0
"""Length of the picture's longer side in the scene.

Browsers come no nearer than 0.01 to the point that they turn around: the larger the picture, the deeper the zoom."""
BACKGROUND = (0.22, 0.22, 0.22)
"""The colour beside the picture: a grey that neither black nor white borders vanish in."""
FAR = 2 * SIDE
"""The distance of what lies beside the picture; the viewer's cameras go no farther away."""

_MARGIN = 1.08
_BEHIND = 0.009
"""How far behind the picture the point lies that the viewer turns around, so that 0.01 from it is 0.001 from the
picture."""


def as_seen(colours: Tensor) -> Tensor:
    """Colours as a screen shows them: grey repeated, alpha over black.

    Args:
        colours: [..., channels], 1 to 4 of them; clamped to [0, 1].

    Returns:
        [..., 3].
    """
    colours = colours.clamp(0, 1)
    channels = colours.shape[-1]
    rgb = colours[..., :3] if channels >= 3 else colours[..., :1].expand(*colours.shape[:-1], 3)
    return rgb * colours[..., -1:] if channels in (2, 4) else rgb


class Hits(NamedTuple):
    """Rays on the plane of the picture."""

    coords: Tensor
    """[N, 2] in pixels, (0, 0) being the upper left corner; any number, NaN too, for rays that miss the picture."""
    distance: Tensor
    """[N] along the ray, in units of its direction."""
    on_picture: Tensor
    """[N] bool: the plane is met in front of the origin, within the picture's edges."""


def hits(origins: Tensor, directions: Tensor, width: int, height: int) -> Hits:
    """Meet rays with the picture, which stands upright in the plane y = 0 (z is up), centred, its face towards +y.

    A place within the rounding of float32 of a pixel's centre is that centre: the field may jump there, and the
    dataset's camera shall see each pixel on the side on which it was fitted.

    Args:
        origins: [N, 3] in the scene.
        directions: [N, 3], of any length but 0.
        width: of the picture in pixels.
        height: of the picture in pixels.
    """
    longer = max(width, height)
    distance = -origins[:, 1] / directions[:, 1]  # infinite or NaN for rays within the plane's direction
    met = origins + distance[:, None] * directions
    size = met.new_tensor([width, height])
    coords = size / 2 - met[:, [0, 2]] * (longer / SIDE)
    centre = coords.floor() + 0.5
    coords = torch.where((coords - centre).abs() < 2**-20 * longer, centre, coords)
    on_picture = (distance > 0) & (coords >= 0).all(-1) & (coords < size).all(-1)
    return Hits(coords, distance, on_picture)


def picture_camera(width: int, height: int) -> Cameras:
    """The camera that sees the picture pixel by pixel, from as far away as the longer side is long."""
    longer = float(max(width, height))
    # Columns: the camera's right, up and back, and its place.
    pose = torch.tensor([[-1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, SIDE], [0.0, 1.0, 0.0, 0.0]])
    return Cameras(
        camera_to_worlds=pose[None], fx=longer, fy=longer, cx=width / 2, cy=height / 2, width=width, height=height
    )


def distance_to_see(width: int, height: int, *, fov: float, aspect: float) -> float:
    """How far from its middle a camera sees the whole picture, with a margin.

    Args:
        width: of the picture, in any unit.
        height: of the picture, in the same unit.
        fov: the camera's vertical field of view, radians.
        aspect: width / height of what it shows.
    """
    tall, wide = height, width / aspect
    return _MARGIN * max(tall, wide) / max(width, height) * SIDE / (2 * math.tan(fov / 2))


class PictureView:
    """A picture in space, see SignalView.

    Args:
        signal: the picture.
    """

    def __init__(self, signal: PictureSignal) -> None:
        self._signal = signal
        width, height = signal.picture.width, signal.picture.height
        self.scene_box = SceneBox(aabb=torch.tensor([[-SIDE / 2] * 3, [SIDE / 2] * 3]))
        self.cameras = picture_camera(width, height)
        whole_picture = WholePicture(width, height)
        self.controls: dict[str, Any] = {"whole_picture": whole_picture, "whole_picture_button": whole_picture.button}

    @property
    def image(self) -> Tensor:
        """The picture as a screen shows it, float32 [height, width, 3] in [0, 1]."""
        return as_seen(torch.from_numpy(self._signal.targets))

    def outputs(self, camera: Cameras, field: Field, *, obb_box: OrientedBox | None, chunk: int) -> dict[str, Tensor]:
        """A field as a camera sees it on the picture's plane.

        Returns:
            rgb [H, W, 3] in [0, 1]: the field where a ray meets the picture (grey repeated, alpha over black).
            target [H, W, 3]: the pixel that it meets. error [H, W, 1] in [0, 1]: how far they are from each other, the
            largest over the three. depth [H, W, 1] along the ray. accumulation [H, W, 1]: 1. Beside the picture, and
            outside obb_box, these are a neutral colour, that colour, 0, FAR and 0.
        """
        picture = self._signal.picture
        rays = camera.generate_rays(camera_indices=0, keep_shape=True, obb_box=obb_box)
        coords, distance, inside = hits(
            rays.origins.flatten(0, 1), rays.directions.flatten(0, 1), picture.width, picture.height
        )
        if rays.nears is not None and rays.fars is not None:
            inside = inside & (distance >= rays.nears.flatten()) & (distance <= rays.fars.flatten())
        background = RGBRenderer.get_background_color(
            distance.new_tensor(BACKGROUND), shape=(len(distance), 3), device=distance.device
        )
        rgb, target = background.clone(), background.clone()
        size = coords.new_tensor([picture.width, picture.height])
        for rows in inside.nonzero().squeeze(1).split(chunk):
            rgb[rows] = as_seen(field(coords[rows] / size).float())
            x, y = coords[rows].long().unbind(-1)
            target[rows] = as_seen(self._signal.values((y * picture.width + x).to(self._signal.device))).to(rgb.device)
        outputs = {
            "rgb": rgb,
            "target": target,
            "error": (rgb - target).abs().amax(-1, keepdim=True),
            "depth": torch.where(inside, distance, FAR)[:, None],
            "accumulation": inside[:, None].to(rgb.dtype),
        }
        return {name: value.unflatten(0, rays.origins.shape[:2]) for name, value in outputs.items()}


class WholePicture(ViewerControl):
    """Shows the whole picture to everyone who opens the host's viewer, and again at a button.

    Args:
        width: of the picture in pixels.
        height: of the picture in pixels.
    """

    def __init__(self, width: int, height: int) -> None:
        self._width, self._height = width, height
        self.button = ViewerButton("Show whole picture", cb_hook=lambda _: self.show_all())

    def _setup(self, viewer: "Viewer") -> None:
        """Called by the host's viewer before it draws the scene."""
        super()._setup(viewer)
        # The drawn camera as large beside the picture as the host has it in scenes of side 1.
        scale = viewer.config.camera_frustum_scale * SIDE
        viewer.config = replace(viewer.config, camera_frustum_scale=scale)
        viewer.viser_server.on_client_connect(self._welcome)

    def _welcome(self, client: "ClientHandle") -> None:
        """Show the picture, and again when the window changes its shape before anybody has moved the camera.

        Browsers tell the window's shape for the first time before they have made room for the control panel.
        """
        shown_at, place = self.show(client)

        @client.camera.on_update
        def _(camera: "CameraHandle") -> None:
            nonlocal shown_at, place
            if abs(camera.aspect - shown_at) > 1e-3 and np.allclose(camera.position, place, rtol=1e-3, atol=1e-3):
                shown_at, place = self.show(client)

    def show_all(self) -> None:
        """Move the cameras of all browsers."""
        for client in self.viser_server.get_clients().values():
            self.show(client)

    def show(self, client: "ClientHandle") -> tuple[float, tuple[float, float, float]]:
        """Move the camera of one browser; returns the window's shape, width / height, and the camera's place."""
        from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO as SCALE

        camera = client.camera
        distance = distance_to_see(self._width, self._height, fov=camera.fov, aspect=camera.aspect)
        place = (0.0, distance * SCALE, 0.0)
        with client.atomic():
            camera.up_direction = (0.0, 0.0, 1.0)
            camera.position = place
            camera.look_at = (0.0, -_BEHIND * SCALE, 0.0)
        return camera.aspect, place
