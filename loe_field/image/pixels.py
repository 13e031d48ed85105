"""The pixels of one picture on the device, and batches of them."""

import numpy as np
import torch
from torch import Tensor

from loe_field.image.picture import Picture


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


def pixel_centers(index: Tensor, width: int) -> Tensor:
    """Centres (x + 0.5, y + 0.5) in pixels, float32 [N, 2], of pixels numbered row by row, int64 [N]."""
    return torch.stack([index % width, index // width], -1).to(torch.float32) + 0.5


class PixelBatches:
    """Batches of pixel centres and colours, all made on the device.

    One pass visits every pixel once, in an order that only the seed and the number of the pass decide: the batch of a
    step is the same whether the run got there in one go or was resumed.

    Args:
        picture: the picture.
        device: where pixels and coordinates live.
        pixels_per_batch: the largest batch, >= 1; None (or at least all pixels) is the whole picture at every step.
        seed: of the order.
    """

    def __init__(
        self, picture: Picture, device: torch.device | str, *, pixels_per_batch: int | None, seed: int
    ) -> None:
        self.width, self.num_pixels = picture.width, picture.height * picture.width
        flat = picture.values.reshape(self.num_pixels, picture.channels)
        # 8 bits stay 8 bits on the device; torch has no arithmetic for uint16.
        self._values = torch.from_numpy(flat if flat.dtype == np.uint8 else flat.astype(np.float32)).to(device)
        self._white = picture.white
        size = min(pixels_per_batch or self.num_pixels, self.num_pixels)
        self.batches_per_pass = -(-self.num_pixels // size)
        self.pixels_per_batch = -(-self.num_pixels // self.batches_per_pass)
        self._seed = seed
        self._pass, self._order = -1, torch.empty(0, dtype=torch.int64)
        self._whole: tuple[Tensor, Tensor] | None = None

    def colours(self, index: Tensor) -> Tensor:
        """Colours in [0, 1], float32 [N, channels], of pixels numbered row by row."""
        return self._values.index_select(0, index).to(torch.float32) / self._white

    def at(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Centres [N, 2] and colours [N, channels] of pixels numbered row by row."""
        return pixel_centers(index, self.width), self.colours(index)

    def index(self, step: int) -> Tensor:
        """The pixels of a step >= 0, numbered row by row, int64 [N]; sizes differ by one pixel at most."""
        number, k = divmod(step, self.batches_per_pass)
        if number != self._pass:
            # Mixed into 32 bits, of which torch's CPU generator would otherwise take only the lower ones.
            mixed = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
            generator = torch.Generator(self._values.device).manual_seed(mixed)
            self._order = torch.randperm(self.num_pixels, generator=generator, device=self._values.device)
            self._pass = number
        first, last = (i * self.num_pixels // self.batches_per_pass for i in (k, k + 1))
        return self._order[first:last]

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Centres [N, 2] and colours [N, channels] for a step >= 0."""
        if self.batches_per_pass > 1:
            return self.at(self.index(step))
        if self._whole is None:
            self._whole = self.at(torch.arange(self.num_pixels, device=self._values.device))
        return self._whole
