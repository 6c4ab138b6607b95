"""The embedded benchmark: a small text-to-image model, ten styles × ten objects, shipped with its
weights.

Importing this package loads neither torch nor diffusers; `minicanvas.pipeline`,
`minicanvas.classifier`, `minicanvas.measure` and `minicanvas.train` do.
"""

from pathlib import Path
from typing import Final

from minicanvas.prompts import (
    OBJECTS,
    PLAIN,
    STYLE_LABELS,
    STYLES,
    LabelledPrompt,
    all_prompts,
    parse_prompt,
    prompt,
)

WEIGHTS_DIR: Final = Path(__file__).resolve().parent / "weights"
MODEL_DIR: Final = WEIGHTS_DIR / "pipeline"
"""The shipped pipeline: a directory that `StableDiffusionPipeline.from_pretrained` loads."""

STEPS: Final = 20
"""Denoising steps that the shipped model is meant for."""
GUIDANCE: Final = 3.0
"""Guidance scale that the shipped model is meant for."""

__all__ = [
    "GUIDANCE",
    "MODEL_DIR",
    "OBJECTS",
    "PLAIN",
    "STEPS",
    "STYLES",
    "STYLE_LABELS",
    "WEIGHTS_DIR",
    "LabelledPrompt",
    "all_prompts",
    "parse_prompt",
    "prompt",
]
