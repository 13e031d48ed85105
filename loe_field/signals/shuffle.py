"""A random order of many things that is computed where it is asked for, instead of being kept."""

import math

import numpy as np
from torch import Tensor

_FACTORS = 0x21F0AAAD, 0x7FEB352D
"""Of the hash: odd, and below 2^31, so that no product leaves 64 bits."""
_BITS = 0xFFFFFFFF


def shuffled(places: Tensor, count: int, *keys: int) -> Tensor:
    """What lies at some places of a random order of the numbers 0 .. count - 1, which whole numbers alone decide.

    A number is a cell of a grid that is about square, and goes through a Feistel network of four rounds (Luby and
    Rackoff, 1988): its column is shifted cyclically by a hash of its row, then its row by one of its column, and again.
    The few that end beyond the last number go through it once more, until they do not (Black and Rogaway, "Ciphers with
    Arbitrary Finite Domains", 2002).

    Args:
        places: int64 [N], 0 .. count - 1.
        count: of the numbers, 1 to 2^48.
        keys: >= 0; others give another order.

    Returns:
        int64 [N], on the device of places, the same numbers on every device.
    """
    across = math.isqrt(count - 1) + 1
    down = -(-count // across)
    column, row = places % across, places // across
    for first, second in np.random.SeedSequence(keys).generate_state(4).reshape(2, 2).tolist():
        column = _shifted(column, row, across, first)
        row = _shifted(row, column, down, second)
    found = row.mul_(across).add_(column)
    beyond = (found >= count).nonzero()[:, 0]
    if len(beyond):
        found[beyond] = shuffled(found[beyond], count, *keys)
    return found


def _shifted(numbers: Tensor, by: Tensor, count: int, key: int) -> Tensor:
    """Numbers 0 .. count - 1, each shifted cyclically by a hash of another number."""
    mixed = (by ^ key).mul_(_FACTORS[0])
    mixed = mixed.bitwise_xor_(mixed >> 17).bitwise_and_(_BITS).mul_(_FACTORS[1]).bitwise_and_(_BITS)
    shifted = mixed.mul_(count).bitwise_right_shift_(32).add_(numbers)
    return shifted.sub_((shifted >= count).mul(count))
