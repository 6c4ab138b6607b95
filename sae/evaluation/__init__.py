"""Measure whether a concept was unlearned, what was kept, and whether it withstands attack."""

from typing import TYPE_CHECKING

from featurestore.lazy import lazy_names

if TYPE_CHECKING:
    from sae.evaluation.scoring import evaluate, score_folder
else:
    __getattr__, __dir__ = lazy_names(
        __name__, {"evaluate": "sae.evaluation.scoring", "score_folder": "sae.evaluation.scoring"}
    )

__all__ = ["evaluate", "score_folder"]
