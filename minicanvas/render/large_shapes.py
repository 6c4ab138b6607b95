"""The large benchmark's second ten objects, each close to one of the first ten."""

from collections.abc import Callable
from typing import Final

import numpy as np

from minicanvas.render.shapes import Part, Points, bar, ellipse, polygon


def _mirrored(*points: tuple[float, float]) -> Points:
    """Return a polygon of points on one side, then of their mirror images backwards."""
    right = polygon(*points)
    return np.concatenate([right, right[::-1] * (-1, 1)])


def _fox() -> list[Part]:
    """A pointed face with white cheeks; the cat's is round, whiskered and without white."""
    fur, white, dark = (215, 95, 30), (250, 240, 225), (35, 25, 25)
    parts = [
        Part(polygon((s * 0.95, -1.0), (s * 0.74, 0.0), (s * 0.1, -0.45)), fur) for s in (-1, 1)
    ]
    parts.append(Part(_mirrored((0, -0.5), (0.62, -0.38), (0.98, 0.14), (0.4, 0.5), (0, 1.0)), fur))
    for s in (-1, 1):
        parts += [
            Part(polygon((s * 0.84, -0.76), (s * 0.68, -0.3), (s * 0.42, -0.45)), dark, True),
            Part(
                polygon((s * 0.93, 0.14), (s * 0.3, 0.16), (s * 0.04, 0.72), (s * 0.4, 0.5)),
                white,
                True,
            ),
            Part(ellipse(s * 0.36, -0.06, 0.12, 0.09, s * 0.5), dark, True),
        ]
    return [*parts, Part(ellipse(0, 0.86, 0.16, 0.13), dark)]


def _whale() -> list[Part]:
    """A blunt head, flukes held up and a spout; the fish is pointed at both ends."""
    skin, belly, water = (60, 95, 160), (200, 215, 230), (120, 195, 235)
    t = np.linspace(np.pi, 2 * np.pi, 24)
    back = np.stack([-0.28 + 0.72 * np.cos(t), 0.3 + 0.62 * np.sin(t)], axis=1)
    body = np.concatenate(
        [
            back,
            polygon((0.66, 0.16), (0.78, -0.3), (0.94, -0.28), (0.9, 0.3), (0.6, 0.68)),
            polygon((0.1, 0.78), (-0.7, 0.78), (-1.0, 0.55)),
        ]
    )
    return [
        Part(bar(-0.45, -0.32, -0.45, -0.7, 0.09), water),
        Part(ellipse(-0.62, -0.78, 0.2, 0.1, 0.5), water),
        Part(ellipse(-0.28, -0.78, 0.2, 0.1, -0.5), water),
        Part(polygon((0.86, -0.2), (0.45, -0.42), (0.5, -0.72), (0.86, -0.46)), skin),
        Part(polygon((0.86, -0.2), (1.0, -0.8), (0.74, -0.9), (0.8, -0.4)), skin),
        Part(body, skin),
        Part(polygon((-0.98, 0.52), (-0.2, 0.58), (0.3, 0.72), (0.1, 0.78), (-0.7, 0.78)), belly),
        Part(ellipse(-0.62, 0.22, 0.11, 0.11), (250, 250, 250), True),
        Part(ellipse(-0.62, 0.22, 0.055, 0.055), (20, 20, 30)),
    ]


def _battlements(x0: float, x1: float, y: float, n: int) -> Points:
    """Return the top of a wall: `n` merlons from x0 to x1, their tops at y."""
    x = np.linspace(x0, x1, 2 * n)
    low = y + 0.16
    steps = [(x[i], low if (i + side) % 2 == 0 else y) for i in range(2 * n) for side in (0, 1)]
    return polygon(*((a, b) for a, b in steps[1:-1]))


