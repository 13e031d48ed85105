"""A signal as a thing in space, for the host's viewer and renderer."""

from typing import Any, Protocol

from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox, SceneBox
from torch import Tensor

from loe_field.signals.signal import Field

NO_VIEW = "the host's viewer and renderer show pictures and scenes: this signal has no view in space"


class SignalView(Protocol):
    """A signal in space."""

    scene_box: SceneBox
    """The box that holds it."""
    cameras: Cameras
    """One camera that sees it sample by sample."""
    controls: dict[str, Any]
    """Elements of the viewer's panel, by the name of the model's attribute that holds them."""

    @property
    def image(self) -> Tensor:
        """The signal as its camera sees it, [height, width, 3] in [0, 1]."""
        ...

    def outputs(self, camera: Cameras, field: Field, *, obb_box: OrientedBox | None, chunk: int) -> dict[str, Tensor]:
        """A field as a camera on its device sees it, within the viewer's crop box, `chunk` coordinates at once.

        Returns:
            rgb [H, W, 3] in [0, 1], depth and accumulation [H, W, 1], and others.
        """
        ...
