"""Issue 19, item 5: language models that encode texts, Qwen, Gemma, Llama, Mistral and GLM, as
hooks: collected bit for bit, and edited by the formula while the prompt is encoded."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from collectors import CollectSettings, collect
from collectors.keep import random_positions
from featurestore.errors import UsageError
from featurestore.maintenance.verify import verify
from featurestore.prompts import Prompt
from sae.diffusion.pipelines import Model, RunSettings, generate
from sae.intervention.ablate import ablate
from tests.builders import language
from tests.builders.families import FAMILIES
from tests.builders.pipelines import _t5, t5_tokenizer, tokenizer
from tests.builders.plain import dense, plain_hook, random_sae
from tests.builders.selections import make_selection

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]
PROMPTS = ["a cat", "two dogs"]
SAMPLES = [Prompt(text, i, {}, i + 1) for i, text in enumerate(PROMPTS)]


class Texts(NamedTuple):
    """A pipeline's text encoders."""

    hook: str
    parts: Callable[[Any], dict[str, Any]]
    arguments: Mapping[str, Any] = {"max_sequence_length": 24}
    guidance: Mapping[str, float] = {"guidance": 3.0}
    negative: str = "ugly"
    several: bool = False
    """whether texts are filled up to several lengths"""


def one(
    encoder: Callable[[int], Any], words: Callable[[], Any], width: int
) -> Callable[[Any], dict[str, Any]]:
    return lambda directory: {"text_encoder": encoder(width), "tokenizer": words()}


def clip(cls: Any, width: int, hidden: int = 16) -> Any:
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=190, hidden_size=hidden, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=77, bos_token_id=188, eos_token_id=189, pad_token_id=189, projection_dim=width,
    )  # fmt: skip
    return cls(config).eval()


def of_hidream(directory: Any) -> dict[str, Any]:
    words = tokenizer(directory / "words")
    return {
        "text_encoder": clip(CLIPTextModelWithProjection, 32), "tokenizer": words,
        "text_encoder_2": clip(CLIPTextModelWithProjection, 32), "tokenizer_2": words,
        "text_encoder_3": _t5().eval(), "tokenizer_3": t5_tokenizer(),
        "text_encoder_4": language.llama_head(16), "tokenizer_4": language.llama_tokenizer(),
    }  # fmt: skip


def of_kandinsky5(directory: Any) -> dict[str, Any]:
    return {
        "text_encoder": language.qwen_vl(16), "tokenizer": language.Processor(),
        "text_encoder_2": clip(CLIPTextModel, 8, 8), "tokenizer_2": tokenizer(directory / "words"),
    }  # fmt: skip


def of_hunyuan(directory: Any) -> dict[str, Any]:
    found = {
        "text_encoder_2": clip(CLIPTextModel, 8, 8),
        "tokenizer_2": tokenizer(directory / "words"),
    }
    return found | {"text_encoder": language.llama(16), "tokenizer": language.llama_tokenizer()}


QWEN, GEMMA = language.qwen_tokenizer, language.gemma_tokenizer
LAYER, HEAD, VISION = "layers.0", "model.layers.0", "model.language_model.layers.0"
TRUE_CFG = {"guidance": 1.0, "true_cfg": 3.0}
CASES = {
    "QwenImagePipeline": Texts(f"text_encoder.{VISION}", one(language.qwen_vl, QWEN, 16), {}, TRUE_CFG, several=True),
    "ZImagePipeline": Texts(f"text_encoder.{LAYER}", one(language.qwen3, QWEN, 16)),
    "Flux2KleinPipeline": Texts(
        f"text_encoder.{HEAD}", one(language.qwen3_head, QWEN, 16), {"max_sequence_length": 24, "text_encoder_out_layers": [1]},
        negative="",
    ),
    "Flux2Pipeline": Texts(
        f"text_encoder.{VISION}", one(language.mistral, QWEN, 16), {"text_encoder_out_layers": [1]}, {}, ""
    ),
    "Lumina2Pipeline": Texts(
        f"text_encoder.{LAYER}", one(language.gemma, GEMMA, 8), {"max_sequence_length": 48, "system_prompt": "Draw:"}
    ),
    "SanaPipeline": Texts(
        f"text_encoder.{LAYER}", one(language.gemma, GEMMA, 8),
        {"max_sequence_length": 24, "complex_human_instruction": ["Draw:"]}, several=True,
    ),
    "HiDreamImagePipeline": Texts(f"text_encoder_4.{HEAD}", of_hidream),
    "HunyuanVideoPipeline": Texts(
        f"text_encoder.{LAYER}", of_hunyuan, {"max_sequence_length": 24, "prompt_template": {"template": "Film: {}", "crop_start": 6}},
        TRUE_CFG,
    ),
    "CogView4Pipeline": Texts(f"text_encoder.{LAYER}", one(language.glm, language.glm_tokenizer, 16)),
    "Kandinsky5T2IPipeline": Texts(f"text_encoder.{VISION}", of_kandinsky5, {}, several=True),
}  # fmt: skip


