"""Ladders of pictures that were drawn: kept in this user's cache, so that an export can take them
along.

A directory a ladder, its JSON written last: one without it is not there.
"""

import contextlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from featurestore.errors import DiskError
from featurestore.explorer.basket.entries import Entry
from featurestore.format import durable
from featurestore.format.canonical import canonical_json, sha256_text
from featurestore.format.verified import cache_directory, why_not

KEPT = 50
_LIST = "ladder.json"


class Ladders:
    """The ladders that were drawn from one store."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.directory = cache_directory() / "drawn" / sha256_text(str(root.resolve()))[:32]

    def keep(self, about: Mapping[str, Any], pictures: Mapping[str, bytes]) -> None:
        """Keep a finished ladder: what it shows, and its pictures by key; the oldest of more than
        :data:`KEPT` go."""
        if why_not(self._root) is not None:
            return
        place = self.directory / sha256_text(canonical_json(dict(about)))[:32]
        with contextlib.suppress(OSError, DiskError):  # full or read-only: it can be drawn again
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            for key, png in pictures.items():
                durable.write_bytes(place / f"{key}.png", png)
            durable.write_bytes(place / _LIST, json.dumps(about, ensure_ascii=False).encode())
            every = sorted(self.directory.iterdir(), key=lambda path: path.stat().st_mtime_ns)
            for old in every[:-KEPT]:
                shutil.rmtree(old, ignore_errors=True)

    def every(self) -> list[tuple[dict[str, Any], Path]]:
        """Return what each ladder shows, and the directory of its pictures; the newest first."""
        if why_not(self._root) is not None or not self.directory.is_dir():
            return []
        lists = [path for path in self.directory.glob(f"*/{_LIST}") if not path.is_symlink()]
        lists.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
        return [(json.loads(path.read_text(encoding="utf-8")), path.parent) for path in lists]


def as_json(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return a basket's entries as the page has them."""
    return [
        {
            "sae": entry.sae,
            "family": entry.family,
            "concept": entry.concept,
            "branch": entry.branch,
            **({"features": list(entry.features)} if entry.top is None else {"top": entry.top}),
            "multiplier": entry.multiplier,
            "window": None if entry.window is None else list(entry.window),
        }
        for entry in entries
    ]
