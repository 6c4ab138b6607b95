"""Student's t, which intervals of few samples need and the standard library lacks."""

import math


def student_t(level: float, degrees: int) -> float:
    """Return the t that a variable of so many degrees of freedom lies within, ±, with probability
    ``level``.

    By bisection of the angle whose tangent is ``t / √degrees`` (Abramowitz & Stegun 1964, 26.7.3
    and 26.7.4).

    Raises:
        ValueError: there are no degrees of freedom, or the level is not between 0 and 1.
    """
    if degrees < 1 or not 0 <= level <= 1:
        raise ValueError(
            f"level {level}, {degrees} degrees of freedom: expected 0 to 1, and at least 1."
        )
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < level else (low, middle)
    return math.tan(low) * math.sqrt(degrees)


def _within(angle: float, degrees: int) -> float:
    """Return the probability that ``|t| ≤ tan(angle) · √degrees``."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2 == 1
    term = cosine if odd else 1.0
    total = term if degrees > 1 else 0.0
    for i in range(2 if odd else 1, degrees - 1, 2):
        term *= i / (i + 1) * cosine**2
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
