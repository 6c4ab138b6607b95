"""Small stores as an explorer shows them: with pictures, two families, real decoder weights."""

import io

import numpy as np
from PIL import Image
from safetensors.numpy import save

from tests.builders.codes import random_codes
from tests.builders.stores import make_store

STYLES = ["neon", "sketch", "neon", "sketch", "neon", "sketch"]
OBJECTS = ["cat", "cat", "dog", "dog", "cat", "dog"]
HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "\x1b[31mred\x1b[0m",
    "\u202etxt.exe",
    "x" * 5000,
    "a,b;c%2F'\"&?#",
    "</script><script>alert(1)</script>",
]


def png(seed: int, size: int = 200) -> bytes:
    """A picture of random blocks."""
    blocks = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(blocks).resize((size, size), Image.Resampling.NEAREST).save(sink, "PNG")
    return sink.getvalue()


def weights(n_latents: int = 12, d_in: int = 8) -> bytes:
    """An SAE's file with a random decoder."""
    return save(
        {"W_dec": np.random.default_rng(7).standard_normal((n_latents, d_in)).astype(np.float32)}
    )


def explored_store(root, *, names=None, pictures=True, labels=None, **kwargs):
    """Six samples, three steps, a map of 2 × 2, twelve latents; ``names`` replace prompts and
    styles."""
    n = len(STYLES)
    families = labels if labels is not None else {"style": names or STYLES, "object": OBJECTS}
    prompts = names or [
        f"a {thing} in {style} style, {i}"
        for i, (thing, style) in enumerate(zip(OBJECTS, STYLES, strict=True))
    ]
    drawn = [png(i) for i in range(n)] if pictures else None
    return make_store(root, random_codes(5, samples=n), families, size=(2, 2), prompts=prompts, pictures=drawn,
                      weights=weights(), **kwargs)  # fmt: skip
