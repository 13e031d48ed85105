"""The seam between data and network: a signal gives coordinates and targets, measures a field and writes it down."""

import io
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from loe_field.errors import InputError
from loe_field.files import write_whole
from loe_field.pictures.metrics import decibels, squared_error
from loe_field.signals.shuffle import shuffled

Field = Callable[[Tensor], Tensor]
"""Coordinates [N, dim] in [0, 1) to values [N, channels], both on the signal's device."""

_MOST_MEASURED, _SOME_MEASURED = 2**20, 2**18
"""Samples up to which all are measured during a run, and how many of more. These tell the PSNR within some 0.02 dB."""
_SHUFFLED_AT_ONCE = {"cpu": 2**15, "cuda": 2**20}
"""Samples, about, whose order is computed at once: as many as a core's cache holds, or as make a GPU's launches few."""


class Reconstruction(ABC):
    """A field at all samples of a signal, as the signal's own kind holds them."""

    psnr: float
    """dB over all samples and channels on [0, 1]; the quick figure of an evaluation."""

    @abstractmethod
    def figures(self) -> dict[str, Any]:
        """All measures, by name; `psnr` among them."""

    @abstractmethod
    def write(self, folder: Path) -> dict[str, Path]:
        """Write the reconstruction into a folder that exists; returns the files by name.

        Raises:
            InputError: some cannot be written; the others are.
        """


