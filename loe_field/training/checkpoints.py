"""Checkpoints that a kill cannot break, and clear words about those that are broken."""

import io
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from loe_field.errors import InputError, shortage
from loe_field.files import make_folder, write_whole
from loe_field.typed import Between, typed

_NAME = re.compile(r"step-(\d+)\.ckpt")


class DamagedCheckpoint(InputError):
    """A checkpoint whose content is damaged; one that could not be read now may be good."""


@dataclass
class _Checkpoint:
    """The parts that every checkpoint has."""

    step: Annotated[int, Between(-1, 2**62)]
    pipeline: dict[str, Any]
    optimizers: dict[str, Any]


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, ascending."""
    return sorted(int(match[1]) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name)))


def checkpoint_path(folder: Path, step: int) -> Path:
    """The path of a step's checkpoint, named as the host does."""
    return folder / f"step-{step:09d}.ckpt"


def packed(state: dict[str, Any]) -> memoryview:
    """A checkpoint's content: the state as it is now, whatever is trained while it is written."""
    content = io.BytesIO()  # torch's own writer tells of a full disk as "unexpected pos"
    torch.save(state, content)
    return content.getbuffer()


def write_checkpoint(folder: Path, step: int, content: memoryview, *, only_latest: bool) -> Path:
    """Write a checkpoint whole, then drop the others if only the latest is wanted; in any thread, one at a time.

    The temporary file lies beside the folder, not in it: the host takes every name in the folder for a checkpoint.

    Raises:
        InputError: it cannot be written.
    """
    make_folder(folder)
    path = checkpoint_path(folder, step)
    with write_whole(path, staging=folder.resolve().parent) as temporary:
        temporary.write_bytes(content)
    if only_latest:
        for other in set(checkpoint_steps(folder)) - {step}:
            checkpoint_path(folder, other).unlink(missing_ok=True)
    return path


def find_checkpoint(folder: Path, step: int | None = None) -> Path:
    """The checkpoint of a step, or the latest; an InputError if there is no such folder or checkpoint."""
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
    """Load a checkpoint of this package; the InputError about a damaged one names an older good one beside it."""
    if path.is_dir():
        raise InputError(f"{path} is a folder: --load-checkpoint wants a step-*.ckpt file, --load-dir takes its folder")
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise InputError(f"{path} {what}: --load-checkpoint wants a step-*.ckpt file")
    state = _try_read(path)
    if isinstance(state, dict):
        return state
    match = _NAME.fullmatch(path.name)
    older = [s for s in checkpoint_steps(path.parent) if match and s < int(match[1])]
    for step in reversed(older):
        good = checkpoint_path(path.parent, step)
        if isinstance(_try_read(good), dict):
            raise DamagedCheckpoint(
                f"{path} is damaged ({state}). {good.name} beside it is good: delete the damaged file, or give "
                f"--load-checkpoint {good}"
            )
    raise DamagedCheckpoint(
        f"{path} is damaged ({state}), and there is no older good one beside it: start the run anew"
    )


def _try_read(path: Path) -> dict[str, Any] | str:
    """The checkpoint, or in a few words why it cannot be one."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:  # that says nothing of the file
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except pickle.UnpicklingError:  # its own words lead to a way of reading that runs what is in the file
        return "its list of contents is broken, or names more than tensors, numbers and text"
    except Exception as error:  # torch raises whatever the broken byte leads to
        if lacked := shortage(error):
            raise InputError(f"{path} cannot be read: {lacked}") from None
        words = str(error).splitlines()
        return words[0] if words else type(error).__name__
    try:
        typed(_Checkpoint, state, "the file", strict=False)
    except InputError:
        return "it is a file of torch's but not a checkpoint"
    for name, value in state["pipeline"].items():
        if not torch.is_tensor(value) or value.layout != torch.strided or value.is_quantized:
            return f"its {name} is no tensor of a network"
    return state


def _misfit(difference: str) -> InputError:
    remedy = "Give the --pipeline.model options, and the data, that it was trained with"
    return InputError(f"the checkpoint{difference}. {remedy}")


def require_same_networks(loaded: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    """Refuse networks with other options: shapes would not tell another activation, or cells of another size."""
    for old, new in zip(loaded, wanted) if len(loaded) == len(wanted) else ():
        for name in new:
            if name in old and old[name] != new[name]:
                what = "list of levels (alpha, beta)" if name == "pattern" else name
                raise _misfit(f"'s {what} is {old[name]}, and here it is {new[name]}")


def require_same_shapes(loaded: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Refuse parameters whose names or shapes differ from the network's."""
    found = {name.removeprefix("module."): value for name, value in loaded.items()}
    for name in (*wanted, *sorted(found.keys() - wanted.keys())):
        short = name.removeprefix("_model.")
        if name not in found:
            raise _misfit(f" is of another shape: it has no {short}")
        if name not in wanted:
            raise _misfit(f" is of another shape: it also has {short}")
        there, here = list(found[name].shape), list(wanted[name].shape)
        if there != here:
            raise _misfit(f" is of another shape: {short} is {there} in it and {here} in this network")


def require_finite(loaded: dict[str, Tensor], path: Path) -> None:
    """Refuse parameters that are not finite: nothing but black, or nothing at all, would come of them."""
    for name, value in loaded.items():
        if not value.isfinite().all():
            raise InputError(f"{path} has numbers in {name} that are not finite: take an older checkpoint of the run")
