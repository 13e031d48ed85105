"""The features of a `FeatureGrid` at every point, in torch operations, or by kernels/grid.c and kernels/grid.py."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from loe_field.network.bias import tile_bias
from loe_field.network.kernels import triton_installed
from loe_field.network.modes import gradients_by_torch, needs_operators, needs_plain, transformed
from loe_field.network.tiling import BiasTile, num_bias_vectors, numbers_of_tiles, tiles_of_numbers

Kernels = Literal["cpu", "triton"]


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

    Raises:
        ValueError: the table has another number of vectors.
    """
    vectors = sum(num_bias_vectors(tile, coords.shape[-1]) for tile in tiles)
    if table.dim() != 2 or len(table) != vectors:
        raise ValueError(f"table is {tuple(table.shape)}: it must be [{vectors}, F], the vectors of all tiles")
    if beside is None:
        beside = coords.new_empty(len(coords), 0)
    kernels = None if needs_plain(coords, table, beside) else _serving(coords, table, beside)
    if kernels is None:
        return features_by_torch(coords, table, tiles, beside)
    width = beside.shape[1] + len(tiles) * table.shape[1]
    return features_by_kernels(coords, table, tiles, beside, kernels)[:, :width]


def _serving(*tensors: Tensor) -> Kernels | None:
    """The kernels that serve these tensors; None: there are none."""
    if any(t.dtype != torch.float32 or t.device != tensors[0].device for t in tensors):
        return None
    if tensors[0].device.type == "cuda":
        return "triton" if triton_installed() else None
    from loe_field.network.kernels.cpu import available

    return "cpu" if tensors[0].device.type == "cpu" and available() else None


_serving._dynamo_marked_constant = True  # type: ignore[attr-defined]  # torch.compile need not look for a compiler


def features_by_torch(coords: Tensor, table: Tensor, tiles: Sequence[BiasTile], beside: Tensor) -> Tensor:
    """`grid_features` in torch operations: any device and dtype, and the definition of what kernels compute."""
    levels = table.split([num_bias_vectors(tile, coords.shape[-1]) for tile in tiles])
    blends = [tile_bias(coords, vectors, tile) for vectors, tile in zip(levels, tiles)]
    return torch.cat([beside, *blends], 1)


def features_by_kernels(
    coords: Tensor, table: Tensor, tiles: Sequence[BiasTile], beside: Tensor, kernels: Kernels = "cpu"
) -> Tensor:
    """`grid_features` of fp32 tensors, where these kernels serve.

    Those of "triton" make rows that end in zeros, up to a multiple of 4 numbers: a level reads 16 bytes at once.
    """
    if needs_operators():
        return _operator(coords, table, beside, numbers_of_tiles(tiles), kernels)
    return _Features.apply(coords, table, beside, tuple(tiles), kernels)  # type: ignore[return-value]


def _forward(coords: Tensor, table: Tensor, beside: Tensor, tiles: Sequence[BiasTile], kernels: str) -> Tensor:
    if kernels == "triton":
        from loe_field.network.kernels.grid import grid_forward
    else:
        from loe_field.network.kernels.cpu import grid_forward
    coords, beside, table = (t.detach().contiguous() for t in (coords, beside, table))
    return grid_forward(coords, beside, table, tiles)


