"""Sizes of the recipe, from those of the signal: experts per axis, levels, and samples per step."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

_WIDTH, _OCTAVES = 64, 7
"""Channels of the recipe, and octaves of its encoded coordinates."""
PARAMETERS_PER_TARGET = 0.55
_LARGEST_TILE = 8
_TIMED_FROM = 2**22
"""Samples from which on a run ends by the clock."""
_SECONDS, _SECONDS_PER_SAMPLE = 120, 3e-6
"""What it then takes: three minutes for 20 megapixels, five and a half for 8192x8192."""
_BIAS_TILES = (11, 32)
"""Vectors per axis, at least and at most."""


def tile_size_for(resolution: Sequence[int], channels: int) -> int:
    """Experts per axis: 2, or 4 or 8 where that makes no more than 0.55 parameters per target (camera has 0.53 with 2).

    More experts hold more at the same arithmetic per pixel. The same photograph, the same processor time on one core
    (bf16, one seed); tile size, pixels per step and PSNR:
    1024x1024 RGB, 90 s: 2, 8,192: 41.34. 4, 8,192: 44.94. 4, 16,384: 46.11. 4, 32,768: 46.05.
    1080x1920 RGB, 120 s: 2, 8,192: 38.18. 4, 8,192: 40.59. 4, 32,768: 42.13. 8, 16,384: 43.23. 8, 32,768: 44.48, and
    45.28 without the two levels whose tiles were larger than the picture.
    """
    dim, tile_size = len(resolution), 2
    while tile_size < _LARGEST_TILE:
        larger = 2 * tile_size
        rows = dim * (1 + 2 * _OCTAVES) + (levels_for(resolution, larger) - 1) * _WIDTH
        if larger**dim * rows * _WIDTH > PARAMETERS_PER_TARGET * math.prod(resolution) * channels:
            break
        tile_size = larger
    return tile_size


def bias_tile_size_for(resolution: Sequence[int], channels: int, others: int, numbers_per_vector: int) -> int:
    """Vectors per axis of all bias tiles, 11 to 32, that make 0.55 parameters per target.

    11 is camera's number, and what small pictures want too. Three levels of experts, a crop of it of 128x128, 200
    steps, one seed, PSNR on the grid and the half-pixel grid: 8 vectors 40.48 / 39.29, 11 41.98 / 40.50; experts on
    all levels and no tiles, which is as many parameters as 11, 41.95 / 36.44.

    Args:
        resolution: samples along each coordinate.
        channels: numbers per sample.
        others: parameters without the tiles.
        numbers_per_vector: of all levels together.
    """
    vectors = (PARAMETERS_PER_TARGET * math.prod(resolution) * channels - others) / numbers_per_vector
    smallest, largest = _BIAS_TILES
    return min(largest, max(smallest, math.floor(max(vectors, 0) ** (1 / len(resolution)))))


def fine_bias_levels(resolution: Sequence[int], num_levels: int) -> tuple[tuple[float, float], ...]:
    """Alpha and beta of the bias tiles: 1 to 1/8 of a vector per sample of the longest side, in equal ratios.

    In a picture of camera's size tiles of all levels repeat then, and no two with one period. Octaves down to alpha 2
    leave most vectors of the coarse tiles outside the unit square.
    """
    finest, steps = max(resolution), max(1, num_levels - 1)
    return tuple((finest * 8 ** (-level / steps), 0.0) for level in range(num_levels))


def levels_for(resolution: Sequence[int], tile_size: int) -> int:
    """Levels: the paper's 9, and enough that the finest cell is no larger than a sample's.

    Measured on two photographs (one seed, 2x2 tiles; PSNR of the first / the second picture).
    768x512, 800 steps: 9 levels 42.25 / 38.74, 10 levels 42.82 / 39.58.
    300x200, 400 steps: 8 levels 46.78 / 43.64, 9 levels 48.45 / 44.51, 10 levels 49.54 / 45.24; every level adds 16,448
    parameters, and small pictures stay with 9.
    Filling the unit square, per axis, with 9 levels, against cells of whole pixels (coordinates of 1/512 a pixel):
    42.25 / 38.74 against 42.27 / 38.82 at 768x512, and 48.45 / 44.51 against 47.28 / 43.92 at 300x200.
    """
    cells_of_the_largest = max(2, tile_size) / 2
    return max(9, math.ceil(math.log2(max(resolution) / cells_of_the_largest)))


def seconds_for(resolution: Sequence[int]) -> float | None:
    """Seconds of training on a CPU where nothing else says when it ends; None: the steps of the recipe do.

    6,000 steps see each of 262,144 samples 190 times and take some minutes; of 20 million they see each 10 times and
    take half an hour on the processor where camera takes three minutes.
    """
    samples = math.prod(resolution)
    return None if samples < _TIMED_FROM else float(round(_SECONDS + _SECONDS_PER_SAMPLE * samples))


def samples_per_batch_for(resolution: Sequence[int], channels: int, *, by_clock: bool = False) -> int:
    """Samples per step: 4,096 for every expert along an axis, so that each has enough of them; see `tile_size_for`.

    1,024 where a run ends by the clock (`seconds_for`) after a pass or so: more steps are worth more there, though Muon
    then takes a quarter of the time. Two photographs side by side, 2160x1920 RGB, 4x4 tiles, 20 s of one core that
    others shared (fp32, one seed): 4,096 samples 33.03 dB after 596 steps, 16,384 30.24 after 198.
    """
    few = by_clock and seconds_for(resolution) is not None
    return (1024 if few else 4096) * tile_size_for(resolution, channels)


class SmallNetwork(NamedTuple):
    """The sizes of a network for a small picture, one of many."""

    layer_width: int
    """Channels of the hidden layers."""
    tile_size: tuple[int, ...]
    """Experts per axis of every level, the finest first."""
    num_frequencies: int
    """Octaves of the encoded coordinates."""

    def num_parameters(self, dim: int, channels: int) -> int:
        """All numbers of the network."""
        width, first, *others = self.layer_width, *(size**dim for size in self.tile_size)
        matrices = first * dim * (1 + 2 * self.num_frequencies) + sum(others) * width
        return matrices * width + len(self.tile_size) * width + channels * (width + 1)

    def options(self, resolution: Sequence[int], channels: int) -> dict[str, Any]:
        """Arguments of LoEMLP: from cells of one sample down to a tile that covers the signal once."""
        return {
            "dim": len(resolution),
            "out_features": channels,
            "num_layers": len(self.tile_size) + 1,
            "layer_width": self.layer_width,
            "tile_size": self.tile_size,
            "pattern": [(alpha, 0.0) for alpha in self._scales(resolution)],
            "num_frequencies": self.num_frequencies,
        }

    def _scales(self, resolution: Sequence[int]) -> list[float]:
        """Cells along an axis, level by level; the finest are samples of the longest axis.

        With the shortest axis's cells instead, 48x32, 60x40 and 96x32 pixels lost 2.8 to 3.7 dB.
        """
        finest, coarsest, levels = max(resolution), self.tile_size[-1], len(self.tile_size)
        ratio = max(1.0, finest / coarsest) ** (1 / (levels - 1))
        return [max(finest, coarsest) / ratio**i for i in range(levels)]

    def serves(self, resolution: Sequence[int]) -> bool:
        """Whether every expert of every level has samples."""
        return all(
            len({math.floor(alpha * (i + 0.5) / samples) % tile for i in range(samples)}) == tile
            for alpha, tile in zip(self._scales(resolution), self.tile_size)
            for samples in resolution
        )


_LEAST_WIDTH, _LEAST_TILE, _LARGEST_SMALL_TILE = 4, 2, 16


def small_network_for(
    resolution: Sequence[int], channels: int, parameters_per_target: float = PARAMETERS_PER_TARGET
) -> SmallNetwork:
    """The network for one of many small pictures: the largest within so many parameters per target.

    A tile has as many experts as leave a width of 5 or more, but no more than a sixteenth of the picture along an axis,
    or 4: experts cost no time, channels do. The finest level may have a smaller tile, so that the budget is used. The
    smallest that makes sense has 2x2 experts of width 4; a picture of less than some 500 targets gets it and then has
    more parameters per target. Windows of photographs, full steps, mean PSNR, multiply-adds per pixel:
    32x32 RGB, 200 steps: 2x2, width 9: 41.3 dB, 405. 4x4, width 5, the finest level 3x3: 42.5, 140.
    128x128 RGB, 100 steps: 4x4, width 17: 37.9, 1,666. 8x8, width 9: 38.5, 441. 16x16, width 5: 38.2, 120.
    """
    dim, budget = len(resolution), parameters_per_target * math.prod(resolution) * channels
    tile = 2 ** math.floor(math.log2(min(_LARGEST_SMALL_TILE, max(4, max(resolution) / 16))))
    while tile >= _LEAST_TILE:
        levels = max(2, round(math.log2(max(1, max(resolution) / tile))) + 1)
        sizes = [
            SmallNetwork(width, (first, *[tile] * (levels - 1)), octaves)
            for width in range(_LEAST_WIDTH + 1, 65)
            for first in range(max(_LEAST_TILE, tile // 2), tile + 1)
            for octaves in (1, 2, 3)
        ]
        if fitting := [size for size in sizes if size.num_parameters(dim, channels) <= budget]:
            return max(fitting, key=lambda size: (size.serves(resolution), size.num_parameters(dim, channels)))
        tile //= 2
    levels = max(2, round(math.log2(max(1, max(resolution) / _LEAST_TILE))) + 1)
    return SmallNetwork(_LEAST_WIDTH, (_LEAST_TILE,) * levels, 1)
