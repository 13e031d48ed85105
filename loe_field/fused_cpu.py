"""The whole network as one differentiable function on a CPU, computed by kernels/cpu.c."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from loe_field.kernels.cpu import Call, NetworkShape

Recompute = Callable[[Tensor, Sequence[Tensor], Sequence[Tensor]], Tensor]
"""x, weights and biases to the output, in differentiable torch operations."""


class _Network(torch.autograd.Function):
    """First derivatives by the kernels; where a graph of them is wanted, by torch operations on the same inputs."""

    @staticmethod
    def forward(
        ctx: Any, coords: Tensor, x: Tensor, shape: NetworkShape, recompute: Recompute, keep: bool, *parameters: Tensor
    ) -> Tensor:
        half = len(parameters) // 2
        contiguous = [p.detach().contiguous() for p in parameters]
        call = Call(shape, x.contiguous(), contiguous[:half], contiguous[half:])
        out, index, z = call.forward(coords.contiguous(), keep=keep)
        if keep:
            ctx.save_for_backward(x, index, z, *parameters)
            ctx.shape, ctx.recompute = shape, recompute
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, index, z, *parameters = ctx.saved_tensors
        half = len(parameters) // 2
        _, need_x, _, _, _, *need_parameters = ctx.needs_input_grad
        if torch.is_grad_enabled():  # create_graph: the gradient is to be differentiated itself
            inputs = [t for t, need in zip((x, *parameters), (need_x, *need_parameters)) if need]
            out = ctx.recompute(x, parameters[:half], parameters[half:])
            grads = iter(torch.autograd.grad(out, inputs, grad, create_graph=True))
            grad_x, *grad_parameters = [next(grads) if need else None for need in (need_x, *need_parameters)]
        else:
            contiguous = [p.contiguous() for p in parameters]
            call = Call(ctx.shape, x.contiguous(), contiguous[:half], contiguous[half:])
            grad_x, weights, biases = call.backward(
                index, z, grad.contiguous(), need_x=need_x, need_parameters=any(need_parameters)
            )
            grads = [*weights, *biases] or [None] * len(parameters)
            grad_parameters = [g if need else None for g, need in zip(grads, need_parameters)]
        return None, grad_x, None, None, None, *grad_parameters


def network(
    coords: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    shape: NetworkShape,
    recompute: Recompute,
) -> Tensor:
    """Position-dependent layers under nearest blending with an activation after each, then the head; all fp32.

    Args:
        coords: points [N, dim]; they choose the experts.
        x: what the first layer gets, [N, in_features].
        weights: per layer [experts, out, in], the head's last, [out, in].
        biases: per layer [out].
        shape: levels, activation and the like.
        recompute: the same function in torch operations, for derivatives of derivatives.

    Returns:
        [N, out_features].

    Raises:
        ValueError: a tensor is not fp32 on the CPU.
    """
    for tensor in (coords, x, *weights, *biases):
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise ValueError(f"the CPU kernels got {tensor.dtype} on {tensor.device}: all must be float32 on the CPU")
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights, *biases))
    return _Network.apply(coords, x, shape, recompute, keep, *weights, *biases)  # type: ignore[return-value]
