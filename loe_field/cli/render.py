"""loe-render: a fit at any resolution, through any window."""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.progress import TimeRemainingColumn

from loe_field.cli.command import progress_bar, run_command
from loe_field.errors import InputError
from loe_field.files import check_output, check_output_folder
from loe_field.words import say


@dataclass
class Render:
    """Render the field of a run of ns-train loe-image into a picture file, or a page of tiles.

    At scale 1 it is the run's reconstruction. Smaller, every pixel is the mean of a grid of samples. The gaps between
    the picture's pixels are filled as --upscaling says. The run's picture need not be there any more.
    """

    load_config: Annotated[Path, tyro.conf.arg(aliases=["--load"])]
    """config.yml of the run, a safetensors file of loe-export, or the folder of ns-train loe-images (with --member)."""
    output: Path
    """The file: .png, .jpg, .tif, .webp, .exr or .npy. All but WebP are written row by row, whatever their size. With
    --tiles a folder, which is made."""
    member: str | None = None
    """The field of such a folder: a name of its results.csv, or a number from 0 on."""
    tiles: Literal["png", "jpg"] | None = None
    """Write tiles of 8 bits of all sizes (Microsoft's Deep Zoom) with a page, index.html, that shows a picture of any
    size in a browser. jpg is smaller, and not exact."""
    scale: float | None = None
    """Pixels of the result to one of the picture, along each side. None: 1."""
    size: tuple[int, int] | None = None
    """Width and height of the result, instead of --scale."""
    crop: tuple[float, float, float, float] | None = None
    """X0 Y0 X1 Y1 in the picture's own pixels, X1 and Y1 not included; parts of pixels too. None: the whole picture."""
    bit_depth: Literal[8, 16, 32] | None = None
    """Bits per channel; 32 is float, in EXR 16 too. None: the picture's own where the format has them, 32 for NPY."""
    upscaling: Literal["field", "spline"] | None = None
    """Values between the pixels' centres, for larger pictures and those smaller by no whole factor: the field itself,
    with its jumps at the borders of cells, or the cubic spline through its values at the picture's pixels. None: the
    spline, which measured better."""
    derivative: Literal["gradient", "laplacian"] | None = None
    """Instead of the colours. In EXR, NPY and TIFF as floats: d/dx and d/dy of the first channel, then of the next, in
    values (0 to 1) per pixel; or the Laplacian of every channel. In the others as a grey picture."""
    chunk_size: int = 65536
    """Points evaluated at once: less takes less memory."""

    def main(self) -> None:
        """Render, and say what was written."""
        if self.derivative is not None and self.upscaling == "spline":
            raise InputError("--derivative is the field's own: leave --upscaling spline out")
        from loe_field.image.load import load_run
        from loe_field.render.render import RenderJob, write_rendering
        from loe_field.render.window import view_of

        start = time.perf_counter()
        if self.tiles is not None and self.bit_depth not in (None, 8):
            raise InputError(f"--bit-depth is {self.bit_depth}: tiles have 8, leave it out")
        (check_output if self.tiles is None else check_output_folder)(self.output)
        field = load_run(self.load_config.expanduser(), self.member)
        picture = field.picture
        view = view_of((picture.width, picture.height), scale=self.scale, size=self.size, crop=self.crop)
        job = RenderJob(
            self.output.expanduser(),
            view,
            self.upscaling or "spline",
            self.derivative,
            self.bit_depth if self.tiles is None else 8,
            self.chunk_size,
            self.tiles,
        )
        console = Console()
        with progress_bar(console, TimeRemainingColumn(), transient=True) as progress:
            task = progress.add_task("rendering rows", total=view.height)
            lines = write_rendering(field, field.network, picture, job, lambda rows: progress.advance(task, rows))
        lines[0] += f", {time.perf_counter() - start:.1f} s"
        for line in lines:
            say(line, console)


main = partial(run_command, Render, "loe-render")

if __name__ == "__main__":
    main()
