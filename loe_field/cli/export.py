"""loe-export: a fit as a file that other programs read."""

import copy
import math
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import torch
import tyro

from loe_field.cli.command import run_command
from loe_field.errors import InputError
from loe_field.export import traced
from loe_field.export.fields import encode_field
from loe_field.export.quantize import Quantization, dequantized, quantized
from loe_field.files import check_output, write_output
from loe_field.network.layers import LoEMLP
from loe_field.words import say

if TYPE_CHECKING:
    from loe_field.image.load import PictureField

_CHECKED_POINTS = 4096


@dataclass
class Export:
    """Write a fitted picture's network as a file that other programs read.

    All take coordinates within [0, 1], of a pixel's centre ((column + 0.5) / width, (row + 0.5) / height), and give
    colours on [0, 1], not clamped; HDR on its curve, with a word on how to undo it.
    """

    load_config: Annotated[Path, tyro.conf.arg(aliases=["--load"])]
    """config.yml of the run, a safetensors file of an earlier export, or the folder of ns-train loe-images (with
    --member). The picture itself is needed only to measure PSNR."""
    format: Literal["safetensors", "onnx", "torch-export"]
    """safetensors holds weights and architecture, laid out as docs/format.md says (levels of experts only).

    onnx is a model from coordinates [N, 2] to values [N, channels], torch-export the same for torch.export.load (.pt2).
    """
    output: Path
    """The file to write."""
    member: str | None = None
    """The field of such a folder: a name of its results.csv, or a number from 0 on."""
    quantize: Quantization | None = None
    """Round the weights of a safetensors file to 8 or 16 bits, and say what that does to the PSNR. None keeps fp32."""

    def main(self) -> None:
        """Check, load, write, say what was written."""
        if self.quantize is not None and self.format != "safetensors":
            raise InputError(f"--quantize {self.quantize} is for --format safetensors: leave it out for {self.format}")
        if self.format == "onnx":
            traced.require_onnx()
        output = check_output(self.output)
        from loe_field.image.load import load_run
        from loe_field.pictures.picture import MU

        field = load_run(self.load_config.expanduser(), self.member)
        picture = field.picture
        content, lines = self._safetensors(field) if self.format == "safetensors" else self._traced(field)
        if picture.peak is not None:
            curve = f"log(1 + {MU:g} v / {picture.peak:.6g}) / log(1 + {MU:g})"
            lines.append(f"the picture is HDR: where v is the light, the values are {curve}; alpha is as it is")
        with write_output(output) as path:
            path.write_bytes(content)
        for line in [*lines, f"{output}: {len(content):,} bytes"]:
            say(line, sys.stdout)

    def _safetensors(self, field: "PictureField") -> tuple[bytes, list[str]]:
        """The file's content and lines for the user."""
        from loe_field.image.load import load_target
        from loe_field.signals.picture import PictureSignal

        network, picture = field.network, field.picture
        if not isinstance(network, LoEMLP):
            use = "--format safetensors is for levels of experts, give onnx or torch-export"
            raise InputError(f"the run's network is {field.name}: {use}")
        tensors = quantized(network, self.quantize)
        metrics, lines = {}, []
        if self.quantize is not None:
            try:
                target = load_target(self.load_config.expanduser(), picture, self.member)
            except InputError as error:
                lines.append(f"PSNR is not measured: {error}")
            else:
                signal = PictureSignal(target, field.device, samples_per_batch=None, seed=0)
                before = signal.reconstruct(network).psnr
                network.load_state_dict(dequantized(tensors))
                after = signal.reconstruct(network).psnr
                lines.append(f"PSNR {before:.2f} dB before, {after:.2f} dB after rounding to {self.quantize}")
                measured = {"psnr_before": before, "psnr": after}
                metrics = {name: value for name, value in measured.items() if math.isfinite(value)}
        content = encode_field(
            network,
            quantization=self.quantize,
            picture_size=(picture.height, picture.width, picture.channels),
            metrics=metrics,
            tensors=tensors,
            radiance_peak=picture.peak,
        )
        bits = 8 * len(content) / (picture.height * picture.width)
        return content, [*lines, f"{bits:.3f} bits per pixel, the whole file counted"]

    def _traced(self, field: "PictureField") -> tuple[bytes, list[str]]:
        """The file's content, checked against the network where that can be done, and lines for the user."""
        network = copy.deepcopy(field.network).to("cpu")
        points = torch.rand(_CHECKED_POINTS, 2, generator=torch.Generator().manual_seed(0))
        if self.format == "onnx":
            content, reader = traced.encode_onnx(network), "onnxruntime"
            if not traced.has_onnxruntime():
                return content, ["not checked: onnxruntime is not installed (pip install 'loe-field[export]')"]
            values = traced.run_onnx(content, points)
        else:
            content, reader = traced.encode_program(traced.trace(network)), "the program"
            values = traced.run_program(content, points)
        difference, allowed = traced.largest_difference(network, points, values)
        if not difference <= allowed:
            fault = "nothing is written; this is a fault of loe_field, or of the versions installed beside it"
            raise InputError(f"{reader} differs from the field by {difference:.1e}, more than {allowed:.1e}: {fault}")
        return content, [f"{reader} agrees with the field to {difference:.1e} on {len(points):,} random points"]


main = partial(run_command, Export, "loe-export")

if __name__ == "__main__":
    main()
