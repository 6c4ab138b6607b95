"""The objects as flat parts, and the drawing of an object at a random place, size and angle."""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

SIZE: Final = 128
"""Side of the canvas the parts are drawn on; pictures are reduced to half of it."""

Points = np.ndarray
Colour = tuple[int, int, int]


class Part(NamedTuple):
    """A filled polygon of an object: `points` float [n, 2] in [-1, 1] (y down), details are what a
    silhouette shows."""

    points: Points
    colour: Colour
    is_detail: bool = False


class Drawing(NamedTuple):
    """An object on the canvas: `labels` uint8 [SIZE, SIZE], 0 = background, i + 1 = part i of
    `parts`."""

    labels: np.ndarray
    parts: list[Part]


def polygon(*points: tuple[float, float]) -> Points:
    """Return points as an array [n, 2]."""
    return np.array(points, dtype=float)


def ellipse(  # noqa: PLR0917
    x: float, y: float, rx: float, ry: float, angle: float = 0.0
) -> Points:
    """Return a 40-sided ellipse around (x, y), turned by `angle` radians."""
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    px, py = rx * np.cos(t), ry * np.sin(t)
    c, s = np.cos(angle), np.sin(angle)
    return np.stack([x + c * px - s * py, y + s * px + c * py], axis=1)


def bar(  # noqa: PLR0917
    x0: float, y0: float, x1: float, y1: float, width: float
) -> Points:
    """Return a straight bar from one point to another."""
    direction = np.array([x1 - x0, y1 - y0])
    nx, ny = width / 2 * np.array([-direction[1], direction[0]]) / np.hypot(*direction)
    return polygon((x0 + nx, y0 + ny), (x1 + nx, y1 + ny), (x1 - nx, y1 - ny), (x0 - nx, y0 - ny))


def _cat() -> list[Part]:
    fur, inner, dark = (226, 140, 52), (250, 190, 170), (40, 30, 30)
    parts = [
        Part(bar(side * 0.4, y, side * 1.0, y + dy, 0.06), dark)
        for side in (-1, 1)
        for y, dy in ((0.3, -0.1), (0.42, 0.08))
    ]
    for side in (-1, 1):
        parts.append(
            Part(polygon((side * 0.82, -0.92), (side * 0.78, 0.05), (side * 0.12, -0.42)), fur)
        )
    parts.append(Part(ellipse(0, 0.18, 0.8, 0.66), fur))
    for side in (-1, 1):
        parts.append(
            Part(
                polygon((side * 0.72, -0.68), (side * 0.66, -0.3), (side * 0.36, -0.46)),
                inner,
                True,
            )
        )
        parts.append(Part(ellipse(side * 0.34, 0.04, 0.19, 0.2), (245, 245, 200), True))
        parts.append(Part(ellipse(side * 0.34, 0.04, 0.08, 0.18), dark))
    parts.append(Part(polygon((-0.14, 0.34), (0.14, 0.34), (0, 0.5)), (200, 60, 80), True))
    return parts


def _fish() -> list[Part]:
    body, fin = (20, 150, 170), (250, 170, 40)
    return [
        Part(polygon((0.45, 0.0), (1.0, -0.52), (0.86, 0.0), (1.0, 0.52)), fin),
        Part(polygon((-0.35, -0.35), (0.05, -0.75), (0.4, -0.25)), fin),
        Part(polygon((-0.2, 0.35), (0.1, 0.68), (0.3, 0.28)), fin),
        Part(ellipse(-0.17, 0, 0.8, 0.48), body),
        Part(ellipse(-0.6, -0.12, 0.15, 0.15), (250, 250, 250), True),
        Part(ellipse(-0.6, -0.12, 0.075, 0.075), (20, 20, 30)),
        Part(
            polygon(
                (-0.28, -0.4), (-0.16, -0.38), (-0.04, 0), (-0.16, 0.38), (-0.28, 0.4), (-0.16, 0)
            ),
            fin,
            True,
        ),
    ]


def _house() -> list[Part]:
    glass = (90, 180, 235)
    return [
        Part(polygon((0.4, -0.95), (0.66, -0.95), (0.66, -0.2), (0.4, -0.2)), (120, 80, 70)),
        Part(polygon((-0.72, -0.1), (0.72, -0.1), (0.72, 0.9), (-0.72, 0.9)), (240, 205, 130)),
        Part(polygon((-1.0, -0.06), (0, -0.95), (1.0, -0.06)), (200, 60, 45)),
        Part(
            polygon((-0.52, 0.32), (-0.14, 0.32), (-0.14, 0.9), (-0.52, 0.9)), (110, 65, 40), True
        ),
        Part(polygon((0.12, 0.22), (0.54, 0.22), (0.54, 0.6), (0.12, 0.6)), glass, True),
    ]


def _tree() -> list[Part]:
    dark, mid, light = (25, 110, 55), (35, 130, 65), (50, 155, 75)
    return [
        Part(polygon((-0.15, 0.6), (0.15, 0.6), (0.15, 1.0), (-0.15, 1.0)), (120, 75, 40)),
        Part(polygon((-0.8, 0.72), (0, -0.1), (0.8, 0.72)), dark),
        Part(polygon((-0.62, 0.22), (0, -0.5), (0.62, 0.22)), mid),
        Part(polygon((-0.45, -0.28), (0, -1.0), (0.45, -0.28)), light),
    ]


