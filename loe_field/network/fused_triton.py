"""Levels through the Triton kernels of `kernels`, for autograd, and the network that they make up.

Triton is imported where a kernel is launched, not with this module.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from loe_field.network.bias import tile_bias
from loe_field.network.grid import features_by_kernels
from loe_field.network.grouped import experts_of_fields, features_of_fields, grouped_linear, permute_rows
from loe_field.network.modes import gradients_by_torch, needs_operators, transformed
from loe_field.network.rows import ExpertRows, RowGroups, expert_rows
from loe_field.network.shape import Arithmetic, NetworkShape, Precision, activate, encode
from loe_field.network.tiling import (
    BiasTile,
    Level,
    expert_index,
    num_bias_vectors,
    num_experts,
    numbers_of_tiles,
    tiles_of_numbers,
)

_WHOLE: frozenset[tuple[tuple[int, int], Precision, bool]] = frozenset()
"""Where `kernels.network` takes the place of one kernel per level: compute capability, operands of hidden products,
with gradients or without. Nowhere, until it has been measured: `python -m benchmarks.step` has it as "loe whole"."""
_MOST_EXPERTS = 4
"""Experts of a level up to which it does so: points in any order cost it a product for every one of them."""

_SIXTEEN_BITS: dict[torch.dtype, Precision] = {torch.bfloat16: "bf16", torch.float16: "fp16"}


def _check_device(tensor: Tensor) -> None:
    """Refuse a device without kernels, with the remedy."""
    if tensor.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(
            f"the Triton kernels got tensors on {tensor.device}: they need a CUDA GPU. Move the network and its points "
            'there, choose implementation="torch", or set TRITON_INTERPRET=1 before Python starts to run them slowly '
            "for a test"
        )


def _has_tf32(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)


_has_tf32._dynamo_marked_constant = True  # type: ignore[attr-defined]  # torch.compile need not look into it


def _differentiable(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    coords: Tensor | None,
    order: Tensor | None,
    starts: Tensor | None,
    how: Arithmetic,
) -> Tensor:
    """The level in torch operations, in the weight's dtype, for derivatives of second and higher order."""
    with torch.autocast(x.device.type, enabled=False):
        x = x[:, : weight.shape[2]].to(weight.dtype)
        tiled, bias = (None, bias) if how.tile is None else (bias, None)
        if order is None or starts is None:
            y = torch.nn.functional.linear(x, weight[0], bias)
        else:
            perm = order.long()
            inverse = torch.empty_like(perm).scatter_(0, perm, torch.arange(len(perm), device=perm.device))
            splits = starts.diff().tolist()
            y = grouped_linear(permute_rows(x, RowGroups(perm, None, inverse, None, splits)), weight, bias, splits)
            y = permute_rows(y, RowGroups(inverse, None, perm, None, splits))
        if how.tile is not None and tiled is not None and coords is not None:
            y = y + tile_bias(coords, tiled, how.tile)
        return activate(y, how.activation, how.omega_0).to(how.dtype)


def _gradients(
    grad_y: Tensor,
    inputs: Sequence[Tensor | None],
    order: Tensor | None,
    starts: Tensor | None,
    how: Arithmetic,
    need: Sequence[bool],
    kernel: Callable[..., Sequence[Tensor | None]],
) -> Sequence[Tensor | None]:
    """First derivatives for x, weight, bias and coords by the kernel; by torch for a graph or a batch of them."""
    need = [needed and t is not None for t, needed in zip(inputs, need)]
    if not torch.is_grad_enabled() and not transformed(grad_y):
        return kernel(grad_y, *inputs, order, starts, how, need)
    level = partial(_differentiable, order=order, starts=starts, how=how)
    return gradients_by_torch(level, inputs, need, grad_y)


