"""Attacks that bring removed concepts back: tokens, embeddings, starting latents; the defence in
the gradient's path."""

from typing import TYPE_CHECKING

from featurestore.lazy import lazy_names

if TYPE_CHECKING:
    from sae.evaluation.attack.attacking import attack, attack_defence
    from sae.evaluation.attack.settings import AttackSettings, Defended
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "attack": "sae.evaluation.attack.attacking",
            "attack_defence": "sae.evaluation.attack.attacking",
            "AttackSettings": "sae.evaluation.attack.settings",
            "Defended": "sae.evaluation.attack.settings",
        },
    )

__all__ = ["AttackSettings", "Defended", "attack", "attack_defence"]
