"""The benchmark's vocabulary: its styles, its objects and the prompts that name them."""

import re
from typing import Final, TypedDict

STYLES: Final[tuple[str, ...]] = (
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
)
OBJECTS: Final[tuple[str, ...]] = (
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
)
PLAIN: Final = "plain"
"""The style label of a picture whose prompt names no style."""
STYLE_LABELS: Final = (*STYLES, PLAIN)

_PATTERN: Final = re.compile(r"An image of (?P<object>[a-z]+)(?: in (?P<style>[a-z]+) style)?\.")


class LabelledPrompt(TypedDict):
    """A prompt with what it asks for; `style` is None where the prompt names none."""

    prompt: str
    style: str | None
    object: str


def prompt(object: str, style: str | None = None) -> str:
    """Return the prompt for an object, in a style or (None or `PLAIN`) without one.

    Raises:
        ValueError: the object or the style is not one of the benchmark's.
    """
    if object not in OBJECTS:
        raise ValueError(f"unknown object {object!r}; expected one of {', '.join(OBJECTS)}")
    if style is None or style == PLAIN:
        return f"An image of {object}."
    if style not in STYLES:
        raise ValueError(f"unknown style {style!r}; expected one of {', '.join(STYLES)}, or None")
    return f"An image of {object} in {style} style."


def parse_prompt(text: str) -> LabelledPrompt:
    """Return the labels of a prompt that `prompt` made.

    Raises:
        ValueError: the text is not such a prompt.
    """
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise ValueError(
            f"not a benchmark prompt: {text!r}; expected 'An image of <object> in <style> style.'"
        )
    style, object_ = match["style"], match["object"]
    if text != prompt(object_, style):
        raise ValueError(
            f"not a benchmark prompt: {text!r}; {PLAIN!r} is asked for by naming no style"
        )
    return LabelledPrompt(prompt=text, style=style, object=object_)


def all_prompts(*, include_plain: bool = False) -> list[LabelledPrompt]:
    """Return every styled prompt with its labels, styles outermost; `include_plain` appends the
    unstyled ones."""
    styles: list[str | None] = [*STYLES, None] if include_plain else [*STYLES]
    return [
        LabelledPrompt(prompt=prompt(object_, style), style=style, object=object_)
        for style in styles
        for object_ in OBJECTS
    ]
