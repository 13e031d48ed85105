"""Which rows each expert serves, as lists on the device: what the Triton kernels are steered by."""

from typing import NamedTuple

import torch
from torch import Tensor


class ExpertRows(NamedTuple):
    """The rows of every level grouped by expert."""

    order: Tensor
    """int32 [levels, N]: row numbers, those of expert 0 first, ascending within an expert."""
    starts: Tensor
    """int32 [levels, experts + 1]: expert e of level l serves the rows order[l, starts[l, e]:starts[l, e + 1]]."""


def expert_rows(index: Tensor, num_experts: int) -> ExpertRows:
    """Group the rows of all levels by expert with one stable sort, without waiting for the device.

    Args:
        index: int64 [levels, N], the expert of every row at every level, 0 .. num_experts - 1; levels * N < 2^31.
        num_experts: experts per level.

    Returns:
        The lists, on the device of index.
    """
    levels, rows = index.shape
    level = torch.arange(levels, device=index.device)[:, None]
    # A radix sort takes time in proportion to the bytes of its keys.
    last = levels * num_experts - 1
    dtype = torch.uint8 if last < 2**8 else torch.int16 if last < 2**15 else torch.int32
    keys, order = (index + num_experts * level).to(dtype).flatten().sort(stable=True)
    # Every level has all rows, so the sorted keys of level l are those from l * rows on.
    order = (order.view(levels, rows) - rows * level).to(torch.int32)
    firsts = torch.arange(levels * num_experts, device=index.device).to(dtype)
    starts = torch.searchsorted(keys, firsts, out_int32=True).view(levels, num_experts)
    starts = torch.cat([starts - (rows * level).to(torch.int32), torch.full_like(starts[:, :1], rows)], 1)
    return ExpertRows(order, starts)
