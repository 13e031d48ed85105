"""A field that many fits begin with: one of a file, or the mean of a set's."""

from pathlib import Path

import torch

from loe_field.errors import InputError
from loe_field.export.fields import load_field
from loe_field.export.shards import read_set
from loe_field.network.layers import LoEMLP


def start_of(path: Path) -> LoEMLP:
    """The field of a safetensors file, or the mean of those of a set's folder.

    Fields that began with weights of their own have no meaningful mean: their neurons stand in any order. Those of
    --same-start or --init-from have one.

    Raises:
        InputError: there is none, or the set's networks differ in shape.
    """
    if not path.is_dir():
        return load_field(path)
    places = read_set(path)
    first = places[0].shard
    if any(place.shard.network != first.network for place in places):
        raise InputError(
            f"{path} has networks of several shapes, which have no mean: give a set of pictures of one size"
        )
    mean = first.blank().to_empty(device="cpu")
    with torch.no_grad():
        for parameter in mean.parameters():
            parameter.zero_()
        for place in places:
            for name, value in place.shard.weights(place.row).items():
                mean.get_parameter(name).add_(value, alpha=1 / len(places))
    return mean
