"""A store of activations, SAE codes and statistics; selections of features; prompts."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Store": "featurestore.store",
    "Selection": "featurestore.selection",
    "FeatureStoreError": "featurestore.errors",
}
__all__ = ["FeatureStoreError", "Selection", "Store", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the public names on first use, so that the command line answers at once."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
