"""The position-dependent linear layer as one function: validates once, then runs the chosen implementation."""

import os
from typing import Literal, get_args

import torch
from torch import Tensor

from loe_field.grouped import group_rows, grouped_linear, permute_rows
from loe_field.kernels import triton_installed
from loe_field.reference import position_dependent_linear_ref
from loe_field.segments import expert_rows
from loe_field.tiling import MAX_DIM, Blending, Level, blending_weights, expert_index, num_experts

Implementation = Literal["auto", "torch", "triton", "cpu", "reference"]
"""How a network is computed: "triton" is kernels for NVIDIA GPUs, "cpu" kernels in C for processors, "torch" grouped
PyTorch for any device and dtype, "reference" the readable definition; "auto" takes the fastest that serves."""
Resolved = Literal["torch", "triton", "cpu", "reference"]


def check_implementation(implementation: Implementation, blending: Blending) -> None:
    """Refuse an unknown implementation, and kernels where they have no code.

    Raises:
        ValueError: the name is unknown, or it names kernels and blending is linear.
    """
    if implementation not in get_args(Implementation):
        raise ValueError(
            f"unknown implementation {implementation!r}: choose one of {', '.join(get_args(Implementation))}"
        )
    if blending == "linear" and implementation in ("triton", "cpu"):
        raise ValueError(
            f"implementation {implementation!r} has nearest blending only: choose 'auto' or 'torch' for linear blending"
        )


def obstacle(
    kernels: Literal["triton", "cpu"], *, device: torch.device, dtype: torch.dtype, blending: Blending, experts: int
) -> str | None:
    """Why these kernels cannot serve so many experts of this dtype on this device; None if they can."""
    if blending == "linear":
        return "the blending is linear and the kernels have nearest only"
    if dtype != torch.float32:
        return f"the parameters are {str(dtype).removeprefix('torch.')} and the kernels take float32"
    if kernels == "cpu":
        if device.type != "cpu":
            return f"the tensors are on {device}"
        from loe_field.kernels.cpu import MAX_EXPERTS, has_bf16, why_unavailable

        if experts > MAX_EXPERTS:
            return f"a level has {experts} experts and the kernels number at most {MAX_EXPERTS}"
        if torch.is_autocast_enabled("cpu") and why_unavailable() is None:
            if torch.get_autocast_dtype("cpu") != torch.bfloat16:
                return "autocast wants float16 and the kernels have float32 and bfloat16"
            if not has_bf16():
                return "autocast wants bfloat16, which this processor does not multiply"
        return why_unavailable()
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the tensors are on {device} and the kernels need an NVIDIA GPU"
    return None if triton_installed() else "Triton is not installed: pip install triton"


def resolve_implementation(
    implementation: Implementation, *, device: torch.device, dtype: torch.dtype, blending: Blending, experts: int
) -> Resolved:
    """What computes a network with so many experts a level, in this dtype on this device.

    "auto" takes the device's kernels where they can serve and "torch" elsewhere.

    Raises:
        RuntimeError: kernels are asked for by name and cannot serve.
    """
    if implementation in ("torch", "reference"):
        return implementation
    kernels = implementation if implementation != "auto" else "cpu" if device.type == "cpu" else "triton"
    reason = obstacle(kernels, device=device, dtype=dtype, blending=blending, experts=experts)
    if reason is None:
        return kernels
    if implementation == "auto":
        return "torch"
    raise RuntimeError(f"implementation {implementation!r} cannot be used: {reason}; choose 'auto' or 'torch'")


