"""A set of fitted fields as a dataset of weights, for those who learn on them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from loe_field.errors import InputError
from loe_field.export.shards import Member, Place, read_set
from loe_field.network.layers import LoEMLP

_CHUNK = 65536


class Entry(NamedTuple):
    """Where a parameter lies in the flat vector of a field."""

    name: str
    """In LoEMLP's state_dict."""
    shape: tuple[int, ...]
    """Of the parameter."""
    place: slice
    """In the vector."""


class FieldDataset(Dataset):
    """The fields of a set that `ns-train loe-images` has written, or `fit_images` has fitted.

    They are in natural order of their names. Weights are read from the disk as they are asked for, so that a set may be
    larger than memory; a DataLoader's workers may share it.

    Args:
        folder: of the set; all its members, or those of one size.
        size: height, width and channels of the pictures that are wanted: those of one size have networks of one shape,
            and a DataLoader can batch them. None: all.

    Attributes:
        names: of all members.

    Raises:
        InputError: it is no folder of a set, a shard is damaged, or there is no picture of that size.

    Example:
        >>> dataset = FieldDataset("outputs/thumbnails/loe-images/fields")
        >>> weights = torch.stack([item["vector"] for item in dataset])  # [fields, parameters]
        >>> picture = dataset.render(0, size=(128, 128))
    """

    def __init__(self, folder: Path | str, *, size: tuple[int, int, int] | None = None) -> None:
        self._take(read_set(Path(folder).expanduser()), size)
        if not self.names:
            sizes = ", ".join(" x ".join(map(str, one)) for one in sorted(self._sizes))
            raise InputError(f"no picture of {folder} has the size {size}: there are {sizes} (height, width, channels)")

    @classmethod
    def of(cls, places: Sequence[Place]) -> "FieldDataset":
        """The fields at these places, in this order."""
        dataset = cls.__new__(cls)
        dataset._take(places, None)
        return dataset

    def _take(self, places: Sequence[Place], size: tuple[int, int, int] | None) -> None:
        sizes = [(p.height, p.width, p.channels) for p in (place.shard.picture for place in places)]
        self._sizes = set(sizes)
        self._places = [place for place, one in zip(places, sizes) if size is None or one == tuple(size)]
        self.names = [place.member.name for place in self._places]
        self._number = {name: number for number, name in enumerate(self.names)}

    def __len__(self) -> int:
        """How many fields."""
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One field, as a DataLoader batches it.

        Returns:
            weights: the parameters by their names in LoEMLP's state_dict, float32.
            vector: all of them in that order, flat.
            index, name, psnr (dB), seed, num_steps.
            height, width, channels: of its picture.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"there is no field {index}: the set has {len(self)}")
        index %= len(self)
        shard, row = self._places[index]
        weights, member, picture = shard.weights(row), shard.members[row], shard.picture
        return {
            "weights": weights,
            "vector": torch.cat([value.reshape(-1) for value in weights.values()]),
            "index": index,
            "name": member.name,
            "psnr": member.decibels,
            "seed": member.seed,
            "num_steps": member.num_steps,
            "height": picture.height,
            "width": picture.width,
            "channels": picture.channels,
        }

    def index(self, name: str) -> int:
        """The number of a picture's field.

        Raises:
            InputError: there is none of that name.
        """
        if name not in self._number:
            raise InputError(f"{name} is not in the set: names has the {len(self)} that are")
        return self._number[name]

    def member(self, index: int) -> Member:
        """What is known of a field, its picture's path among it."""
        return self._places[index].member

    def layout(self, index: int = 0) -> list[Entry]:
        """Which part of a field's vector is which parameter; the same for all pictures of one size."""
        entries, first = [], 0
        for name, value in self._places[index].shard.blank().state_dict().items():
            entries.append(Entry(name, tuple(value.shape), slice(first, first + value.numel())))
            first += value.numel()
        return entries

    def network(self, index: int, vector: Tensor | None = None) -> LoEMLP:
        """A field as a network, or one of its shape with the numbers of another vector.

        Raises:
            InputError: the vector has another length.
        """
        shard, row = self._places[index]
        if vector is None:
            return shard.field(row)
        entries = self.layout(index)
        if vector.shape != (entries[-1].place.stop,):
            raise InputError(f"the vector is {list(vector.shape)}: [{entries[-1].place.stop}] is wanted")
        network = shard.blank().to_empty(device="cpu")
        vector = vector.detach().to("cpu", torch.float32)
        network.load_state_dict({entry.name: vector[entry.place].view(entry.shape) for entry in entries})
        return network

    def render(
        self,
        index: int,
        size: tuple[int, int] | None = None,
        *,
        vector: Tensor | None = None,
        upscaling: Literal["spline", "field"] = "spline",
    ) -> np.ndarray:
        """A field's picture, as `loe-render` makes it.

        Args:
            index: the field.
            size: width and height; None: the picture's own.
            vector: other numbers for its network.
            upscaling: between the pixels' centres, the cubic spline through them or the field itself.

        Returns:
            [height, width, channels] of the picture's dtype.

        Raises:
            InputError: a side is below 1, or the vector has another length.
        """
        from loe_field.image.load import PictureField, field_of
        from loe_field.pictures.picture import codes, hdr_values
        from loe_field.render.window import evaluated, on_grid, pictured, rendered_rows, view_of

        field = field_of(self._places[index])
        if vector is not None:
            field = PictureField(self.network(index, vector), field.picture)
        picture = field.picture
        view = view_of((picture.width, picture.height), size=size)
        function = pictured(on_grid(evaluated(field, field.device, _CHUNK)), picture, view, upscaling)
        dtype, alpha = picture.values.dtype, picture.has_alpha
        return np.concatenate(
            [
                codes(band, dtype) if picture.peak is None else hdr_values(band, dtype, alpha=alpha)
                for band in rendered_rows(function, view, chunk=_CHUNK, alpha=alpha)
            ]
        )
