"""Which format a path has, and the closed list of formats."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from featurestore.errors import SAEError
from sae.formats.libraries import dictionary_learning, overcomplete, saelens, sdxl_unbox, sparsify
from sae.formats.libraries.foreign import Choice, Foreign, is_there
from sae.model import SAE


class Format(NamedTuple):
    """A format that can be read."""

    read: Callable[[Path, Choice], Foreign]
    """of a directory, or of a file where ``files`` is empty"""
    files: tuple[str, ...] = ()
    """the directory has exactly these, and others that do not matter"""


FORMATS = {
    "sparsify": Format(sparsify.read, sparsify.FILES),
    "saelens": Format(saelens.read, saelens.FILES),
    "dictionary_learning": Format(dictionary_learning.read, dictionary_learning.FILES),
    "sdxl-unbox": Format(sdxl_unbox.read, sdxl_unbox.FILES),
    "overcomplete": Format(overcomplete.read),
}
"""the name for ``--format`` → how to read it"""

WRITERS: dict[str, Callable[[SAE], dict[str, bytes]]] = {
    "sparsify": sparsify.write,
    "saelens": saelens.write,
}
"""the name for ``--format`` → the files of an SAE"""


def read_checkpoint(path: Path, name: str = "auto", choice: Choice = Choice()) -> Foreign:  # noqa: B008
    """Read a checkpoint of another library.

    Raises:
        SAEError: it is of no known format, malformed, or says what cannot be honoured.
    """
    if not path.exists():
        raise SAEError(f"there is no file or directory {path}.")
    if name == "auto":
        name = detect(path)
    elif name not in FORMATS:
        raise SAEError(f"format {name!r} is not known. Known: {', '.join(FORMATS)}.")
    found = FORMATS[name].read(path, choice)._replace(format=name)
    _check_choice(path, choice, found)
    return found


def _check_choice(path: Path, choice: Choice, found: Foreign) -> None:
    """Refuse what the user says and the file does not allow."""
    architecture = found.fields.get("architecture", "topk")
    relu = architecture == "jumprelu" and not bool(found.tensors["threshold"].any())
    if choice.architecture not in (None, architecture, "relu" if relu else architecture):
        raise SAEError(
            f"{path} is of architecture {architecture!r}: it cannot be served as "
            f"{choice.architecture!r}."
        )
    if choice.k is not None and choice.k != found.fields["k"]:
        raise SAEError(
            f"{path} has k = {found.fields['k']}: --k {choice.k} would be another function."
        )
    if choice.threshold is not None and architecture not in ("batchtopk", "matryoshka_batchtopk"):
        raise SAEError(f"{path} is of architecture {architecture!r}: --threshold is for BatchTopK.")
    if choice.threshold is not None and choice.threshold < 0:
        raise SAEError(
            f"--threshold {choice.threshold:g} is no threshold: it must be at least 0 (−1: never "
            f"calibrated)."
        )
    if choice.calibrate and not found.uncalibrated:
        if architecture not in ("batchtopk", "matryoshka_batchtopk"):
            raise SAEError(
                f"{path} is of architecture {architecture!r}: --calibrate is for BatchTopK."
            )
        threshold = float(found.tensors["threshold"][0])
        raise SAEError(
            f"{path} has threshold = {threshold:g}, given or in its file: leave out --calibrate."
        )


def detect(path: Path) -> str:
    """Return the format of a directory or file, by the names of its files.

    Raises:
        SAEError: none has such files; what was found and expected is listed, and directories below
            that have one.
    """
    if path.is_file():
        if path.suffix in overcomplete.SUFFIXES:
            return "overcomplete"
        raise SAEError(f"{path} is no checkpoint of a known format: {_expected()}.")
    fitting = _fitting(path)
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise SAEError(
            f"{path} fits several formats: {', '.join(fitting)}. Name one with --format."
        )
    below = sorted(child.name for child in path.iterdir() if child.is_dir() and _fitting(child))
    if below:
        more = ", …" if len(below) > 8 else ""
        raise SAEError(
            f"{path} holds several checkpoints; name one of them: {', '.join(below[:8])}{more}."
        )
    found = sorted(child.name for child in path.iterdir())
    listed = ", ".join(found[:8]) + (", …" if len(found) > 8 else "") if found else "nothing"
    raise SAEError(f"{path} is no checkpoint of a known format: found {listed}; {_expected()}.")


def _fitting(path: Path) -> list[str]:
    return [
        name
        for name, known in FORMATS.items()
        if known.files and all(is_there(path, f) for f in known.files)
    ]


def _expected() -> str:
    parts = [
        f"{' and '.join(known.files)} ({name})" for name, known in FORMATS.items() if known.files
    ]
    return f"expected {', '.join(parts)}, or a file ending in .pt or .pth (overcomplete)"