class _ExpertLinear(torch.autograd.Function):
    """One level; saves its inputs alone, since the backward kernel computes the pre-activation again."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        coords: Tensor | None,
        order: Tensor | None,
        starts: Tensor | None,
        how: Arithmetic,
    ) -> Tensor:
        from loe_field.network.kernels.level import level_forward

        ctx.save_for_backward(x, weight, bias, coords, order, starts)
        ctx.how = how
        return level_forward(x, weight, bias, coords, order, starts, how)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        *inputs, order, starts = ctx.saved_tensors
        from loe_field.network.kernels.bias import level_gradients

        grads = _gradients(grad_y, inputs, order, starts, ctx.how, _needed(ctx), level_gradients)
        return (*grads, None, None, None)


def _needed(ctx: Any) -> list[bool]:
    """Which gradients a level gives, of those that are wanted for x, weight, bias and coords."""
    *need, need_coords = ctx.needs_input_grad[:4]
    tile = ctx.how.tile
    return [*need, need_coords and tile is not None and tile.blending == "linear"]


# The same as operators of torch, whose arguments are tensors, numbers and text. An empty tensor stands for none.


def _numbers(how: Arithmetic) -> tuple[str, float, str, torch.dtype, list[float]]:
    return how.activation, how.omega_0, how.precision, how.dtype, numbers_of_tiles([how.tile])


def _arithmetic(
    activation: str, omega_0: float, precision: Any, dtype: torch.dtype, place: Sequence[float]
) -> Arithmetic:
    (tile,) = tiles_of_numbers(place)
    return Arithmetic(activation, omega_0, precision, dtype, tile)


@torch.library.custom_op("loe_field::level", mutates_args=())
def _operator(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    coords: Tensor | None,
    order: Tensor | None,
    starts: Tensor | None,
    activation: str,
    omega_0: float,
    precision: str,
    dtype: torch.dtype,
    tile: Sequence[float],
) -> Tensor:
    from loe_field.network.kernels.level import level_forward

    how = _arithmetic(activation, omega_0, precision, dtype, tile)
    with torch.cuda.device_of(x):
        return level_forward(x, weight, bias, coords, order, starts, how)


@_operator.register_fake
def _(x: Tensor, weight: Tensor, *others: Any) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1], dtype=others[-2])


@torch.library.custom_op("loe_field::level_backward", mutates_args=())
def _backward_operator(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    coords: Tensor | None,
    order: Tensor | None,
    starts: Tensor | None,
    activation: str,
    omega_0: float,
    precision: str,
    dtype: torch.dtype,
    tile: Sequence[float],
    need: Sequence[bool],
) -> list[Tensor]:
    from loe_field.network.kernels.bias import level_gradients

    how = _arithmetic(activation, omega_0, precision, dtype, tile)
    with torch.cuda.device_of(x):
        grads = level_gradients(grad_y, x, weight, bias, coords, order, starts, how, need)
    return [x.new_empty(0) if g is None else g for g in grads]


@_backward_operator.register_fake
def _(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, coords: Tensor | None, *others: Any
) -> list[Tensor]:
    need_x, *need = others[-1]
    return [x.new_empty(x.shape if need_x else 0)] + [
        t.new_empty(t.shape, dtype=torch.float32) if needed and t is not None else x.new_empty(0)
        for t, needed in zip((weight, bias, coords), need)
    ]


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.how = _arithmetic(*inputs[6:])


def _differentiate(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    def kernel(*arguments: Any) -> list[Tensor | None]:
        *tensors, how, need = arguments
        grads = _backward_operator(*tensors, *_numbers(how), list(need))
        return [g if needed else None for g, needed in zip(grads, need)]

    *inputs, order, starts = ctx.saved_tensors
    grads = _gradients(grad_y, inputs, order, starts, ctx.how, _needed(ctx), kernel)
    return (*grads, *[None] * 7)


_operator.register_autograd(_differentiate, setup_context=_keep_for_backward)


def expert_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    order: Tensor | None,
    starts: Tensor | None,
    *,
    activation: str = "none",
    omega_0: float = 1.0,
    precision: Precision,
    dtype: torch.dtype | None = None,
    coords: Tensor | None = None,
    bias_tile: BiasTile | None = None,
) -> Tensor:
    """act(omega_0 * (W_e x + b)) for every row with its own expert; differentiable any number of times.

    The first derivative runs in a kernel too. With create_graph=True it is computed by torch in the weight's dtype
    instead, which waits for the device once and takes several times as long.

    Args:
        x: features [N, in_features], fp32, bf16 or fp16; longer rows hold finite numbers there that do not matter.
        weight: experts [experts, out_features, in_features], fp32, bf16 or fp16.
        bias: [out_features], shared by the experts, or with bias_tile its vectors [num_bias_vectors, out_features]; or
            None.
        order: int32 [N], the row numbers grouped by expert (`rows.expert_rows`, one level); None with one expert.
        starts: int32 [experts + 1], where each expert's rows begin in `order`; None with one expert.
        activation: "sine", "leaky_relu" (slope 0.2), "relu" or "none"; only sine has the factor omega_0.
        omega_0: frequency of the sine.
        precision: operands of the products: "ieee", "tf32" or "tf32x3" (fp32), "bf16" or "fp16". Sums and phases are
            fp32. Tensor cores cut TF32's operands off, they do not round them.
        dtype: of the result; None: that of x.
        coords: points [N, dim], fp32, where the vectors of bias_tile are blended.
        bias_tile: where they lie; None: one bias is for all rows.

    Returns:
        [N, out_features].

    Raises:
        RuntimeError: the tensors are not on a CUDA GPU, and Triton does not interpret.
        ValueError: a dtype is none of those, tensors are on several devices, rows of x are shorter than the matrix is
            wide or longer by 16 bytes, several experts come without their rows, a tile without coords and its vectors,
            or the GPU has no TF32 that was asked for.
    """
    _check_device(x)
    for name, tensor in (("x", x), ("weight", weight)):
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(
                f'{name} is {tensor.dtype}: the kernels take float32, bfloat16 and float16; implementation="torch" '
                "takes the others"
            )
    others = {"weight": weight, "bias": bias, "coords": coords, "order": order, "starts": starts}
    for name, tensor in others.items():
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"x is on {x.device} and {name} on {tensor.device}: they must be on one device")
    if precision == "tf32" and not _has_tf32(x.device):
        major, minor = torch.cuda.get_device_capability(x.device)
        raise ValueError(
            f"precision 'tf32' takes a GPU of compute capability 8.0 or more, and {x.device} has {major}.{minor}: "
            "choose 'ieee'"
        )
    if not weight.shape[2] <= x.shape[1] < weight.shape[2] + 16 // x.element_size():
        raise ValueError(f"x has rows of {x.shape[1]} features and the matrices take {weight.shape[2]}: they must fit")
    if len(weight) > 1 and (order is None or starts is None):
        raise ValueError(f"weight holds {len(weight)} experts: give order and starts of rows.expert_rows")
    if bias_tile is None:
        coords = None
    elif coords is None or bias is None or len(bias) != num_bias_vectors(bias_tile, coords.shape[1]):
        raise ValueError("bias_tile comes without coords and all its vectors: give coords and bias")
    how = Arithmetic(activation, float(omega_0), precision, dtype or x.dtype, bias_tile)
    if needs_operators():
        return _operator(x, weight, bias, coords, order, starts, *_numbers(how))
    with torch.cuda.device_of(x):
        return _ExpertLinear.apply(x, weight, bias, coords, order, starts, how)  # type: ignore[return-value]


def hidden_precision(device: torch.device, dtype: torch.dtype) -> tuple[torch.dtype, Precision]:
    """The dtype of rows between levels and the operands of products, as torch's own switches want them.

    Autocast's dtype comes first, then that of 16-bit rows; fp32 ones are multiplied in "tf32" where
    torch.backends.cuda.matmul.allow_tf32 permits it and the GPU has it (sm_80 and later), in "ieee" elsewhere, as torch
    does.

    Raises:
        ValueError: autocast or the rows have a dtype without kernels.
    """
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    if dtype == torch.float32:
        return dtype, "tf32" if torch.backends.cuda.matmul.allow_tf32 and _has_tf32(device) else "ieee"
    if dtype not in _SIXTEEN_BITS:
        raise ValueError(f'the kernels have no {dtype}: choose implementation="torch"')
    return dtype, _SIXTEEN_BITS[dtype]


def _whole_obstacle(shape: NetworkShape, width: int, device: torch.device) -> str | None:
    """Why one kernel cannot compute such a network whole; None if it can."""
    from loe_field.network.kernels.network import MAX_EXPERTS, MAX_WIDTH

    if not _has_tf32(device):
        return "the kernel takes a GPU with TF32, of compute capability 8.0 or more"
    if shape.bias_tiles or shape.grid or not isinstance(shape.tile_size, int):
        return "it has bias tiles, a grid or tiles of different sizes, and the kernel has none of them"
    if shape.experts > MAX_EXPERTS:
        return f"a level has {shape.experts} experts and the kernel numbers at most {MAX_EXPERTS}"
    if width > MAX_WIDTH:
        return f"the layers are {width} wide and the kernel holds at most {MAX_WIDTH}"
    if needs_operators():
        return "torch looks at the operations, and the kernel is none of its operators"
    return None


def _serves_whole(shape: NetworkShape, width: int, device: torch.device, precision: Precision, gradients: bool) -> bool:
    """Whether `_WHOLE` has this call."""
    if needs_operators() or not _WHOLE or shape.experts > _MOST_EXPERTS:
        return False
    from loe_field.network.kernels.level import capability

    measured = (capability(device), precision, gradients) in _WHOLE
    return measured and _whole_obstacle(shape, width, device) is None


class _WholeNetwork(torch.autograd.Function):
    """The forward pass in one kernel, which keeps every level's result; the backward pass level by level."""

    @staticmethod
    def forward(
        ctx: Any,
        coords: Tensor,
        shape: NetworkShape,
        dtype: torch.dtype,
        hidden: Precision,
        order: Tensor | None,
        starts: Tensor | None,
        *parameters: Tensor,
    ) -> Tensor:
        from loe_field.network.kernels.network import network_forward

        layers = len(parameters) // 2
        out, kept = network_forward(coords, parameters[:layers], parameters[layers:], shape, hidden, dtype)
        ctx.save_for_backward(coords, kept, order, starts, *parameters)
        ctx.how = shape, dtype, hidden
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        coords, kept, order, starts, *parameters = ctx.saved_tensors
        shape, dtype, hidden = ctx.how
        layers, need_coords, need = len(parameters) // 2, ctx.needs_input_grad[0], ctx.needs_input_grad[6:]
        rows = None if order is None else ExpertRows(order, starts)
        if torch.is_grad_enabled() or transformed(grad):

            def network(coords: Tensor, *parameters: Tensor) -> Tensor:
                return _by_levels(coords, parameters[:layers], parameters[layers:], shape, rows, dtype, hidden)

            grads = gradients_by_torch(network, (coords, *parameters), (need_coords, *need), grad)
        else:
            grads = _backward_by_levels(grad, coords, kept, parameters, rows, shape, dtype, hidden, need_coords, need)
        return grads[0], *[None] * 5, *grads[1:]


