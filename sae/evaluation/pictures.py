"""Folders of pictures with what each was asked to show."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from featurestore.errors import ModelError, PromptsError, UsageError
from sae.diffusion.faults import picture_fault, say_faults
from sae.intervention.generate import LIST, NOT_LABELS

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_FIELD = re.compile(r"\{([a-z][a-z0-9_]*)\}")


class Picture(NamedTuple):
    """A picture of a folder."""

    path: Path
    labels: dict[str, str]
    """family → the concept asked for; families that it was not asked about are left out"""
    seed: int

    def open(self) -> Image.Image:
        """Return the picture.

        Raises:
            PromptsError: the file is no picture.
        """
        try:
            with Image.open(self.path) as image:
                return image.convert("RGB")
        except OSError as error:
            raise PromptsError(f"{self.path} cannot be read as a picture: {error}.") from error


def check_pictures(images: Sequence[Image.Image], names: Sequence[str]) -> None:
    """Refuse pictures that are no results: a black one would count as unlearned.

    Raises:
        ModelError: pictures are black, not finite, or flagged by the pipeline's safety checker.
    """
    faults = {
        name: fault
        for name, image in zip(names, images, strict=True)
        if (fault := picture_fault(image))
    }
    if faults:
        raise ModelError(
            f"{say_faults(faults, len(images))} Judged, they would count as unlearned: draw them "
            f"anew or leave them out."
        )


def read_pictures(
    directory: Path, names: Sequence[str] = (), labels: Mapping[str, Sequence[str]] = {}
) -> list[Picture]:
    """Return a folder's pictures: those of its ``generated.jsonl``, or those whose names match a
    pattern.

    ``names``: patterns such as ``{style}_{object}_seed{seed}``, without suffix; the first that
    matches counts. ``labels`` are the concepts of each family that a name may hold, so that a
    concept may have the pattern's own characters.

    Raises:
        PromptsError: the folder, its list or a listed file is missing or malformed, or a picture's
            name matches no pattern.
        UsageError: a pattern names a family that the judge does not know.
    """
    if not directory.is_dir():
        raise PromptsError(f"no folder of pictures {directory}.")
    found = _by_name(directory, names, labels) if names else _listed(directory / LIST)
    if not found:
        raise PromptsError(f"{directory} holds no pictures ({', '.join(SUFFIXES)}).")
    return found


def _listed(path: Path) -> list[Picture]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise PromptsError(
            f"{path} cannot be read: {error.strerror}; 'featurestore generate' writes it, or say "
            f"with --names what the files' names hold."
        ) from error
    pictures = []
    for number, line in enumerate(lines, 1):
        try:
            row: Any = json.loads(line)
            labels = {
                key: str(value)
                for key, value in row.items()
                if key not in NOT_LABELS and value is not None
            }
            pictures.append(Picture(path.parent / row["file"], labels, int(row["seed"])))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise PromptsError(
                f"{path}, line {number}: expected an object with file and seed ({error})."
            ) from error
    return pictures


def _by_name(
    directory: Path, names: Sequence[str], labels: Mapping[str, Sequence[str]]
) -> list[Picture]:
    patterns = [_pattern(name, labels) for name in names]
    pictures = []
    for path in sorted(p for p in directory.iterdir() if p.suffix.lower() in SUFFIXES):
        match = next((m for pattern in patterns if (m := pattern.fullmatch(path.stem))), None)
        if match is None:
            raise PromptsError(f"{path.name} in {directory} matches none of: {', '.join(names)}.")
        fields = match.groupdict()
        pictures.append(
            Picture(
                path, {k: v for k, v in fields.items() if k != "seed"}, int(fields.get("seed", 0))
            )
        )
    return pictures


def _pattern(name: str, labels: Mapping[str, Sequence[str]]) -> re.Pattern[str]:
    parts, at = [], 0
    for field in _FIELD.finditer(name):
        if field[1] != "seed" and field[1] not in labels:
            raise UsageError(
                f"--names {name!r}: {field[1]!r} is not one of the judge's families: "
                f"{', '.join(labels)}."
            )
        values = (
            r"\d+"
            if field[1] == "seed"
            else "|".join(map(re.escape, sorted(labels[field[1]], key=len, reverse=True)))
        )
        parts += [re.escape(name[at : field.start()]), f"(?P<{field[1]}>{values})"]
        at = field.end()
    return re.compile("".join([*parts, re.escape(name[at:])]))