OWN_SIZES = {"HiDreamImagePipeline": "default_sample_size", "Kandinsky5T2IPipeline": "resolutions"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    built = {}

    def get(name):
        if name not in built:
            built.clear()  # One at a time in memory.
            directory = tmp_path_factory.mktemp(name)
            bare = FAMILIES[name].build(directory)
            pipe = type(bare)(**bare.components | CASES[name].parts(directory))
            if size := OWN_SIZES.get(name):
                setattr(pipe, size, getattr(bare, size))
            pipe.set_progress_bar_config(disable=True)
            for part in pipe.components.values():
                if isinstance(part, torch.nn.Module):
                    part.eval()
            built[name] = Model("m", pipe, 2, 3.0)
        return built[name]

    return get


def run_of(name, **changes):
    family, case = FAMILIES[name], CASES[name]
    height, width = family.size
    video = {"frames": 5} if "num_frames" in family.inputs(1) else {}
    settings = {"n_steps": 2, "guidance": 1.0, "negative_prompt": case.negative, "height": height,
                "width": width, "arguments": dict(case.arguments), **video}  # fmt: skip
    return RunSettings(**settings | dict(case.guidance) | changes)


def encoded(model, hook, run):
    """What a plain hook sees in a run, and what is encoded: a list of texts for each call."""
    part = hook.partition(".")[0]
    encoder, words, texts = getattr(model.pipe, part), part.replace("text_encoder", "tokenizer"), []

    def keep(module, args, kwargs):
        ids = kwargs.get("input_ids", args[0] if args else None)
        texts.append(getattr(model.pipe, words).batch_decode(ids, skip_special_tokens=True))

    handle = encoder.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with plain_hook(model.pipe, hook) as seen:
            pictures = generate(model, run, PROMPTS, [0, 1], output_type="latent")
    finally:
        handle.remove()
    return seen, texts, pictures


@pytest.mark.parametrize("name", CASES)
def test_a_language_model_is_collected_once_per_prompt_bit_for_bit(name, models, tmp_path):
    model, case, run = models(name), CASES[name], run_of(name)
    seen, texts, _ = encoded(model, case.hook, run)
    branches = ["cond", "uncond"] if case.guidance else ["cond"]
    assert len(seen) == len(branches)
    assert PROMPTS == ["a cat", "two dogs"]  # Z-Image changes the list that it is given
    assert all(p in text for p, text in zip(PROMPTS, texts[0], strict=True))
    if case.guidance:
        assert all(case.negative in text and "cat" not in text for text in texts[1])
    how = {"padding": "drop", "positions": "random:4"} if case.several else {}
    settings = CollectSettings(
        hooks=[case.hook], branch="both" if case.guidance else "cond", dtype="float32", batch_size=2, **how
    )  # fmt: skip
    store = collect(tmp_path / "s", model, SAMPLES, run, settings, progress=False).store
    (shard,) = store.activations(case.hook)
    assert shard.branch.tolist() == branches * 2 and set(shard.step.tolist()) == {0}
    ids = list(dict.fromkeys(shard.sample_id.tolist()))
    for i in range(shard.n_rows):
        at, sample = i % len(branches), i // len(branches)
        expected = seen[at][sample].numpy()
        if case.several:
            n = len(model.pipe.tokenizer([texts[at][sample]])["input_ids"][0])  # no padding
            expected = expected[random_positions([ids[sample]], 0, n, 4)[0]]
        assert np.array_equal(shard.row(i), expected)
    assert not np.array_equal(shard.row(0), shard.row(len(branches)))
    assert verify(store, deep=True) == []


@pytest.mark.parametrize("name", CASES)
def test_ablation_edits_one_text_by_the_formula_while_it_is_encoded(name, models):
    model, case, run = models(name), CASES[name], run_of(name)
    plain, _, before = encoded(model, case.hook, run)
    d_in, features = plain[0].shape[-1], list(range(0, 64, 3))
    sae, chosen = random_sae(d_in), [(0, f, 0.3, 0.01) for f in features]
    for at, branch in enumerate(("cond", "uncond")[: len(plain)]):
        selection = make_selection(model, chosen, [0.0], hook=case.hook, d_in=d_in, branch=branch)
        with ablate(model.pipe, selection, saes=sae):
            edited, _, after = encoded(model, case.hook, run)
        x, y = plain[at].reshape(-1, d_in), edited[at].reshape(-1, d_in)
        torch.testing.assert_close(y, dense(sae, x, features), atol=1e-4, rtol=1e-4)
        assert not torch.equal(x, y)
        assert all(torch.equal(plain[i], edited[i]) for i in range(len(plain)) if i != at)
        assert not torch.equal(after[0], before[0])


def test_texts_filled_up_to_the_longest_of_a_batch_do_not_depend_on_the_batch(models, tmp_path):
    name = "QwenImagePipeline"
    model, hook, run = models(name), CASES[name].hook, run_of(name)

    def collected(directory, **how):
        settings = CollectSettings(hooks=[hook], branch="both", dtype="float32", **how)
        return collect(tmp_path / directory, model, SAMPLES, run, settings, progress=False).store

    for positions in ("random:5", "mean"):
        drop = {"padding": "drop", "positions": positions}
        stores = [collected(f"{positions}{size}", batch_size=size, **drop) for size in (1, 2)]
        (one,), (two,) = (list(store.activations(hook)) for store in stores)
        for i in range(4):
            np.testing.assert_allclose(one.row(i), two.row(i), atol=1e-5)
        assert one.metadata == two.metadata
        columns = [
            store.arrow(f"activations/{hook}").drop_columns("activation") for store in stores
        ]
        assert columns[0] == columns[1]
        assert verify(stores[0], deep=True) == []
    message = r" has \d+ positions in one call and \d+ in another, as its texts are filled up to several lengths: keep them with --padding drop, and --positions random:N or mean.$"
    for positions in ("all", "mean"):
        with pytest.raises(UsageError, match=message) as raised:
            collected(f"kept{positions}", positions=positions)
        assert "\n" not in str(raised.value)
