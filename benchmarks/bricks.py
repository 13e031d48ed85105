"""An object with fine detail in the format of the synthetic NeRF scenes: studded bricks before nothing, with shadows.

    python -m benchmarks.bricks scene                          # 90 + 10 views of 200x200 in half a minute
    python -m benchmarks.bricks scene --views 12 --side 32     # for a trial

Writes transforms_train.json, transforms_val.json, transforms_test.json (the last two are one: every tenth view) and
pictures with alpha into the folder, which must not be there yet. `ns-train loe-nerf --data scene blender-data` has
it on white. Boxes along the axes under one distant light are drawn one by one, each into its rectangle of rays.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

LIGHT = np.array([0.5, 0.3, 0.8]) / np.linalg.norm([0.5, 0.3, 0.8])
PALETTE = np.array(
    [
        *([0.85, 0.65, 0.1], [0.75, 0.15, 0.1], [0.2, 0.2, 0.22], [0.6, 0.6, 0.62]),
        *([0.9, 0.8, 0.3], [0.35, 0.25, 0.15], [0.1, 0.3, 0.6]),
    ]
)
DISTANCE, ANGLE = 4.0, 0.76
"""Of the cameras from the origin, and their angle of view in radians: the object fills the picture."""
SHADOW_SIDE, SHADOW_EXTENT = 2048, 1.8
"""Rays along each side of the grid that the light sends, and half the side's length."""


@dataclass
class Boxes:
    """Boxes along the axes: lower and upper corners and colours, each [boxes, 3]."""

    low: np.ndarray
    high: np.ndarray
    colour: np.ndarray


@dataclass
class Rays:
    """Rays on a grid: origins and directions [height, width, 3], and where points lie on the grid.

    `grid` takes points [N, 3] to columns and rows [N, 2] in rays.
    """

    origin: np.ndarray
    direction: np.ndarray
    axes: np.ndarray
    eye: np.ndarray
    scale: float
    parallel: bool

    def grid(self, points: np.ndarray) -> np.ndarray:
        """Columns and rows [N, 2] of points [N, 3], in rays."""
        x, y, back = ((points - self.eye) @ self.axes).T
        height, width = self.direction.shape[:2]
        depth = 1.0 if self.parallel else -back
        return np.stack([width / 2 + self.scale * x / depth, height / 2 - self.scale * y / depth], -1)


def bricks() -> Boxes:
    """A plate with studs, nine layers of studded bricks, a lattice of thin rods and a row of posts."""
    rng = np.random.default_rng(3)
    boxes: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(low, high, colour) -> None:
        boxes.append((np.array(low), np.array(high), np.array(colour)))

    def studs(low, high, colour, half: float, tall: float) -> None:
        for x in np.arange(low[0] + 0.05, high[0], 0.1):
            for y in np.arange(low[1] + 0.05, high[1], 0.1):
                add((x - half, y - half, high[2]), (x + half, y + half, high[2] + tall), colour)

    add((-1, -1, -0.6), (1, 1, -0.52), (0.55, 0.42, 0.28))
    studs((-0.95, -0.95, 0), (0.95, 0.95, -0.52), (0.6, 0.46, 0.3), 0.03, 0.03)
    for layer in range(9):
        for _ in range(14 - layer):
            size = np.array([0.1 + 0.1 * int(4 * rng.random()), 0.1 + 0.1 * int(2 * rng.random())])
            if rng.random() < 0.5:
                size = size[::-1]
            corner = np.round((rng.random(2) * (np.array([1.4, 1.0]) - size) - [0.7, 0.5]) * 10) / 10
            colour = PALETTE[int(len(PALETTE) * rng.random())]
            low = np.array([*corner, -0.52 + 0.1 * layer])
            high = low + np.array([*size, 0.095])
            add(low, high, colour)
            studs(low, high, colour, 0.025, 0.02)
    for k in range(10):
        add((-0.8 + 0.17 * k, 0.7, -0.52), (-0.785 + 0.17 * k, 0.715, 0.5), (0.2, 0.2, 0.22))
        add((-0.8, 0.7, -0.4 + 0.09 * k), (0.75, 0.71, -0.39 + 0.09 * k), (0.7, 0.7, 0.72))
    for k, colour in enumerate(PALETTE):
        add((-0.9 + 0.25 * k, -0.8, -0.52), (-0.8 + 0.25 * k, -0.7, 0.1 * k - 0.3), colour)
    return Boxes(*(np.stack(parts) for parts in zip(*boxes)))


def looking(eye: np.ndarray) -> np.ndarray:
    """The axes of a camera at eye that looks at the origin, as columns [3, 3]: right, up, back."""
    back = eye / np.linalg.norm(eye)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(back, right), back], 1)


def first_hits(boxes: Boxes, rays: Rays) -> tuple[np.ndarray, np.ndarray]:
    """Distance along each ray to the first box, infinite where there is none, and its number: both [height, width]."""
    height, width = rays.direction.shape[:2]
    distance, number = np.full((height, width), np.inf), np.full((height, width), -1)
    with np.errstate(divide="ignore"):
        inverse = 1 / rays.direction
    corners = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), -1).reshape(-1, 3)
    for i, (low, high) in enumerate(zip(boxes.low, boxes.high)):
        at = rays.grid(np.where(corners, high, low))
        left, top = np.maximum(at.min(0).astype(int) - 1, 0)
        right, bottom = at.max(0).astype(int) + 2
        part = np.s_[top:bottom, left:right]
        near, far = ((bound - rays.origin[part]) * inverse[part] for bound in (low, high))
        enter, leave = np.minimum(near, far).max(-1), np.maximum(near, far).min(-1)
        nearer = (enter < leave) & (enter < distance[part])
        distance[part][nearer], number[part][nearer] = enter[nearer], i
    return distance, number


