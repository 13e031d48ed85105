"""What a run takes where an option is left open, by the device's kind, compute capability and memory.

The pixels of a step are not among them: with the learning rates they make the recipe, on every device. In 37 passes
over camera 4,096, 8,192 and 16,384 pixels a step gave 37.0, 38.6 and 37.8 dB, so a GPU takes more steps a second, not
larger ones. Nothing here has been measured on a GPU yet.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from loe_field.errors import InputError

Precision = Literal["fp32", "tf32", "bf16"]
_AMPERE = (8, 0)
"""The first compute capability whose tensor cores take tf32 and bf16."""
_MANY_RAYS, _FEW_RAYS = 4096, 1024
_MEMORY_FOR_MANY_RAYS = 4 * 2**30
"""Memory of a card for 4,096 rays: loe-nerf keeps about 150 KiB for each, twice that with what lies between."""


class Device(NamedTuple):
    """What defaults depend on."""

    kind: str
    """"cpu" or "cuda"."""
    capability: tuple[int, int] = (0, 0)
    """A GPU's compute capability."""
    memory: int = 0
    """Its memory, bytes."""


@dataclass(frozen=True)
class Defaults:
    """The values of options that are left open."""

    precision: Precision
    """tf32 on a GPU that has it: a fitted picture loses nothing by it. fp32 elsewhere."""
    steps_per_iteration: int
    """Steps in a turn: on a GPU a step takes less than a millisecond, which the turn's own Python would delay."""
    rays_per_batch: int
    """Rays of a scene's step: 1,024 on a CPU, which takes four times as long for 4,096. On a GPU these, nerfacto's own
    number: of 1,024 rays the field has 32,768 samples, 512 blocks of 64 rows, where an H100 has room for 528 at once
    (132 multiprocessors, 4 each), so that a launch is over as soon as it has begun."""
    evaluates_by_time: bool
    """Whether evaluations come by time instead of steps, of which a GPU takes thousands a second."""


def device_of(device: torch.device | str) -> Device:
    """What torch tells of a device."""
    if torch.device(device).type != "cuda":
        return Device("cpu")
    properties = torch.cuda.get_device_properties(device)
    return Device("cuda", (properties.major, properties.minor), properties.total_memory)


def defaults_for(device: Device) -> Defaults:
    """The values for a device."""
    if device.kind == "cpu":
        return Defaults("fp32", steps_per_iteration=1, rays_per_batch=_FEW_RAYS, evaluates_by_time=False)
    return Defaults(
        "tf32" if device.capability >= _AMPERE else "fp32",
        steps_per_iteration=50,
        rays_per_batch=_MANY_RAYS if device.memory >= _MEMORY_FOR_MANY_RAYS else _FEW_RAYS,
        evaluates_by_time=True,
    )


def check_precision(precision: Precision, device: Device) -> None:
    """Refuse a precision that a device has not.

    Raises:
        InputError: with the one to give.
    """
    if device.kind == "cpu" and precision == "tf32":
        raise InputError("--precision tf32 is an NVIDIA GPU's: give fp32 or bf16 on a CPU")
    if device.kind == "cuda" and precision != "fp32" and device.capability < _AMPERE:
        raise InputError(
            f"--precision {precision} is for GPUs of compute capability 8.0 on, {_found(device)}: give fp32"
        )


def remark(device: Device) -> str | None:
    """Why the precision is not the usual one of such a device, for people; None if it is."""
    old = device.kind == "cuda" and device.capability < _AMPERE
    return f"fp32, for tf32 is for GPUs of compute capability 8.0 on, {_found(device)}" if old else None


def _found(device: Device) -> str:
    return "and this one has {}.{}".format(*device.capability)
