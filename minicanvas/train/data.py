"""Rendered training pictures with their labels, the same on every machine and with any number of
processes."""

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minicanvas.prompts import OBJECTS, STYLE_LABELS
from minicanvas.render import IMAGE_SIZE, render

N_KINDS = len(STYLE_LABELS) * len(OBJECTS)


class Pictures(NamedTuple):
    """Pictures uint8 [n, 64, 64, 3] with indices into `STYLE_LABELS` and `OBJECTS`, int64 [n]."""

    images: np.ndarray
    styles: np.ndarray
    objects: np.ndarray


def labels(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the style and object indices of pictures 0 … n - 1: every combination in turn."""
    kind = np.arange(n) % N_KINDS
    return kind // len(OBJECTS), kind % len(OBJECTS)


def _render_range(seed: int, start: int, stop: int) -> np.ndarray:
    images = np.empty((stop - start, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    styles, objects = labels(stop)
    for index in range(start, stop):
        rng = np.random.default_rng((seed, index))
        images[index - start] = render(OBJECTS[objects[index]], STYLE_LABELS[styles[index]], rng)
    return images


def pictures(seed: int, n: int, cache: Path | None = None, n_processes: int = 2) -> Pictures:
    """Render `n` pictures, each a function of (seed, index) alone, or read them from `cache` (an
    `.npy` file)."""
    styles, objects = labels(n)
    if cache is not None and cache.exists():
        return Pictures(np.load(cache, mmap_mode="r"), styles, objects)
    if n_processes == 1:
        images = _render_range(seed, 0, n)
    else:
        edges = np.linspace(0, n, 8 * n_processes + 1).astype(int)
        with ProcessPoolExecutor(n_processes) as pool:
            images = np.concatenate(
                list(pool.map(_render_range, [seed] * (len(edges) - 1), edges[:-1], edges[1:]))
            )
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial = cache.with_suffix(".partial.npy")
        np.save(partial, images)
        partial.replace(cache)
    return Pictures(images, styles, objects)
