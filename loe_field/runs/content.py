"""What a run was made of and what it left: by these a restart knows what is done."""

import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from loe_field.errors import InputError
from loe_field.training.checkpoints import DamagedCheckpoint, find_checkpoint, read_checkpoint

_BLOCK = 1 << 20


@functools.cache
def content_of(data: Path) -> str:
    """A hash of a file, or of all files in a folder and their names; looked at once in a process.

    Raises:
        InputError: something of it cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    try:
        for path in _files(data) if data.is_dir() else [data]:
            digest.update(f"{path.relative_to(data)}\0{path.stat().st_size}\0".encode("utf8", "surrogateescape"))
            with open(path, "rb") as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
    except OSError as error:
        raise InputError(f"{error.filename or data} cannot be read: {error.strerror or error}") from None
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    """The regular files in a folder and the folders that it holds or links to, in order."""
    found, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(place))
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(place, name)) not in seen]
        found += [path for name in names if (path := Path(place, name)).is_file()]
    return sorted(found)


def read_results(folder: Path) -> dict[str, Any] | None:
    """The metrics of a run that left all its figures, else None."""
    try:
        metrics = json.loads((folder / "metrics.json").read_text("utf8"))
        whole = isinstance(metrics["psnr"], int | float) and isinstance(metrics["versions"], dict)
        whole = whole and {"torch"} <= metrics["versions"].keys() and {"device", "precision"} <= metrics.keys()
        whole = whole and (folder / "curve.csv").read_text("utf8").startswith("step,seconds,psnr\n")
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return metrics if whole else None


def good_checkpoints(folder: Path) -> Path | None:
    """The folder of a run's checkpoints if the last one is good, which it is to go on from; else None.

    Damaged ones, which a disk may leave, are put beside the folder.

    Raises:
        InputError: one cannot be read, which says nothing of its content.
    """
    checkpoints = folder / "nerfstudio_models"
    while checkpoints.is_dir() and any(checkpoints.glob("step-*.ckpt")):
        last = find_checkpoint(checkpoints)
        try:
            read_checkpoint(last)
            return checkpoints
        except DamagedCheckpoint:
            last.replace(folder / f"damaged-{last.name}")
    return None
