"""Which rows each expert serves: as lists on the device for the Triton kernels, as permutations for plain PyTorch."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_LARGEST_PADDING = 0.25
"""Zero rows per row up to which padding pays: with batched products instead of one per expert a network's forward and
backward took 0.8 of the time (8,192 rows, two threads of an EPYC)."""


class ExpertRows(NamedTuple):
    """The rows of every level grouped by expert."""

    order: Tensor
    """int32 [levels, N]: row numbers, those of expert 0 first, ascending within an expert."""
    starts: Tensor
    """int32 [levels, experts + 1]: expert e of level l serves the rows order[l, starts[l, e]:starts[l, e + 1]]."""


class RowGroups(NamedTuple):
    """How the rows reach one level: from the slots of the level before into slots grouped by expert."""

    perm: Tensor | None
    """int64 [slots]: slot k takes what is in slot perm[k] of the level before (row perm[k] of the input at first); None
    where every slot stays what it is, which pads and inverse then say nothing about."""
    pads: Tensor | None
    """int64: the slots that hold no row and are zero; None if there are none."""
    inverse: Tensor
    """int64 [slots of the level before]: where each of them goes."""
    pads_before: Tensor | None
    """int64: the slots of the level before that hold no row."""
    splits: list[int]
    """Slots per expert, [experts]."""
    rows: Tensor | None = None
    """int64 [slots]: the row of the input in every slot, any row in those that hold none; None: slots are rows."""


def _sort_rows(index: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """`ExpertRows` with an order in int64, by one stable sort for all levels that does not wait for the device."""
    levels, rows = index.shape
    level = torch.arange(levels, device=index.device)[:, None]
    # A radix sort takes time in proportion to the bytes of its keys.
    last = levels * num_experts - 1
    dtype = torch.uint8 if last < 2**8 else torch.int16 if last < 2**15 else torch.int32
    keys, order = (index + num_experts * level).to(dtype).flatten().sort(stable=True)
    # Every level has all rows, so the sorted keys of level l are those from l * rows on.
    firsts = torch.arange(levels * num_experts, device=index.device).to(dtype)
    starts = torch.searchsorted(keys, firsts, out_int32=True).view(levels, num_experts)
    starts = torch.cat([starts - (rows * level).to(torch.int32), torch.full_like(starts[:, :1], rows)], 1)
    return order.view(levels, rows) - rows * level, starts


def expert_rows(index: Tensor, num_experts: int) -> ExpertRows:
    """Group the rows of all levels by expert, without waiting for the device.

    Args:
        index: int64 [levels, N], the expert of every row at every level, 0 .. num_experts - 1; levels * N < 2^31.
        num_experts: experts per level.

    Returns:
        The lists, on the device of index.
    """
    order, starts = _sort_rows(index, num_experts)
    return ExpertRows(order.to(torch.int32), starts)


def group_rows(index: Tensor, num_experts: Sequence[int]) -> tuple[list[RowGroups], RowGroups]:
    """Plan the permutations of a whole network.

    Args:
        index: int64 [levels, N], the expert of every row at every level, 0 .. num_experts - 1.
        num_experts: experts of each level. A level with one takes the rows as they lie.

    Returns:
        One RowGroups per level, and one that brings the rows of the last level back into the input's order (its
        splits are those of a single group).
    """
    levels, rows = index.shape
    order, starts = _sort_rows(index, max(num_experts))
    everyone = torch.arange(rows, device=index.device)
    slot = torch.empty_like(order).scatter_(1, order, everyone.expand(levels, rows))

    groups: list[RowGroups] = []
    # Slots of the level before: the slot of every row, the row in every slot, and the slots without one.
    slot_before, row_before, pads_before = everyone, everyone, None
    for i, (bounds, experts) in enumerate(zip(starts.tolist(), num_experts)):
        if experts == 1:
            groups.append(RowGroups(None, None, everyone, None, [len(row_before)], row_before))
            continue
        splits = [end - start for start, end in itertools.pairwise(bounds[: experts + 1])]
        slot_here, row_here, pads = slot[i], order[i], None
        longest = max(splits)
        if rows < experts * longest <= (1 + _LARGEST_PADDING) * rows:
            shift = torch.tensor([e * longest - start for e, start in enumerate(bounds[:experts])], device=index.device)
            empty = [k for e, n in enumerate(splits) for k in range(e * longest + n, (e + 1) * longest)]
            pads = torch.tensor(empty, device=index.device)
            slot_here = slot_here + shift[index[i]]
            row_here = order.new_zeros(experts * longest).scatter_(0, slot_here, everyone)
            splits = [longest] * experts
        perm, inverse = slot_before.index_select(0, row_here), slot_here.index_select(0, row_before)
        groups.append(RowGroups(perm, pads, inverse, pads_before, splits, row_here))
        slot_before, row_before, pads_before = slot_here, row_here, pads
    return groups, RowGroups(slot_before, None, row_before, pads_before, [rows])
