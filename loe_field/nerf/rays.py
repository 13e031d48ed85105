"""Every pixel of every posed picture on the device, and batches of rays through them."""

import itertools

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datasets.base_dataset import InputDataset
from torch import Tensor
from torch.nn.functional import normalize

from loe_field.errors import InputError
from loe_field.signals.seeds import seeded_generator


class RayTable:
    """Pixels and the directions in which the cameras see them, made once.

    Lens distortion is undone for each lens and size of picture once, not for every batch: cameras that differ only in
    their poses share one table of directions. Pictures may be RGB or RGBA and of any sizes; masked pixels give no rays.
    A damaged picture, or masks that leave no pixel, are an InputError.
    """

    num_pixels: int
    """Pixels that give rays."""
    num_rays_per_batch: int
    """Rays of a batch; may be changed at any time."""

    def __init__(
        self, dataset: InputDataset, device: torch.device | str, *, num_rays_per_batch: int, seed: int
    ) -> None:
        self.num_rays_per_batch = num_rays_per_batch
        cameras = dataset.cameras
        self._device = torch.device(device)
        self._seed = seed
        self._poses = cameras.camera_to_worlds.to(self._device)
        lens = lens_numbers(cameras)
        _, first, which = np.unique(lens.numpy(), axis=0, return_index=True, return_inverse=True)
        tables = [_directions(cameras, int(i)) for i in first]
        starts = np.cumsum([0, *(len(table) for table, _, _ in tables)])
        directions, areas, offsets = (torch.cat(parts) for parts in zip(*tables))
        self._directions, self._areas = directions.to(self._device), areas.to(self._device)
        self._offsets = offsets.to(self._device) if offsets.any() else None

        colours, places = [], []
        for i in range(len(dataset)):
            try:
                data = dataset.get_data(i, image_type="uint8")
            except AssertionError as error:
                raise InputError(f"the mask of {dataset.image_filenames[i]} cannot be used ({error})") from None
            flat = data["image"].flatten(0, 1)
            if "mask" in data:
                places.append(data["mask"].flatten().nonzero().squeeze(1).to(torch.int32))
                flat = flat[places[-1]]
            colours.append(flat)
        channels = max(c.shape[1] for c in colours)
        colours = [c if c.shape[1] == channels else torch.cat([c, c.new_full((len(c), 1), 255)], 1) for c in colours]
        self._starts = torch.tensor([0, *itertools.accumulate(len(c) for c in colours)], device=self._device)
        self._colours = torch.cat(colours).to(self._device)
        self._places = torch.cat(places).to(self._device) if places else None
        self._widths = cameras.width.flatten().to(self._device)
        self._table_starts = torch.from_numpy(starts[which.ravel()]).to(self._device)
        self.num_pixels = len(self._colours)
        if not self.num_pixels:
            raise InputError("the masks leave no pixel of any picture: nothing to train on")

    def draw(self, step: int, repeat: int = 0) -> Tensor:
        """Pixels of a step, [N] in [0, num_pixels), at random with replacement by seed, step and repeat."""
        generator = seeded_generator(self._device, self._seed, step, repeat)
        size = (self.num_rays_per_batch,)
        return torch.randint(self.num_pixels, size, generator=generator, device=self._device)

    def rays(self, chosen: Tensor) -> tuple[RayBundle, dict[str, Tensor]]:
        """Rays through pixels, [N], and {"image": colours [N, 3 or 4] in [0, 1], "indices": camera, row, column}."""
        camera = torch.bucketize(chosen, self._starts, right=True) - 1
        place = chosen - self._starts[camera] if self._places is None else self._places[chosen].long()
        entry = self._table_starts[camera] + place
        pose = self._poses[camera]
        turn, origins = pose[:, :, :3], pose[:, :, 3]
        if self._offsets is not None:
            origins = origins + (turn * self._offsets[entry][:, None, :]).sum(-1)
        directions = (turn * self._directions[entry][:, None, :]).sum(-1)
        rays = RayBundle(
            origins=origins,
            directions=normalize(directions, dim=-1),  # poses may be scaled
            pixel_area=self._areas[entry],
            camera_indices=camera[:, None],
        )
        width = self._widths[camera]
        indices = torch.stack([camera, place // width, place % width], -1)
        return rays, {"image": self._colours[chosen].float() / 255, "indices": indices}


def lens_numbers(cameras: Cameras) -> Tensor:
    """All that a camera's directions depend on, [cameras, numbers]."""
    parts = [cameras.fx, cameras.fy, cameras.cx, cameras.cy, cameras.width, cameras.height, cameras.camera_type]
    if cameras.distortion_params is not None:
        parts.append(cameras.distortion_params)
    return torch.cat([p.reshape(len(cameras), -1).double() for p in parts], 1)


def _directions(cameras: Cameras, index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Directions in the camera's own frame [pixels, 3], of length 1, and each pixel's area at distance 1.

    Third where the rays begin in that frame [pixels, 3]: not at 0 for orthographic and stereo cameras.
    """
    camera = cameras[index : index + 1]
    camera.camera_to_worlds = torch.eye(3, 4)[None]
    rays = camera.generate_rays(camera_indices=0, keep_shape=True)
    return rays.directions.flatten(0, 1), rays.pixel_area.flatten(0, 1), rays.origins.flatten(0, 1)
