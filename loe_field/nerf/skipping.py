"""Rays that are only looked at: the field is asked where there is something to be seen, and nowhere else."""

import math
from collections.abc import Sequence

import torch
from nerfstudio.cameras.rays import Frustums, RayBundle, RaySamples
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.model_components.ray_samplers import PDFSampler, ProposalNetworkSampler
from nerfstudio.model_components.renderers import DepthRenderer, RGBRenderer
from torch import Tensor

from loe_field.nerf.fields import LoEDensityField, LoEField

_SAMPLES = 0.75
"""Part of the field's samples that is left: the host's sampler gives each of 64 intervals 0.01 of the weight beside the
proposed ones, in which the proposals may still be wrong; with 0.001 fewer samples are as many where the weight is."""
_FAINT = 10
"""Thresholds, of its ray's whole weight, that a sample must weigh to have a colour of its own."""
_AT_ONCE = 1024
"""Rays that a CPU renders at once: what 4,096 of them need leaves its caches, and takes 1.4 times as long."""


def seen(
    rays: RayBundle,
    *,
    field: LoEField,
    proposals: Sequence[LoEDensityField],
    sampler: ProposalNetworkSampler,
    renderer: RGBRenderer,
    threshold: float,
) -> dict[str, Tensor]:
    """Rgb [N, 3], accumulation, depth (median) and expected_depth, each [N, 1], without what is hardly seen.

    - Each interval of the proposals has the threshold beside its weight, not the 0.01 of the training, and there are
      _SAMPLES of its samples.
    - A ray whose proposed weights do not add up to the threshold sees the background.
    - A sample that weighs little, because it is thin or because little light comes past those before it, has the mean
      colour of its ray's others: no light is lost.

    Args:
        rays: N of them, with nears and fars.
        field: densities and colours.
        proposals: the proposal networks.
        sampler: of the training, which has the counts.
        renderer: it puts the background behind the rays.
        threshold: above 0 and below 1.
    """
    step = _AT_ONCE if rays.origins.device.type == "cpu" else len(rays)
    parts = [
        _seen(rays[first : first + step], field, proposals, sampler, renderer, threshold)
        for first in range(0, len(rays), step)
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _seen(
    rays: RayBundle,
    field: LoEField,
    proposals: Sequence[LoEDensityField],
    sampler: ProposalNetworkSampler,
    renderer: RGBRenderer,
    threshold: float,
) -> dict[str, Tensor]:
    counts = list(sampler.num_proposal_samples_per_ray)
    counts.append(math.ceil(_SAMPLES * sampler.num_nerf_samples_per_ray))
    choose = PDFSampler(include_original=False, histogram_padding=threshold).eval()
    behind = renderer.background_color == "last_sample"
    samples, hit = sampler.initial_sampler(rays, num_samples=counts[0]), None
    for number, (proposal, count) in enumerate(zip(proposals, counts[1:])):
        weights = samples.get_weights(proposal.density_fn(samples.frustums.get_positions()))
        if number == len(proposals) - 1 and not behind:
            hit = (weights.sum((1, 2)) >= threshold).nonzero().squeeze(1)
            if len(hit) < len(rays):
                fresh = sampler.initial_sampler(rays[hit], num_samples=1)  # with the measure of these rays alone
                fresh.spacing_starts, fresh.spacing_ends = samples.spacing_starts[hit], samples.spacing_ends[hit]
                samples, weights = fresh, weights[hit]
            else:
                hit = None
        samples = choose(rays if hit is None else rays[hit], samples, weights, num_samples=count)
    found = _rendered(field, samples, renderer, threshold, behind)
    if hit is None:
        return found
    assert rays.fars is not None
    nothing = rays.origins.new_zeros(len(rays), 1, 1)
    empty = {
        "rgb": renderer(rgb=nothing.expand(-1, -1, 3), weights=nothing),
        "accumulation": nothing[:, 0],
        "depth": rays.fars,
        "expected_depth": rays.fars,
    }
    return {name: value.index_copy(0, hit, found[name]) for name, value in empty.items()}


def _rendered(
    field: LoEField, samples: RaySamples, renderer: RGBRenderer, threshold: float, behind: bool
) -> dict[str, Tensor]:
    """What rays see, by the samples [N, S] along them."""
    rays, count = samples.frustums.shape
    directions = samples.frustums.directions[:, 0]
    density, features = field.get_density(samples)
    weights = samples.get_weights(density)
    whole = weights.sum(1, keepdim=True)
    bright = (weights >= min(_FAINT * threshold, 1 / (2 * count)) * whole).flatten().nonzero().squeeze(1)

    def colours(chosen: Tensor) -> Tensor:
        """Of samples with these numbers [M], [M, 3]."""
        none = directions.new_zeros(len(chosen), 1)
        towards = directions[chosen // count]
        picked = RaySamples(Frustums(towards, towards, starts=none, ends=none, pixel_area=none))
        return field.get_outputs(picked, features.flatten(0, 1)[chosen])[FieldHeadNames.RGB]

    lit = weights.flatten(0, 1)[bright]
    light = weights.new_zeros(rays * count, 4).index_copy_(0, bright, torch.cat([lit * colours(bright), lit], -1))
    light = light.view(rays, count, 4).sum(1, keepdim=True)
    rgb = light[..., :3] / light[..., 3:].clamp(min=1e-9)
    if behind:
        last = torch.arange(count - 1, rays * count, count, device=rgb.device)
        rgb = torch.cat([rgb, colours(last)[:, None]], 1)
    return {
        "rgb": renderer(rgb=rgb, weights=torch.cat([whole, torch.zeros_like(whole)], 1) if behind else whole),
        "accumulation": whole[:, 0],
        "depth": DepthRenderer("median")(weights=weights, ray_samples=samples),
        "expected_depth": DepthRenderer("expected")(weights=weights, ray_samples=samples),
    }