def shadow_map(boxes: Boxes) -> tuple[Rays, np.ndarray]:
    """Parallel rays from the light, and their distances to the first box."""
    axes = looking(LIGHT)
    step = (np.arange(SHADOW_SIDE) + 0.5) / SHADOW_SIDE * 2 - 1
    x, y = np.meshgrid(step * SHADOW_EXTENT, -step * SHADOW_EXTENT)
    eye = 4 * LIGHT
    origin = eye + x[..., None] * axes[:, 0] + y[..., None] * axes[:, 1]
    scale = SHADOW_SIDE / (2 * SHADOW_EXTENT)
    rays = Rays(origin, np.broadcast_to(-LIGHT, origin.shape), axes, eye, scale, parallel=True)
    return rays, first_hits(boxes, rays)[0]


def picture(boxes: Boxes, light: tuple[Rays, np.ndarray], eye: np.ndarray, side: int) -> np.ndarray:
    """RGBA [side, side, 4] of 8 bits, four rays a pixel; colours are not multiplied by alpha."""
    axes, rows = looking(eye), 2 * side
    focal = 0.5 * rows / np.tan(0.5 * ANGLE)
    x, y = np.meshgrid(np.arange(rows) + 0.5 - side, np.arange(rows) + 0.5 - side)
    direction = (x / focal)[..., None] * axes[:, 0] - (y / focal)[..., None] * axes[:, 1] - axes[:, 2]
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    rays = Rays(np.broadcast_to(eye, direction.shape), direction, axes, eye, focal, parallel=False)
    distance, number = first_hits(boxes, rays)
    colour = np.zeros((rows, rows, 4))
    hit = number >= 0
    colour[hit] = _shaded(boxes, light, eye, direction[hit], distance[hit], number[hit])
    mean = colour.reshape(side, 2, side, 2, 4).mean((1, 3))
    mean[..., :3] /= np.maximum(mean[..., 3:], 1e-6)
    return (mean * 255 + 0.5).astype(np.uint8)


def _shaded(boxes: Boxes, light, eye, direction, distance, number) -> np.ndarray:
    """Colours [N, 4] of hits: Lambert's law and a highlight where the light reaches, and a fine chequer."""
    rays, lit_until = light
    near, far = ((bound[number] - eye) / direction for bound in (boxes.low, boxes.high))
    axis = np.minimum(near, far).argmax(-1)[:, None]
    normal = np.zeros_like(direction)
    np.put_along_axis(normal, axis, -np.sign(np.take_along_axis(direction, axis, -1)), -1)
    point = eye + distance[:, None] * direction
    column, row = rays.grid(point + 0.004 * normal).astype(int).T
    reached = (rays.eye - point) @ LIGHT < lit_until[row, column] + 0.004
    mirrored = direction - 2 * (direction * normal).sum(-1, keepdims=True) * normal
    diffuse = 0.35 + 0.65 * np.maximum(normal @ LIGHT, 0) * reached
    highlight = 0.35 * np.maximum(mirrored @ LIGHT, 0) ** 20 * reached
    chequer = 1 + 0.12 * np.sign(np.sin(60 * point + [0, 0, 0.5]).prod(-1))
    colour = (boxes.colour[number] * diffuse[:, None] + highlight[:, None]) * chequer[:, None]
    return np.concatenate([colour.clip(0, 1), np.ones((len(colour), 1))], -1)


def write(folder: Path, views: int = 100, side: int = 200) -> None:
    """Draw the views, all around and above, and write the scene."""
    (folder / "images").mkdir(parents=True)
    boxes = bricks()
    light = shadow_map(boxes)
    frames = []
    for i in range(views):
        turn, height = i * np.pi * (3 - 5**0.5), 0.05 + 0.85 * (i * 7 % views + 0.5) / views
        ring = (1 - height**2) ** 0.5
        eye = DISTANCE * np.array([ring * np.cos(turn), ring * np.sin(turn), height])
        Image.fromarray(picture(boxes, light, eye, side)).save(folder / f"images/{i:03d}.png")
        pose = np.vstack([np.column_stack([looking(eye), eye]), [0, 0, 0, 1]])
        frames.append({"file_path": f"./images/{i:03d}", "transform_matrix": pose.tolist()})
    held_out = frames[5::10]
    for split, chosen in (("train", [f for f in frames if f not in held_out]), ("val", held_out), ("test", held_out)):
        content = {"camera_angle_x": ANGLE, "frames": chosen}
        (folder / f"transforms_{split}.json").write_text(json.dumps(content), "utf8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--views", type=int, default=100)
    parser.add_argument("--side", type=int, default=200, help="pixels along each side")
    options = parser.parse_args()
    write(options.folder, options.views, options.side)
    print(options.folder)
