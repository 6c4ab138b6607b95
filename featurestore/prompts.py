"""Prompts files: one JSON object a line, ``{"prompt": …, "<family>": "<concept>", …}``."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurestore.errors import PromptsError
from featurestore.format.schemas import FAMILY, RESERVED


@dataclass(frozen=True)
class Prompt:
    """A picture to generate."""

    prompt: str
    seed: int
    labels: dict[str, str | None]
    """concept family → concept"""
    line: int
    """where it stands in its file, from 1"""


def read_prompts(path: Path, seeds: Sequence[int] = (0,)) -> list[Prompt]:
    """Read a prompts file: every line once a seed; a line with its own ``seed`` only with that one. Empty lines are skipped.

    Raises:
        PromptsError: the file cannot be read, or a line is malformed or stands there twice; it names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise PromptsError(f"prompts file {path} cannot be read: {reason}.") from error
    lines = [(n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise PromptsError(f"prompts file {path} is empty: expected one JSON object with a 'prompt' a line.")
    prompts = [prompt for n, line in lines for prompt in _read_line(f"{path}, line {n}", n, line, seeds)]
    _refuse_duplicates(path, prompts)
    families = sorted({family for prompt in prompts for family in prompt.labels})
    return [Prompt(p.prompt, p.seed, {f: p.labels.get(f) for f in families}, p.line) for p in prompts]


def _read_line(where: str, number: int, line: str, seeds: Sequence[int]) -> list[Prompt]:
    try:
        body: Any = json.loads(line)
    except ValueError as error:
        raise PromptsError(f'{where}: not JSON ({error}); expected an object like {{"prompt": "…"}}.') from error
    if not isinstance(body, dict) or not isinstance(body.get("prompt"), str):
        raise PromptsError(f"{where}: expected an object with a text 'prompt', found {line.strip()[:60]!r}.")
    own = body.pop("seed", None)
    if own is not None and (not isinstance(own, int) or isinstance(own, bool) or not 0 <= own < 2**63):
        raise PromptsError(f"{where}: 'seed' is {own!r}, expected a whole number from 0 to 2^63 - 1.")
    prompt = body.pop("prompt")
    for family, concept in body.items():
        if not FAMILY.fullmatch(family) or family in RESERVED:
            why = "it is a column of the store" if family in RESERVED else "use lower-case letters, digits and '_'"
            raise PromptsError(f"{where}: {family!r} cannot be a label: {why}.")
        if concept is not None and not isinstance(concept, str):
            raise PromptsError(f"{where}: label {family!r} is {concept!r}, expected a text or null.")
    return [Prompt(prompt, seed, body, number) for seed in ([own] if own is not None else seeds)]


def _refuse_duplicates(path: Path, prompts: list[Prompt]) -> None:
    first: dict[tuple[str, int], Prompt] = {}
    for prompt in prompts:
        other = first.setdefault((prompt.prompt, prompt.seed), prompt)
        if other is not prompt:
            raise PromptsError(
                f"{path}, line {prompt.line}: the same prompt and seed {prompt.seed} as line {other.line}: "
                f"they would be the same sample. Remove one, or give it another 'seed'."
            )
