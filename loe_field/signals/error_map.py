"""The error of a reconstruction as a picture."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from loe_field.pictures.metrics import picture_psnr
from loe_field.pictures.picture import Picture

_MOST_DRAWN = 2048  # pixels along a side of the error map at most


def error_figure(reconstruction: Picture, target: Picture) -> Figure:
    """Error of every pixel (the largest over its channels) in steps of 1/255, brightest at the 99.9th percentile."""
    # Of a large picture the largest error of each block: matplotlib would take 100 bytes for every pixel.
    block = -(-max(target.height, target.width) // _MOST_DRAWN)
    lines = []
    for row in range(0, target.height, block):
        seen, wanted = (target.to_unit(picture.values[row : row + block]) for picture in (reconstruction, target))
        largest = np.abs(seen - wanted).max((0, 2))
        lines.append(np.maximum.reduceat(largest, range(0, target.width, block)))
    difference = 255 * np.stack(lines)
    top = max(float(np.percentile(difference, 99.9)), 1.0)
    height, width = difference.shape
    scale = min(6 / max(height, width), 1 / 50)
    size = max(4.0, width * scale + 1.6), max(2.0, height * scale + 1.0)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    drawn = axes.imshow(difference, cmap="magma", vmin=0, vmax=top, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(f"|error|, PSNR {picture_psnr(reconstruction, target):.2f} dB", fontsize=10)
    figure.colorbar(drawn, ax=axes, label="steps of 1/255", shrink=0.8)
    return figure