def position_dependent_linear(
    x: Tensor,
    coords: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    level: Level,
    *,
    tile_size: int,
    blending: Blending = "nearest",
    implementation: Implementation = "auto",
) -> Tensor:
    """`h(x, p) = W(p) x + b`: what `reference.position_dependent_linear_ref` defines, without W(p) for every point.

    Differentiable any number of times in x, weight and bias, and in coords under linear blending (under nearest the
    gradient for coords is zero almost everywhere and none is returned).

    Args:
        x: features [..., in_features].
        coords: points [..., dim], dim 1 to 4, with the batch shape of x.
        weight: experts [tile_size ** dim, out_features, in_features].
        bias: [out_features], shared by the experts, or None.
        level: scale alpha and shift beta.
        tile_size: experts per axis, >= 1.
        blending: "nearest" or "linear".
        implementation: "auto", "torch" or "reference".

    Returns:
        [..., out_features].

    Raises:
        ValueError: shapes do not fit together, or tile_size, blending or implementation is none of the above.
    """
    check_implementation(implementation, blending)
    if implementation == "cpu":
        raise ValueError(
            "implementation 'cpu' computes whole networks (LoEMLP): choose 'auto' or 'torch' for one layer"
        )
    if tile_size < 1:
        raise ValueError(f"tile_size is {tile_size}: it counts experts per axis and must be at least 1")
    if blending not in get_args(Blending):
        raise ValueError(f"unknown blending {blending!r}: choose one of {', '.join(get_args(Blending))}")
    dim = coords.shape[-1]
    if not 1 <= dim <= MAX_DIM:
        raise ValueError(f"coords has {dim} coordinates per point: 1 to {MAX_DIM} are supported")
    if x.shape[:-1] != coords.shape[:-1]:
        raise ValueError(f"x {tuple(x.shape)} and coords {tuple(coords.shape)} must agree in all but the last axis")
    experts = num_experts(tile_size, dim)
    if weight.dim() != 3 or weight.shape[0] != experts or weight.shape[2] != x.shape[-1]:
        raise ValueError(
            f"weight is {tuple(weight.shape)}: with tile_size {tile_size}, {dim} coordinates and {x.shape[-1]} input "
            f"features it must be [{experts}, out_features, {x.shape[-1]}]"
        )
    if bias is not None and bias.shape != weight.shape[1:2]:
        raise ValueError(f"bias is {tuple(bias.shape)}: it must be [{weight.shape[1]}], shared by the experts")

    batch = x.shape[:-1]
    x, coords = x.reshape(-1, x.shape[-1]), coords.reshape(-1, dim)
    if implementation == "reference":
        out = position_dependent_linear_ref(x, coords, weight, bias, level, tile_size=tile_size, blending=blending)
    elif experts == 1 and implementation != "triton":
        out = torch.nn.functional.linear(x, weight[0], bias)
    elif (
        blending == "nearest"
        and resolve_implementation(
            implementation, device=x.device, dtype=weight.dtype, blending=blending, experts=experts
        )
        == "triton"
    ):
        from loe_field.fused_triton import expert_linear, hidden_precision

        dtype, precision = hidden_precision(x.device, x.dtype)
        rows = expert_rows(expert_index(coords, [level], tile_size), experts)
        out = expert_linear(x.to(dtype), weight, bias, rows.order[0], rows.starts[0], precision=precision)
    elif blending == "nearest":
        (groups,), back = group_rows(expert_index(coords, [level], tile_size), experts)
        out = permute_rows(grouped_linear(permute_rows(x, groups), weight, bias, groups.splits), back)
    else:
        out = blended_linear(x, coords, weight, bias, level, tile_size)
    return out.view(*batch, weight.shape[1])


def blended_linear(
    x: Tensor, coords: Tensor, weight: Tensor, bias: Tensor | None, level: Level, tile_size: int
) -> Tensor:
    """Linear blending of x [N, in_features] at coords [N, dim]: every row visits the 2^dim experts at its corners."""
    index, share = blending_weights(coords, level, tile_size)
    corners = index.shape[-1]
    if corners >= len(weight):
        # Every expert of a 2-tile is a corner of every cell: one dense product with all of them, no row moves.
        scale = share.new_zeros(len(x), len(weight)).scatter_add(1, index, share).to(x.dtype)
        products = torch.mm(x, weight.flatten(0, 1).t()).view(len(x), *weight.shape[:2])
        out = (products * scale[..., None]).sum(1)
    else:
        rows = x[:, None].expand(-1, corners, -1).reshape(-1, x.shape[-1])
        (groups,), back = group_rows(index.view(1, -1), len(weight))
        products = permute_rows(grouped_linear(permute_rows(rows, groups), weight, None, groups.splits), back)
        out = (products.view(len(x), corners, weight.shape[1]) * share.to(x.dtype)[..., None]).sum(1)
    return out if bias is None else out + bias
