"""What the tests of Triton kernels share: where they run, and what they leave out there."""

import importlib.util
import os
from importlib.metadata import version

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

TRITON = ()  # its version, as numbers
if importlib.util.find_spec("triton"):
    TRITON = tuple(int(part) for part in version("triton").split(".")[:2])

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed here")
only_gpu = [pytest.mark.gpu, pytest.mark.skipif(INTERPRETED, reason="takes a GPU")]
once = pytest.mark.skipif(INTERPRETED or DEVICE == "cuda", reason="the tests run in this process")


def kernels(test):
    """A test that launches kernels."""
    return test if INTERPRETED else pytest.mark.gpu(test)


def skip_what_triton_cannot_compile(architecture):
    if architecture == 120 and TRITON < (3, 4):
        pytest.skip("this version of Triton compiles no product for sm_120")
