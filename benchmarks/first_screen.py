"""README's picture: the original, the fit, and a piece eightfold beside SIREN's after equal seconds.

    python -m benchmarks.first_screen                 # 2 x 120 s on one thread each; scikit-image's astronaut
    python -m benchmarks.first_screen --runs out      # draw again from the runs that lie in a folder

Both runs go through ns-train, at the same time, one thread each: other load slows both alike. Writes
docs/results/first_screen/picture.jpg and results.csv.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from skimage import data

from loe_field.runs.child import ns_train

FOLDER = Path(__file__).parents[1] / "docs" / "results" / "first_screen"
NAMES = {"loe-image": [], "SIREN": ["--pipeline.model.network", "siren", "--pipeline.model.layer-width", "214"]}
"""Options of the two runs; 214 channels are the most within loe-image's parameters."""
EYES = (192, 88, 256, 120)
"""The piece that is shown eightfold: left, upper, right, lower."""
COLUMNS = (
    *("psnr", "ssim", "num_parameters", "parameters_per_target", "macs_per_pixel", "num_steps", "train_seconds"),
    *("seed", "precision", "implementation", "device", "versions"),
)
GAP, LINE = 12, 34


def fit(folder: Path, seconds: float) -> None:
    """Run both fits side by side, into folder/NAME."""
    picture = folder / "astronaut.png"
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(data.astronaut()).save(picture)
    children = []
    for name, options in NAMES.items():
        command = ns_train("loe-image", "--data", str(picture))
        command += ["--max-train-seconds", str(seconds), "--num-threads", "1", "--output-dir", str(folder / name)]
        command += ["--pipeline.datamanager.pixels-per-batch", "8192", *options]
        children.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
    statuses = [child.wait() for child in children]
    if any(statuses):
        sys.exit("error: a run failed")


def result(folder: Path) -> tuple[dict[str, object], Image.Image]:
    """Figures of a run, and its reconstruction."""
    (metrics,) = folder.rglob("metrics.json")
    with Image.open(metrics.with_name("reconstruction.png")) as image:
        return json.loads(metrics.read_text("utf8")), image.convert("RGB")


def drawn(panels: list[tuple[str, Image.Image]]) -> Image.Image:
    """Panels side by side with a line of text above each."""
    width = sum(image.width for _, image in panels) + GAP * (len(panels) - 1)
    canvas = Image.new("RGB", (width, LINE + max(image.height for _, image in panels)), "white")
    draw, font, left = ImageDraw.Draw(canvas), ImageFont.load_default(22), 0
    for text, image in panels:
        draw.text((left, 2), text, fill="black", font=font)
        canvas.paste(image, (left, LINE))
        left += image.width + GAP
    return canvas


def eightfold(image: Image.Image) -> Image.Image:
    """The eyes, every pixel 8x8."""
    piece = image.crop(EYES)
    return piece.resize((8 * piece.width, 8 * piece.height), Image.Resampling.NEAREST)


def main() -> None:
    """Fit if there are no runs yet, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--runs", type=Path, help="folder of the runs; left out: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.runs or Path(temporary)
        if not any(folder.rglob("metrics.json")):
            fit(folder, options.seconds)
        results = {name: result(folder / name) for name in NAMES}
        original = Image.fromarray(data.astronaut())
        loe, siren = results["loe-image"], results["SIREN"]
        upper, lower = (np.asarray(eightfold(image)) for _, image in (loe, siren))
        pair = np.vstack([upper[:-2], np.full((4, *upper.shape[1:]), 255, np.uint8), lower[2:]])
        picture = drawn(
            [
                ("original, 512 x 512", original),
                (f"loe-image, {loe[0]['psnr']:.1f} dB", loe[1]),
                (f"eightfold: loe-image; SIREN, {siren[0]['psnr']:.1f} dB, below", Image.fromarray(pair)),
            ]
        )
    FOLDER.mkdir(parents=True, exist_ok=True)
    picture.save(FOLDER / "picture.jpg", quality=92, subsampling=0)
    with open(FOLDER / "results.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["network", *COLUMNS])
        for name, (metrics, _) in results.items():
            writer.writerow([name, *(metrics[key] for key in COLUMNS)])


if __name__ == "__main__":
    main()
