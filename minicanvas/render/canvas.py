"""Masks, lines, noise and colours that the styles are painted with; arrays are float32 [SIZE, SIZE]
in [0, 1]."""

import colorsys

import numpy as np
from PIL import Image, ImageFilter

from minicanvas.render.shapes import SIZE, Drawing


def silhouette(drawing: Drawing) -> np.ndarray:
    """Return 1 inside the object, 0 outside."""
    return (drawing.labels > 0).astype(np.float32)


def details(drawing: Drawing) -> np.ndarray:
    """Return 1 on the parts that a silhouette leaves open: eyes, windows, spots."""
    is_detail = np.array([False, *(part.is_detail for part in drawing.parts)])
    return is_detail[drawing.labels].astype(np.float32)


def flat(drawing: Drawing, background: np.ndarray) -> np.ndarray:
    """Return the parts in their own colours over a background colour, float32 [SIZE, SIZE, 3]."""
    colours = (
        np.array([background * 255, *(part.colour for part in drawing.parts)], dtype=np.float32)
        / 255
    )
    return colours[drawing.labels]


def lines(drawing: Drawing, width: int) -> np.ndarray:
    """Return 1 along the borders of all visible parts that differ in colour; `width` in canvas
    pixels, odd."""
    colours = np.array([(-1, -1, -1), *(part.colour for part in drawing.parts)])
    kinds = np.unique(colours, axis=0, return_inverse=True)[1].reshape(-1)[drawing.labels]
    border = np.zeros((SIZE, SIZE), dtype=bool)
    border[:, 1:] |= kinds[:, 1:] != kinds[:, :-1]
    border[1:] |= kinds[1:] != kinds[:-1]
    return _filter(border.astype(np.float32), ImageFilter.MaxFilter(width))


def outline(drawing: Drawing) -> Drawing:
    """Return the object as a single part, of which only the outer border is left."""
    return Drawing((drawing.labels > 0).astype(np.uint8), drawing.parts[:1])


def blur(mask: np.ndarray, radius: float) -> np.ndarray:
    """Return a mask smoothed by a Gaussian of `radius` canvas pixels."""
    return _filter(mask, ImageFilter.GaussianBlur(radius))


def _filter(mask: np.ndarray, kernel: ImageFilter.Filter) -> np.ndarray:
    image = Image.fromarray((np.clip(mask, 0, 1) * 255).astype(np.uint8))
    return np.asarray(image.filter(kernel), dtype=np.float32) / 255


def noise(rng: np.random.Generator, n_cells: int) -> np.ndarray:
    """Return smooth noise with about `n_cells` bumps a side."""
    image = Image.fromarray(rng.integers(0, 256, (n_cells, n_cells), dtype=np.uint8))
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC), dtype=np.float32) / 255


def warp(image: np.ndarray, rng: np.random.Generator, amount: float, n_cells: int) -> np.ndarray:
    """Return an array displaced by smooth noise of up to `amount` canvas pixels."""
    dy, dx = ((noise(rng, n_cells) - 0.5) * 2 * amount for _ in range(2))
    y, x = np.mgrid[:SIZE, :SIZE]
    rows = np.clip(np.rint(y + dy), 0, SIZE - 1).astype(int)
    columns = np.clip(np.rint(x + dx), 0, SIZE - 1).astype(int)
    return image[rows, columns]


def ramp(angle: float) -> np.ndarray:
    """Return the coordinate, in canvas pixels, along a direction of `angle` radians."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    return (x - SIZE / 2) * np.float32(np.cos(angle)) + (y - SIZE / 2) * np.float32(np.sin(angle))


def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """Return an RGB colour, float32 [3]."""
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), dtype=np.float32)


def mix(below: np.ndarray, above: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return `above` painted over `below` where the mask is 1; colours [3] or pictures [SIZE, SIZE,
    3]."""
    weight = mask[..., None]
    return np.asarray(below * (1 - weight) + above * weight)
