"""Reading and running a pipeline of diffusers; ``declare`` says how one of your own is read
(docs/pipelines.md)."""

from sae.diffusion.hooks import direct_calls
from sae.diffusion.reading.architectures import declare

__all__ = ["declare", "direct_calls"]
