"""Ways to enlarge a fit: measured against the picture at full size, and shown fourfold.

    python -m benchmarks.upscaling measure FULL.png RUN/config.yml ...   # runs on FULL.png halved (2 x 2 means)
    python -m benchmarks.upscaling figure OUT.png X0 Y0 X1 Y1 RUN/config.yml SMOOTH_RUN/config.yml

`halve IN.png OUT.png` makes the halved picture.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from loe_field.files import write_whole
from loe_field.image.load import load_run
from loe_field.pictures.metrics import psnr
from loe_field.pictures.picture import codes
from loe_field.pictures.read import read_picture
from loe_field.render.window import SplineOfPixels, View, evaluated, on_grid, rendered_rows, view_of


def enlargements(config: Path, view: Callable[[tuple[int, int]], View]) -> dict[str, np.ndarray]:
    """A fit enlarged in every way, float32 [height, width, channels]."""
    run = load_run(config)
    picture = run.picture
    size = (picture.width, picture.height)
    chosen = view(size)
    field = on_grid(evaluated(run, run.device, 65536))
    spline = SplineOfPixels(field, size, chosen, alpha=False)
    pixels = codes(np.concatenate(list(rendered_rows(field, view_of(size), chunk=65536))), np.uint8) / np.float32(255)
    ways = {
        name: np.concatenate(list(rendered_rows(function, chosen, chunk=65536)))
        for name, function in (("field", field), ("spline", spline))
    }
    box = (chosen.left, chosen.top, chosen.right, chosen.bottom)
    for name, filter_ in (("bicubic", Image.Resampling.BICUBIC), ("nearest", Image.Resampling.NEAREST)):
        planes = [Image.fromarray(pixels[..., c]) for c in range(pixels.shape[2])]
        resized = [np.asarray(p.resize((chosen.width, chosen.height), filter_, box=box)) for p in planes]
        ways[name] = np.stack(resized, -1)
    return ways


def halve(source: Path, output: Path) -> None:
    """Write a picture of 8 bits at half its size, each pixel the mean of 2 x 2."""
    values = read_picture(source).values
    height, width, channels = values.shape
    small = values[: height // 2 * 2, : width // 2 * 2].reshape(height // 2, 2, width // 2, 2, channels).mean((1, 3))
    Image.fromarray(codes(small / 255, np.uint8).squeeze()).save(output)


def measure(full: Path, configs: list[Path]) -> None:
    """Print the PSNR of every way to double the runs' pictures, against the full one."""
    target = read_picture(full)
    wanted = target.values / np.float32(target.white)
    for config in configs:
        ways = enlargements(config, lambda size: view_of(size, scale=2))
        figures = "  ".join(f"{name} {psnr(np.clip(v, 0, 1), wanted, 1.0):.2f}" for name, v in ways.items())
        print(f"{config.parent}: {figures} dB")


def figure(output: Path, crop: tuple[int, int, int, int], config: Path, smooth: Path) -> None:
    """Draw a window of two runs fourfold, in every way."""
    fits = enlargements(config, lambda size: view_of(size, scale=4, crop=crop))
    panels = {
        "loe-image, --upscaling field": fits["field"],
        "loe-image-smooth, --upscaling field": enlargements(
            smooth, lambda size: view_of(size, scale=4, crop=crop)
        )["field"],
        "loe-image, spline (default)": fits["spline"],
        "reconstruction, bicubic": fits["bicubic"],
        "reconstruction, nearest": fits["nearest"],
    }  # fmt: skip
    drawn = Figure(figsize=(3 * len(panels), 3.3), dpi=100, layout="constrained")
    FigureCanvasAgg(drawn)
    for place, (title, values) in enumerate(panels.items(), 1):
        axes = drawn.add_subplot(1, len(panels), place)
        axes.imshow(np.clip(values, 0, 1).squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    with write_whole(output) as path:
        drawn.savefig(path)


def main() -> None:
    """The command."""
    what, *rest = sys.argv[1:] or ["help"]
    if what == "halve" and len(rest) == 2:
        halve(*map(Path, rest))
    elif what == "measure" and len(rest) > 1:
        measure(Path(rest[0]), [Path(config) for config in rest[1:]])
    elif what == "figure" and len(rest) == 7:
        x0, y0, x1, y1 = map(int, rest[1:5])
        figure(Path(rest[0]), (x0, y0, x1, y1), *map(Path, rest[5:]))
    else:
        print(__doc__)
        sys.exit(2)


if __name__ == "__main__":
    main()
