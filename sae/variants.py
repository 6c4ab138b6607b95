"""The architectures that there are; no others can be registered."""

from sae.batchtopk import BatchTopK
from sae.jumprelu import JumpReLU
from sae.matryoshka import Matryoshka
from sae.topk import TopK
from sae.variant import Variant

VARIANTS: dict[str, Variant] = {
    "topk": TopK(),
    "batchtopk": BatchTopK(),
    "jumprelu": JumpReLU(),
    "matryoshka_batchtopk": Matryoshka(),
}
"""the name in ``config.json`` → what it does"""
