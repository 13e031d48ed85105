"""The features of a `FeatureGrid` at every point, in torch operations, or by kernels/grid.c on a CPU."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from loe_field.network.bias import tile_bias
from loe_field.network.modes import gradients_by_torch, needs_operators, needs_plain, transformed
from loe_field.network.tiling import BiasTile, Level, num_bias_vectors


def grid_features(coords: Tensor, table: Tensor, tiles: Sequence[BiasTile], *, beside: Tensor | None = None) -> Tensor:
    """The blended vectors of all levels side by side, behind the columns of `beside`; by kernels where they serve.

    Differentiable any number of times in coords, table and beside.

    Args:
        coords: points [N, dim], any real values.
        table: the vectors of all levels one after the other, [sum of num_bias_vectors, F].
        tiles: of each level, `FeatureGrid.tiles(dim)`.
        beside: [N, E], or None for no columns.

    Returns:
        [N, E + levels * F], levels in the order of tiles.
    """
    if beside is None:
        beside = coords.new_empty(len(coords), 0)
    if not needs_plain(coords, table, beside) and _serves(coords, table, beside):
        return features_by_kernels(coords, table, tiles, beside)
    return features_by_torch(coords, table, tiles, beside)


def _serves(*tensors: Tensor) -> bool:
    if any(t.dtype != torch.float32 or t.device.type != "cpu" for t in tensors):
        return False
    from loe_field.network.kernels.cpu import available

    return available()


_serves._dynamo_marked_constant = True  # type: ignore[attr-defined]  # torch.compile need not look for a compiler


def features_by_torch(coords: Tensor, table: Tensor, tiles: Sequence[BiasTile], beside: Tensor) -> Tensor:
    """`grid_features` in torch operations: any device and dtype, and the definition of what kernels compute."""
    levels = table.split([num_bias_vectors(tile, coords.shape[-1]) for tile in tiles])
    blends = [tile_bias(coords, vectors, tile) for vectors, tile in zip(levels, tiles)]
    return torch.cat([beside, *blends], 1)


def features_by_kernels(coords: Tensor, table: Tensor, tiles: Sequence[BiasTile], beside: Tensor) -> Tensor:
    """`grid_features` of fp32 tensors on the CPU."""
    if needs_operators():
        return _operator(coords, table, beside, _numbers(tiles))
    return _Features.apply(coords, table, beside, tuple(tiles))  # type: ignore[return-value]


def _forward(coords: Tensor, table: Tensor, beside: Tensor, tiles: Sequence[BiasTile]) -> Tensor:
    from loe_field.network.kernels.cpu import grid_forward

    coords, table, beside = (t.detach().contiguous() for t in (coords, table, beside))
    return grid_forward(coords, beside, table, tiles)


def _backward(
    coords: Tensor, table: Tensor, grad: Tensor, tiles: Sequence[BiasTile], need_coords: bool, need_table: bool
) -> tuple[Tensor | None, Tensor | None]:
    from loe_field.network.kernels.cpu import grid_backward

    needs = {"need_coords": need_coords, "need_table": need_table}
    coords, table, grad = (t.detach().contiguous() for t in (coords, table, grad))
    return grid_backward(coords, table, tiles, grad, **needs)


def _gradients(
    saved: Sequence[Tensor],
    grad: Tensor,
    tiles: Sequence[BiasTile],
    need: Sequence[bool],
    kernel: Callable[..., tuple[Tensor | None, Tensor | None]],
) -> Sequence[Tensor | None]:
    """First derivatives by the kernel; where a graph or a batch of them is wanted, by torch on the same inputs."""
    coords, table, columns = *saved, grad.shape[-1] - len(tiles) * saved[1].shape[1]
    need_coords, need_table, need_beside = need
    found: Sequence[Tensor | None] = (None, None)
    if need_coords or need_table:
        if not torch.is_grad_enabled() and not transformed(grad):
            found = kernel(coords, table, grad, tiles, need_coords, need_table)
        else:

            def features(coords: Tensor, table: Tensor) -> Tensor:
                return features_by_torch(coords, table, tiles, coords.new_empty(len(coords), 0))

            needs = (need_coords, need_table)
            found = gradients_by_torch(features, (coords, table), needs, grad[:, columns:])
    return *found, grad[:, :columns] if need_beside else None


class _Features(torch.autograd.Function):
    """The kernels for autograd as it is."""

    @staticmethod
    def forward(ctx: Any, coords: Tensor, table: Tensor, beside: Tensor, tiles: tuple[BiasTile, ...]) -> Tensor:
        ctx.save_for_backward(coords, table)
        ctx.tiles = tiles
        return _forward(coords, table, beside, tiles)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return *_gradients(ctx.saved_tensors, grad, ctx.tiles, ctx.needs_input_grad[:3], _backward), None


# The same as operators of torch, whose arguments are tensors and numbers. An empty tensor stands for none.


def _numbers(tiles: Sequence[BiasTile]) -> list[float]:
    return [float(n) for tile in tiles for n in (*tile.level, tile.tile_size, tile.table_size or 0)]


def _tiles(numbers: Sequence[float]) -> list[BiasTile]:
    parts = zip(*(numbers[i::4] for i in range(4)))
    return [BiasTile(Level(a, b), int(size), "linear", int(table) or None) for a, b, size, table in parts]


@torch.library.custom_op("loe_field::grid", mutates_args=(), device_types="cpu")
def _operator(coords: Tensor, table: Tensor, beside: Tensor, tiles: Sequence[float]) -> Tensor:
    return _forward(coords, table, beside, _tiles(tiles))


@_operator.register_fake
def _(coords: Tensor, table: Tensor, beside: Tensor, tiles: Sequence[float]) -> Tensor:
    return coords.new_empty(coords.shape[0], beside.shape[1] + len(tiles) // 4 * table.shape[1])


@torch.library.custom_op("loe_field::grid_backward", mutates_args=(), device_types="cpu")
def _backward_operator(
    coords: Tensor, table: Tensor, grad: Tensor, tiles: Sequence[float], need_coords: bool, need_table: bool
) -> list[Tensor]:
    found = _backward(coords, table, grad, _tiles(tiles), need_coords, need_table)
    return [coords.new_empty(0) if g is None else g for g in found]


@_backward_operator.register_fake
def _(coords: Tensor, table: Tensor, grad: Tensor, tiles: Sequence[float], need_coords: bool,
      need_table: bool) -> list[Tensor]:  # fmt: skip
    return [t.new_empty(t.shape if needed else 0) for t, needed in ((coords, need_coords), (table, need_table))]


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    coords, table, _, numbers = inputs
    ctx.save_for_backward(coords, table)
    ctx.tiles = _tiles(numbers)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    def kernel(*arguments: Any) -> tuple[Tensor | None, Tensor | None]:
        *tensors, tiles, need_coords, need_table = arguments
        grad_coords, grad_table = _backward_operator(*tensors, _numbers(tiles), need_coords, need_table)
        return grad_coords if need_coords else None, grad_table if need_table else None

    return *_gradients(ctx.saved_tensors, grad, ctx.tiles, ctx.needs_input_grad[:3], kernel), None


_operator.register_autograd(_differentiate, setup_context=_keep_for_backward)
