"""Which device is computed on."""

import torch

from featurestore.errors import UsageError


def pick_device(name: str) -> torch.device:
    """Return the device of a name; ``auto`` is CUDA where there is a GPU, else the CPU.

    Raises:
        UsageError: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"device {name!r} cannot be used here: {str(error).splitlines()[0]}"
        ) from error
    return device
