"""Procedural pictures: any object in any style, a distribution rather than one picture each."""

import numpy as np
from PIL import Image

from minicanvas.prompts import OBJECTS, PLAIN, STYLES
from minicanvas.render.shapes import draw
from minicanvas.render.styles import PAINTERS

IMAGE_SIZE = 64

__all__ = ["IMAGE_SIZE", "render"]


def render(object: str, style: str | None, rng: np.random.Generator) -> np.ndarray:
    """Return a picture of an object in a style, uint8 [64, 64, 3]; None or `PLAIN` is no style.

    Everything that varies is drawn from `rng`: equal generators give equal pictures.

    Raises:
        ValueError: the object or the style is not one of the benchmark's.
    """
    painter = PAINTERS.get(style or PLAIN)
    if object not in OBJECTS or painter is None:
        raise ValueError(
            f"cannot render {object!r} in {style!r}; "
            f"objects: {', '.join(OBJECTS)}; styles: {', '.join((*STYLES, PLAIN))}"
        )
    picture = painter(draw(object, rng), rng)
    large = Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))
    return np.asarray(large.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX))
