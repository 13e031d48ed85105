"""A small scene in nerfstudio's format, traced: a sphere behind thin rods on a chequered board, on white.

    python examples/make_scene.py scene                          # 40 views of 60x60, a few seconds
    python examples/make_scene.py scene --views 100 --side 100   # the one of docs/results/scenes.md

Writes transforms.json and pictures into the folder, which must not be there yet.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from scenes import write_scene  # the scene that the tests trace

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("folder", type=Path)
parser.add_argument("--views", type=int, default=40)
parser.add_argument("--side", type=int, default=60, help="pixels along each side")
options = parser.parse_args()
write_scene(options.folder, options.views, options.side, options.side, white=True)
print(options.folder)