def _castle() -> list[Part]:
    """Two towers with merlons beside a gate; the house has a gable."""
    stone, wall, dark = (165, 160, 170), (190, 180, 170), (70, 55, 60)
    t = np.linspace(np.pi, 2 * np.pi, 16)
    gate = np.concatenate(
        [
            np.stack([0.22 * np.cos(t), 0.42 + 0.24 * np.sin(t)], axis=1),
            polygon((0.22, 0.9), (-0.22, 0.9)),
        ]
    )
    middle = np.concatenate([_battlements(-0.5, 0.5, -0.22, 3), polygon((0.5, 0.9), (-0.5, 0.9))])
    parts = [Part(middle, wall)]
    for s in (-1, 1):
        tower = _battlements(0.42, 0.98, -0.72, 3) * (s, 1)
        parts += [
            Part(np.concatenate([tower, polygon((s * 0.98, 0.9), (s * 0.42, 0.9))]), stone),
            Part(bar(s * 0.7, -0.32, s * 0.7, 0.02, 0.15), dark, True),
        ]
    return [
        *parts,
        Part(gate, dark, True),
        Part(polygon((0, -0.98), (0.4, -0.82), (0, -0.66)), (215, 50, 50)),
        Part(bar(0, -1.0, 0, -0.1, 0.07), dark),
    ]


def _oak() -> list[Part]:
    """A round, lumpy crown on a forked trunk; the tree is a fir."""
    bark, leaf = (105, 70, 45), (70, 140, 45)
    lumps = (
        (-0.55, -0.12, 0.42), (0.55, -0.12, 0.42), (-0.34, -0.55, 0.42), (0.34, -0.55, 0.42),
        (0, -0.2, 0.5),
    )  # fmt: skip
    return [
        Part(bar(0, 0.42, -0.44, 0.12, 0.12), bark),
        Part(bar(0, 0.42, 0.44, 0.12, 0.12), bark),
        Part(_mirrored((0.13, 0.1), (0.15, 0.7), (0.36, 1.0)), bark),
        *(Part(ellipse(x, y, r, r), leaf) for x, y, r in lumps),
        *(
            Part(ellipse(x, y, 0.1, 0.1), (215, 60, 45), True)
            for x, y in ((-0.5, -0.2), (0.1, -0.6), (0.42, -0.15))
        ),
    ]


def _sun() -> list[Part]:
    """A disc apart from its twelve rays; the star is one piece with five points."""
    gold, amber = (250, 195, 25), (245, 150, 30)
    rays = []
    for angle in np.arange(12) * np.pi / 6:
        c, s = np.cos(angle), np.sin(angle)
        tip, base = np.array([c, s]) * 1.0, np.array([c, s]) * 0.66
        side = np.array([-s, c]) * 0.12
        rays.append(Part(np.stack([tip, base + side, base - side]), amber))
    return [*rays, Part(ellipse(0, 0, 0.54, 0.54), gold)]


def _apple() -> list[Part]:
    """A heart's notch with a round base, a stalk and a leaf."""
    red, leaf, stalk = (215, 35, 45), (70, 150, 55), (90, 60, 40)
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    radius = 0.86 - 0.16 * np.exp(-(((t - 1.5 * np.pi) / 0.35) ** 2)) + 0.05 * np.cos(2 * t)
    radius -= 0.12 * np.exp(-(((t - 0.5 * np.pi) / 0.28) ** 2))
    return [
        Part(np.stack([0.98 * radius * np.cos(t), 0.2 + radius * np.sin(t) * 0.9], axis=1), red),
        Part(bar(0, -0.34, 0.14, -0.98, 0.11), stalk),
        Part(ellipse(0.48, -0.74, 0.36, 0.16, -0.35), leaf),
        Part(ellipse(-0.42, -0.06, 0.12, 0.24, 0.5), (255, 225, 215), True),
    ]


def _umbrella() -> list[Part]:
    """A ribbed dome with a scalloped rim on a hooked stick; the mushroom's stem is thick."""
    blue, red, stick = (50, 110, 200), (225, 60, 60), (90, 60, 45)
    t = np.linspace(np.pi, 2 * np.pi, 25)
    parts = [
        Part(bar(0, -1.0, 0, 0.8, 0.09), stick),
        Part(bar(0.0, 0.82, 0.3, 0.94, 0.11), stick),
        Part(bar(0.3, 0.97, 0.36, 0.7, 0.11), stick),
    ]
    for index in range(4):
        arc = t[index * 6 : index * 6 + 7]
        dome = np.stack([0.98 * np.cos(arc), 0.06 + 0.92 * np.sin(arc)], axis=1)
        x0, x1 = -0.98 + 0.49 * index, -0.98 + 0.49 * (index + 1)
        sag = 0.14 * np.sin(np.linspace(0, np.pi, 7))
        rim = np.stack([np.linspace(x1, x0, 7), 0.06 - sag], axis=1)
        parts.append(Part(np.concatenate([dome, rim]), (blue, red)[index % 2]))
    return parts


