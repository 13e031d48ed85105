"""nerfstudio's DataManager for one picture."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import skimage
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datamanagers.base_datamanager import DataManager, DataManagerConfig
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor
from torch.nn import Parameter

from loe_field.errors import InputError
from loe_field.image.picture import Picture, read_picture
from loe_field.image.pixels import HoldOut, PixelBatches, as_seen
from loe_field.image.sizes import pixels_per_batch_for
from loe_field.image.view import SIDE, picture_camera


@dataclass
class ImageDataManagerConfig(DataManagerConfig):
    """Where the picture comes from and how its pixels are batched."""

    _target: type = field(default_factory=lambda: ImageDataManager)
    data: Path | None = None
    """The picture: PNG, JPEG, TIFF, BMP, WebP or EXR. A folder or a quoted pattern ("photos/*.png"): one run for
    each picture in it. Left out: scikit-image's `camera`, 512x512 grey."""
    pixels_per_batch: int | Literal["auto"] | None = "auto"
    """Pixels per step, drawn at random without replacement. "auto": 8,192, and 16,384 or 32,768 for large pictures (see
    `pixels_per_batch_for`). None: the whole picture at every step."""
    off_grid: float = 0.0
    """Part of the pixels of every step, 0 to 1, that are visited at a random place in their square instead of its
    centre; the colour there is that of the cubic spline through the pixels. 0 fits the pixels and nothing between them;
    0.5 makes a field that can be enlarged."""
    hold_out: HoldOut = "none"
    """Pixels that the fit never sees: "checkerboard" keeps every second one back and measures it (psnr_held_out)."""


def default_picture() -> Path:
    """scikit-image's `camera`, which lies inside its package."""
    return Path(skimage.__file__).parent / "data" / "camera.png"


class PictureDataset:
    """What the host and its viewer ask of a data set, for one picture.

    As a scene the picture is a rectangle (see loe_field/image/view.py); the one camera sees it pixel by pixel.
    """

    def __init__(self, picture: Picture) -> None:
        self.picture = picture
        self.scene_box = SceneBox(aabb=torch.tensor([[-SIDE / 2] * 3, [SIDE / 2] * 3]))
        self.metadata: dict[str, Any] = {
            "height": picture.height,
            "width": picture.width,
            "channels": picture.channels,
            "colours": self.colours,
        }
        self.cameras = picture_camera(picture.width, picture.height)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        """What the viewer shows beside its camera: the picture as seen, [height, width, 3]."""
        if index != 0:
            raise IndexError(index)
        return {"image_idx": 0, "image": as_seen(self.image)}

    def colours(self, index: Tensor) -> Tensor:
        """Colours as fitted, float32 [N, channels] where index is, of pixels numbered row by row, int64 [N]."""
        values = self.picture.values.reshape(-1, self.picture.channels)[index.cpu().numpy()]
        return torch.from_numpy(self.picture.to_unit(values)).to(index.device)

    @cached_property
    def image(self) -> Tensor:
        """The picture as it is fitted, float32 [height, width, channels] in [0, 1]; radiance may go beyond."""
        return torch.from_numpy(self.picture.unit).to(torch.float32)


class ImageDataManager(DataManager):
    """One picture, on the device, as batches of pixel centres and colours.

    Args:
        config: where the picture is and the batch size.
        device: where the pixels live.
        test_mode: the host's; a picture is its own test set, so all modes are alike.
        world_size: processes that train together.
        local_rank: which of them this is; each draws its own batches.

    Raises:
        InputError: the picture cannot be used, pixels_per_batch is below 1, or off_grid is not a part.
    """

    config: ImageDataManagerConfig
    train_dataset: PictureDataset  # type: ignore[assignment]
    eval_dataset: PictureDataset  # type: ignore[assignment]

    def __init__(
        self,
        config: ImageDataManagerConfig,
        device: torch.device | str = "cpu",
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        **_: Any,
    ) -> None:
        if isinstance(config.pixels_per_batch, int) and config.pixels_per_batch < 1:
            raise InputError(
                f"pixels_per_batch is {config.pixels_per_batch}: give 1 or more, or None for the whole picture"
            )
        if not 0 <= config.off_grid <= 1:
            raise InputError(f"off_grid is {config.off_grid}: it is a part of the pixels, give 0 to 1")
        self.config = config
        self.test_mode = test_mode
        self.path = config.data or default_picture()
        self.picture = read_picture(self.path)
        if self.picture.note:
            CONSOLE.print(self.picture.note)
        if config.pixels_per_batch == "auto":  # the run's config.yml then says what it was
            height, width, channels = self.picture.values.shape
            config.pixels_per_batch = pixels_per_batch_for(height, width, channels)
        self.train_dataset = self.eval_dataset = PictureDataset(self.picture)
        self.pixels = PixelBatches(
            self.picture,
            device,
            pixels_per_batch=config.pixels_per_batch,
            seed=(torch.initial_seed() + local_rank) % 2**31,
            off_grid=config.off_grid,
            hold_out=config.hold_out,
        )
        super().__init__()

    def setup_train(self) -> None:
        """Nothing to do: the pixels are on the device already."""

    def setup_eval(self) -> None:
        """Nothing to do: the pixels are on the device already."""

    def next_train(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        """Places [N, 2] in pixels, and {"image": colours [N, channels]}."""
        places, colours = self.pixels.batch(step)
        return places, {"image": colours}

    next_eval = next_train  # type: ignore[assignment]

    def next_eval_image(self, step: int) -> tuple[Cameras, dict[str, Tensor]]:
        """The camera that sees the picture pixel by pixel, and the picture."""
        return self.train_dataset.cameras[0:1], {"image": self.train_dataset.image}

    @property
    def fixed_indices_eval_dataloader(self) -> list[tuple[Cameras, dict[str, Tensor]]]:
        """All pictures to evaluate: one."""
        return [self.next_eval_image(0)]

    def get_train_rays_per_batch(self) -> int:
        """Pixels per step."""
        return self.pixels.pixels_per_batch

    get_eval_rays_per_batch = get_train_rays_per_batch

    def get_datapath(self) -> Path:
        """The picture's path."""
        return self.path

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        """Nothing here is learned."""
        return {}
