"""A scene as people have it, made of a good one: cameras are a little off, and pictures of unlike brightness.

    python -m benchmarks.disturbed SCENE FOLDER                 # SCENE in nerfstudio's format, with transforms.json
    ns-train loe-nerf --data FOLDER
    ns-train loe-nerf --data FOLDER --pipeline.model.camera-optimizer.mode SO3xR3
    ns-train loe-nerf --data FOLDER --pipeline.model.appearance-dim 8

Each training camera is turned by about --turn degrees about a random axis and moved by about --move of the cameras'
extent, and its picture's light (sRGB undone) is multiplied by about 2 to the power of ±--stops; all are normally
distributed. The errors' means are taken off: the held-out views, every tenth, stay as they are and belong to the same
frame and exposure. FOLDER must not be there yet.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image


def turned(vector: np.ndarray) -> np.ndarray:
    """The rotation [3, 3] about a vector [3] by its length in radians (Rodrigues)."""
    angle = float(np.linalg.norm(vector))
    x, y, z = vector / max(angle, 1e-12)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def brighter(picture: np.ndarray, stops: float) -> np.ndarray:
    """An sRGB picture of 8 bits whose light is 2^stops of what it was, clipped."""
    values = picture / 255
    light = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4) * 2**stops
    values = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return (values.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def write(scene: Path, folder: Path, *, turn: float, move: float, stops: float, seed: int) -> None:
    """Write the disturbed scene."""
    content = json.loads((scene / "transforms.json").read_text("utf8"))
    frames = content["frames"]
    (folder / "images").mkdir(parents=True)
    held_out = set(range(5, len(frames), 10))
    trained = [i for i in range(len(frames)) if i not in held_out]
    places = np.array([frame["transform_matrix"] for frame in frames])[:, :3, 3]
    extent = float(np.abs(places - places.mean(0)).max())
    rng = np.random.default_rng(seed)
    errors = rng.normal(size=(len(trained), 7)) * [
        *[np.radians(turn) / 3**0.5] * 3,
        *[move * extent / 3**0.5] * 3,
        stops,
    ]
    errors -= errors.mean(0)
    names = {"train_filenames": [], "val_filenames": [], "test_filenames": []}
    error_of = dict(zip(trained, errors))
    for i, frame in enumerate(frames):
        picture = np.array(Image.open(scene / frame["file_path"]).convert("RGB"))
        error = error_of.get(i, np.zeros(7))
        pose = np.array(frame["transform_matrix"], dtype=float)
        pose[:3, :3] = turned(error[:3]) @ pose[:3, :3]
        pose[:3, 3] += error[3:6]
        name = f"images/{i:04d}.png"
        frame |= {"file_path": name, "transform_matrix": pose.tolist()}
        Image.fromarray(brighter(picture, error[6]) if error[6] else picture).save(folder / name)
        for split in ("train_filenames",) if i not in held_out else ("val_filenames", "test_filenames"):
            names[split].append(name)
    (folder / "transforms.json").write_text(json.dumps(content | names), "utf8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("scene", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--turn", type=float, default=0.3, help="degrees")
    parser.add_argument("--move", type=float, default=0.005, help="of the cameras' extent")
    parser.add_argument("--stops", type=float, default=0.25)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write(options.scene, options.folder, turn=options.turn, move=options.move, stops=options.stops, seed=options.seed)
    print(options.folder)