def _star() -> list[Part]:
    t = -np.pi / 2 + np.arange(10) * np.pi / 5
    radius = np.where(np.arange(10) % 2 == 0, 1.0, 0.43)
    return [Part(np.stack([radius * np.cos(t), radius * np.sin(t) + 0.06], axis=1), (250, 195, 25))]


def _heart() -> list[Part]:
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return [Part(np.stack([x / 17, -(y + 2.5) / 16], axis=1), (225, 30, 60))]


def _mushroom() -> list[Part]:
    t = np.linspace(np.pi, 2 * np.pi, 30)
    cap = np.concatenate(
        [
            np.stack([0.98 * np.cos(t), 0.1 + 0.95 * np.sin(t)], axis=1),
            polygon((0.8, 0.26), (-0.8, 0.26)),
        ]
    )
    spots = ((-0.5, -0.2, 0.17), (0.05, -0.5, 0.18), (0.5, -0.15, 0.17))
    return [
        Part(polygon((-0.24, 0.2), (0.24, 0.2), (0.34, 0.95), (-0.34, 0.95)), (240, 215, 170)),
        Part(cap, (205, 45, 40)),
        *(Part(ellipse(x, y, r, r * 0.9), (255, 245, 235), True) for x, y, r in spots),
    ]


def _car() -> list[Part]:
    body, glass, tyre = (70, 80, 210), (185, 225, 245), (35, 35, 40)
    parts = [
        Part(polygon((-0.62, 0.05), (-0.38, -0.5), (0.3, -0.5), (0.62, 0.05)), body),
        Part(polygon((-1.0, 0.0), (0.7, 0.0), (1.0, 0.14), (1.0, 0.48), (-1.0, 0.48)), body),
        Part(polygon((-0.46, 0.0), (-0.29, -0.38), (-0.06, -0.38), (-0.06, 0.0)), glass, True),
        Part(polygon((0.06, 0.0), (0.06, -0.38), (0.24, -0.38), (0.46, 0.0)), glass, True),
    ]
    for x in (-0.52, 0.52):
        parts += [
            Part(ellipse(x, 0.48, 0.27, 0.27), tyre),
            Part(ellipse(x, 0.48, 0.12, 0.12), (205, 205, 210), True),
        ]
    return parts


def _flower() -> list[Part]:
    stem = (50, 145, 60)
    parts = [
        Part(bar(0, 0.1, 0, 1.0, 0.12), stem),
        Part(ellipse(0.32, 0.72, 0.3, 0.13, -0.6), stem),
        Part(ellipse(-0.32, 0.8, 0.3, 0.13, 0.6), stem),
    ]
    for angle in np.arange(6) * np.pi / 3 + np.pi / 6:
        x, y = 0.4 * np.cos(angle), -0.3 + 0.4 * np.sin(angle)
        parts.append(Part(ellipse(x, y, 0.3, 0.2, angle), (225, 75, 165)))
    return [*parts, Part(ellipse(0, -0.3, 0.2, 0.2), (250, 205, 50), True)]


def _boat() -> list[Part]:
    return [
        Part(bar(0, -0.98, 0, 0.5, 0.08), (90, 60, 40)),
        Part(polygon((0.1, -0.9), (0.88, 0.3), (0.1, 0.3)), (235, 95, 50)),
        Part(polygon((-0.1, -0.7), (-0.1, 0.3), (-0.7, 0.3)), (60, 120, 200)),
        Part(polygon((-1.0, 0.42), (1.0, 0.42), (0.66, 0.9), (-0.66, 0.9)), (140, 80, 45)),
    ]


SHAPES: Final[dict[str, Callable[[], list[Part]]]] = {
    "cat": _cat,
    "fish": _fish,
    "house": _house,
    "tree": _tree,
    "star": _star,
    "heart": _heart,
    "mushroom": _mushroom,
    "car": _car,
    "flower": _flower,
    "boat": _boat,
}


def draw(shape: Sequence[Part], rng: np.random.Generator) -> Drawing:
    """Draw the parts of an object at a random size, angle, place and side, their colours a little
    off."""
    scale = SIZE / 2 * rng.uniform(0.68, 0.83)
    stretch = rng.uniform(0.94, 1.06)
    angle = np.deg2rad(rng.uniform(-14, 14))
    mirror = rng.choice([-1.0, 1.0])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    room = SIZE / 2 - scale
    centre = SIZE / 2 + rng.uniform(-room, room, size=2) * 0.8
    shift = rng.normal(0, 12, size=3)
    canvas = Image.new("L", (SIZE, SIZE))
    pen = ImageDraw.Draw(canvas)
    parts = []
    for index, part in enumerate(shape):
        points = (part.points * (mirror * stretch, 1 / stretch)) @ turn.T * scale + centre
        pen.polygon([(float(x), float(y)) for x, y in points], fill=index + 1)
        red, green, blue = np.clip(np.array(part.colour) + shift, 0, 255).astype(int)
        parts.append(Part(points, (int(red), int(green), int(blue)), part.is_detail))
    return Drawing(np.asarray(canvas), parts)
