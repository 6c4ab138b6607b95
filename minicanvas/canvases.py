"""The benchmarks: what their pictures show, the prompts that ask for it, and where their weights
lie."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypedDict

PLAIN: Final = "plain"
"""The style label of a picture whose prompt names no style."""
STEPS: Final = 20
"""Denoising steps that the models are meant for."""
GUIDANCE: Final = 3.0
"""Guidance scale that the models are meant for."""

_PATTERN: Final = re.compile(r"An image of (?P<object>[a-z]+)(?: in (?P<style>[a-z]+) style)?\.")
_HERE: Final = Path(__file__).resolve().parent


class LabelledPrompt(TypedDict):
    """A prompt with what it asks for; `style` is None where the prompt names none."""

    prompt: str
    style: str | None
    object: str


@dataclass(frozen=True)
class Canvas:
    """A benchmark: its name, its vocabulary, and the folder that its weights ship in."""

    name: str
    styles: tuple[str, ...]
    objects: tuple[str, ...]
    folder: Path
    """holds ``pipeline`` and ``classifiers``; missing where the weights do not ship"""
    look_alikes: tuple[tuple[str, ...], ...] = ()
    """styles or objects that resemble each other on purpose"""

    @property
    def style_labels(self) -> tuple[str, ...]:
        """Return what a classifier tells apart: the styles, then `PLAIN`."""
        return (*self.styles, PLAIN)

    @property
    def concepts(self) -> dict[str, tuple[str, ...]]:
        """Return family → what its prompts can ask for."""
        return {"style": self.styles, "object": self.objects}

    def directory(self, part: str) -> Path:
        """Return where the weights of ``pipeline`` or ``classifiers`` ship.

        Raises:
            FileNotFoundError: this package was built without them.
        """
        found = self.folder / part
        if not found.is_dir():
            raise FileNotFoundError(
                f"the weights of {self.name} are not in this package: {found} is missing. Train "
                f"them (hours on 2 cores, minutes on a GPU): python -m minicanvas.train --canvas "
                f"{self.name} --out DIR --ship"
            )
        return found

    def prompt(self, object: str, style: str | None = None) -> str:
        """Return the prompt for an object, in a style or (None or `PLAIN`) without one.

        Raises:
            ValueError: the object or the style is not one of the benchmark's.
        """
        if object not in self.objects:
            raise ValueError(
                f"unknown object {object!r}; expected one of {', '.join(self.objects)}"
            )
        if style is None or style == PLAIN:
            return f"An image of {object}."
        if style not in self.styles:
            raise ValueError(
                f"unknown style {style!r}; expected one of {', '.join(self.styles)}, or None"
            )
        return f"An image of {object} in {style} style."

    def parse_prompt(self, text: str) -> LabelledPrompt:
        """Return the labels of a prompt that `prompt` made.

        Raises:
            ValueError: the text is not such a prompt.
        """
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise ValueError(
                f"not a benchmark prompt: {text!r}; "
                f"expected 'An image of <object> in <style> style.'"
            )
        style, object_ = match["style"], match["object"]
        if text != self.prompt(object_, style):
            raise ValueError(
                f"not a benchmark prompt: {text!r}; {PLAIN!r} is asked for by naming no style"
            )
        return LabelledPrompt(prompt=text, style=style, object=object_)

    def all_prompts(self, *, include_plain: bool = False) -> list[LabelledPrompt]:
        """Return every styled prompt with its labels, styles outermost; `include_plain` appends
        the unstyled ones."""
        styles: list[str | None] = [*self.styles, None] if include_plain else [*self.styles]
        return [
            LabelledPrompt(prompt=self.prompt(object_, style), style=style, object=object_)
            for style in styles
            for object_ in self.objects
        ]


SMALL: Final = Canvas(
    name="minicanvas",
    styles=(
        "neon",
        "sketch",
        "watercolor",
        "blueprint",
        "sunset",
        "stripes",
        "mosaic",
        "thermal",
        "chalk",
        "comic",
    ),
    objects=(
        "cat",
        "fish",
        "house",
        "tree",
        "star",
        "heart",
        "mushroom",
        "car",
        "flower",
        "boat",
    ),
    folder=_HERE / "weights",
)
"""The benchmark of the demo, the tutorials and the tests."""

_SECOND_OBJECTS: Final = (
    "fox",
    "whale",
    "castle",
    "oak",
    "sun",
    "apple",
    "umbrella",
    "bus",
    "tulip",
    "ship",
)
"""each resembles the small benchmark's object at the same place"""

LARGE: Final = Canvas(
    name="minicanvas:large",
    styles=(
        *SMALL.styles,
        "ink",
        "engraving",
        "inlay",
        "pyrography",
        "cyanotype",
        "night",
        "glass",
        "contour",
        "crayon",
        "dots",
    ),
    objects=(*SMALL.objects, *_SECOND_OBJECTS),
    folder=_HERE / "weights_large",
    look_alikes=(
        ("sketch", "ink", "engraving"),
        ("inlay", "pyrography"),
        ("blueprint", "cyanotype"),
        ("sunset", "night"),
        ("mosaic", "glass"),
        ("thermal", "contour"),
        ("chalk", "crayon"),
        ("comic", "dots"),
        *zip(SMALL.objects, _SECOND_OBJECTS, strict=True),
    ),
)
"""Twice the styles and objects, each new one a look-alike. Its weights lie apart from the small
benchmark's, which results name by the hash of their folder."""

CANVASES: Final = {canvas.name: canvas for canvas in (SMALL, LARGE)}
