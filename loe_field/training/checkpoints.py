"""Checkpoints that a kill cannot break, and clear words about those that are broken."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loe_field.errors import InputError
from loe_field.files import write_whole

_NAME = re.compile(r"step-(\d+)\.ckpt")


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps of which a folder holds checkpoints, ascending."""
    return sorted(int(match[1]) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name)))


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies; the host's naming."""
    return folder / f"step-{step:09d}.ckpt"


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], *, only_latest: bool) -> Path:
    """Write a checkpoint whole, then drop the others if only the latest is wanted.

    The temporary file lies beside the folder, not in it: the host takes every name in the folder for a checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = checkpoint_path(folder, step)
    with write_whole(path, staging=folder.parent) as temporary:
        torch.save(state, temporary)
    if only_latest:
        for other in checkpoint_steps(folder):
            if other != step:
                checkpoint_path(folder, other).unlink()
    return path


def find_checkpoint(folder: Path, step: int | None = None) -> Path:
    """The checkpoint of a step, or the latest.

    Raises:
        InputError: there is no such folder or checkpoint.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: --load-dir wants the nerfstudio_models folder of a run")
    steps = checkpoint_steps(folder)
    if not steps and (folder / "nerfstudio_models").is_dir():
        raise InputError(f"{folder} is a run's folder: --load-dir wants the nerfstudio_models folder in it")
    if not steps:
        raise InputError(f"{folder} holds no checkpoint (step-*.ckpt): the run ended before its first one")
    if step is not None and step not in steps:
        raise InputError(f"{folder} has no checkpoint of step {step}: it has {', '.join(map(str, steps))}")
    return checkpoint_path(folder, steps[-1] if step is None else step)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint of this package.

    Raises:
        InputError: it does not exist, is damaged (naming an older good one beside it), or is no checkpoint.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist: --load-checkpoint wants a step-*.ckpt file")
    state = _try_read(path)
    if isinstance(state, dict):
        return state
    match = _NAME.fullmatch(path.name)
    older = [s for s in checkpoint_steps(path.parent) if match and s < int(match[1])]
    for step in reversed(older):
        good = checkpoint_path(path.parent, step)
        if isinstance(_try_read(good), dict):
            raise InputError(
                f"{path} is damaged ({state}). {good.name} beside it is good: delete the damaged file, or give "
                f"--load-checkpoint {good}"
            )
    raise InputError(f"{path} is damaged ({state}), and there is no older good one beside it: start the run anew")


def _try_read(path: Path) -> dict[str, Any] | str:
    """The checkpoint, or in a few words why it cannot be one."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the broken byte leads to
        words = str(error).splitlines()
        return words[0] if words else type(error).__name__
    if not isinstance(state, dict) or not {"step", "pipeline", "optimizers"} <= state.keys():
        return "it is a file of torch's but not a checkpoint"
    return state


_REMEDY = "Give the --pipeline.model options, and the data, that it was trained with"


def require_same_networks(loaded: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    """Compare what a checkpoint says of its networks with those that are to go on.

    Args:
        loaded: options of each network, plain numbers, text and lists.
        wanted: likewise.

    Raises:
        InputError: an option differs. Shapes alone would not tell another activation, or cells of another size.
    """
    for old, new in zip(loaded, wanted):
        for name in new:
            if name in old and old[name] != new[name]:
                what = "list of levels (alpha, beta)" if name == "pattern" else name
                raise InputError(f"the checkpoint's {what} is {old[name]}, and here it is {new[name]}. {_REMEDY}")


def require_same_shapes(loaded: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Compare a checkpoint's parameters with the network's.

    Raises:
        InputError: names or shapes differ.
    """
    loaded = {name.removeprefix("module."): value for name, value in loaded.items()}
    for name, tensor in wanted.items():
        short = name.removeprefix("_model.")
        if name not in loaded:
            raise InputError(f"the checkpoint is of another shape: it has no {short}. {_REMEDY}")
        if loaded[name].shape != tensor.shape:
            raise InputError(
                f"the checkpoint is of another shape: {short} is {list(loaded[name].shape)} in it and "
                f"{list(tensor.shape)} in this network. {_REMEDY}"
            )
    extra = sorted(loaded.keys() - wanted.keys())
    if extra:
        raise InputError(
            f"the checkpoint is of another shape: it also has {extra[0].removeprefix('_model.')}. {_REMEDY}"
        )
