"""What the labels of some prompts look like, and what looks like a slip."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from featurestore.prompts.prompts import Prompt

_MANY = 20


def label_counts(prompts: Sequence[Prompt]) -> dict[str, Counter[str | None]]:
    """Return family → concept → number of samples; None counts those without a label."""
    counts: dict[str, Counter[str | None]] = {}
    for prompt in prompts:
        for family, concept in prompt.labels.items():
            counts.setdefault(family, Counter())[concept] += 1
    return counts


def label_warnings(prompts: Sequence[Prompt]) -> list[str]:
    """Return a line for each thing about the labels that looks like a slip: concepts that differ in
    their spelling only, the empty text as a concept, a column of ids or texts that is taken for
    labels."""
    warnings = []
    for family, counts in label_counts(prompts).items():
        named = {concept: n for concept, n in counts.items() if concept is not None}
        if "" in named:
            warnings.append(
                f"label {family!r}: the empty text is a concept of its own ({named['']} samples): "
                f"leave the label out, or write null, where a prompt has no label."
            )
        warnings += [_alike(family, group, named) for group in _groups(named)]
        if len(named) > _MANY and 2 * len(named) > sum(named.values()):
            warnings.append(
                f"label {family!r} has {len(named):,} concepts for {sum(named.values()):,} "
                f"samples: if it is no label, say which columns are with --label."
            )
    return warnings


def _groups(named: dict[str, int]) -> list[list[str]]:
    """Return the concepts that are one when case, spaces and signs between words do not count."""
    groups: dict[str, list[str]] = {}
    for concept in named:
        if concept:
            folded = unicodedata.normalize("NFKC", concept).casefold()
            groups.setdefault(re.sub(r"[\s_-]+", " ", folded).strip(), []).append(concept)
    return [
        sorted(group, key=lambda one: -named[one]) for group in groups.values() if len(group) > 1
    ]


def _alike(family: str, group: list[str], named: dict[str, int]) -> str:
    shown = ", ".join(f"{concept!r} ({named[concept]})" for concept in group)
    return f"label {family!r}: {shown} are different concepts: write them alike if they are one."
