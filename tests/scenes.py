"""A small posed scene, ray-traced with NumPy: a sphere, a chequered box and thin rods, before nothing."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

LIGHT = np.array([0.5, 0.3, 0.8]) / np.linalg.norm([0.5, 0.3, 0.8])


def look_at(eye):
    """Camera to world [3, 4] of a camera at eye that looks at the origin; columns right, up, back, place."""
    back = eye / np.linalg.norm(eye)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(back, right), back, eye], 1)


def poses(count, radius=2.5):
    """Cameras all around and above, spread by the golden angle."""
    height = np.linspace(0.1, 0.75, count)
    angle = np.arange(count) * np.pi * (3 - 5**0.5)
    ring = np.sqrt(1 - height**2)
    return [look_at(radius * np.array([r * np.cos(a), r * np.sin(a), h])) for r, a, h in zip(ring, angle, height)]


def _sphere(origin, ray, center, radius):
    to = origin - center
    b, c = (ray * to).sum(-1), (to * to).sum(-1) - radius**2
    root = b * b - c
    depth = -b - np.sqrt(np.maximum(root, 0))
    return np.where(root > 0, depth, np.inf), (to + depth[..., None] * ray) / radius


def _box(origin, ray, low, high):
    with np.errstate(divide="ignore", invalid="ignore"):
        near, far = (low - origin) / ray, (high - origin) / ray
    enter, leave = np.minimum(near, far), np.maximum(near, far)
    axis, depth = enter.argmax(-1), enter.max(-1)
    normal = -np.sign(np.take_along_axis(ray, axis[..., None], -1)) * np.eye(3)[axis]
    return np.where((depth < leave.min(-1)) & (depth > 0), depth, np.inf), normal


def render(pose, height, width, focal):
    """RGBA [height, width, 4] in [0, 1] and depth along the ray, infinite where there is nothing."""
    y, x = np.mgrid[:height, :width] + 0.5
    local = np.stack([(x - width / 2) / focal, -(y - height / 2) / focal, -np.ones_like(x)], -1)
    ray = local @ pose[:, :3].T
    ray /= np.linalg.norm(ray, axis=-1, keepdims=True)
    origin = np.broadcast_to(pose[:, 3], ray.shape)
    rods = [([0.5, s, -0.4], [0.54, s + 0.04, 0.5]) for s in (-0.45, -0.15, 0.15, 0.45)]
    parts = [
        (*_sphere(origin, ray, np.array([-0.1, 0.1, 0.05]), 0.38), np.array([0.9, 0.35, 0.2])),
        (*_box(origin, ray, np.array([-0.6, -0.6, -0.5]), np.array([0.6, 0.6, -0.4])), np.array([0.3, 0.5, 0.9])),
        *((*_box(origin, ray, np.array(a), np.array(b)), np.array([0.95, 0.85, 0.3])) for a, b in rods),
    ]
    depth, colour = np.full((height, width), np.inf), np.zeros((height, width, 4))
    for number, (distance, normal, base) in enumerate(parts):
        nearer = (distance < depth) & (distance > 0)
        normal = np.where(nearer[..., None], normal, 0.0)
        point = origin + np.where(nearer, distance, 0.0)[..., None] * ray
        if number == 1:
            chequer = (np.floor(point[..., :2] * 5).sum(-1) % 2)[..., None]
            base = np.where(chequer == 1, base, 0.85)
        shade = 0.35 + 0.65 * np.maximum(normal @ LIGHT, 0)
        colour[nearer] = np.concatenate([base * shade[..., None], np.ones((height, width, 1))], -1)[nearer]
        depth = np.where(nearer, distance, depth)
    return colour, depth


def write_scene(folder: Path, views=20, height=40, width=50, white=False):
    """A scene in nerfstudio's format; RGBA, or RGB on white. Returns its folder."""
    (folder / "images").mkdir(parents=True)
    focal = 1.1 * width
    frames = []
    for i, pose in enumerate(poses(views)):
        # Four rays a pixel.
        big = render(pose, 2 * height, 2 * width, 2 * focal)[0]
        big[..., :3] *= big[..., 3:]
        small = big.reshape(height, 2, width, 2, 4).mean((1, 3))
        if white:
            small = small[..., :3] + 1 - small[..., 3:]
        else:
            small[..., :3] /= np.maximum(small[..., 3:], 1e-6)
        name = f"images/{i:03d}.png"
        Image.fromarray((small * 255).round().clip(0, 255).astype(np.uint8)).save(folder / name)
        frames.append({"file_path": name, "transform_matrix": [*pose.tolist(), [0, 0, 0, 1]]})
    lens = {"fl_x": focal, "fl_y": focal, "cx": width / 2, "cy": height / 2, "w": width, "h": height}
    (folder / "transforms.json").write_text(json.dumps({"camera_model": "OPENCV", **lens, "frames": frames}))
    return folder


def write_blender_scene(folder: Path, views=20, height=40, width=50):
    """The same as a synthetic NeRF scene: RGBA, every fifth view for val and test. Returns its folder."""
    content = json.loads((write_scene(folder, views, height, width) / "transforms.json").read_text())
    angle = 2 * np.arctan(0.5 * width / content["fl_x"])
    frames = [{**frame, "file_path": "./" + frame["file_path"].removesuffix(".png")} for frame in content["frames"]]
    (folder / "transforms.json").unlink()
    held_out = frames[::5]
    for split, chosen in (("train", [f for f in frames if f not in held_out]), ("val", held_out), ("test", held_out)):
        (folder / f"transforms_{split}.json").write_text(json.dumps({"camera_angle_x": angle, "frames": chosen}))
    return folder


def write_colmap_scene(folder: Path, views=6, height=8, width=10, at="sparse/0", offset=(0.0, 0.0, 0.0)):
    """The same as COLMAP leaves it, in text, shifted by an offset. Returns its folder."""
    content = json.loads((write_scene(folder, views, height, width) / "transforms.json").read_text())
    (folder / "transforms.json").unlink()
    (folder / at).mkdir(parents=True)
    lens = " ".join(str(content[name]) for name in ("w", "h", "fl_x", "fl_y", "cx", "cy"))
    (folder / at / "cameras.txt").write_text(f"1 PINHOLE {lens}\n")
    lines = []
    for number, frame in enumerate(content["frames"]):
        pose = np.array(frame["transform_matrix"])[:3] * [1, -1, -1, 1]  # right, down, forward
        turn = pose[:, :3].T
        x, y, z = -turn @ (pose[:, 3] + offset)
        quaternion = quaternion_from_matrix(turn)
        numbers = " ".join(f"{v:.17g}" for v in (*quaternion, x, y, z))
        lines += [f"{number + 1} {numbers} 1 {Path(frame['file_path']).name}", ""]
    (folder / at / "images.txt").write_text("\n".join(lines) + "\n")
    return folder


def quaternion_from_matrix(turn):
    """Quaternion (w, x, y, z) of a rotation [3, 3]."""
    (a, b, c), (d, e, f), (g, h, i) = turn
    symmetric = [[a + e + i, h - f, c - g, d - b], [0, a - e - i, b + d, c + g], [0, 0, e - a - i, f + h]]
    matrix = np.array([*symmetric, [0, 0, 0, i - a - e]])
    return np.linalg.eigh(matrix + np.triu(matrix, 1).T)[1][:, -1]
