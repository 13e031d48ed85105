"""The kernels: pointers, blocks and sums. They neither validate nor differentiate; `fused_*` beside this folder do."""

import functools
import importlib.util


@functools.cache
def triton_installed() -> bool:
    """Whether the GPU kernels' language is there, without importing it."""
    return importlib.util.find_spec("triton") is not None
