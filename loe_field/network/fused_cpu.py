"""The whole network as one differentiable function on a CPU, computed by kernels/cpu.c."""

from typing import Any

import torch
from torch import Tensor

from loe_field.network.grouped import evaluate_encoded
from loe_field.network.kernels.cpu import Call
from loe_field.network.rows import ExpertRows
from loe_field.network.shape import NetworkShape, encode


class _Network(torch.autograd.Function):
    """First derivatives by the kernels; where a graph of them is wanted, by torch operations on the same inputs."""

    @staticmethod
    def forward(
        ctx: Any, coords: Tensor, x: Tensor, shape: NetworkShape, bf16: bool, keep: bool, *parameters: Tensor
    ) -> Tensor:
        layers = len(parameters) // 2
        contiguous = [p.detach().contiguous() for p in parameters]
        call = Call(shape, x.contiguous(), contiguous[:layers], contiguous[layers:], bf16=bf16)
        out, index, z = call.forward(coords.contiguous(), keep=keep)
        if keep:
            ctx.save_for_backward(x, index, z, *parameters)
            ctx.shape, ctx.bf16 = shape, bf16
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, index, z, *parameters = ctx.saved_tensors
        layers = len(parameters) // 2
        _, need_x, _, _, _, *need_parameters = ctx.needs_input_grad
        if torch.is_grad_enabled():  # create_graph: the gradient is to be differentiated itself
            inputs = [t for t, need in zip((x, *parameters), (need_x, *need_parameters)) if need]
            experts = index.to(torch.int64) & 0xFFFF  # the kernel's numbers have 16 bits and no sign
            out = evaluate_encoded(x, experts, parameters[:layers], parameters[layers:], ctx.shape)
            grads = iter(torch.autograd.grad(out, inputs, grad, create_graph=True))
            grad_x, *grad_parameters = [next(grads) if need else None for need in (need_x, *need_parameters)]
        else:
            contiguous = [p.contiguous() for p in parameters]
            call = Call(ctx.shape, x.contiguous(), contiguous[:layers], contiguous[layers:], bf16=ctx.bf16)
            grad_x, weights, biases = call.backward(
                index, z, grad.contiguous(), need_x=need_x, need_parameters=any(need_parameters)
            )
            grads = [*weights, *biases] or [None] * len(parameters)
            grad_parameters = [g if need else None for g, need in zip(grads, need_parameters)]
        return None, grad_x, None, None, None, *grad_parameters


def evaluate(
    coords: Tensor, weights: list[Tensor], biases: list[Tensor], shape: NetworkShape, *, rows: ExpertRows | None = None
) -> Tensor:
    """`grouped.evaluate` in fp32 on a CPU; under autocast the levels between the first and the head multiply bf16.

    Raises:
        ValueError: a tensor is not fp32 on the CPU.
    """
    for tensor in (coords, *weights, *biases):
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise ValueError(f"the CPU kernels got {tensor.dtype} on {tensor.device}: all must be float32 on the CPU")
    x = encode(coords, shape.num_frequencies)
    bf16 = torch.is_autocast_enabled("cpu")
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights, *biases))
    return _Network.apply(coords, x, shape, bf16, keep, *weights, *biases)  # type: ignore[return-value]
