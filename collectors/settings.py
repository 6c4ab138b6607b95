"""What a collection keeps, and in what portions."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class CollectSettings:
    """What is kept, and in what portions."""

    hooks: Sequence[str] = ()
    """whose activations are kept: module paths or patterns such as ``unet.up_blocks.*.attentions.*``"""
    io: str = "output"
    """``output``, ``input`` or ``difference`` (output − input) of the module"""
    branch: str = "cond"
    """``cond``, ``uncond`` or ``both`` halves of classifier-free guidance"""
    dtype: str = "float16"
    """of the stored activations: ``float16`` or ``float32``"""
    timesteps: str = "all"
    """``all``, ``every:N`` or step indices and ranges (``0,10-19``)"""
    positions: str = "all"
    """``all``, ``mean`` over the map, or ``random:N`` of each map"""
    saes: Sequence[str] = ()
    """SAEs that encode while collecting: names in the store, or directories"""
    activations: bool = True
    """also keep the activations that the SAEs encode"""
    images: bool = False
    """also keep the pictures, in ``samples``"""
    batch_size: int = 8
    """pictures generated at once; changes nothing that is stored but rounding"""
    shard_samples: int = 16
    """pictures a shard"""
    exact: bool = False
    """one picture at a time on one CPU thread: the same bytes whatever the batch size, the threads and the processes"""

    def choices(self) -> dict[str, str]:
        """Return those that decide what an activation row is."""
        names = ("io", "branch", "dtype", "timesteps", "positions")
        return {name: getattr(self, name) for name in names}
