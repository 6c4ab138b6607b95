"""Issue 19, item 5: families whose denoiser was tested with embeddings, as runs of texts: with small
text encoders of their real classes."""

import numpy as np
import pytest
import torch
from transformers import UMT5Config, UMT5EncoderModel

from collectors import CollectSettings, collect
from featurestore.prompts import Prompt
from sae.diffusion.pipelines import Model, RunSettings, generate
from tests.builders.families import FAMILIES
from tests.builders.pipelines import _t5, t5_tokenizer
from tests.builders.plain import plain_hooks, rows

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning"),
]
PROMPTS = ["a cat", "two dogs"]


def _umt5():
    torch.manual_seed(5)
    config = UMT5Config(vocab_size=98, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return UMT5EncoderModel(config)


T5 = (_t5, "encoder.block.0")
UMT5 = (_umt5, "encoder.block.0")
TEXTS = {
    "ChromaPipeline": (T5, 16, None),
    "AuraFlowPipeline": (UMT5, 16, "1x2x3"),
    "WanPipeline": (UMT5, 16, "2x2x3"),
    "LTXPipeline": (T5, 16, "1x1x2"),
    "CogVideoXPipeline": (T5, 6, "2x2x3"),
    "MochiPipeline": (T5, 6, "1x2x3"),
    "AllegroPipeline": (T5, 16, "2x2x3"),
}
"""name → text encoder, tokens, and the patches of a denoiser that does not pack its latents:
frames, height, width of the latents (a picture of 32 × 48 has 4 × 6) by the size of its patches"""


@pytest.mark.parametrize("name", TEXTS)
def test_a_family_draws_from_texts_and_its_encoder_is_a_hook(name, tmp_path):
    """Both halves against plain hooks: of the denoiser in the same run, of the encoder in runs of
    one kind of text."""
    family, ((encoder, layer), tokens, grid) = FAMILIES[name], TEXTS[name]
    bare = family.build(tmp_path)
    pipe = type(bare)(
        **bare.components | {"text_encoder": encoder().eval(), "tokenizer": t5_tokenizer()}
    )
    pipe.set_progress_bar_config(disable=True)
    video = "num_frames" in family.inputs(1)
    height, width = family.size
    run = RunSettings(2, 3.0, "ugly", height, width, frames=5 if video else None)
    arguments = {"max_sequence_length": tokens}
    run = RunSettings(**vars(run) | {"arguments": arguments})
    text, hook, model = f"text_encoder.{layer}", family.hooks[0], Model("m", pipe, 2, 3.0)
    samples = [Prompt(one, i, {}, i + 1) for i, one in enumerate(PROMPTS)]
    settings = CollectSettings(hooks=[hook, text], branch="both", dtype="float32")
    with plain_hooks(pipe, [hook]) as seen:
        store = collect(tmp_path / "s", model, samples, run, settings, progress=False).store
    (shard,) = store.activations(hook)
    assert shard.metadata.get("grid") == grid
    calls = [rows(one) for one in seen[hook]]
    halves = (
        [one.chunk(2) for one in calls]
        if family.order == (("uncond", "cond"),)
        else list(zip(calls[1::2], calls[::2], strict=True))
    )  # uncond, cond of each step
    for i in range(8):
        step, half = int(shard.step[i]), int(shard.branch[i] == "cond")
        assert np.array_equal(shard.row(i), halves[step][half][i // 4].numpy())
    (shard,) = store.activations(text)
    plain = RunSettings(**vars(run) | {"guidance": 1.0, "negative_prompt": ""})
    for branch, texts in (("cond", PROMPTS), ("uncond", ["ugly"] * 2)):
        with plain_hooks(pipe, [text]) as alone:
            generate(model, plain, texts, [0, 1], output_type="latent")
        found = np.stack([shard.row(i) for i in range(4) if shard.branch[i] == branch])
        assert np.array_equal(found, alone[text][0].numpy())
    assert not np.array_equal(shard.row(0), shard.row(2))
