"""Kinds of values that several options take."""

import math
import re
from typing import Any

import click

_SEEDS = re.compile(r"(\d+)(?:-(\d+))?")
_MOST_SEEDS = 10**6


class Seeds(click.ParamType):
    """``0``, ``0,1,5`` or ``0-4``."""

    name = "seeds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[int]:
        """Return the seeds in the order given."""
        if isinstance(value, list):
            return value
        seeds: list[int] = []
        for part in str(value).split(","):
            match = _SEEDS.fullmatch(part.strip())
            if not match:
                self.fail(
                    f"{value!r} is no list of seeds: expected something like 0, 0,1,5 or 0-4.",
                    param,
                    ctx,
                )
            first, last = int(match[1]), int(match[2] or match[1])
            if not first <= last < first + _MOST_SEEDS:
                self.fail(
                    f"{part.strip()!r}: expected the smaller seed first, and at most "
                    f"{_MOST_SEEDS:,} seeds.",
                    param,
                    ctx,
                )
            seeds += range(first, last + 1)
        if len(set(seeds)) < len(seeds) or max(seeds) >= 2**63:
            self.fail(f"{value!r}: seeds must be distinct, and below 2^63.", param, ctx)
        return seeds


class Finite(click.FloatRange):
    """A number of a range; click lets NaN, and an infinity without a limit, through."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


class Numbers(click.ParamType):
    """``1`` or ``1,2,4``."""

    name = "numbers"

    def __init__(self, kind: type[int] | type[float]) -> None:
        self.kind = kind

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[float]:
        """Return the numbers in the order given."""
        if isinstance(value, list):
            return value
        try:
            return [self.kind(part) for part in str(value).split(",")]
        except ValueError:
            self.fail(f"{value!r}: expected numbers such as 1,2,4.", param, ctx)
