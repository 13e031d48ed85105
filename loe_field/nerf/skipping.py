"""Rays that are only looked at: the field is asked less often, and not where nothing is to be seen."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from nerfstudio.model_components.ray_samplers import ProposalNetworkSampler
from torch import Tensor

_SAMPLES = 0.75
_PADDING = 0.001
MOST_CHOSEN = 0.75
"""Part of the rays, or of the samples, from which on all are asked: to choose some costs more than it saves."""


@contextmanager
def fewer_samples(sampler: ProposalNetworkSampler) -> Iterator[None]:
    """Let the host's sampler make _SAMPLES of its last samples, as many as before where the proposed weights are.

    In training it gives each interval 0.01 of the weight beside the proposed one, in which the proposals may be
    wrong: of 64 intervals that is four in ten samples. Here it is _PADDING.
    """
    chosen = sampler.pdf_sampler
    were = sampler.num_nerf_samples_per_ray, chosen.histogram_padding
    sampler.num_nerf_samples_per_ray = math.ceil(_SAMPLES * were[0])
    chosen.histogram_padding = _PADDING
    try:
        yield
    finally:
        sampler.num_nerf_samples_per_ray, chosen.histogram_padding = were


def with_weight(weights: Tensor, threshold: float) -> Tensor | None:
    """Numbers [M] of the rays whose proposed weights [N, P, 1] add up to the threshold, one at least; None for all."""
    rays = (weights.sum((1, 2)) >= threshold).nonzero().squeeze(1)
    rays = rays if len(rays) else rays.new_zeros(1)
    return rays if len(rays) < MOST_CHOSEN * len(weights) else None


def spread(values: Tensor, rays: Tensor, count: int) -> Tensor:
    """Values [M, ...] of rays with these numbers [M], and 0 of the others: [count, ...]."""
    return values.new_zeros(count, *values.shape[1:]).index_copy_(0, rays, values)