def _bus() -> list[Part]:
    """A long box with a row of windows; the car has a cabin on a low body."""
    body, glass, tyre = (235, 185, 40), (185, 225, 245), (35, 35, 40)
    box = polygon(
        (-1.0, -0.5), (-0.9, -0.62), (0.88, -0.62), (1.0, -0.4), (1.0, 0.48), (-1.0, 0.48)
    )
    parts = [Part(box, body)]
    parts += [
        Part(polygon((x, -0.42), (x + 0.3, -0.42), (x + 0.3, -0.04), (x, -0.04)), glass, True)
        for x in (-0.86, -0.46, -0.06)
    ]
    parts.append(Part(polygon((0.36, -0.42), (0.62, -0.42), (0.62, 0.4), (0.36, 0.4)), glass, True))
    parts.append(Part(polygon((0.74, -0.42), (0.9, -0.42), (0.96, 0), (0.74, 0)), glass, True))
    parts.append(Part(bar(-0.98, 0.14, 0.3, 0.14, 0.09), (200, 60, 40)))
    for x in (-0.56, 0.56):
        parts += [
            Part(ellipse(x, 0.48, 0.24, 0.24), tyre),
            Part(ellipse(x, 0.48, 0.1, 0.1), (205, 205, 210), True),
        ]
    return parts


def _tulip() -> list[Part]:
    """A closed cup of three points with long leaves; the flower is open, with an eye."""
    petal, dark, stem = (225, 60, 120), (185, 35, 90), (50, 145, 60)
    cup = polygon(
        (-0.46, -0.98), (-0.22, -0.62), (0, -1.0), (0.22, -0.62), (0.46, -0.98), (0.52, -0.4),
        (0.36, -0.02), (0, 0.12), (-0.36, -0.02), (-0.52, -0.4),
    )  # fmt: skip
    return [
        Part(bar(0, 0.0, 0, 1.0, 0.12), stem),
        Part(polygon((0.03, 1.0), (0.2, 0.55), (0.66, 0.1), (0.56, 0.6), (0.22, 0.98)), stem),
        Part(polygon((-0.03, 1.0), (-0.2, 0.55), (-0.66, 0.1), (-0.56, 0.6), (-0.22, 0.98)), stem),
        Part(cup, petal),
        Part(polygon((0, -1.0), (0.24, -0.5), (0, 0.1), (-0.24, -0.5)), dark),
    ]


def _ship() -> list[Part]:
    """A steamer: funnels over a deck; the boat has sails."""
    hull, deck, funnel, smoke = (60, 70, 95), (240, 235, 225), (210, 60, 45), (150, 150, 155)
    parts = [
        Part(ellipse(-0.5, -0.82, 0.34, 0.15), smoke),
        Part(ellipse(-0.14, -0.74, 0.22, 0.12), smoke),
    ]
    for x in (-0.28, 0.2):
        parts += [
            Part(polygon((x, -0.62), (x + 0.26, -0.62), (x + 0.26, 0), (x, 0)), funnel),
            Part(bar(x, -0.56, x + 0.26, -0.56, 0.13), hull),
        ]
    parts.append(Part(polygon((-0.6, -0.1), (0.64, -0.1), (0.64, 0.3), (-0.6, 0.3)), deck))
    parts.append(Part(polygon((-1.0, 0.26), (1.0, 0.2), (0.74, 0.86), (-0.8, 0.86)), hull))
    parts += [Part(ellipse(x, 0.5, 0.09, 0.09), (250, 225, 130), True) for x in (-0.5, 0, 0.5)]
    return parts


LARGE_SHAPES: Final[dict[str, Callable[[], list[Part]]]] = {
    "fox": _fox,
    "whale": _whale,
    "castle": _castle,
    "oak": _oak,
    "sun": _sun,
    "apple": _apple,
    "umbrella": _umbrella,
    "bus": _bus,
    "tulip": _tulip,
    "ship": _ship,
}
