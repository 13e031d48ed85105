"""Random numbers that whole numbers alone decide."""

import numpy as np
import torch


def seeded_generator(device: torch.device, *numbers: int) -> torch.Generator:
    """A generator on a device, seeded by whole numbers >= 0."""
    # Mixed into 32 bits, of which torch's CPU generator would otherwise take only the lower ones.
    mixed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    return torch.Generator(device).manual_seed(mixed)
