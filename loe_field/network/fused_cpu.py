"""The whole network as one differentiable function on a CPU, computed by kernels/cpu.c."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from loe_field.network.grid import features_by_kernels
from loe_field.network.grouped import evaluate_encoded, features_of_fields
from loe_field.network.kernels.cpu import Call, FieldsCall, padded
from loe_field.network.modes import gradients_by_torch, needs_operators, transformed
from loe_field.network.rows import ExpertRows
from loe_field.network.shape import NetworkShape, encode
from loe_field.network.tiling import Level, expert_index, numbers_of_tiles, tiles_of_numbers


def _call(x: Tensor, parameters: Sequence[Tensor], shape: NetworkShape, bf16: bool) -> Call:
    contiguous = [p.detach().contiguous() for p in parameters]
    layers = len(parameters) // 2
    return Call(shape, x.contiguous(), contiguous[:layers], contiguous[layers:], bf16=bf16)


def _forward(
    coords: Tensor, x: Tensor, parameters: Sequence[Tensor], shape: NetworkShape, bf16: bool, keep: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`Call.forward`; parameters are weights, then biases."""
    return _call(x, parameters, shape, bf16).forward(coords.contiguous(), keep=keep)


def _backward(
    coords: Tensor,
    x: Tensor,
    index: Tensor,
    z: Tensor,
    grad: Tensor,
    parameters: Sequence[Tensor],
    shape: NetworkShape,
    bf16: bool,
    need_coords: bool,
    need_x: bool,
    need_parameters: bool,
) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
    """`Call.backward`: the gradients of coords, x and of all parameters, none of these if not needed."""
    needs = {"need_coords": need_coords, "need_x": need_x, "need_parameters": need_parameters}
    call = _call(x, parameters, shape, bf16)
    grad_coords, grad_x, weights, biases = call.backward(coords.contiguous(), index, z, grad.contiguous(), **needs)
    return grad_coords, grad_x, [*weights, *biases]


def _gradients(
    saved: Sequence[Tensor],
    grad: Tensor,
    shape: NetworkShape,
    bf16: bool,
    need_coords: bool,
    need_x: bool,
    need: Sequence[bool],
    kernel: Callable[..., tuple[Tensor | None, Tensor | None, list[Tensor]]],
) -> tuple[Tensor | None, Tensor | None, list[Tensor | None]]:
    """First derivatives by the kernel; where a graph or a batch of them is wanted, by torch on the same inputs."""
    coords, x, index, z, *parameters = saved
    need_coords = need_coords and shape.blends_bias
    if not torch.is_grad_enabled() and not transformed(grad):
        needs = (need_coords, need_x, any(need))
        grad_coords, grad_x, grads = kernel(coords, x, index, z, grad, parameters, shape, bf16, *needs)
        return grad_coords, grad_x, [g if needed else None for g, needed in zip(grads or [None] * len(need), need)]
    experts = index.to(torch.int64) & 0xFFFF  # the kernel's numbers have 16 bits and no sign
    layers = len(parameters) // 2

    def network(coords: Tensor, x: Tensor, *parameters: Tensor) -> Tensor:
        return evaluate_encoded(coords, x, experts, list(parameters[:layers]), list(parameters[layers:]), shape)

    needs = (need_coords, need_x, *need)
    grad_coords, grad_x, *rest = gradients_by_torch(network, (coords, x, *parameters), needs, grad)
    return grad_coords, grad_x, rest


class _Network(torch.autograd.Function):
    """The network for autograd as it is; the operator below, with all that torch puts around it, takes 0.5 ms more."""

    @staticmethod
    def forward(
        ctx: Any, coords: Tensor, x: Tensor, shape: NetworkShape, bf16: bool, keep: bool, *parameters: Tensor
    ) -> Tensor:
        out, index, z = _forward(coords, x, parameters, shape, bf16, keep)
        if keep:
            ctx.save_for_backward(coords, x, index, z, *parameters)
            ctx.shape, ctx.bf16 = shape, bf16
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        need_coords, need_x, _, _, _, *need = ctx.needs_input_grad
        grad_coords, grad_x, grads = _gradients(
            ctx.saved_tensors, grad, ctx.shape, ctx.bf16, need_coords, need_x, need, _backward
        )
        return grad_coords, grad_x, None, None, None, *grads


