"""Every pixel of every posed picture on the device, and batches of rays through them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from nerfstudio.cameras.camera_utils import radial_and_tangential_undistort
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor
from torch.nn.functional import normalize

from loe_field.errors import InputError
from loe_field.pictures.memory import free_memory
from loe_field.pictures.pillow import unlimited
from loe_field.signals.seeds import seeded_generator
from loe_field.words import say

_SMALL_TABLE = 2**22
"""Entries of a table of directions that are not looked at: 64 MiB."""
_TABLE_ENTRY = 16  # bytes: a direction and an area
_AT_ONCE = 2**13
"""Rays that are made at once. The host undoes distortion in hundreds of operations on three points for each. So few
stay in the cache, and are below the 32,768 numbers from which on torch has its threads wait for each other."""
_READERS = 8
"""Threads that read pictures, at most: each holds one picture."""
_STEPS_AT_ONCE = 64  # steps whose pixels are drawn at once: a GPU draws them all in one launch
_PIXELS_AT_ONCE = 2**20  # and so many pixels at most, 8 MiB, however large a step is
_WORTH_SAYING = 2**28  # bytes
_IN_CLOSED_FORM = (CameraType.PERSPECTIVE.value, CameraType.FISHEYE.value)


class RayTable:
    """Pixels and the directions in which the cameras see them.

    Lens distortion is undone for each lens and size of picture once, not for every batch: cameras that differ only in
    their poses share one table of directions. Where there are so many lenses that the tables would take more than a
    byte for each pixel of the scene, directions are computed for each batch. Pictures may be RGB or RGBA and of any
    sizes; masked pixels give no rays. A damaged picture, masks that leave no pixel, a lens that gives no directions and
    a scene that memory does not hold are an InputError.
    """

    num_pixels: int
    """Pixels that give rays."""
    memory: int
    """Bytes that were reckoned for the tables and the pictures that are read at once, before they were taken."""
    num_rays_per_batch: int
    """Rays of a batch; may be changed at any time."""

    def __init__(
        self, dataset: InputDataset, device: torch.device | str, *, num_rays_per_batch: int, seed: int
    ) -> None:
        self.num_rays_per_batch = num_rays_per_batch
        cameras = dataset.cameras
        self._device = torch.device(device)
        self._seed = seed
        self._drawn: tuple[tuple[int, int], Tensor] | None = None
        self._poses = cameras.camera_to_worlds.to(self._device)
        lens = lens_numbers(cameras)
        _, first, which = np.unique(lens.numpy(), axis=0, return_index=True, return_inverse=True)
        pixels = (cameras.width.flatten().long() * cameras.height.flatten().long()).numpy()
        starts = np.cumsum([0, *pixels[first]])
        total, entries = int(pixels.sum()), int(starts[-1])
        many = entries > max(_SMALL_TABLE, total // _TABLE_ENTRY)
        computed = many and bool(np.isin(cameras.camera_type.numpy(), _IN_CLOSED_FORM).all())
        each = getattr(dataset, "metadata", {}).get("bytes_per_pixel", 4)
        self.memory = _check_memory(total, each, 0 if computed else entries, int(pixels.max()), self._device)
        if self.memory >= _WORTH_SAYING:
            say(f"{total:,} pixels and their directions: {self.memory / 2**30:.1f} GiB of memory", CONSOLE)
        self._lens = lens.float().to(self._device) if computed else None
        self._offsets = None
        if not computed:
            tables = [_directions(cameras, int(i), self._device) for i in first]
            self._directions, self._areas = (torch.cat(parts) for parts in list(zip(*tables))[:2])
            offsets = [offset for _, _, offset in tables]
            if any(offset.any() for offset in offsets if self._device.type != "meta"):
                self._offsets = torch.cat(offsets)
            del tables, offsets
            self._table_starts = torch.from_numpy(starts[which.ravel()]).to(self._device)

        counts, places = [], []
        self._colours = torch.empty(0, 0, dtype=torch.uint8, device=self._device)
        for data in _views(dataset):
            flat = data["image"].flatten(0, 1)
            if "mask" in data:
                places.append(data["mask"].flatten().nonzero().squeeze(1).to(torch.int32))
                flat = flat[places[-1]]
            done = sum(counts)
            if flat.shape[1] > self._colours.shape[1]:  # the first picture, or the first with alpha after others
                grown = torch.full((total, flat.shape[1]), 255, dtype=torch.uint8, device=self._device)
                grown[:done, : self._colours.shape[1]] = self._colours[:done]
                self._colours = grown
            self._colours[done : done + len(flat), : flat.shape[1]] = flat.to(self._device)
            counts.append(len(flat))
        self._starts = torch.tensor([0, *np.cumsum(counts).tolist()], device=self._device)
        self.num_pixels = sum(counts)
        self._colours = self._colours[: self.num_pixels]
        self._places = torch.cat(places).to(self._device) if places else None
        self._widths = cameras.width.flatten().to(self._device)
        if not self.num_pixels:
            raise InputError("the masks leave no pixel of any picture: nothing to train on")

    def draw(self, step: int, repeat: int = 0) -> Tensor:
        """Pixels of a step, [N] in [0, num_pixels), at random with replacement by seed, step and repeat."""
        if repeat:
            return self._random(1, step, repeat)[0]
        steps = max(1, min(_STEPS_AT_ONCE, _PIXELS_AT_ONCE // self.num_rays_per_batch))
        block, row = divmod(step, steps)
        key = (block, self.num_rays_per_batch)
        if self._drawn is None or self._drawn[0] != key:
            self._drawn = key, self._random(steps, block)
        return self._drawn[1][row]

    def _random(self, rows: int, *numbers: int) -> Tensor:
        """Pixels [rows, N], decided by the seed and other numbers."""
        generator = seeded_generator(self._device, self._seed, *numbers)
        size = (rows, self.num_rays_per_batch)
        return torch.randint(self.num_pixels, size, generator=generator, device=self._device)

    def rays(self, chosen: Tensor) -> tuple[RayBundle, dict[str, Tensor]]:
        """Rays through pixels, [N], and {"image": colours [N, 3 or 4] in [0, 1], "indices": camera, row, column}."""
        camera = torch.bucketize(chosen, self._starts, right=True) - 1
        place = chosen - self._starts[camera] if self._places is None else self._places[chosen].long()
        width = self._widths[camera]
        row, column = place // width, place % width
        pose = self._poses[camera]
        turn, origins = pose[:, :, :3], pose[:, :, 3]
        if self._lens is not None:
            directions, areas = _computed(self._lens[camera], row, column)
        else:
            entry = self._table_starts[camera] + place
            directions, areas = self._directions[entry], self._areas[entry]
            if self._offsets is not None:
                origins = origins + (turn * self._offsets[entry][:, None, :]).sum(-1)
        directions = (turn * directions[:, None, :]).sum(-1)
        rays = RayBundle(
            origins=origins,
            directions=normalize(directions, dim=-1),  # poses may be scaled
            pixel_area=areas,
            camera_indices=camera[:, None],
        )
        indices = torch.stack([camera, row, column], -1)
        return rays, {"image": self._colours[chosen].float() / 255, "indices": indices}


def lens_numbers(cameras: Cameras) -> Tensor:
    """All that a camera's directions depend on, [cameras, numbers]."""
    parts = [cameras.fx, cameras.fy, cameras.cx, cameras.cy, cameras.width, cameras.height, cameras.camera_type]
    if cameras.distortion_params is not None:
        parts.append(cameras.distortion_params)
    return torch.cat([p.reshape(len(cameras), -1).double() for p in parts], 1)


