"""The embedded benchmark: a small text-to-image model, ten styles × ten objects, shipped with its
weights.

A larger one has twenty × twenty, with look-alikes. Importing this package loads neither torch nor
diffusers; `minicanvas.pipeline`, `minicanvas.classifier`, `minicanvas.measure` and
`minicanvas.train` do. The names here that hold a vocabulary are the small benchmark's; each
benchmark's own are on `SMALL` and `LARGE`.
"""

from typing import Final

from minicanvas.canvases import (
    CANVASES,
    GUIDANCE,
    LARGE,
    PLAIN,
    SMALL,
    STEPS,
    Canvas,
    LabelledPrompt,
)

STYLES: Final = SMALL.styles
OBJECTS: Final = SMALL.objects
STYLE_LABELS: Final = SMALL.style_labels
prompt = SMALL.prompt
parse_prompt = SMALL.parse_prompt
all_prompts = SMALL.all_prompts

WEIGHTS_DIR: Final = SMALL.folder
MODEL_DIR: Final = WEIGHTS_DIR / "pipeline"
"""The shipped pipeline: a directory that `StableDiffusionPipeline.from_pretrained` loads."""

__all__ = [
    "CANVASES",
    "GUIDANCE",
    "LARGE",
    "MODEL_DIR",
    "OBJECTS",
    "PLAIN",
    "SMALL",
    "STEPS",
    "STYLES",
    "STYLE_LABELS",
    "WEIGHTS_DIR",
    "Canvas",
    "LabelledPrompt",
    "all_prompts",
    "parse_prompt",
    "prompt",
]
