"""What in a store may be written by whom: nothing committed is ever replaced (docs/format.md,
section 3)."""

import os
from pathlib import Path

from featurestore.errors import DiskError
from featurestore.format.gate import inside
from featurestore.format.records import MARK, SAE_FILES
from featurestore.vocabulary import PLAIN_TABLES, TABLE_KINDS

LEDGER = "SHA256SUMS"


def store_of(path: Path) -> tuple[Path, Path] | None:
    """Return the root of the store that a path lies in, and the path below it; None elsewhere."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100
    for root in absolute.parents:
        if os.path.lexists(root / MARK):
            return root, absolute.relative_to(root)
    return None


def check_links(path: Path) -> None:
    """Refuse, in a store, a path behind a symbolic link: it would be written somewhere else."""
    if (found := store_of(path)) is not None:
        inside(found[0], found[1].parent.as_posix())


def refuse_committed(path: Path) -> None:
    """Refuse a path where a committed file of a store lies, or one behind a link."""
    check_links(path)
    found = store_of(path)
    if found is not None and path.exists() and _is_committed(*found):
        raise DiskError(
            f"{path} is committed to the store {found[0]}, where nothing is ever replaced."
        )


def refuse_in_store(path: Path) -> None:
    """Refuse to write, whoever asks, where a store has its records and data: what is there may be,
    or become, committed."""
    check_links(path)
    # The second is another one where a link of the user's own leads into a store.
    for one in (path, path.parent.resolve() / path.name):
        found = store_of(one)
        if found is not None and _is_shared(found[1]):
            raise DiskError(
                f"{path} lies where the store {found[0]} has its own files, which are never "
                f"replaced: name another file."
            )


def _is_shared(relative: Path) -> bool:
    """Say whether a path below a store's root is one for records or data."""
    first = relative.parts[0]
    if first == "saes":
        return len(relative.parts) != 3 or relative.name in SAE_FILES
    return first in ("manifest", *PLAIN_TABLES, *TABLE_KINDS)


def _is_committed(root: Path, relative: Path) -> bool:
    """Say whether a path below a store's root is a record, the mark, or a file that a record
    names."""
    first, *rest = relative.parts
    if first == "manifest":
        return relative.name != LEDGER
    if first == "saes":
        return (
            len(rest) == 2
            and rest[1] in SAE_FILES
            and (root / f"manifest/saes/{rest[0]}.json").exists()
        )
    return (
        relative.suffix == ".parquet"
        and (root / "manifest" / relative.with_suffix(".json")).exists()
    )