# The same as operators of torch, whose arguments are tensors, numbers and text. An empty tensor stands for none.


def _numbers(shape: NetworkShape) -> tuple[list[float], int, list[int], list[float], str, float]:
    levels = [number for level in shape.levels for number in level]
    sizes = [shape.tile_size] if isinstance(shape.tile_size, int) else list(shape.tile_size)
    tiles = numbers_of_tiles(shape.bias_tiles or [None] * len(shape.levels))  # an empty list counts as one of tensors
    return levels, shape.dim, sizes, tiles, shape.activation, shape.omega_0


def _shape(
    levels: Sequence[float], dim: int, sizes: Sequence[int], tiles: Sequence[float], activation: Any, omega_0: float
) -> NetworkShape:
    pairs = tuple(Level(*pair) for pair in zip(levels[::2], levels[1::2]))
    tile_size = sizes[0] if len(sizes) == 1 else tuple(sizes)
    return NetworkShape(pairs, dim, tile_size, activation, omega_0, bias_tiles=tuple(tiles_of_numbers(tiles)))


@torch.library.custom_op("loe_field::network", mutates_args=(), device_types="cpu")
def _operator(
    coords: Tensor,
    x: Tensor,
    parameters: Sequence[Tensor],
    levels: Sequence[float],
    dim: int,
    sizes: Sequence[int],
    tiles: Sequence[float],
    activation: str,
    omega_0: float,
    bf16: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = _shape(levels, dim, sizes, tiles, activation, omega_0)
    out, index, z = _forward(coords, x, parameters, shape, bf16, keep)
    return out, index, x.new_empty(0) if z is None else z


@_operator.register_fake
def _(coords: Tensor, x: Tensor, parameters: Sequence[Tensor], *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    points, levels, keep = x.shape[0], len(parameters) // 2 - 1, others[-1]
    z = (levels, points, padded(parameters[0].shape[-2])) if keep else (0,)
    index = x.new_empty(levels, points, dtype=torch.int16)
    return x.new_empty(points, parameters[levels].shape[-2]), index, x.new_empty(z)


@torch.library.custom_op("loe_field::network_backward", mutates_args=(), device_types="cpu")
def _backward_operator(
    coords: Tensor,
    x: Tensor,
    index: Tensor,
    z: Tensor,
    grad: Tensor,
    parameters: Sequence[Tensor],
    levels: Sequence[float],
    dim: int,
    sizes: Sequence[int],
    tiles: Sequence[float],
    activation: str,
    omega_0: float,
    bf16: bool,
    need_coords: bool,
    need_x: bool,
    need_parameters: bool,
) -> list[Tensor]:
    shape = _shape(levels, dim, sizes, tiles, activation, omega_0)
    needs = (need_coords, need_x, need_parameters)
    *found, grads = _backward(coords, x, index, z, grad, parameters, shape, bf16, *needs)
    return [*(x.new_empty(0) if g is None else g for g in found), *grads]


@_backward_operator.register_fake
def _(coords: Tensor, x: Tensor, index: Tensor, z: Tensor, grad: Tensor, parameters: Sequence[Tensor],
      *others: Any) -> list[Tensor]:  # fmt: skip
    *_, need_coords, need_x, need_parameters = others
    grads = [t.new_empty(t.shape if needed else 0) for t, needed in ((coords, need_coords), (x, need_x))]
    return [*grads, *(p.new_empty(p.shape) for p in parameters if need_parameters)]


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    coords, x, parameters, *numbers, bf16, keep = inputs
    _, index, z = output
    ctx.mark_non_differentiable(index, z)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*((coords, x, index, z, *parameters) if keep else ()))
    ctx.shape, ctx.bf16 = _shape(*numbers), bf16


def _differentiate(ctx: Any, grad: Tensor, *_: None) -> tuple[Any, ...]:
    def kernel(*arguments: Any) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
        *tensors, shape, bf16, need_coords, need_x, need_parameters = arguments
        needs = (need_coords, need_x, need_parameters)
        grad_coords, grad_x, *grads = _backward_operator(*tensors, *_numbers(shape), bf16, *needs)
        return grad_coords if need_coords else None, grad_x if need_x else None, grads

    need_coords, need_x, need, *others = ctx.needs_input_grad
    grad_coords, grad_x, grads = _gradients(
        ctx.saved_tensors, grad, ctx.shape, ctx.bf16, need_coords, need_x, need, kernel
    )
    return grad_coords, grad_x, grads, *[None] * len(others)


_operator.register_autograd(_differentiate, setup_context=_keep_for_backward)


# Many fields at once: kernels/fields.c, whose backward pass computes the forward pass anew and needs nothing of it.


def _fields_call(coords: Tensor, x: Tensor, parameters: Sequence[Tensor], shape: NetworkShape) -> FieldsCall:
    coords, x, *contiguous = (t.detach().contiguous() for t in (coords, x, *parameters))
    layers = len(parameters) // 2
    return FieldsCall(shape, coords, x, contiguous[:layers], contiguous[layers:])


def _fields_backward(
    coords: Tensor, x: Tensor, grad: Tensor, parameters: Sequence[Tensor], shape: NetworkShape, need_x: bool, need: bool
) -> tuple[Tensor | None, list[Tensor]]:
    """The gradients of x and of all parameters, which are none if not needed."""
    call = _fields_call(coords, x, parameters, shape)
    grad_x, weights, biases = call.backward(grad.contiguous(), need_x=need_x, need_parameters=need)
    return grad_x, [*weights, *biases]


def _fields_gradients(
    saved: Sequence[Tensor],
    grad: Tensor,
    shape: NetworkShape,
    need_coords: bool,
    need_x: bool,
    need: Sequence[bool],
    kernel: Callable[..., tuple[Tensor | None, list[Tensor]]],
) -> tuple[Tensor | None, Tensor | None, list[Tensor | None]]:
    """`_gradients`; by torch also for coords, which bias tiles alone have a gradient for."""
    coords, x, *parameters = saved
    need_coords = need_coords and shape.blends_bias
    if not need_coords and not torch.is_grad_enabled() and not transformed(grad):
        grad_x, grads = kernel(coords, x, grad, parameters, shape, need_x, any(need))
        return None, grad_x, [g if needed else None for g, needed in zip(grads or [None] * len(need), need)]
    needs = (need_coords, need_x, *need)
    network = partial(_fields_by_torch, shape)
    grad_coords, grad_x, *rest = gradients_by_torch(network, (coords, x, *parameters), needs, grad)
    return grad_coords, grad_x, rest


def _fields_by_torch(shape: NetworkShape, coords: Tensor, x: Tensor, *parameters: Tensor) -> Tensor:
    index, layers = expert_index(coords, shape.levels, shape.tile_size), len(parameters) // 2
    return evaluate_encoded(coords, x, index, list(parameters[:layers]), list(parameters[layers:]), shape)


class _Fields(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, coords: Tensor, x: Tensor, shape: NetworkShape, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(coords, x, *parameters)
        ctx.shape = shape
        return _fields_call(coords, x, parameters, shape).forward()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        need_coords, need_x, _, *need = ctx.needs_input_grad
        grad_coords, grad_x, grads = _fields_gradients(
            ctx.saved_tensors, grad, ctx.shape, need_coords, need_x, need, _fields_backward
        )
        return grad_coords, grad_x, None, *grads


class _Losses(torch.autograd.Function):
    """Mean squared errors of all fields; the pass that finds them finds their gradients too."""

    @staticmethod
    def forward(
        ctx: Any, coords: Tensor, x: Tensor, target: Tensor, shape: NetworkShape, keep: bool, *parameters: Tensor
    ) -> Tensor:
        _, need_x, _, _, _, *need = ctx.needs_input_grad
        call = _fields_call(coords, x, parameters, shape)
        needs = {"need_x": keep and need_x, "need_parameters": keep and any(need)}
        loss, (grad_x, weights, biases) = call.losses(target.detach().contiguous(), **needs)
        if keep:
            ctx.save_for_backward(coords, x, target, *parameters, grad_x, *weights, *biases)
            ctx.shape = shape
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        need_coords, need_x, need_target, _, _, *need = ctx.needs_input_grad
        shape, (coords, x, target, *rest) = ctx.shape, ctx.saved_tensors
        need_coords = need_coords and shape.blends_bias
        parameters, (grad_x, *grads) = rest[: len(need)], rest[len(need) :]
        if not (need_coords or need_target or torch.is_grad_enabled() or transformed(grad)):
            found = [None if g is None else g * grad.view(-1, *[1] * (g.dim() - 1)) for g in (grad_x, *grads)]
            grads = [g if needed else None for g, needed in zip(found[1:] or [None] * len(need), need)]
            return None, found[0], None, None, None, *grads

        def losses(coords: Tensor, x: Tensor, target: Tensor, *parameters: Tensor) -> Tensor:
            return (_fields_by_torch(shape, coords, x, *parameters) - target).square().mean((1, 2))

        needs = (need_coords, need_x, need_target, *need)
        grad_coords, grad_x, grad_target, *grads = gradients_by_torch(
            losses, (coords, x, target, *parameters), needs, grad
        )
        return grad_coords, grad_x, grad_target, None, None, *grads


@torch.library.custom_op("loe_field::fields", mutates_args=(), device_types="cpu")
def _fields_operator(
    coords: Tensor,
    x: Tensor,
    parameters: Sequence[Tensor],
    levels: Sequence[float],
    dim: int,
    sizes: Sequence[int],
    tiles: Sequence[float],
    activation: str,
    omega_0: float,
) -> Tensor:
    shape = _shape(levels, dim, sizes, tiles, activation, omega_0)
    return _fields_call(coords, x, parameters, shape).forward()


@_fields_operator.register_fake
def _(coords: Tensor, x: Tensor, parameters: Sequence[Tensor], *others: Any) -> Tensor:
    head = parameters[len(parameters) // 2 - 1]
    return x.new_empty(head.shape[0], x.shape[1], head.shape[1])


@torch.library.custom_op("loe_field::fields_backward", mutates_args=(), device_types="cpu")
def _fields_backward_operator(
    coords: Tensor,
    x: Tensor,
    grad: Tensor,
    parameters: Sequence[Tensor],
    levels: Sequence[float],
    dim: int,
    sizes: Sequence[int],
    tiles: Sequence[float],
    activation: str,
    omega_0: float,
    need_x: bool,
    need_parameters: bool,
) -> list[Tensor]:
    shape = _shape(levels, dim, sizes, tiles, activation, omega_0)
    grad_x, grads = _fields_backward(coords, x, grad, parameters, shape, need_x, need_parameters)
    return [x.new_empty(0) if grad_x is None else grad_x, *grads]


@_fields_backward_operator.register_fake
def _(coords: Tensor, x: Tensor, grad: Tensor, parameters: Sequence[Tensor], *others: Any) -> list[Tensor]:
    *_, need_x, need_parameters = others
    grad_x = x.new_empty((grad.shape[0], *x.shape[1:]) if need_x else 0)
    return [grad_x, *(p.new_empty(p.shape) for p in parameters if need_parameters)]


def _keep_fields(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    coords, x, parameters, *numbers = inputs
    ctx.save_for_backward(coords, x, *parameters)
    ctx.shape = _shape(*numbers)


def _differentiate_fields(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    def kernel(*arguments: Any) -> tuple[Tensor | None, list[Tensor]]:
        *tensors, shape, need_x, need_parameters = arguments
        grad_x, *grads = _fields_backward_operator(*tensors, *_numbers(shape), need_x, need_parameters)
        return grad_x if need_x else None, grads

    need_coords, need_x, need, *others = ctx.needs_input_grad
    grads = _fields_gradients(ctx.saved_tensors, grad, ctx.shape, need_coords, need_x, need, kernel)
    return *grads, *[None] * len(others)


_fields_operator.register_autograd(_differentiate_fields, setup_context=_keep_fields)


def workspace_numbers(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> int:
    """Numbers, about, that a training step keeps beside points and parameters: threads' sums, and padded copies."""
    matrices = sum(w.shape[:-2].numel() * padded(w.shape[-2]) * padded(w.shape[-1]) for w in weights)
    tiles = sum(len(b) * padded(b.shape[1]) for b in biases if b.dim() > 1 and b.shape[1] != padded(b.shape[1]))
    return (torch.get_num_threads() + 1) * matrices + tiles


def evaluate(
    coords: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    shape: NetworkShape,
    *,
    rows: ExpertRows | None = None,
    table: Tensor | None = None,
) -> Tensor:
    """`grouped.evaluate` in fp32 on a CPU; under autocast the levels between the first and the head multiply bf16.

    Raises:
        ValueError: a tensor is not fp32 on the CPU.
    """
    x = _encoded(coords, weights, biases, shape, table)
    if coords.dim() == 3:
        if needs_operators():
            return _fields_operator(coords, x, [*weights, *biases], *_numbers(shape))
        return _Fields.apply(coords, x, shape, *weights, *biases)  # type: ignore[return-value]
    return evaluate_rows(coords, x, weights, biases, shape)


def evaluate_rows(
    coords: Tensor, x: Tensor, weights: list[Tensor], biases: list[Tensor], shape: NetworkShape
) -> Tensor:
    """`evaluate` behind encoding and grid: x [N, in_features] is what goes into the first layer at coords [N, dim]."""
    bf16 = torch.is_autocast_enabled("cpu")
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights, *biases))
    if needs_operators():
        return _operator(coords, x, [*weights, *biases], *_numbers(shape), bf16, keep)[0]
    return _Network.apply(coords, x, shape, bf16, keep, *weights, *biases)  # type: ignore[return-value]


def _encoded(
    coords: Tensor, weights: list[Tensor], biases: list[Tensor], shape: NetworkShape, table: Tensor | None
) -> Tensor:
    """What goes into the first layer, of tensors that the kernels can take; of each field where it has a gradient."""
    for tensor in (coords, *weights, *biases, *(() if table is None else (table,))):
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise ValueError(f"the CPU kernels got {tensor.dtype} on {tensor.device}: all must be float32 on the CPU")
    x = encode(coords, shape.num_frequencies)
    if table is not None:
        x = features_of_fields(coords, table, shape.grid, x, features_by_kernels)
    return x.expand(len(weights[-1]), -1, -1) if coords.dim() == 3 and x.requires_grad else x


def mean_squared_errors(
    coords: Tensor,
    target: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    shape: NetworkShape,
    *,
    table: Tensor | None = None,
) -> Tensor:
    """`LoEMLP.mean_squared_errors` of F fields at coords [1 or F, N, dim]: [F].

    Raises:
        ValueError: a tensor is not fp32 on the CPU.
    """
    x = _encoded(coords, [target, *weights], biases, shape, table)
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (coords, x, target, *weights, *biases))
    return _Losses.apply(coords, x, target, shape, keep, *weights, *biases)  # type: ignore[return-value]
