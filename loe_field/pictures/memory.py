"""Memory: how much there is, and whether a picture fits into it."""

from pathlib import Path

import psutil
import torch

from loe_field.errors import InputError

_COPIES = 6
"""Of a picture that is fitted, itself included: the reconstruction, its file's content, and what is read back.
16384x16384 RGB of 8 bits: 4.5 GiB."""


def available_memory() -> int:
    """Bytes that this process may still take: the machine's free ones, or its control group's if those are fewer."""
    free = psutil.virtual_memory().available
    group = "/sys/fs/cgroup/memory"
    for limit, used in ((".max", ".current"), ("/memory.limit_in_bytes", "/memory.usage_in_bytes")):
        try:
            free = min(free, int(Path(group + limit).read_text()) - int(Path(group + used).read_text()))
        except (OSError, ValueError):  # no control groups, or "max"
            continue
    return max(0, free)


def free_memory(device: torch.device) -> int:
    """Bytes that a device still has free; those of a CPU are `available_memory`."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()


def check_picture_memory(
    height: int, width: int, channels: int, bytes_per_value: int, name: str, *, spline: bool = False
) -> None:
    """Refuse with InputError a picture without pixels, or one that cannot be fitted in this machine's memory.

    The spline between its pixels takes two copies in floats more.
    """
    if 0 in (width, height):
        raise InputError(f"{name} has no pixels: it is {width} x {height}")
    needed = height * width * channels * (_COPIES * bytes_per_value + 8 * spline)
    free = available_memory()
    if needed > free:
        shrink = (free / needed) ** 0.5
        raise InputError(
            f"{name} is too large for memory: {width} x {height} pixels of {channels} channels take about "
            f"{needed / 2**30:.1f} GiB to fit and {free / 2**30:.1f} GiB are free. Fit a crop, or scale it to at most "
            f"{int(width * shrink)} x {int(height * shrink)}"
        )
