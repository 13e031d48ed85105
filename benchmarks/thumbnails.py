"""Cut windows from photographs: a folder of small pictures for `ns-train loe-images`.

    python -m benchmarks.thumbnails thumbnails --count 1000 --side 32
    ns-train loe-images --data thumbnails

The windows lie side by side, none over another, and are chosen by a seed. Without --photos they come from
scikit-image's own pictures in colour.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import skimage
import tyro
from PIL import Image

_PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "ihc.png", "rocket.jpg")


@dataclass
class Thumbnails:
    """Cut windows from photographs."""

    output: Annotated[Path, tyro.conf.Positional]
    """Folder for the windows: 0000.png, 0001.png, ..."""
    photos: Path | None = None
    """Folder of photographs. None: scikit-image's."""
    side: int = 32
    """Pixels along each side of a window."""
    count: int = 1000
    """Windows."""
    shrink: int = 1
    """Pixels of the photograph along each side of one of the window."""
    seed: int = 0
    """Of the choice."""

    def main(self) -> None:
        """Choose, cut and write."""
        folder = Path(skimage.__file__).parent / "data"
        paths = [folder / name for name in _PHOTOGRAPHS if (folder / name).is_file()]
        if self.photos is not None:
            suffixes = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
            paths = sorted(path for path in self.photos.iterdir() if path.suffix.lower() in suffixes)
        pictures = [Image.open(path).convert("RGB") for path in paths]
        step = self.side * self.shrink
        places = [
            (number, left, top)
            for number, picture in enumerate(pictures)
            for top in range(0, picture.height - step + 1, step)
            for left in range(0, picture.width - step + 1, step)
        ]
        if len(places) < self.count:
            raise SystemExit(f"error: the photographs have {len(places):,} windows of {step} pixels: give more of them")
        self.output.mkdir(parents=True, exist_ok=True)
        for row, chosen in enumerate(np.random.default_rng(self.seed).permutation(len(places))[: self.count]):
            number, left, top = places[chosen]
            window = pictures[number].crop((left, top, left + step, top + step))
            window.resize((self.side, self.side), Image.Resampling.BOX).save(self.output / f"{row:04d}.png")
        print(f"{self.count:,} of {len(places):,} windows of {len(pictures)} photographs are in {self.output}")


if __name__ == "__main__":
    tyro.cli(Thumbnails, description=__doc__).main()