class Signal(ABC):
    """A function known at samples, to which a field is fitted.

    Attributes:
        dim: coordinates per sample.
        channels: numbers per sample.
        num_samples: samples of one pass.
        samples_per_batch: samples of the largest batch.
        batches_per_pass: steps of one pass.
        resolution: samples along each coordinate, about; network and batches are sized by it.
        num_targets: numbers that are measured.
        num_measured: samples that `quick_psnr` measures; None: all.
        kind: everything but the content, as plain numbers and text that a checkpoint can hold.
        unit: a word for the samples.
    """

    dim: int
    channels: int
    num_samples: int
    samples_per_batch: int
    batches_per_pass: int
    resolution: tuple[int, ...]
    num_targets: int
    num_measured: int | None = None
    kind: dict[str, Any]
    unit = "samples"

    @abstractmethod
    def draw(self, step: int) -> tuple[Tensor, ...]:
        """The random choice of a step >= 0, on the device; () where every step takes the same batch."""

    @abstractmethod
    def at(self, *drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates [N, dim] in [0, 1) and targets [N, channels] of a choice; never waits for the device."""

    def part(self, drawn: tuple[Tensor, ...], rank: int, size: int) -> tuple[Tensor, ...]:
        """The part of a choice that process `rank` of `size` takes, which `at` takes as a choice of its own.

        The parts of all processes are the choice, each sample in one of them. Here every drawn tensor is cut alike.
        """
        if not drawn:
            raise InputError(f"this kind of data takes all its {self.unit} at every step: it is fitted by one process")
        return tuple(tensor[part_of(len(tensor), rank, size)] for tensor in drawn)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Coordinates [N, dim] in [0, 1) and targets [N, channels] of a step >= 0."""
        return self.at(*self.draw(step))

    @abstractmethod
    def reconstruct(self, field: Field, *, chunk: int = 65536) -> Reconstruction:
        """Evaluate a field at all samples, `chunk` of them at once."""

    def quick_psnr(self, field: Field, *, chunk: int = 65536) -> float:
        """PSNR in dB of a field, of a large signal over samples of it, always the same ones."""
        return self.reconstruct(field, chunk=chunk).psnr

    def preview(self, field: Field, num_samples: int, *, chunk: int = 65536) -> np.ndarray | None:
        """A small look at a field, uint8 [height, width, channels], from about so many samples; None: it has none."""
        return None

    def measure(self, field: Field) -> dict[str, Any]:
        """All measures of a field, by name."""
        return self.reconstruct(field).figures()

    def write(self, field: Field, folder: Path) -> dict[str, Path]:
        """Write a field's reconstruction into a folder that exists; returns the files by name."""
        return self.reconstruct(field).write(folder)

    @property
    def description(self) -> dict[str, Any]:
        """The signal's sizes, for metrics.json."""
        return {"resolution": list(self.resolution), "channels": self.channels}


def part_of(count: int, rank: int, size: int) -> slice:
    """Which of count things process `rank` of `size` takes; the numbers differ by one at most."""
    return slice(rank * count // size, (rank + 1) * count // size)


def grid_coords(index: Tensor, shape: Sequence[int]) -> Tensor:
    """Centres of cells of a grid of a shape, float32 [N, dim] in cells, the last axis first: (x, y) of a picture.

    The cells, int64 [N], are numbered with the last axis running fastest.
    """
    columns = []
    for size in reversed(shape[1:]):
        columns.append(index % size)
        index = index // size
    return torch.stack([*columns, index], -1).to(torch.float32) + 0.5


class GridSignal(Signal):
    """Samples on a regular grid of 1 to 4 dimensions that fills the unit cube, sample i of n at (i + 0.5) / n.

    One pass visits every sample once, in an order that the seed and the number of the pass decide: the batch of a step
    is the same in a resumed run.

    Args:
        values: [*shape, channels]; uint8, uint16 or floating point.
        device: where samples and coordinates live.
        white: the number that stands for 1.
        samples_per_batch: the largest batch, >= 1; None is the whole grid at every step.
        seed: of the order.
        kept: numbers of the samples that are trained on, int64 [N]; None is all.

    Attributes:
        shape: samples along each axis.
    """

    def __init__(
        self,
        values: np.ndarray,
        device: torch.device | str,
        *,
        white: float = 1.0,
        samples_per_batch: int | None,
        seed: int,
        kept: np.ndarray | None = None,
    ) -> None:
        *shape, self.channels = values.shape
        self.shape, self.dim = tuple(shape), len(shape)
        if not 1 <= self.dim <= 4:
            raise ValueError(f"values is {list(values.shape)}: 1 to 4 axes of samples and one of channels are wanted")
        flat = values.reshape(-1, self.channels)
        # As they are, also in a mapped file; of uint16, for which torch has no arithmetic, the bits as int16.
        self._values = torch.from_numpy(flat.view(np.int16) if flat.dtype == np.uint16 else flat).to(device)
        self.device, self.num_targets, self.resolution = self._values.device, values.size, self.shape[::-1]
        self.kind: dict[str, Any] = {"shape": list(values.shape), "white": white}
        self._white, self._seed = white, seed
        self._kept = None if kept is None else torch.from_numpy(kept).to(device)
        self._size = torch.tensor(self.resolution, dtype=torch.float32, device=device)
        self.num_samples = len(flat) if kept is None else len(kept)
        self.num_measured = None if len(flat) <= _MOST_MEASURED else _SOME_MEASURED
        largest = min(samples_per_batch or self.num_samples, self.num_samples)
        self.batches_per_pass = -(-self.num_samples // largest)
        self.samples_per_batch = -(-self.num_samples // self.batches_per_pass)
        at_once = _SHUFFLED_AT_ONCE["cuda" if self.device.type == "cuda" else "cpu"]
        self._batches_at_once = max(1, at_once // self.samples_per_batch)
        self._first, self._batches = -1, [torch.empty(0, dtype=torch.int64)]

    @property
    def targets(self) -> np.ndarray:
        """All samples as fitted, float32 [*shape, channels]."""
        every = torch.arange(len(self._values), device=self.device)
        return self.values(every).cpu().numpy().reshape(*self.shape, self.channels)

    def values(self, index: Tensor) -> Tensor:
        """Targets, float32 [N, channels], of samples numbered with the last axis running fastest."""
        values = self._values.index_select(0, index)
        if values.dtype == torch.int16:
            values = values.to(torch.int32) & 0xFFFF
        return values.to(torch.float32) / self._white

    def coords(self, index: Tensor) -> Tensor:
        """Coordinates in [0, 1), float32 [N, dim], of samples numbered with the last axis running fastest."""
        return grid_coords(index, self.shape) / self._size

    @property
    def _every(self) -> Tensor:
        """The numbers of all samples; not kept, for a large grid has many."""
        return torch.arange(self.num_samples, device=self.device) if self._kept is None else self._kept

    @cached_property
    def _whole(self) -> tuple[Tensor, Tensor]:
        every = self._every
        return self.coords(every), self.values(every)

    def draw(self, step: int) -> tuple[Tensor, ...]:
        """The samples of a step, int64 [N]; sizes differ by one at most. () where every step takes the whole grid."""
        return () if self.batches_per_pass == 1 else (self._chosen(step),)

    def part(self, drawn: tuple[Tensor, ...], rank: int, size: int) -> tuple[Tensor, ...]:
        """See Signal.part; of the whole grid too."""
        return super().part(drawn or (self._every,), rank, size)

    def at(self, *drawn: Tensor) -> tuple[Tensor, Tensor]:
        """See Signal.at."""
        return (self.coords(drawn[0]), self.values(drawn[0])) if drawn else self._whole

    def _chosen(self, step: int) -> Tensor:
        number, k = divmod(step, self.batches_per_pass)
        first = step - k % self._batches_at_once
        if first != self._first:
            last = min(k - k % self._batches_at_once + self._batches_at_once, self.batches_per_pass)
            bounds = [i * self.num_samples // self.batches_per_pass for i in range(first - step + k, last + 1)]
            places = torch.arange(bounds[0], bounds[-1], device=self.device)
            index = shuffled(places, self.num_samples, self._seed, number)
            index = index if self._kept is None else self._kept[index]
            self._first, self._batches = first, index.split([end - start for start, end in pairwise(bounds)])
        return self._batches[step - first]

    @torch.no_grad()
    def strips(self, field: Field, chunk: int) -> Iterator[tuple[slice, np.ndarray]]:
        """A field at all samples, float32 on the CPU, some rows of the first axis at a time: (which rows, values)."""
        inner = math.prod(self.shape[1:])
        chunk = min(chunk, inner * self.shape[0])
        rows = max(1, chunk // inner)
        for first in range(0, self.shape[0], rows):
            last = min(first + rows, self.shape[0])
            index = torch.arange(first * inner, last * inner, device=self.device)
            parts = [field(self.coords(part)).float().cpu() for part in index.split(chunk)]
            yield slice(first, last), torch.cat(parts).numpy().reshape(-1, *self.shape[1:], self.channels)

    @torch.no_grad()
    def quick_psnr(self, field: Field, *, chunk: int = 65536) -> float:
        """See Signal.quick_psnr."""
        if self.num_measured is None:
            return super().quick_psnr(field, chunk=chunk)
        places = torch.arange(self.num_measured, device=self.device)
        index = shuffled(places, len(self._values), self._seed, 0, 1)
        square = 0.0
        for part in index.split(chunk):
            seen = self.seen(field(self.coords(part)).float().cpu().numpy())
            square += squared_error(seen, self.values(part).cpu().numpy())
        return decibels(square, len(index) * self.channels)

    def seen(self, values: np.ndarray) -> np.ndarray:
        """Values of a field [N, channels] as a reconstruction has them, on the scale of the targets."""
        return values.clip(0, 1)

    def reconstruct(self, field: Field, *, chunk: int = 65536) -> Reconstruction:
        """The field's own numbers, clamped to [0, 1]."""
        values = np.concatenate([part for _, part in self.strips(field, chunk)])
        return GridReconstruction(values.clip(0, 1), self.targets)


class GridReconstruction(Reconstruction):
    """Values [*shape, channels] in [0, 1] on a grid, and the targets there."""

    def __init__(self, values: np.ndarray, targets: np.ndarray) -> None:
        self.values = values
        self.psnr = decibels(squared_error(values, targets), values.size)

    def figures(self) -> dict[str, Any]:
        """`psnr` alone."""
        return {"psnr": self.psnr}

    def write(self, folder: Path) -> dict[str, Path]:
        """Write reconstruction.npy, float32; see Reconstruction.write."""
        path = folder / "reconstruction.npy"
        content = io.BytesIO()
        np.save(content, self.values)
        with write_whole(path) as temporary:
            temporary.write_bytes(content.getbuffer())
        return {"reconstruction": path}
