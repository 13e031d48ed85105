"""Triton's interpreter beside any numpy."""

from typing import Any


def mend() -> None:
    """Let the interpreter take an array of one element for a number.

    Triton before 3.8 writes int(array), which numpy from 2.5 on refuses: without this no kernel would run there.
    """
    from triton.runtime import interpreter

    theirs = interpreter._patch_lang_tensor

    def with_scalars(tensor: Any, *scope: Any) -> None:
        theirs(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = with_scalars
