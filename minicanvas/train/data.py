"""Rendered training pictures with their labels, the same on every machine and with any number of
processes."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minicanvas.canvases import CANVASES, SMALL, Canvas
from minicanvas.render import IMAGE_SIZE, render

PICTURES_PER_PIECE = 500


class Pictures(NamedTuple):
    """Pictures uint8 [n, 64, 64, 3] with indices into a benchmark's style labels and objects, int64
    [n]."""

    images: np.ndarray
    styles: np.ndarray
    objects: np.ndarray


def labels(n: int, canvas: Canvas = SMALL) -> tuple[np.ndarray, np.ndarray]:
    """Return the style and object indices of pictures 0 … n - 1: every combination in turn."""
    n_objects = len(canvas.objects)
    kind = np.arange(n) % (len(canvas.style_labels) * n_objects)
    return kind // n_objects, kind % n_objects


def _render_range(name: str, seed: int, start: int, stop: int) -> np.ndarray:
    canvas = CANVASES[name]
    images = np.empty((stop - start, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    styles, objects = labels(stop, canvas)
    for index in range(start, stop):
        rng = np.random.default_rng((seed, index))
        style, object_ = canvas.style_labels[styles[index]], canvas.objects[objects[index]]
        images[index - start] = render(object_, style, rng, canvas=canvas)
    return images


def _pieces(canvas: Canvas, seed: int, n: int, n_processes: int) -> Iterator[np.ndarray]:
    """Yield the pictures in order, some hundreds at a time, from worker processes."""
    starts = range(0, n, PICTURES_PER_PIECE)
    stops = [min(start + PICTURES_PER_PIECE, n) for start in starts]
    arguments = (repeat(canvas.name), repeat(seed), starts, stops)
    if n_processes == 1:
        yield from map(_render_range, *arguments)
        return
    with ProcessPoolExecutor(n_processes) as pool:
        yield from pool.map(_render_range, *arguments)


def pictures(
    seed: int,
    n: int,
    cache: Path | None = None,
    n_processes: int = 2,
    *,
    canvas: Canvas = SMALL,
) -> Pictures:
    """Render `n` pictures, each a function of (seed, index) alone, or map them from `cache` (an
    `.npy` file), which is written if it is missing.

    Raises:
        ValueError: the cache holds another number of pictures.
    """
    styles, objects = labels(n, canvas)
    if cache is None:
        pieces = list(_pieces(canvas, seed, n, n_processes))
        return Pictures(np.concatenate(pieces), styles, objects)
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial = cache.with_suffix(".partial.npy")
        shape = (n, IMAGE_SIZE, IMAGE_SIZE, 3)
        images = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
        start = 0
        for piece in _pieces(canvas, seed, n, n_processes):
            images[start : start + len(piece)] = piece
            start += len(piece)
        images.flush()
        partial.replace(cache)
    images = np.load(cache, mmap_mode="r")
    if len(images) != n:
        raise ValueError(
            f"{cache} holds {len(images)} pictures, expected {n}: delete it, or give another --out"
        )
    return Pictures(images, styles, objects)
