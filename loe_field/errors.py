"""Errors that are meant for the person at the keyboard."""

import re

_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "STATUS_ALLOC_FAILED")
"""What torch's RuntimeErrors say: of a CPU, of CUDA and of its libraries."""


class InputError(ValueError):
    """Input that cannot be used; the message says what came, what was wanted and what to do."""

    everywhere = False
    """Whether every process of a run raises it, so that the first alone tells of it."""


def shortage(error: BaseException) -> str | None:
    """What a machine lacked, in words: memory, or anything that is an OSError. None for other errors."""
    words = " ".join(str(error).split())
    torchs = isinstance(error, RuntimeError) and any(said in words for said in _OUT_OF_MEMORY)
    if isinstance(error, MemoryError) or torchs:
        size = re.search(r"allocate ([\d.]+ \w+)", words)
        return "memory ran out" + (f" ({size[1]} more were wanted)" if size else "")
    if isinstance(error, OSError):
        what = error.strerror or words or type(error).__name__
        return what if error.filename is None else f"{error.filename}: {what}"
    return None
