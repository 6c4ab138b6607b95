"""How much memory was used at most since a moment: the device's on CUDA, else the process's."""

import contextlib
import resource
from pathlib import Path

import torch

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def reset_peak() -> None:
    """Begin anew. Where the system cannot, the peak stays that of the process so far."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError), _CLEAR.open("w") as file:
        file.write("5")


def peak_bytes() -> int:
    """Return the peak since :func:`reset_peak`."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
