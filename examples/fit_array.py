"""Fit an array: scikit-image's astronaut at 256x256, twice, in some minutes on two cores.

    python examples/fit_array.py

Prints what came of it and writes astronaut_fit.png: the picture, the fit and eight times the error; and
astronaut_fourfold.png: a piece four times as large, by the spline through the fit's pixels, by the field itself, and by
a field that was fitted for enlarging.
"""

import numpy as np
from PIL import Image
from skimage import data

from loe_field import fit_image

picture = np.asarray(Image.fromarray(data.astronaut()).resize((256, 256), Image.Resampling.LANCZOS))

fit = fit_image(picture, num_steps=1000, progress=True)
print(f"{fit.field.num_parameters:,} parameters, {fit.psnr:.2f} dB, SSIM {fit.ssim:.4f}, {fit.seconds:.0f} s")
print("halfway between the first two pixels:", fit.at([1.0, 0.5]).round(3))

error = np.abs(fit.reconstruction.astype(int) - picture)
brighter = (8 * error).clip(0, 255).astype(np.uint8)
Image.fromarray(np.hstack([picture, fit.reconstruction, brighter])).save("astronaut_fit.png")

smooth = fit_image(picture, num_steps=1000, method="loe-image-smooth")
face = (slice(4 * 16, 4 * 80), slice(4 * 80, 4 * 144))
enlarged = [fit.render(4), fit.render(4, upscaling="field"), smooth.render(4, upscaling="field")]
Image.fromarray(np.hstack([image[face] for image in enlarged])).save("astronaut_fourfold.png")
