"""Calls rays.c, a part of cpu.c, with contiguous fp32 tensors on the CPU."""

import ctypes

import torch
from torch import Tensor

from loe_field.network.kernels.cpu import library

MOST_SAMPLES = 4096
"""Along a ray: the kernels keep some numbers for each on the stack."""


class _Samples(ctypes.Structure):
    """`Samples` of rays.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rays", "samples", "threads", "row_starts", "row_ends")),
        *((name, ctypes.c_int64) for name in ("channels", "beside")),
        *((name, ctypes.c_void_p) for name in ("starts", "ends")),
    )


def _samples(starts: Tensor, ends: Tensor, channels: int = 1, beside: int = 0) -> _Samples:
    """Of starts and ends [N, S], neighbours in a row next to each other; rows may lie anywhere."""
    numbers = (*starts.shape, torch.get_num_threads(), starts.stride(0), ends.stride(0), channels, beside)
    return _Samples(*numbers, starts.data_ptr(), ends.data_ptr())


def _address(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _call(name: str, *arguments: Tensor | _Samples | int | float | None) -> None:
    """Call a function of rays.c, whose numbers are int64 and double."""
    given = []
    for argument in arguments:
        if isinstance(argument, _Samples):
            given.append(ctypes.byref(argument))
        elif isinstance(argument, int):
            given.append(ctypes.c_int64(argument))
        else:
            given.append(ctypes.c_double(argument) if isinstance(argument, float) else _address(argument))
    getattr(library(), name)(*given)


def coords(
    origins: Tensor, directions: Tensor, starts: Tensor, ends: Tensor, box: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Middles of samples [N, S, 3] in the unit cube, clamped to it, and whether each lies inside [N, S].

    Args:
        origins: of the rays [N, 3].
        directions: [N, 3].
        starts: of the samples [N, S].
        ends: [N, S].
        box: lower corner and size [3]; None: all of space, contracted as by `nerf.fields.Contraction`.
    """
    out = origins.new_empty(*starts.shape, 3)
    inside = torch.empty_like(starts, dtype=torch.bool, memory_format=torch.contiguous_format)
    _call("loe_ray_coords", _samples(starts, ends), origins, directions, *(box or (None, None)), out, inside)
    return out, inside


def weights(
    encoded: Tensor, inside: Tensor, starts: Tensor, ends: Tensor, prefix: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Weights [N, S] of samples; beside them rows [N, S, E + C - 1] of prefix and features, None without a prefix.

    Args:
        encoded: logarithm of the density, then features [N, S, C].
        inside: whether there is any density [N, S].
        starts: of the samples [N, S].
        ends: [N, S].
        prefix: [N, E].
    """
    found, channels, beside = (
        encoded.new_empty(starts.shape),
        encoded.shape[2],
        0 if prefix is None else prefix.shape[1],
    )
    x = None if prefix is None else encoded.new_empty(*starts.shape, beside + channels - 1)
    _call("loe_ray_weights", _samples(starts, ends, channels, beside), encoded, inside, prefix, found, x)
    return found, x


def weights_backward(
    encoded: Tensor,
    inside: Tensor,
    starts: Tensor,
    ends: Tensor,
    found: Tensor,
    grad: Tensor,
    grad_x: Tensor | None,
    beside: int,
) -> Tensor:
    """The gradient of encoded from those of the weights that were found and of the rows, which may have none."""
    out = torch.empty_like(encoded)
    samples = _samples(starts, ends, encoded.shape[2], beside)
    _call("loe_ray_weights_backward", samples, encoded, inside, found, grad, grad_x, out)
    return out


def resample(weights: Tensor, edges: Tensor, u: Tensor, jitter: Tensor | None, *, padding: float) -> Tensor:
    """Edges [N, K] at quantiles of a distribution that is constant between edges [N, S + 1].

    Args:
        weights: [N, S], to each of which padding is added.
        edges: ascending.
        u: quantiles [K] in [0, 1], ascending.
        jitter: added to a ray's quantiles [N]; None for nothing.
        padding: > 0.
    """
    (rays, samples), count = weights.shape, len(u)
    out = weights.new_empty(rays, count)
    numbers = (rays, samples, count, torch.get_num_threads(), float(padding))
    _call("loe_ray_resample", *numbers, weights, edges, u, jitter, out)
    return out


def interlevel(
    edges: Tensor, weights: Tensor, proposed_edges: Tensor, proposed: Tensor, *, eps: float, need_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Each ray's sum of max(w - bound, 0)^2 / (w + eps) [N], and its gradient for the proposed weights [N, P].

    The bound of a sample is the sum of the proposed weights whose intervals it overlaps (Mip-NeRF 360, Eq. 13).
    """
    (rays, samples), most = weights.shape, proposed.shape[1]
    loss, grad = weights.new_empty(rays), torch.empty_like(proposed) if need_grad else None
    numbers = (rays, samples, most, torch.get_num_threads(), float(eps))
    _call("loe_ray_interlevel", *numbers, edges, weights, proposed_edges, proposed, loss, grad)
    return loss, grad


def distortion(edges: Tensor, weights: Tensor, *, need_grad: bool) -> tuple[Tensor, Tensor | None]:
    """Each ray's distortion [N] (Mip-NeRF 360, Eq. 15) in linear time, and its gradient for the weights [N, S]."""
    rays, samples = weights.shape
    loss, grad = weights.new_empty(rays), torch.empty_like(weights) if need_grad else None
    _call("loe_ray_distortion", rays, samples, torch.get_num_threads(), edges, weights, loss, grad)
    return loss, grad
