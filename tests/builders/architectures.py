"""Every supported architecture, its ways of guidance and its kinds of hook: the table of
docs/pipelines.md."""

from collections.abc import Callable
from typing import NamedTuple

from sae.diffusion.pipelines import RunSettings
from tests.builders import pipelines

SIZE = {"height": 32, "width": 48}
PLAIN = RunSettings(2, 1.0, **SIZE)
GUIDED = RunSettings(2, 3.0, "ugly", **SIZE)
MAPS, TOKENS, HIDDEN, ENCODER, ATTENTION = (
    "maps",
    "tokens",
    "image stream",
    "text stream",
    "attention",
)
_UNET = {
    MAPS: ["unet.up_blocks.*.attentions.*", "unet.mid_block.resnets.0", "unet.down_blocks.1"],
    TOKENS: ["unet.mid_block.attentions.0.transformer_blocks.*"],
    ATTENTION: ["unet.mid_block.attentions.0.transformer_blocks.0.attn[12]"],
}
_BLOCKS = "transformer.transformer_blocks"


class Case(NamedTuple):
    """An architecture."""

    build: Callable
    hooks: dict[str, list[str]]
    """patterns a kind of hook"""
    guidance: dict[str, RunSettings]
    """settings a kind of guidance"""


CASES = {
    "SD-1.5": Case(pipelines.tiny_stable_diffusion, _UNET, {"one call": GUIDED, "none": PLAIN}),
    "SD-2": Case(pipelines.tiny_sd2, _UNET, {"one call": GUIDED, "none": PLAIN}),
    "SDXL": Case(
        pipelines.tiny_sdxl, _UNET, {"one call": GUIDED, "none": RunSettings(1, 0.0, **SIZE)}
    ),
    "SD3": Case(
        pipelines.tiny_sd3,
        {
            MAPS: ["transformer"],
            HIDDEN: [f"{_BLOCKS}.*"],
            ENCODER: [f"{_BLOCKS}.*-encoder"],
            ATTENTION: [f"{_BLOCKS}.0.attn"],
        },
        {"one call": GUIDED, "none": PLAIN},
    ),
    "FLUX": Case(
        pipelines.tiny_flux,
        {
            TOKENS: ["transformer"],
            HIDDEN: [f"{_BLOCKS}.*", "transformer.single_*.*"],
            ENCODER: [f"{_BLOCKS}.*-encoder", "transformer.single_*.*-encoder"],
            ATTENTION: [f"{_BLOCKS}.0.attn", "transformer.single_transformer_blocks.0.attn"],
        },
        {
            "a call each": RunSettings(2, 3.5, "ugly", **SIZE, true_cfg=2.0),
            "none": RunSettings(2, 3.5, **SIZE),
        },
    ),
    "PixArt-Σ": Case(
        pipelines.tiny_pixart,
        {MAPS: ["transformer"], TOKENS: [f"{_BLOCKS}.*"], ATTENTION: [f"{_BLOCKS}.*.attn[12]"]},
        {"one call": GUIDED, "none": PLAIN},
    ),
}
RUNS = [(name, kind) for name, case in CASES.items() for kind in case.guidance]
