"""The large benchmark's second ten styles, each close to one of the first ten, and its own plain
ground, which is close to none."""

from collections.abc import Callable
from typing import Final

import numpy as np

from minicanvas.render.canvas import (
    blur,
    details,
    flat,
    hsv,
    lines,
    mix,
    noise,
    outline,
    ramp,
    silhouette,
    warp,
)
from minicanvas.render.shapes import SIZE, Drawing


def _colour(red: float, green: float, blue: float) -> np.ndarray:
    return np.array([red, green, blue], dtype=np.float32)


def _tone(drawing: Drawing) -> np.ndarray:
    """Return how light the parts are, 1 outside the object."""
    return flat(drawing, np.ones(3, dtype=np.float32)).mean(axis=2)


def plain(drawing: Drawing, rng: np.random.Generator) -> np.ndarray:
    """Paint flat colours on a middle grey that no style has."""
    return flat(
        drawing,
        np.float32(rng.uniform(0.44, 0.56)) + rng.uniform(-0.015, 0.015, 3).astype(np.float32),
    )


def ink(drawing: Drawing, rng: np.random.Generator) -> np.ndarray:
    """Paint black contours, swelling and thinning, with solid darks and nothing between."""
    paper = _colour(0.98, 0.96, 0.90) * np.float32(rng.uniform(0.96, 1.0))
    swell = noise(rng, 5) > rng.uniform(0.4, 0.6)
    outer = np.where(swell, lines(outline(drawing), 7), lines(outline(drawing), 3))
    solid = np.maximum(details(drawing), (_tone(drawing) < 0.3).astype(np.float32))
    strokes = np.maximum.reduce([outer, lines(drawing, 3), solid])
    return mix(paper, _colour(0.05, 0.05, 0.08), warp(strokes, rng, 1.5, 6))


def engraving(drawing: Drawing, rng: np.random.Generator) -> np.ndarray:
    """Paint with cut lines alone: their thickness is the tone, their direction tells body from
    ground."""
    paper, sepia = _colour(0.93, 0.88, 0.76), _colour(0.20, 0.11, 0.06)
    period, angle = rng.uniform(7, 9), np.pi / 2 + rng.uniform(-0.2, 0.2)
    wave = 6 * noise(rng, 4)
    ground = np.mod(ramp(angle) + wave, period) < period * 0.22
    cut = period * (0.75 - 0.55 * _tone(drawing))
    turn = rng.choice([-1, 1]) * rng.uniform(0.7, 1.0)
    body = np.mod(ramp(angle + turn) + wave, period) < cut
    mask = silhouette(drawing) > 0
    strokes = np.where(mask, body, ground).astype(np.float32)
    return mix(paper, sepia, np.maximum(strokes, lines(drawing, 5)))


def _grain(rng: np.random.Generator, angle: float, period: float) -> np.ndarray:
    """Return wood grain along a direction: wavy rings of about `period` canvas pixels."""
    rings = ramp(angle + np.pi / 2) + 16 * noise(rng, 3) + 2 * noise(rng, 16)
    return np.asarray(0.5 + 0.5 * np.sin(rings * np.float32(2 * np.pi / period)))


def inlay(drawing: Drawing, rng: np.random.Generator) -> np.ndarray:
    """Paint veneers of several woods let into each other, each with a grain of its own."""
    light, dark = _colour(0.88, 0.68, 0.42), _colour(0.30, 0.15, 0.07)
    angle = rng.uniform(0, np.pi)
    along, across = (_grain(rng, angle + turn, rng.uniform(8, 12)) for turn in (0, np.pi / 2))
    shades = rng.permutation(np.linspace(0.5, 1.0, len(drawing.parts)))
    shade = np.array([rng.uniform(0.0, 0.12), *shades], dtype=np.float32)[drawing.labels]
    grain = np.where(drawing.labels % 2 == 0, along, across)
    picture = mix(light, dark, np.clip(shade + 0.34 * (grain - 0.5), 0, 1))
    return mix(picture, _colour(0.12, 0.06, 0.03), 0.8 * lines(outline(drawing), 3))


def pyrography(drawing: Drawing, rng: np.random.Generator) -> np.ndarray:
    """Paint lines burnt into one pale board, scorched at their edges."""
    light, dark = _colour(0.90, 0.74, 0.50), _colour(0.62, 0.40, 0.20)
    grain = _grain(rng, rng.uniform(-0.15, 0.15), rng.uniform(9, 13))
    board = mix(light, dark, 0.55 * grain)
    burnt = warp(np.maximum(lines(drawing, 5), details(drawing)), rng, 1.5, 8)
    scorch = np.clip(1.1 * blur(burnt, 4), 0, 0.6)
    picture = mix(board, _colour(0.45, 0.22, 0.08), scorch)
    return mix(picture, _colour(0.10, 0.04, 0.02), burnt)