def _backward_by_levels(
    grad: Any,
    coords: Tensor,
    kept: Tensor,
    parameters: Sequence[Tensor],
    rows: ExpertRows | None,
    shape: NetworkShape,
    dtype: torch.dtype,
    hidden: Precision,
    need_coords: bool,
    need: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of coords and of all parameters from the levels' results [levels, N, width]; None where not needed."""
    from loe_field.network.kernels.encoding import encode
    from loe_field.network.kernels.level import level_backward

    layers = len(parameters) // 2
    weights, biases = parameters[:layers], parameters[layers:]
    if rows is None and shape.experts > 1:
        rows = expert_rows(expert_index(coords, shape.levels, shape.tile_size), shape.experts)
    with torch.enable_grad():
        coords = coords.detach().requires_grad_(need_coords)
        encoded = encode(coords, shape.num_frequencies)
    grads: list[Tensor | None] = [None] * (1 + 2 * layers)
    for i in reversed(range(layers)):
        x = kept[i - 1] if i else encoded.detach()
        if i == layers - 1:
            how, lists, weight = Arithmetic("none", 1.0, "tf32x3", torch.float32), (None, None), weights[i][None]
        else:
            how = Arithmetic(shape.activation, shape.omega_0, hidden if i else "tf32x3", dtype)
            lists, weight = (None, None) if rows is None else (rows.order[i], rows.starts[i]), weights[i]
        needed = (i > 0 or need_coords, need[i], need[layers + i], False)
        grad, grad_weight, grad_bias, _ = level_backward(grad, x, weight, biases[i], None, *lists, how, needed)
        grads[1 + i] = grad_weight if grad_weight is None else grad_weight.view_as(weights[i])
        grads[1 + layers + i] = grad_bias
    if need_coords:
        (grads[0],) = torch.autograd.grad(encoded, coords, grad)
    return grads


def evaluate(
    coords: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    shape: NetworkShape,
    *,
    rows: ExpertRows | None = None,
    table: Tensor | None = None,
    whole: bool | None = None,
) -> Tensor:
    """`grouped.evaluate` in fp32 on a GPU.

    Under autocast the hidden levels multiply in autocast's dtype and hand it on; the first level, whose input tells
    neighbouring points apart, and the head multiply in split TF32, which is fp32 to its last bits. Without autocast
    hidden levels follow torch.backends.cuda.matmul.allow_tf32. `rows` is `rows.expert_rows` of coords, where it is
    known already, `table` the vectors of the shape's grid. `whole` has one kernel compute all levels; None: where it is
    known to be faster.

    Raises:
        ValueError: `whole` is true, and the kernel cannot compute this network.
    """
    _check_device(coords)
    dtype, hidden = hidden_precision(coords.device, torch.float32)
    if coords.dim() == 3:
        if whole:
            raise ValueError("many fields cannot be computed whole: leave out whole=True")
        return _fields_by_levels(coords, weights, biases, shape, rows, dtype, hidden, table)
    width, gradients = weights[-1].shape[1], torch.is_grad_enabled()
    gradients = gradients and any(t.requires_grad for t in (coords, *weights, *biases))
    if whole is None:
        whole = _serves_whole(shape, width, coords.device, hidden, gradients)
    elif whole and (reason := _whole_obstacle(shape, width, coords.device)):
        raise ValueError(f"the network cannot be computed whole: {reason}; leave out whole=True")
    if whole:
        from loe_field.network.kernels.network import network_forward

        with torch.cuda.device_of(coords):
            if not gradients:
                return network_forward(coords, weights, biases, shape, hidden)[0]
            return _WholeNetwork.apply(coords, shape, dtype, hidden, *(rows or (None, None)), *weights, *biases)  # type: ignore[return-value]
    return _by_levels(coords, weights, biases, shape, rows, dtype, hidden, table)


def _by_levels(
    coords: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    shape: NetworkShape,
    rows: ExpertRows | None,
    dtype: torch.dtype,
    hidden: Precision,
    table: Tensor | None = None,
) -> Tensor:
    if needs_operators():
        x = encode(coords, shape.num_frequencies)
    else:
        from loe_field.network.kernels import encoding

        x = encoding.encode(coords, shape.num_frequencies)
    if table is not None:
        encoded = x[:, : shape.dim * (1 + 2 * shape.num_frequencies)]
        x = features_by_kernels(coords, table, shape.grid, encoded, "triton")
    experts = max(len(weight) for weight in weights[:-1])  # not shape's, which Dynamo of torch 2.7 cannot read
    if rows is None and experts > 1:
        rows = expert_rows(expert_index(coords, shape.levels, shape.tile_size), experts)
    tiles = shape.bias_tiles or (None,) * len(shape.levels)
    for i in range(len(shape.levels)):
        order, starts = (None, None) if rows is None or len(weights[i]) == 1 else (rows.order[i], rows.starts[i])
        x = expert_linear(
            x,
            weights[i],
            biases[i],
            order,
            starts,
            activation=shape.activation,
            omega_0=shape.omega_0,
            precision=hidden if i else "tf32x3",
            dtype=dtype,
            coords=coords,
            bias_tile=tiles[i],
        )
    return expert_linear(x, weights[-1][None], biases[-1], None, None, precision="tf32x3", dtype=torch.float32)


def rows_of_fields(coords: Tensor, fields: int, shape: NetworkShape) -> ExpertRows:
    """The rows of F fields at coords [1 or F, N, dim], those of a field after those before, by expert of all fields."""
    counts = [num_experts(size, shape.dim) for size in shape.tile_sizes]
    index = experts_of_fields(expert_index(coords, shape.levels, shape.tile_size), fields, counts)
    return expert_rows(index, fields * max(counts))


def _fields_by_levels(
    coords: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    shape: NetworkShape,
    rows: ExpertRows | None,
    dtype: torch.dtype,
    hidden: Precision,
    table: Tensor | None = None,
) -> Tensor:
    """`evaluate` of F fields as one network of F times the experts; a field's bias is a vector of a tile of F."""
    fields, points, device = len(weights[-1]), coords.shape[1], coords.device
    if needs_operators():
        x = encode(coords, shape.num_frequencies)
    else:
        from loe_field.network.kernels import encoding

        x = encoding.encode(coords.flatten(0, 1), shape.num_frequencies).unflatten(0, coords.shape[:2])
    if table is not None:
        encoded = x[..., : shape.dim * (1 + 2 * shape.num_frequencies)]
        features = partial(features_by_kernels, kernels="triton")
        x = features_of_fields(coords, table, shape.grid, encoded, features)
    x = x.expand(fields, -1, -1).reshape(fields * points, x.shape[2])
    rows = rows or rows_of_fields(coords, fields, shape)
    number = torch.arange(fields, dtype=torch.float32, device=device).repeat_interleave(points)[:, None]
    tile = BiasTile(Level(1.0), fields, "nearest")
    everyone = torch.arange(fields * points, dtype=torch.int32, device=device)
    firsts = points * torch.arange(fields + 1, dtype=torch.int32, device=device)
    last = len(shape.levels)
    for i, (weight, bias) in enumerate(zip(weights, biases)):
        order, starts = (rows.order[i], rows.starts[i]) if i < last else (everyone, firsts)
        x = expert_linear(
            x,
            weight if i == last else weight.flatten(0, 1),
            bias,
            order,
            starts,
            activation="none" if i == last else shape.activation,
            omega_0=1.0 if i == last else shape.omega_0,
            precision=hidden if 0 < i < last else "tf32x3",
            dtype=torch.float32 if i == last else dtype,
            coords=number,
            bias_tile=tile,
        )
    return x.view(fields, points, x.shape[1])
