"""How latents are chosen: TopK, BatchTopK, JumpReLU, Matryoshka; no others can be registered."""

from sae.variants.base import Variant
from sae.variants.batchtopk import BatchTopK
from sae.variants.jumprelu import JumpReLU
from sae.variants.matryoshka import Matryoshka
from sae.variants.topk import TopK

VARIANTS: dict[str, Variant] = {
    "topk": TopK(),
    "batchtopk": BatchTopK(),
    "jumprelu": JumpReLU(),
    "matryoshka_batchtopk": Matryoshka(),
}
"""the name in ``config.json`` → what it does"""