def _views(dataset: InputDataset) -> Iterator[dict[str, Any]]:
    """The views of 8 bits one after the other, as many at once as torch has threads: decoders leave Python's lock."""
    readers, get = _num_readers(), partial(dataset.get_data, image_type="uint8")
    with unlimited(), ThreadPoolExecutor(readers) as pool:  # once for all: threads would undo each other's limits
        for first in range(0, len(dataset), readers):
            yield from pool.map(get, range(first, min(first + readers, len(dataset))))


def _num_readers() -> int:
    return min(_READERS, torch.get_num_threads())


def _check_memory(pixels: int, each: int, entries: int, largest: int, device: torch.device) -> int:
    """Bytes of a scene's pictures, directions and the pictures being read; refuses what does not fit.

    Args:
        pixels: of all pictures.
        each: bytes that stay of a pixel.
        entries: of the tables of directions.
        largest: pixels of the largest picture.
        device: where they stay.
    """
    if device.type == "meta":
        return 0
    needed = pixels * each + entries * _TABLE_ENTRY + (largest * 16 * _num_readers() if device.type == "cpu" else 0)
    free = free_memory(device)
    if needed > free:
        raise InputError(
            f"the scene is too large for memory: {pixels:,} pixels take about {needed / 2**30:.1f} GiB and "
            f"{free / 2**30:.1f} GiB are free. Train on fewer or smaller pictures "
            f"(--pipeline.datamanager.camera-res-scale-factor {max(0.01, 0.9 * (free / needed) ** 0.5):.2f})"
        )
    return needed


