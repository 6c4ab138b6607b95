"""Every error that a user, a file or a disk can cause.

FeatureStoreError
├── UsageError              an argument or a combination of arguments
├── PromptsError            a prompts file
├── ModelError              a model, its denoiser or its scheduler
│   └── HookError           a module path, or what the module returns
├── StoreError              a store
│   ├── NotAStoreError      no store at that path
│   ├── VersionError        another format version
│   ├── TableError          no such table, or rows that do not fit it
│   ├── RunError            other run settings than the store's
│   ├── TakenError          a name that another process has taken
│   ├── DamageError         a file that is not what its record says
│   └── DiskError           the operating system refused a write or a read
├── ShareError              a hub or a bundle
├── SAEError                an SAE's weights, configuration or name
├── SelectionError          a selection file, or one made for something else
└── QueryError              an SQL statement, a concept or a family

A message is one line: what was found, what was expected, where, what to do.
"""

import difflib
from collections.abc import Iterable


class FeatureStoreError(Exception):
    """Base of all errors of this project."""


class UsageError(FeatureStoreError):
    """An argument, or a combination of arguments, is wrong."""


class PromptsError(FeatureStoreError):
    """A prompts file is missing or malformed."""


class ModelError(FeatureStoreError):
    """A model cannot be loaded or used."""


class HookError(ModelError):
    """A hook's module does not exist or returns nothing that can be captured."""


class StoreError(FeatureStoreError):
    """A store cannot be used."""


class NotAStoreError(StoreError):
    """There is no store at a path."""


class VersionError(StoreError):
    """A store or record has another format version."""


class TableError(StoreError):
    """A table does not exist, or rows do not fit it."""


class RunError(StoreError):
    """Run settings differ from the store's."""


class TakenError(StoreError):
    """Another process has taken a name in a store, or is working under it."""


class DamageError(StoreError):
    """A file is not what its commit record says."""


class DiskError(StoreError):
    """The operating system refused a write or a read."""


class ShareError(FeatureStoreError):
    """A hub or a bundle cannot be used, or holds no store."""


class SAEError(FeatureStoreError):
    """An SAE is unknown, malformed or does not fit."""


class SelectionError(FeatureStoreError):
    """A selection file is malformed, or was made for something else."""


class QueryError(FeatureStoreError):
    """A statement, concept or family is wrong."""


def nearest(found: str, known: Iterable[str], n: int = 3) -> str:
    """Return `` Did you mean …?`` or, when nothing is near, `` Known: …`` (at most 8 names); empty
    if nothing is known."""
    known = list(known)
    folded = {name.casefold(): name for name in reversed(known)}  # NEON is near to neon
    near = [
        folded[name]
        for name in difflib.get_close_matches(found.casefold(), folded, n=n, cutoff=0.6)
    ]
    if near:
        return f" Did you mean {' or '.join(repr(name) for name in near)}?"
    if not known:
        return ""
    more = f", … ({len(known)} in all)" if len(known) > 8 else ""
    return f" Known: {', '.join(known[:8])}{more}."
