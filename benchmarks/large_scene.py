"""How soon `loe-nerf` trains on many large pictures, and how much memory they take.

    python -m benchmarks.large_scene                         # 300 pictures of 1600x1250, each with a lens's distortion
    python -m benchmarks.large_scene --data SCENE            # a scene in nerfstudio's format

Starts a process that does what `ns-train loe-nerf` does until its first step is done, and prints the seconds and
processor seconds since it began, what it says of memory beforehand and what it took. The pictures are JPEG, cut from
one picture of noise of several sizes, and removed at the end.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

_CHILD = """
import os, resource, sys, time
import psutil
from nerfstudio.scripts.train import entrypoint
from loe_field.nerf.rays import RayTable
from loe_field.nerf.trainer import NerfTrainer

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def told(self, *args, of=RayTable.__init__, **options):
    before, began = peak(), time.perf_counter()
    of(self, *args, **options)
    print(f"pictures and directions: {time.perf_counter() - began:.1f} s, "
          f"{self.memory / 2**30:.2f} GiB said, {(peak() - before) / 2**30:.2f} GiB taken", flush=True)

def first_step(self):
    process = psutil.Process()
    used = process.cpu_times()
    print(f"first step after {time.time() - process.create_time():.1f} s, "
          f"{used.user + used.system:.1f} s of processors, {peak() / 2**30:.2f} GiB at most", flush=True)
    os._exit(0)

RayTable.__init__ = told
NerfTrainer._after_step = first_step
sys.argv[0] = "ns-train"
entrypoint()
"""


def write(folder: Path, views: int, width: int, height: int) -> None:
    """Write a scene: cameras on a ring that look at its middle."""
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    size = 2 * width, 2 * height
    layers = [
        Image.fromarray(rng.integers(0, 256, (2 * height // cell + 1, 2 * width // cell + 1, 3), dtype=np.uint8))
        for cell in (256, 64, 16, 4)
    ]
    whole = np.mean([np.asarray(layer.resize(size, Image.Resampling.BILINEAR)) for layer in layers], 0).astype(np.uint8)
    frames = []
    for i in range(views):
        left, top = rng.integers(width), rng.integers(height)
        Image.fromarray(whole[top : top + height, left : left + width]).save(folder / f"images/{i:04d}.jpg", quality=92)
        turn = 2 * np.pi * i / views
        back = np.array([np.cos(turn), np.sin(turn), 0])
        pose = np.column_stack([[-np.sin(turn), np.cos(turn), 0], [0, 0, 1], back, 3 * back])
        frames.append({"file_path": f"images/{i:04d}.jpg", "transform_matrix": [*pose.tolist(), [0, 0, 0, 1]]})
    lens = {"fl_x": 1.2 * width, "fl_y": 1.2 * width, "cx": width / 2, "cy": height / 2, "w": width, "h": height}
    content = lens | {"k1": 0.05, "k2": -0.08, "p1": -1e-3, "p2": 1e-4, "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(content), "utf8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="a scene, in place of one that is made")
    parser.add_argument("--views", type=int, default=300)
    parser.add_argument("--width", type=int, default=1600)
    parser.add_argument("--height", type=int, default=1250)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if (data := given.data) is None:
            data = Path(temporary) / "scene"
            data.mkdir()
            write(data, given.views, given.width, given.height)
        arguments = ["loe-nerf", "--data", str(data), "--output-dir", temporary]
        sys.exit(subprocess.run([sys.executable, "-c", _CHILD, *arguments], check=False).returncode)
