"""A LoEMLP as a safetensors file that needs nothing else to be understood; docs/format.md is its specification."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from loe_field.errors import InputError
from loe_field.export.quantize import Quantization, dequantized, quantized
from loe_field.files import write_output
from loe_field.network.checks import check_choice
from loe_field.network.implementation import Implementation
from loe_field.network.layers import LoEMLP
from loe_field.typed import Between, typed

FORMAT_VERSION = 3
"""Of networks with a feature grid; 2 of those with bias tiles or tiles of different sizes; 1 of the others: programs of
before read all that they know."""
KEY = "loe_field"
"""The metadata's key for the JSON text."""
_DTYPES = (torch.float32, torch.float16, torch.int8)

Side = Annotated[int, Between(1, 2**31 - 1)]
PictureSize = tuple[Side, Side, Side]
"""Height, width and channels."""
Peak = Annotated[float, Between(2e-35, 3e38)]
"""Picture.peak; 5000 / peak must be a float of 32 bits."""


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


@dataclass(frozen=True)
class _Picture:
    """The metadata's `picture`, as docs/format.md has it."""

    height: Side
    width: Side
    channels: Side
    radiance_peak: Peak | None = None


@dataclass(frozen=True)
class _Metadata:
    """The metadata's JSON, as docs/format.md has it."""

    network: dict[str, Any]
    quantization: Quantization | None = None
    picture: _Picture | None = None
    metrics: dict[str, float] = field(default_factory=dict)


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
        InputError: the network is no LoEMLP, or an argument of another kind; a parameter is not finite, or too large
            for fp16; or the file cannot be written.
    """
    if not isinstance(field, LoEMLP):
        raise InputError(f"the field is a {type(field).__name__}: a LoEMLP is wanted")
    typed(Quantization | None, quantization, "quantization")
    picture_size = typed(PictureSize | None, picture_size, "picture_size")
    content = encode_field(field, quantization=quantization, picture_size=picture_size)
    with write_output(Path(path)) as temporary:
        temporary.write_bytes(content)


def load_field(path: Path | str, *, implementation: Implementation = "auto") -> LoEMLP:
    """The network of a file of `save_field` or loe-export, in fp32 on the CPU.

    Raises:
        InputError: there is no such file, or it holds no network that this version understands; or the implementation
            is unknown.
    """
    try:
        check_choice("implementation", implementation, Implementation)
    except ValueError as error:
        raise InputError(str(error)) from None
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

    options = field.options
    details: dict[str, Any] = {
        "format_version": _version(options),
        "network": options,
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


def _version(options: dict[str, Any]) -> int:
    """The lowest that has all of a network's options."""
    if "grid" in options:
        return 3
    return 2 if "bias_pattern" in options or isinstance(options["tile_size"], list) else 1


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
        with torch.device("meta"):  # no memory before the file has shown that it holds as much
            field = typed(LoEMLP, {**details.network, "implementation": implementation}, "network").float()
        _check_tensors(tensors, field.state_dict())
        field.to_empty(device="cpu").load_state_dict(dequantized(tensors))
    except InputError as error:
        raise InputError(f"{path} contradicts itself: {error}") from None
    except (TypeError, RuntimeError) as error:  # torch has both for sizes beyond all memory
        raise InputError(f"{path} contradicts itself: {' '.join(str(error).split())[:200]}") from None
    for name, value in field.state_dict().items():
        if not value.isfinite().all():
            raise InputError(f"{path} has numbers in {name} that are not finite: get a whole copy of it")
    return field, details


def _check_tensors(tensors: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Refuse tensors that are not the network's: by name, shape or dtype, scales included."""
    scales = {f"{name}.scale": value.shape[:-1] for name, value in tensors.items() if value.dtype == torch.int8}
    shapes = {name: value.shape for name, value in wanted.items()} | scales
    for name in (*shapes, *tensors):
        if name not in tensors:
            raise InputError(f"it has no tensor {name}")
        if name not in shapes:
            raise InputError(f"it has a tensor {name} that the network has not")
        value = tensors[name]
        if value.shape != shapes[name] or value.dtype not in _DTYPES[: 2 if name in scales else 3]:
            found = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
            raise InputError(
                f"{name} is {found}: {list(shapes[name])} of float32, float16, or int8 with scales is wanted"
            )


def metadata_of(path: Path, text: str, newest: int) -> dict[str, Any]:
    """The content of a file's JSON text, which has a format version from 1 to the newest.

    Raises:
        InputError: it is no JSON, or has another version.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} has metadata that are no JSON ({error}): get a whole copy of it") from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if version not in range(1, newest + 1):
        known = f"1 to {newest}" if newest > 1 else "1"
        raise InputError(f"{path} has format version {version!r:.40} and this program reads {known}: update it")
    return content


def _read(path: Path) -> tuple[StoredField, dict[str, Tensor]]:
    from safetensors import safe_open

    if not path.is_file():
        raise InputError(f"{path} is not a file: a safetensors file of loe-export is wanted")
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()} if text is not None else {}  # noqa: SIM118
    except Exception as error:  # safetensors and torch raise whatever a broken byte leads to
        raise InputError(f"{path} cannot be read as safetensors ({error}): get a whole copy of it") from None
    if text is None:
        raise InputError(f"{path} is a safetensors file, but not one of a LoE field: its metadata has no {KEY!r}")
    found = typed(_Metadata, metadata_of(path, text, FORMAT_VERSION), f"{path}, {KEY}", strict=False)
    size = found.picture and (found.picture.height, found.picture.width, found.picture.channels)
    peak = found.picture and found.picture.radiance_peak
    return StoredField(found.network, size, found.quantization, found.metrics, peak), tensors
