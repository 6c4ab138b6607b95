"""Measure whether a concept was unlearned, what was kept, and whether it withstands attack."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae.evaluation.scoring import evaluate as evaluate
    from sae.evaluation.scoring import score_folder as score_folder

_PUBLIC = {"evaluate": "scoring", "score_folder": "scoring"}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