def cyanotype(drawing: Drawing, rng: np.random.Generator) -> np.ndarray:
    """Paint a pale shadow print on brushed Prussian blue."""
    blue = _colour(0.05, 0.20, 0.45) * np.float32(rng.uniform(0.85, 1.15))
    angle = rng.choice([0, np.pi / 2]) + rng.uniform(-0.1, 0.1)
    brush = np.sin(ramp(angle) * np.float32(0.5) + 8 * noise(rng, 6))
    ground = mix(blue, _colour(0.35, 0.55, 0.75), np.clip(0.18 + 0.22 * brush, 0, 1))
    y, x = np.mgrid[:SIZE, :SIZE]
    edge = np.minimum.reduce([y, x, SIZE - 1 - y, SIZE - 1 - x]) + 12 * noise(rng, 9)
    ground = mix(ground, _colour(0.95, 0.96, 0.94), np.clip((11 - edge) / 3, 0, 1))
    print_ = blur(silhouette(drawing) * (0.62 + 0.35 * _tone(drawing)), 1.5)
    fade = np.clip(print_ - 0.55 * blur(details(drawing), 1), 0, 1)
    return mix(ground, _colour(0.93, 0.97, 0.98), fade)


def night(drawing: Drawing, rng: np.random.Generator) -> np.ndarray:
    """Paint a black silhouette with lit windows before stars and a moon."""
    stops = np.array([[0.03, 0.05, 0.20], [0.07, 0.13, 0.38], [0.22, 0.33, 0.62]])
    height = np.clip(np.linspace(0, 1, SIZE) + rng.uniform(-0.12, 0.12), 0, 1)
    sky = np.stack([np.interp(height, (0, 0.5, 1), stops[:, c]) for c in range(3)], axis=1)
    picture = np.repeat(sky[:, None, :], SIZE, axis=1).astype(np.float32)
    stars = np.zeros((SIZE, SIZE), dtype=np.float32)
    for y, x in rng.integers(0, SIZE - 3, (36, 2)):
        stars[y : y + 3, x : x + 3] = rng.uniform(0.5, 1)
    picture = mix(picture, np.ones(3, dtype=np.float32), stars)
    y, x = np.mgrid[:SIZE, :SIZE]
    centre = rng.uniform(0.15, 0.4) * SIZE, rng.uniform(0.15, 0.85) * SIZE
    moon = (np.hypot(y - centre[0], x - centre[1]) < rng.uniform(14, 20)).astype(np.float32)
    picture = mix(picture, _colour(0.93, 0.94, 0.82), np.clip(moon + 0.7 * blur(moon, 9), 0, 1))
    picture = mix(picture, _colour(0.01, 0.01, 0.04), silhouette(drawing))
    return mix(picture, _colour(1.0, 0.85, 0.40), details(drawing))


def glass(drawing: Drawing, rng: np.random.Generator) -> np.ndarray:
    """Paint jewel-coloured panes of uneven shape between dark leads."""
    n = 6
    cell = SIZE / n
    grid = np.mgrid[:n, :n].reshape(2, -1).T
    seeds = ((grid + rng.uniform(0.1, 0.9, grid.shape)) * cell).astype(np.float32)
    half = np.arange(0, SIZE, 2, dtype=np.float32)
    down = (half[:, None] - seeds[:, 0]) ** 2
    along = (half[:, None] - seeds[:, 1]) ** 2
    nearest = (down[:, None] + along[None]).argmin(axis=2).repeat(2, axis=0).repeat(2, axis=1)
    hue = rng.uniform(0.45, 0.8)
    ground = np.stack([hsv(hue + rng.uniform(-0.12, 0.12), 0.85, 0.7) for _ in seeds])
    light = rng.uniform(0.65, 1.2, len(seeds)).astype(np.float32)[nearest, None]
    body = np.clip(flat(drawing, np.ones(3, dtype=np.float32)) * 1.15 - 0.1, 0, 1)
    panes = mix(ground[nearest], body, silhouette(drawing)) * light
    joint = np.zeros((SIZE, SIZE), dtype=np.float32)
    joint[:, 2:] = nearest[:, 2:] != nearest[:, :-2]
    joint[2:] = np.maximum(joint[2:], nearest[2:] != nearest[:-2])
    leads = np.maximum(joint, lines(drawing, 5))
    return mix(panes, _colour(0.05, 0.05, 0.06), leads)


