"""The error of a reconstruction as a picture."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from skimage.measure import block_reduce

from loe_field.pictures.metrics import picture_psnr
from loe_field.pictures.picture import Picture

_MOST_DRAWN = 2048  # pixels along a side of the error map at most


def error_figure(reconstruction: Picture, target: Picture) -> Figure:
    """Error of every pixel (the largest over its channels) in steps of 1/255, brightest at the 99.9th percentile."""
    difference = np.empty((target.height, target.width), np.float32)
    for row in range(target.height):
        seen, wanted = (target.to_unit(picture.values[row]) for picture in (reconstruction, target))
        np.abs(seen - wanted).max(-1, out=difference[row])
    difference *= 255
    # Of a large picture the largest error of each block: matplotlib would take 100 bytes for every pixel.
    difference = block_reduce(difference, -(-max(difference.shape) // _MOST_DRAWN), np.max)
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
