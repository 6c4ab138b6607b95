"""Pictures that samples start from, by the hash of their files: read and checked before a model
runs."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from featurestore.errors import PromptsError
from featurestore.prompts.rows import Row


class StartPicture(NamedTuple):
    """A picture's file, and what it held when it was read."""

    path: Path
    sha256: str
    """of the file's bytes, in hexadecimal"""

    def read(self) -> bytes:
        """Return the file's bytes.

        Raises:
            PromptsError: they are no longer those of the hash.
        """
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise PromptsError(f"{self.path} cannot be read ({error.strerror}).") from error
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise PromptsError(f"{self.path} was changed while it was used: begin the run again.")
        return data


def start_picture(path: str | Path, where: str) -> StartPicture:
    """Return a picture's file with its hash; ``where`` names in the error who asked for it.

    Raises:
        PromptsError: there is no such file.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return StartPicture(path, hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        raise PromptsError(
            f"{where}: the picture {path} cannot be read ({error.strerror})."
        ) from error


def start_of(row: Row, column: str, beside: Path, known: dict[Path, StartPicture]) -> StartPicture:
    """Return the picture that a row names in a column, a path relative to ``beside``; ``known``
    keeps those that were read.

    Raises:
        PromptsError: the cell is no text, or names no file.
    """
    found = row.values.get(column)
    if not isinstance(found, str) or not found or "\0" in found:
        shown = repr(found)[:60]
        raise PromptsError(f"{row.where}: {column!r} is {shown}, expected the path of a picture.")
    path = beside / found
    if path not in known:
        known[path] = start_picture(path, row.where)
    return known[path]
