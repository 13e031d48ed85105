"""Rays that are only looked at: the field is asked where there is something to be seen, and nowhere else."""

import torch
from nerfstudio.cameras.rays import RaySamples
from nerfstudio.field_components.field_heads import FieldHeadNames
from torch import Tensor

from loe_field.nerf.fields import LoEField
from loe_field.nerf.marching import edges_of

_MOST = 0.75
"""Part of the samples from which on all are computed: choosing them costs more than it saves."""


def proposed_weights(samples: RaySamples, proposed: RaySamples, weights: Tensor) -> Tensor:
    """The weight [N, S] that a proposal network gives the field's samples: its own, spread over their intervals.

    Args:
        samples: of the field, S for each of N rays.
        proposed: the proposal network's, P for each ray.
        weights: of these, [N, P, 1].
    """
    edges, wanted = (edges_of(s) for s in (proposed, samples))
    below = torch.nn.functional.pad(weights[..., 0].cumsum(-1), (1, 0))
    right = torch.searchsorted(edges, wanted, right=True).clamp(1, edges.shape[-1] - 1)
    left = right - 1
    start, end = edges.gather(-1, left), edges.gather(-1, right)
    part = ((wanted - start) / (end - start).clamp(min=1e-12)).clamp(0, 1)
    return torch.lerp(below.gather(-1, left), below.gather(-1, right), part).diff(dim=-1)


def sparse_outputs(
    field: LoEField, samples: RaySamples, expected: Tensor, *, threshold: float, last_colour: bool
) -> tuple[Tensor, Tensor]:
    """Weights [N, S, 1] and colours [N, S, 3] of samples; what is too faint to be seen is 0 and is not computed.

    A sample whose expected weight is below the threshold has no density. A sample whose weight is below it, because it
    is empty or because little light comes past those before it, has no colour.

    Args:
        field: the field.
        samples: S for each of N rays.
        expected: their weights as the proposal network has them, [N, S].
        threshold: above 0 and below 1.
        last_colour: whether the last sample's colour is wanted wherever a ray is not opaque: it is the background.
    """
    seen = _worth_choosing(expected >= threshold)
    kept = samples[seen]
    density, features = field.get_density(kept)
    weights = samples.get_weights(_spread(density, seen))
    coloured = _worth_choosing(weights[..., 0] >= threshold) & seen
    among = coloured[seen]
    rgb = _spread(field.get_outputs(kept[among], features[among])[FieldHeadNames.RGB], coloured)
    if last_colour:
        through = weights.sum((1, 2)) < 1 - threshold
        rgb[through, -1] = field(samples[through][:, -1])[FieldHeadNames.RGB]
    return weights, rgb


def _worth_choosing(mask: Tensor) -> Tensor:
    """The mask, or all of it where it leaves out little."""
    return mask if mask.float().mean() < _MOST else torch.ones_like(mask)


def _spread(values: Tensor, where: Tensor) -> Tensor:
    """Values [M, C] at the M places that a mask [N, S] names, 0 elsewhere: [N, S, C]."""
    return values.new_zeros(*where.shape, values.shape[-1]).index_put((where,), values)
