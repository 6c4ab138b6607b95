"""Procedural pictures: any object in any style, a distribution rather than one picture each."""

import numpy as np
from PIL import Image

from minicanvas.canvases import LARGE, PLAIN, SMALL, Canvas
from minicanvas.render.large_shapes import LARGE_SHAPES
from minicanvas.render.large_styles import LARGE_PAINTERS
from minicanvas.render.shapes import SHAPES, draw
from minicanvas.render.styles import PAINTERS

IMAGE_SIZE = 64
_SHAPES = {SMALL.name: SHAPES, LARGE.name: SHAPES | LARGE_SHAPES}
_PAINTERS = {SMALL.name: PAINTERS, LARGE.name: PAINTERS | LARGE_PAINTERS}

__all__ = ["IMAGE_SIZE", "render"]


def render(
    object: str, style: str | None, rng: np.random.Generator, *, canvas: Canvas = SMALL
) -> np.ndarray:
    """Return a picture of an object in a style, uint8 [64, 64, 3]; None or `PLAIN` is no style.

    Everything that varies is drawn from `rng`: equal generators give equal pictures. Both
    benchmarks draw what they share alike, but for the ground of a picture without a style.

    Raises:
        ValueError: the object or the style is not one of the benchmark's.
    """
    shape, painter = _SHAPES[canvas.name].get(object), _PAINTERS[canvas.name].get(style or PLAIN)
    if shape is None or painter is None:
        raise ValueError(
            f"cannot render {object!r} in {style!r}; "
            f"objects: {', '.join(canvas.objects)}; styles: {', '.join(canvas.style_labels)}"
        )
    picture = painter(draw(shape(), rng), rng)
    large = Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))
    return np.asarray(large.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX))
