"""The choice of an implementation, and why one cannot serve."""

import os
from typing import Literal

import torch

from loe_field.network.checks import check_choice
from loe_field.network.kernels import triton_installed
from loe_field.network.tiling import Blending

Implementation = Literal["auto", "torch", "triton", "cpu", "reference"]
"""How a network is computed: "triton" is kernels for NVIDIA GPUs, "cpu" kernels in C for processors, "torch" grouped
PyTorch for any device and dtype, "reference" the readable definition; "auto" takes the fastest that serves."""
Resolved = Literal["torch", "triton", "cpu", "reference"]


def check_implementation(implementation: Implementation, blending: Blending) -> None:
    """Refuse, with a ValueError, an unknown implementation or blending, and kernels that have no such blending."""
    check_choice("implementation", implementation, Implementation)
    check_choice("blending", blending, Blending)
    if blending == "linear" and implementation in ("triton", "cpu"):
        raise ValueError(
            f"implementation {implementation!r} has nearest blending only: choose 'auto' or 'torch' for linear blending"
        )


def obstacle(
    kernels: Literal["triton", "cpu"],
    *,
    device: torch.device,
    dtype: torch.dtype,
    blending: Blending,
    experts: int,
    fields: int | None = None,
    bias_tiles: bool = False,
    altered: str | None = None,
) -> str | None:
    """Why these kernels cannot serve so many experts of this dtype on this device; None if they can.

    `fields` is the num_fields of a network, `bias_tiles` whether it has some; `altered` says how it differs from those
    that the kernels compute.
    """
    if altered is not None:
        return altered
    if blending == "linear":
        return "the blending is linear and the kernels have nearest only"
    if dtype != torch.float32:
        return f"the parameters are {str(dtype).removeprefix('torch.')} and the kernels take float32"
    if kernels == "cpu":
        if device.type != "cpu":
            return f"the tensors are on {device}"
        from loe_field.network.kernels.cpu import MAX_EXPERTS, has_bf16, why_unavailable

        if experts > MAX_EXPERTS:
            return f"a level has {experts} experts and the kernels number at most {MAX_EXPERTS}"
        if fields is not None and torch.is_autocast_enabled("cpu"):
            return "autocast wants 16 bits and the kernels of many fields have float32"
        if torch.is_autocast_enabled("cpu") and why_unavailable() is None:
            if torch.get_autocast_dtype("cpu") != torch.bfloat16:
                return "autocast wants float16 and the kernels have float32 and bfloat16"
            if not has_bf16():
                return "autocast wants bfloat16, which this processor does not multiply"
        return why_unavailable()
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the tensors are on {device} and the kernels need an NVIDIA GPU"
    if fields is not None and bias_tiles:
        return "it has bias tiles of many fields, and the kernels find those of one"
    return None if triton_installed() else "Triton is not installed: pip install triton"


# torch.compile takes its result as it is, and does not look for the compiler itself (torch.compiler's
# assume_constant_result sets this too, but imports all of torch.compile at once).
obstacle._dynamo_marked_constant = True  # type: ignore[attr-defined]


def resolve_implementation(
    implementation: Implementation,
    *,
    device: torch.device,
    dtype: torch.dtype,
    blending: Blending,
    experts: int,
    fields: int | None = None,
    bias_tiles: bool = False,
    altered: str | None = None,
) -> Resolved:
    """The implementation for a network with so many experts a level, in this dtype on this device.

    "auto" takes the device's kernels where they can serve and "torch" elsewhere.

    Raises:
        RuntimeError: kernels are asked for by name and cannot serve.
    """
    if implementation in ("torch", "reference"):
        return implementation
    kernels = implementation if implementation != "auto" else "cpu" if device.type == "cpu" else "triton"
    where = {"device": device, "dtype": dtype, "blending": blending, "experts": experts}
    reason = obstacle(kernels, **where, fields=fields, bias_tiles=bias_tiles, altered=altered)
    if reason is None:
        return kernels
    if implementation == "auto":
        return "torch"
    raise RuntimeError(f"implementation {implementation!r} cannot be used: {reason}; choose 'auto' or 'torch'")
