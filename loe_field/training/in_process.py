"""A Trainer inside a caller's own Python process, which is afterwards as it was before."""

import random
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from nerfstudio.utils.rich_utils import CONSOLE

from loe_field.errors import InputError
from loe_field.training.config import LoETrainerConfig


@contextmanager
def in_process(config: LoETrainerConfig, *, show: bool) -> Iterator[None]:
    """Seed as ns-train does, for as long as this lasts; gradients are on, whatever the caller has them.

    The caller's random numbers, number of threads, default dtype and device, and console (which speaks if show) come
    back. glibc keeps freed memory from then on (see loe_field/training/machine.py), which has no way back. Ctrl-C is a
    KeyboardInterrupt once the Trainer has ended in its own way.
    """
    config.check()
    device = torch.get_default_device()
    if device.type != "cpu":  # None is the CPU without a look at every operation
        torch.set_default_device(None)
    if (within := torch.get_default_device()).type != "cpu":
        raise InputError(f"a fit cannot run within `with torch.device({within.type!r})`: call it outside")
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    plain, numpys, threads, quiet = random.getstate(), np.random.get_state(), torch.get_num_threads(), CONSOLE.quiet
    CONSOLE.quiet = quiet or not show
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        torchs = torch.random.fork_rng(devices)
        with torchs, torch.inference_mode(False), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the host's, about names that torch has changed since
            random.seed(config.machine.seed)
            np.random.seed(config.machine.seed)
            torch.manual_seed(config.machine.seed)
            yield
    except SystemExit as stopped:
        if stopped.code == 128 + signal.SIGINT:
            raise KeyboardInterrupt from None
        raise
    finally:
        random.setstate(plain)
        np.random.set_state(numpys)
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        if device.type != "cpu":
            torch.set_default_device(device)
        CONSOLE.quiet = quiet
