"""Host memory that captured tensors are copied into, beside the denoiser's own work on a GPU."""

from typing import Any

import torch
from torch import Tensor


class HostMemory:
    """Buffers of one work item, used again for the next but one; page-locked, and filled on a stream of their own, for CUDA."""

    def __init__(self, device: torch.device) -> None:
        self._tensors: dict[str, Tensor] = {}
        self._device = device
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return a tensor of a shape with whatever it held before; its memory is that of the last tensor of this name."""
        size = torch.Size(shape).numel()
        old = self._tensors.get(name)
        if old is None or old.numel() < size or old.dtype != dtype:
            self._tensors[name] = old = torch.empty(size, dtype=dtype, pin_memory=self._stream is not None)
        return old[:size].view(shape)

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Copy ``source`` into a slice of a host tensor; from CUDA without waiting, see :meth:`wait`."""
        if self._stream is None or source.device.type != "cuda":
            target.copy_(source)
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            # One sample's slice is contiguous, and only such copies are asynchronous.
            for row, place in zip(source, target, strict=True):
                place.copy_(row, non_blocking=True)
        source.record_stream(self._stream)

    def wait(self) -> None:
        """Wait for all copies."""
        if self._stream is not None:
            self._stream.synchronize()
