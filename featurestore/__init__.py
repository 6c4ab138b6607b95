"""A store of activations, SAE codes and statistics; selections of features; prompts."""

from typing import TYPE_CHECKING

from featurestore.lazy import lazy_names

__version__ = "0.2.0.dev0"

if TYPE_CHECKING:
    from featurestore.errors import (
        DamageError,
        DiskError,
        FeatureStoreError,
        HookError,
        ModelError,
        NotAStoreError,
        PromptsError,
        QueryError,
        RunError,
        SAEError,
        SelectionError,
        ShareError,
        StoreError,
        TableError,
        TakenError,
        UsageError,
        VersionError,
    )
    from featurestore.selection import Selection
    from featurestore.store import Store

__all__ = [
    "DamageError",
    "DiskError",
    "FeatureStoreError",
    "HookError",
    "ModelError",
    "NotAStoreError",
    "PromptsError",
    "QueryError",
    "RunError",
    "SAEError",
    "Selection",
    "SelectionError",
    "ShareError",
    "Store",
    "StoreError",
    "TableError",
    "TakenError",
    "UsageError",
    "VersionError",
    "__version__",
]

if not TYPE_CHECKING:
    _HOMES = {name: "featurestore.errors" for name in __all__ if name.endswith("Error")}
    _HOMES |= {"Selection": "featurestore.selection", "Store": "featurestore.store"}
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)