def _directions(cameras: Cameras, index: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Directions in the camera's own frame [pixels, 3], of length 1, and each pixel's area at distance 1.

    Third where the rays begin in that frame [pixels, 3]: not at 0 for orthographic and stereo cameras.
    """
    camera = cameras[index : index + 1]
    if int(camera.camera_type) in _IN_CLOSED_FORM:
        return _directions_in_closed_form(camera, device)
    camera.camera_to_worlds = torch.eye(3, 4)[None]
    coords = camera.get_image_coords()
    parts = []
    for rows in coords.split(max(1, _AT_ONCE // coords.shape[1])):
        rays = camera.generate_rays(camera_indices=0, coords=rows)
        _check_finite(rays.directions)
        parts.append([rays.directions.flatten(0, 1), rays.pixel_area.flatten(0, 1), rays.origins.flatten(0, 1)])
    directions, areas, offsets = (torch.cat(part).to(device) for part in zip(*parts))
    return directions, areas, offsets


def _directions_in_closed_form(camera: Cameras, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """As _directions: a pixel's area needs the pixels to its right and below it, which are undistorted once for all."""
    height, width, lens = int(camera.height), int(camera.width), lens_numbers(camera)[0].float()
    if not lens[7:].any():
        lens = lens[:7]
    directions, areas = torch.empty(height, width, 3, device=device), torch.empty(height, width, 1, device=device)
    column, step = torch.arange(width + 1.0), max(1, _AT_ONCE // width)
    for top in range(0, height, step):
        rows = slice(top, min(top + step, height))
        at = _towards(lens, torch.arange(rows.start, rows.stop + 1.0)[:, None], column)
        _check_finite(at)
        here, right, below = at[:-1, :-1], at[:-1, 1:], at[1:, :-1]
        directions[rows] = here
        areas[rows] = ((here - right).norm(dim=-1) * (here - below).norm(dim=-1))[..., None]
    return directions.view(-1, 3), areas.view(-1, 1), directions.new_zeros(1, 3).expand(height * width, 3)


def _check_finite(directions: Tensor) -> None:
    if not directions.isfinite().all():
        raise InputError("a lens of the scene gives no directions: mend fl_x, fl_y, cx, cy and k1, k2, ...")


def _towards(lens: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Directions [..., 3] of length 1 in a camera's own frame, of perspective and fisheye cameras.

    Args:
        lens: lens_numbers of each one's camera [..., numbers].
        row: of the pixel, [...], as lens and column or broadcast with them.
        column: of the pixel.
    """
    fx, fy, cx, cy, _, _, kind = lens[..., :7].unbind(-1)
    at = torch.stack(torch.broadcast_tensors((column + 0.5 - cx) / fx, (row + 0.5 - cy) / fy), -1)
    if lens.shape[-1] > 7:
        at = radial_and_tangential_undistort(at, lens[..., 7:])
    across, up = at[..., 0], -at[..., 1]
    radius = torch.sqrt(across**2 + up**2).clamp(1e-9, torch.pi)
    fisheye = kind == CameraType.FISHEYE.value
    scale = torch.where(fisheye, radius.sin() / radius, 1.0)
    back = torch.where(fisheye, -radius.cos(), -1.0)
    return normalize(torch.stack([across * scale, up * scale, back], -1), dim=-1)


def _computed(lens: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    """Directions [N, 3] and areas [N, 1] as of _directions, of perspective and fisheye cameras.

    Args:
        lens: lens_numbers of each ray's camera [N, numbers].
        row: of its pixel, [N].
        column: of its pixel, [N].
    """
    # The pixel, and those one to the right of it and below it, for the area.
    rows, columns = torch.stack([row, row, row + 1]), torch.stack([column, column + 1, column])
    directions, right, below = _towards(lens, rows, columns)
    return directions, ((directions - right).norm(dim=-1) * (directions - below).norm(dim=-1))[:, None]
