"""Samples along rays by the C kernels: places, weights, new samples and the samplers' losses, each in one pass.

They give what the host's operations give, to rounding, and serve fp32 on a CPU where there is a compiler; elsewhere,
with poses that are learned and under torch's transforms, the host's operations serve.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from nerfstudio.cameras.rays import RayBundle, RaySamples
from nerfstudio.model_components.losses import EPS
from nerfstudio.model_components.ray_samplers import ProposalNetworkSampler
from torch import Tensor
from torch.autograd.function import once_differentiable

from loe_field.network.kernels import cpu
from loe_field.network.kernels import rays as kernels
from loe_field.network.modes import needs_operators, needs_plain


def kernels_serve(*tensors: Tensor | None, samples: int) -> bool:
    """Whether the kernels compute with these tensors, for so many samples on a ray."""
    given = [t for t in tensors if t is not None]
    return (
        all(t.device.type == "cpu" and t.dtype == torch.float32 for t in given)
        and samples <= kernels.MOST_SAMPLES
        and not needs_plain(*given)
        and not needs_operators()
        and cpu.available()
    )


def edges_of(samples: RaySamples) -> Tensor:
    """Where the S intervals of samples begin and end, [N, S + 1], in the sampler's own measure."""
    assert samples.spacing_starts is not None
    assert samples.spacing_ends is not None
    return torch.cat([samples.spacing_starts[..., 0], samples.spacing_ends[..., -1:, 0]], -1)


def _ends(samples: RaySamples) -> tuple[Tensor, Tensor]:
    """Where samples begin and end along the rays, [N, S], neighbours next to each other."""
    found = samples.frustums.starts[..., 0], samples.frustums.ends[..., 0]
    return found if all(t.stride(1) == 1 for t in found) else tuple(t.contiguous() for t in found)  # type: ignore[return-value]


def coords_of(bundle: RayBundle, samples: RaySamples, box: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """Middles of samples [N, S, 3] in the unit cube, and whether each lies inside it [N, S]; see `kernels.coords`."""
    return kernels.coords(bundle.origins.contiguous(), bundle.directions.contiguous(), *_ends(samples), box)


def weights_of(
    samples: RaySamples, encoded: Tensor, inside: Tensor, prefix: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Weights [N, S, 1] of samples; with a prefix [N, E] also [N, S, E + C - 1], that and the samples' features.

    Args:
        samples: S on each of N rays.
        encoded: logarithm of the density, then features [N, S, C].
        inside: whether there is any density [N, S].
        prefix: numbers of each ray.
    """
    weights, x = _Weights.apply(encoded, inside, *_ends(samples), prefix)  # type: ignore[misc]
    return weights[..., None], x


class _Weights(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, encoded: Tensor, inside: Tensor, starts: Tensor, ends: Tensor, prefix: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        encoded = encoded.detach().contiguous()
        weights, x = kernels.weights(encoded, inside, starts, ends, prefix)
        ctx.save_for_backward(encoded, inside, starts, ends, weights)
        ctx.beside = 0 if prefix is None else prefix.shape[1]
        ctx.set_materialize_grads(False)
        return weights, x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_x: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        encoded, inside, starts, ends, weights = ctx.saved_tensors
        grad = torch.zeros_like(weights) if grad is None else grad.contiguous()
        grad_x = None if grad_x is None else grad_x.contiguous()
        found = kernels.weights_backward(encoded, inside, starts, ends, weights, grad, grad_x, ctx.beside)
        return found, None, None, None, None


class _WithGradient(torch.autograd.Function):
    """A number whose gradient for `parameter` was found with it."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, value: Tensor, gradient: Tensor | None) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = ctx.saved_tensors
        return grad * gradient, None, None


def interlevel_loss(weights: Sequence[Tensor], samples: Sequence[RaySamples]) -> Tensor:
    """The host's loss of the same name: the proposal networks' weights bound the field's, which come last."""
    edges, last = edges_of(samples[-1]), weights[-1].detach()[..., 0]
    total = last.new_zeros(())
    for proposed, its_samples in zip(weights[:-1], samples[:-1]):
        flat = proposed.detach()[..., 0]
        need = proposed.requires_grad
        loss, grad = kernels.interlevel(edges, last, edges_of(its_samples), flat, eps=EPS, need_grad=need)
        loss, scale = loss.sum() / last.numel(), 1 / last.numel()
        total = total + (loss if grad is None else _WithGradient.apply(proposed, loss, grad[..., None].mul_(scale)))
    return total


def distortion_loss(weights: Sequence[Tensor], samples: Sequence[RaySamples]) -> Tensor:
    """The host's loss of the same name, in linear instead of quadratic time."""
    found, flat = weights[-1], weights[-1].detach()[..., 0]
    loss, grad = kernels.distortion(edges_of(samples[-1]), flat, need_grad=found.requires_grad)
    loss, scale = loss.mean(), 1 / len(flat)
    return loss if grad is None else _WithGradient.apply(found, loss, grad[..., None].mul_(scale))  # type: ignore[return-value]


class KernelSampler(ProposalNetworkSampler):
    """The host's sampler, with what lies between networks by the kernels; its random numbers are the host's."""

    def proposals(
        self, bundle: RayBundle, networks: Iterable[Any]
    ) -> tuple[RaySamples, list[Tensor], list[RaySamples]]:
        """As `forward` for `kernels_serve`; networks are LoEDensityFields."""
        updated = self._steps_since_update > self.update_sched(self._step) or self._step < 10
        counts = [*self.num_proposal_samples_per_ray, self.num_nerf_samples_per_ray]
        samples = self.initial_sampler(bundle, num_samples=counts[0])
        weights_list, samples_list = [], []
        for network, count in zip(networks, counts[1:]):
            with torch.set_grad_enabled(torch.is_grad_enabled() and updated):
                weights = network.weights(bundle, samples)
            weights_list.append(weights)
            samples_list.append(samples)
            trusted = weights.detach()[..., 0]
            if self._anneal != 1:
                trusted = trusted.pow(self._anneal)
            samples = self._resampled(bundle, samples, trusted, count)
        if updated:
            self._steps_since_update = 0
        return samples, weights_list, samples_list

    def _resampled(self, bundle: RayBundle, samples: RaySamples, weights: Tensor, count: int) -> RaySamples:
        """So many samples where the weights [N, S] are."""
        pdf, edges = self.pdf_sampler, edges_of(samples).expand(len(weights), -1).contiguous()
        u, jitter = torch.linspace(0, 1 - 1 / (count + 1), count + 1), None
        if pdf.train_stratified and self.training:
            jitter = torch.rand(len(weights)) / (count + 1)
        else:
            u = u + 1 / (2 * (count + 1))
        new = kernels.resample(weights.contiguous(), edges, u, jitter, padding=pdf.histogram_padding)
        to_lengths = samples.spacing_to_euclidean_fn
        assert to_lengths is not None
        lengths = to_lengths(new)
        return bundle.get_ray_samples(
            bin_starts=lengths[:, :-1, None],
            bin_ends=lengths[:, 1:, None],
            spacing_starts=new[:, :-1, None],
            spacing_ends=new[:, 1:, None],
            spacing_to_euclidean_fn=to_lengths,
        )