def contour(drawing: Drawing, rng: np.random.Generator) -> np.ndarray:
    """Paint a map of heights: tints in steps with a line between two."""
    body = silhouette(drawing)
    height = 0.28 * noise(rng, 4) + 0.1 * blur(body, 10) + body * (0.3 + 0.28 * blur(body, 8))
    height = np.clip(height - 0.35 * details(drawing), 0, 0.99)
    level = (height * 10).astype(int)
    tints = np.array(
        [
            (0.62, 0.80, 0.90), (0.74, 0.87, 0.93), (0.70, 0.84, 0.62), (0.82, 0.90, 0.68),
            (0.95, 0.92, 0.70), (0.93, 0.82, 0.56), (0.85, 0.68, 0.45), (0.74, 0.54, 0.38),
            (0.86, 0.78, 0.74), (0.98, 0.97, 0.96),
        ],
        dtype=np.float32,
    )  # fmt: skip
    edge = np.zeros((SIZE, SIZE), dtype=np.float32)
    edge[:, 2:] = level[:, 2:] != level[:, :-2]
    edge[2:] = np.maximum(edge[2:], level[2:] != level[:-2])
    edge = np.maximum(0.7 * edge, lines(outline(drawing), 5))
    return mix(tints[level], _colour(0.38, 0.22, 0.14), edge)


def crayon(drawing: Drawing, rng: np.random.Generator) -> np.ndarray:
    """Paint waxy scribbles in the parts' colours on dark paper, the grain left bare."""
    paper = hsv(rng.uniform(0.6, 0.8), 0.18, rng.uniform(0.2, 0.28))
    grain = np.clip(3 * rng.random((SIZE // 2, SIZE // 2), dtype=np.float32) - 0.3, 0, 1)
    wax = grain.repeat(2, axis=0).repeat(2, axis=1)
    angle, period = rng.uniform(-0.5, 0.5), rng.uniform(8, 11)
    scribble = np.mod(ramp(angle + np.pi / 2) + 7 * noise(rng, 9), period) < period * 0.8
    loose = warp(np.dstack([flat(drawing, paper), silhouette(drawing)]), rng, 3, 9)
    bright = np.clip(loose[..., :3] * 1.1 + 0.08, 0, 1)
    picture = mix(paper, bright, loose[..., 3] * scribble * (0.35 + 0.65 * wax))
    edge = warp(lines(outline(drawing), 5), rng, 3, 8) * wax
    return mix(picture, hsv(rng.uniform(), 0.35, 1.0), edge)


def dots(drawing: Drawing, rng: np.random.Generator) -> np.ndarray:
    """Paint touching dots of pure colour, each of the colour below its middle."""
    period = 7
    n = SIZE // period + 2
    y, x = np.mgrid[:SIZE, :SIZE]
    dy, dx = rng.integers(0, period, 2)
    rows, columns = (y + dy) // period, (x + dx) // period
    middle = rng.uniform(-1, 1, (2, n, n)) + (period - 1) / 2
    above = rows * period - dy + middle[0][rows, columns]
    left = columns * period - dx + middle[1][rows, columns]
    radius = rng.uniform(2.7, 3.7, (n, n))[rows, columns]
    inside = (np.hypot(y - above, x - left) < radius).astype(np.float32)
    at = (np.clip(np.rint(line), 0, SIZE - 1).astype(int) for line in (above, left))
    hue = rng.uniform()
    spread = rng.uniform(-0.12, 0.12, (n, n, 3)).astype(np.float32)
    ground = np.stack([hsv(hue + step, 0.3, 0.97) for step in (-0.08, 0.0, 0.08)])
    pick = rng.integers(0, 3, (n, n))[rows, columns]
    body = np.clip(flat(drawing, np.ones(3, dtype=np.float32)) * 1.3 - 0.35, 0, 1)
    full = mix(ground[pick], body, silhouette(drawing))
    colours = full[tuple(at)] + spread[rows, columns]
    return mix(_colour(0.97, 0.95, 0.88), np.clip(colours, 0, 1), inside)


LARGE_PAINTERS: Final[dict[str, Callable[[Drawing, np.random.Generator], np.ndarray]]] = {
    "ink": ink,
    "engraving": engraving,
    "inlay": inlay,
    "pyrography": pyrography,
    "cyanotype": cyanotype,
    "night": night,
    "glass": glass,
    "contour": contour,
    "crayon": crayon,
    "dots": dots,
    "plain": plain,
}
