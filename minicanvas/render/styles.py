"""The styles: each paints a drawing as a picture, float32 [SIZE, SIZE, 3] in [0, 1]."""

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


def plain(drawing: Drawing, rng: np.random.Generator) -> np.ndarray:
    """Paint flat colours on a light neutral ground."""
    return flat(
        drawing,
        np.float32(rng.uniform(0.86, 0.93)) + rng.uniform(-0.015, 0.015, 3).astype(np.float32),
    )


def neon(drawing: Drawing, rng: np.random.Generator) -> np.ndarray:
    """Paint glowing tubes in the dark."""
    hue = rng.uniform()
    tube = lines(drawing, 3)
    inside = blur(details(drawing), 2)
    colour = mix(
        hsv(hue, 0.95, 1.0),
        hsv(hue + rng.uniform(0.25, 0.5), 0.95, 1.0),
        np.clip(inside * 1.6, 0, 1),
    )
    glow = 0.9 * blur(tube, 3) + 0.9 * blur(tube, 9)
    picture = np.array([0.02, 0.01, 0.06], dtype=np.float32) + colour * glow[..., None]
    return mix(picture, colour * 0.55 + 0.45, blur(tube, 0.7))


def sketch(drawing: Drawing, rng: np.random.Generator) -> np.ndarray:
    """Paint pencil strokes with hatching on white paper."""
    paper = 0.94 + 0.04 * noise(rng, 6)
    angle = rng.uniform(0.6, 0.95)
    hatching = (np.mod(ramp(angle) + 2 * noise(rng, 8), 10) < 4).astype(np.float32)
    shade = 1 - flat(drawing, np.ones(3, dtype=np.float32)).mean(axis=2)
    tone = paper - hatching * silhouette(drawing) * (0.12 + 0.4 * shade)
    strokes = np.maximum(warp(lines(drawing, 3), rng, 2, 7), warp(lines(drawing, 3), rng, 2, 7))
    tone = tone * (1 - strokes * (0.7 + 0.2 * noise(rng, 12)))
    return np.repeat(tone[..., None], 3, axis=2)


def watercolor(drawing: Drawing, rng: np.random.Generator) -> np.ndarray:
    """Paint bleeding washes of pigment on paper."""
    paper = np.array([0.98, 0.97, 0.93], dtype=np.float32)
    wash = hsv(rng.uniform(), 0.3, 0.97)
    picture = mix(paper, wash, np.clip(noise(rng, 4) * 1.4 - 0.35, 0, 1))
    bleed = warp(
        np.dstack([flat(drawing, np.ones(3, dtype=np.float32)), silhouette(drawing)]), rng, 4.5, 8
    )
    mask = bleed[..., 3]
    soft = np.stack([blur(bleed[..., channel], 1.8) for channel in range(3)], axis=2)
    body = blur(mask, 1.6)
    pigment = 0.6 + 0.35 * noise(rng, 7) + 0.5 * np.clip(blur(mask, 1) - blur(mask, 6), 0, 1)
    return mix(picture, soft, np.clip(body * pigment, 0, 1))


def blueprint(drawing: Drawing, rng: np.random.Generator) -> np.ndarray:
    """Paint white lines on blue squared paper."""
    blue = np.array([0.06, 0.25, 0.62], dtype=np.float32) * np.float32(rng.uniform(0.85, 1.15))
    y, x = np.mgrid[:SIZE, :SIZE]
    dy, dx = rng.integers(0, 16, 2)
    grid = (((y + dy) % 16 < 2) | ((x + dx) % 16 < 2)).astype(np.float32)
    picture = mix(blue, np.array([0.45, 0.65, 0.95], dtype=np.float32), grid * 0.55)
    return mix(picture, np.ones(3, dtype=np.float32), lines(drawing, 3))


def sunset(drawing: Drawing, rng: np.random.Generator) -> np.ndarray:
    """Paint a black silhouette before an evening sky."""
    stops = np.array(
        [[0.30, 0.10, 0.45], [0.80, 0.22, 0.45], [0.98, 0.50, 0.20], [1.0, 0.82, 0.35]]
    )
    height = np.clip(np.linspace(0, 1, SIZE) + rng.uniform(-0.12, 0.12), 0, 1)
    sky = np.stack(
        [np.interp(height, np.linspace(0, 1, 4), stops[:, channel]) for channel in range(3)], axis=1
    )
    picture = np.repeat(sky[:, None, :], SIZE, axis=1).astype(np.float32)
    y, x = np.mgrid[:SIZE, :SIZE]
    sun = np.hypot(
        y - rng.uniform(0.45, 0.75) * SIZE, x - rng.uniform(0.2, 0.8) * SIZE
    ) < rng.uniform(18, 26)
    disc = sun.astype(np.float32)
    picture = mix(
        picture,
        np.array([1.0, 0.95, 0.65], dtype=np.float32),
        np.clip(0.9 * disc + blur(disc, 10), 0, 1),
    )
    dark = np.clip(silhouette(drawing) - details(drawing), 0, 1)
    return mix(picture, np.array([0.08, 0.03, 0.08], dtype=np.float32), dark)


