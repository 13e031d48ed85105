"""A LoEMLP as a safetensors file that needs nothing else to be understood; docs/format.md is its specification."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from loe_field.errors import InputError
from loe_field.export.quantize import Quantization, dequantized, quantized
from loe_field.files import write_output
from loe_field.network.implementation import Implementation
from loe_field.network.layers import LoEMLP

FORMAT_VERSION = 1
KEY = "loe_field"
"""The metadata's key for the JSON text."""


@dataclass(frozen=True)
class StoredField:
    """All that a file says beside its tensors."""

    network: dict[str, Any]
    """The arguments of LoEMLP."""
    picture_size: tuple[int, int, int] | None
    """Height, width and channels of the picture that was fitted; None if none was named."""
    quantization: Quantization | None
    """How the weights are stored; None is fp32."""
    metrics: dict[str, float]
    """file_bytes and the figures that were measured, by name."""
    radiance_peak: float | None = None
    """Picture.peak of an HDR picture; None for other pictures."""


def save_field(
    field: LoEMLP,
    path: Path | str,
    *,
    quantization: Quantization | None = None,
    picture_size: tuple[int, int, int] | None = None,
) -> None:
    """Write a network as a file that needs nothing else to be understood (docs/format.md), whole or not at all.

    Args:
        field: the network.
        path: where it goes; its folder is made.
        quantization: "fp16", "int8" (see quantize.py), or None for fp32.
        picture_size: height, width and channels of the picture that it shows, noted in the file.

    Raises:
        InputError: a parameter is not finite, or too large for fp16; or the file cannot be written.
        ValueError: the quantization is unknown.
    """
    content = encode_field(field, quantization=quantization, picture_size=picture_size)
    with write_output(Path(path)) as temporary:
        temporary.write_bytes(content)


def load_field(path: Path | str, *, implementation: Implementation = "auto") -> LoEMLP:
    """The network of a file of `save_field` or loe-export, in fp32 on the CPU.

    Raises:
        InputError: there is no such file, or it holds no network that this version understands.
    """
    return read_field(Path(path), implementation=implementation)[0]


def encode_field(
    field: LoEMLP,
    *,
    quantization: Quantization | None = None,
    picture_size: tuple[int, int, int] | None = None,
    metrics: dict[str, float] | None = None,
    tensors: dict[str, Tensor] | None = None,
    radiance_peak: float | None = None,
) -> bytes:
    """The content of the file of `save_field`, with what else `StoredField` may hold noted in it.

    `tensors` is `quantized` of this field, where that is known already.

    Raises:
        InputError: a parameter is not finite, or too large for fp16.
    """
    from safetensors.torch import save

    details: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "network": field.options,
        "quantization": quantization,
        "coordinates": "((column + 0.5) / width, (row + 0.5) / height)",
    }
    if picture_size is not None:
        peak = {} if radiance_peak is None else {"radiance_peak": radiance_peak}
        details["picture"] = {**dict(zip(("height", "width", "channels"), picture_size)), **peak}
    tensors = quantized(field, quantization) if tensors is None else tensors

    def text(size: int) -> str:
        all_metrics = {**(metrics or {}), **_size_metrics(size, picture_size)}
        return json.dumps({**details, "metrics": all_metrics}, separators=(",", ":"), allow_nan=False)

    # The file's size is part of its text: spaces after a shorter text keep its length, so that the size stays true.
    longest = text(10**12)
    size = len(save(tensors, {KEY: longest}))
    return save(tensors, {KEY: text(size).ljust(len(longest))})


def _size_metrics(size: int, picture_size: tuple[int, int, int] | None) -> dict[str, float]:
    """The file's size in bytes, and in bits per pixel with four digits after the point."""
    if picture_size is None:
        return {"file_bytes": size}
    return {"file_bytes": size, "bits_per_pixel": round(8 * size / (picture_size[0] * picture_size[1]), 4)}


def read_details(path: Path) -> StoredField:
    """All that a file says beside its tensors.

    Raises:
        InputError: see read_field.
    """
    return _read(path)[0]


def read_field(path: Path, *, implementation: Implementation = "auto") -> tuple[LoEMLP, StoredField]:
    """The network of a file, in fp32 on the CPU, and all else that the file says.

    Raises:
        InputError: there is no such file, it is no safetensors file, damaged, not of a LoE field, or of a newer format.
    """
    details, tensors = _read(path)
    try:
        field = LoEMLP(**details.network, implementation=implementation)
        field.load_state_dict(dequantized(tensors))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} contradicts itself: {' '.join(str(error).split())}") from None
    return field, details


def _read(path: Path) -> tuple[StoredField, dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"{path} is not a file: a safetensors file of loe-export is wanted")
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()} if text is not None else {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read as safetensors ({error}): get a whole copy of it") from None
    if text is None:
        raise InputError(f"{path} is a safetensors file, but not one of a LoE field: its metadata has no {KEY!r}")
    try:
        details = json.loads(text)
        version = details["format_version"]
        if version != FORMAT_VERSION:
            raise InputError(
                f"{path} has format version {version!r} and this program reads {FORMAT_VERSION}: update it"
            )
        size = details.get("picture")
        picture = None if size is None else (int(size["height"]), int(size["width"]), int(size["channels"]))
        peak = None if size is None else size.get("radiance_peak")
        stored = StoredField(details["network"], picture, details["quantization"], details["metrics"], peak)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path} has metadata that cannot be understood ({error!r})") from None
    return stored, tensors