def _backward(
    coords: Tensor,
    table: Tensor,
    grad: Tensor,
    tiles: Sequence[BiasTile],
    columns: int,
    kernels: str,
    need_coords: bool,
    need_table: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of coords and table; the features' gradient begins at column `columns`."""
    needs = {"need_coords": need_coords, "need_table": need_table}
    if kernels == "triton":
        from loe_field.network.kernels.grid import grid_backward

        grad = grad[:, columns : columns + len(tiles) * table.shape[1]]
        return grid_backward(coords.detach(), table.detach(), tiles, grad, **needs)
    from loe_field.network.kernels.cpu import grid_backward

    coords, table, grad = (t.detach().contiguous() for t in (coords, table, grad))
    return grid_backward(coords, table, tiles, grad, **needs)


def _gradients(
    ctx: Any, grad: Tensor, kernel: Callable[..., tuple[Tensor | None, Tensor | None]]
) -> Sequence[Tensor | None]:
    """First derivatives by the kernel; where a graph or a batch of them is wanted, by torch on the same inputs."""
    coords, table = ctx.saved_tensors
    tiles, columns, kernels = ctx.how
    need_coords, need_table, need_beside = ctx.needs_input_grad[:3]
    found: Sequence[Tensor | None] = (None, None)
    if need_coords or need_table:
        if not torch.is_grad_enabled() and not transformed(grad):
            found = kernel(coords, table, grad, tiles, columns, kernels, need_coords, need_table)
        else:

            def features(coords: Tensor, table: Tensor) -> Tensor:
                return features_by_torch(coords, table, tiles, coords.new_empty(len(coords), 0))

            needs, behind = (need_coords, need_table), slice(columns, columns + len(tiles) * table.shape[1])
            found = gradients_by_torch(features, (coords, table), needs, grad[:, behind])
    return *found, grad[:, :columns] if need_beside else None


class _Features(torch.autograd.Function):
    """The kernels for autograd as it is."""

    @staticmethod
    def forward(
        ctx: Any, coords: Tensor, table: Tensor, beside: Tensor, tiles: tuple[BiasTile, ...], kernels: Kernels
    ) -> Tensor:
        ctx.save_for_backward(coords, table)
        ctx.how = tiles, beside.shape[1], kernels
        return _forward(coords, table, beside, tiles, kernels)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return *_gradients(ctx, grad, _backward), None, None


# The same as operators of torch, whose arguments are tensors and numbers. An empty tensor stands for none.


def _tiles(numbers: Sequence[float]) -> list[BiasTile]:
    return [tile for tile in tiles_of_numbers(numbers) if tile is not None]


@torch.library.custom_op("loe_field::grid", mutates_args=())
def _operator(coords: Tensor, table: Tensor, beside: Tensor, tiles: Sequence[float], kernels: str) -> Tensor:
    return _forward(coords, table, beside, _tiles(tiles), kernels)


@_operator.register_fake
def _(coords: Tensor, table: Tensor, beside: Tensor, tiles: Sequence[float], kernels: str) -> Tensor:
    width = beside.shape[1] + len(_tiles(tiles)) * table.shape[1]
    return coords.new_empty(coords.shape[0], -(-width // 4) * 4 if kernels == "triton" else width)


@torch.library.custom_op("loe_field::grid_backward", mutates_args=())
def _backward_operator(
    coords: Tensor,
    table: Tensor,
    grad: Tensor,
    tiles: Sequence[float],
    columns: int,
    kernels: str,
    need_coords: bool,
    need_table: bool,
) -> list[Tensor]:
    found = _backward(coords, table, grad, _tiles(tiles), columns, kernels, need_coords, need_table)
    return [coords.new_empty(0) if g is None else g for g in found]


@_backward_operator.register_fake
def _(coords: Tensor, table: Tensor, *others: Any) -> list[Tensor]:
    *_, need_coords, need_table = others
    return [t.new_empty(t.shape if needed else 0) for t, needed in ((coords, need_coords), (table, need_table))]


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    coords, table, beside, numbers, kernels = inputs
    ctx.save_for_backward(coords, table)
    ctx.how = _tiles(numbers), beside.shape[1], kernels


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    def kernel(*arguments: Any) -> tuple[Tensor | None, Tensor | None]:
        *tensors, tiles, columns, kernels, need_coords, need_table = arguments
        how = (numbers_of_tiles(tiles), columns, kernels)
        grad_coords, grad_table = _backward_operator(*tensors, *how, need_coords, need_table)
        return grad_coords if need_coords else None, grad_table if need_table else None

    return *_gradients(ctx, grad, kernel), None, None


_operator.register_autograd(_differentiate, setup_context=_keep_for_backward)