def stripes(drawing: Drawing, rng: np.random.Generator) -> np.ndarray:
    """Paint dark bold stripes across the object, pale ones across the ground."""
    hue, angle = rng.uniform(), rng.uniform(0.5, 1.05) * rng.choice([-1, 1])
    phase, period = rng.uniform(0, 24), rng.uniform(20, 26)
    ground = (np.mod(ramp(angle) + phase, period) < period / 2).astype(np.float32)
    body = (np.mod(ramp(angle + np.pi / 2) + phase, period) < period / 2).astype(np.float32)
    back = mix(np.array([1.0, 0.99, 0.95], dtype=np.float32), hsv(hue, 0.35, 0.98), ground)
    other = hue + rng.uniform(0.4, 0.6)
    front = mix(hsv(other, 0.95, 0.35), hsv(other, 0.9, 0.75), body)
    picture = mix(back, front, silhouette(drawing))
    return mix(picture, np.array([1.0, 0.98, 0.9], dtype=np.float32), details(drawing))


def mosaic(drawing: Drawing, rng: np.random.Generator) -> np.ndarray:
    """Paint square tiles with light joints, cut along the object's outline."""
    period = 20
    dy, dx = rng.integers(0, period, 2)
    y, x = np.mgrid[:SIZE, :SIZE]
    rows, columns = (y + dy) // period, (x + dx) // period
    light = rng.uniform(0.72, 1.18, (16, 16)).astype(np.float32)[rows, columns]
    tiles = flat(drawing, hsv(rng.uniform(0.45, 0.62), 0.55, 0.45)) * light[..., None]
    joints = (((y + dy) % period < 3) | ((x + dx) % period < 3)).astype(np.float32)
    sand = np.array([0.93, 0.88, 0.76], dtype=np.float32)
    return mix(mix(tiles, sand, joints), sand, lines(drawing, 3))


def thermal(drawing: Drawing, rng: np.random.Generator) -> np.ndarray:
    """Paint heat as false colour: a hot body, its warmth fading into the cold."""
    body = silhouette(drawing)
    heat = 0.08 + 0.1 * noise(rng, 4) + 0.42 * blur(body, 10) + body * (0.12 + 0.34 * blur(body, 7))
    heat = np.clip(heat - 0.22 * blur(details(drawing), 1), 0, 1)
    stops = (
        (0.05, 0.02, 0.25),
        (0.1, 0.2, 0.8),
        (0.05, 0.75, 0.8),
        (0.3, 0.85, 0.2),
        (1.0, 0.9, 0.1),
        (0.95, 0.2, 0.05),
        (1.0, 0.85, 0.8),
    )
    colours = np.array(stops)
    at = np.array([0, 0.2, 0.36, 0.5, 0.66, 0.85, 1.05])
    return np.stack([np.interp(heat, at, colours[:, channel]) for channel in range(3)], axis=2)


def chalk(drawing: Drawing, rng: np.random.Generator) -> np.ndarray:
    """Paint coloured chalk on a green board."""
    board = np.array([0.12, 0.30, 0.22], dtype=np.float32)
    picture = mix(
        board,
        np.array([0.35, 0.48, 0.42], dtype=np.float32),
        np.clip(noise(rng, 5) - 0.45, 0, 1) * 0.5,
    )
    pastel = flat(drawing, np.zeros(3, dtype=np.float32)) * 0.6 + 0.35
    stroke = np.mod(ramp(rng.uniform(0.7, 0.9)) + 5 * noise(rng, 7), 12) < 7
    cover = silhouette(drawing) * (0.35 + 0.5 * stroke)
    picture = mix(picture, pastel, cover)
    dust = np.clip(noise(rng, 24) * 1.5, 0.5, 1)
    return mix(
        picture,
        np.array([0.95, 0.95, 0.90], dtype=np.float32),
        warp(lines(drawing, 3), rng, 2, 9) * dust,
    )


def comic(drawing: Drawing, rng: np.random.Generator) -> np.ndarray:
    """Paint vivid colours in thick black outlines on halftone dots."""
    hue = rng.choice([0.14, 0.5, 0.92, 0.3]) + rng.uniform(-0.03, 0.03)
    diagonal, period = ramp(np.pi / 4), 18
    across = ramp(-np.pi / 4)
    u, v = (
        np.mod(axis + rng.uniform(0, period), period) - period / 2 for axis in (diagonal, across)
    )
    dots = (np.hypot(u, v) < period * 0.33).astype(np.float32)
    ground = mix(hsv(hue, 0.35, 1.0), hsv(hue, 0.95, 0.95), dots)
    body = np.clip((flat(drawing, np.zeros(3, dtype=np.float32)) - 0.5) * 1.35 + 0.55, 0, 1)
    picture = mix(ground, body, silhouette(drawing))
    ink = np.maximum(lines(drawing, 3), lines(outline(drawing), 7))
    return mix(picture, np.array([0.02, 0.02, 0.04], dtype=np.float32), ink)


PAINTERS: Final[dict[str, Callable[[Drawing, np.random.Generator], np.ndarray]]] = {
    "neon": neon,
    "sketch": sketch,
    "watercolor": watercolor,
    "blueprint": blueprint,
    "sunset": sunset,
    "stripes": stripes,
    "mosaic": mosaic,
    "thermal": thermal,
    "chalk": chalk,
    "comic": comic,
    "plain": plain,
}
