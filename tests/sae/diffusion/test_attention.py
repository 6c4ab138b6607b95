"""Issue 19, item 6: where a word looks, against a plain computation of softmax(QKᵀ)."""

import numpy as np
import pytest
import torch
from diffusers.models import attention_processor
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.models.transformers import transformer_flux

from collectors import CollectSettings, collect
from featurestore.errors import HookError, UsageError
from featurestore.maintenance.verify import verify
from featurestore.prompts import Prompt
from queries.connection.session import connect
from sae.diffusion.attention import word_layers, word_tokens
from sae.diffusion.modules import find_module
from sae.diffusion.pipelines import RunSettings, generate
from sae.intervention.ablate import ablate
from sae.intervention.settings import Intervention
from tests.builders.cli import run as shell
from tests.builders.families import FAMILIES
from tests.builders.plain import dense, plain_hooks, random_sae, rows
from tests.builders.selections import make_selection

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]
UNET = "unet.up_blocks.1.attentions.1"
BLOCK = "transformer.transformer_blocks.0"
HOOKS = [
    ("SD-1.5", UNET),
    ("SD-2", UNET),
    ("SDXL", UNET),
    ("PixArt-Σ", BLOCK),
    ("SD3", BLOCK),
    ("FLUX", BLOCK),
    ("FLUX", "transformer.single_transformer_blocks.1"),
]
TOKENIZERS = {"SD3": [("tokenizer", 0), ("tokenizer_3", 16)], "FLUX": [("tokenizer_2", 0)]}
"""of architectures of one stream: whose tokens stand where; CLIP's are 16 in these tests"""
PROMPTS = ["a cat", "dogs cat cat"]
SAMPLES = [Prompt(text, i, {}, i + 1) for i, text in enumerate(PROMPTS)]
RUN = RunSettings(2, 3.0, height=32, width=48)


def plain_maps(model, hook, monkeypatch):
    """What diffusers' own processor without fused attention computes: for each call of each layer
    in the hook's module, ``[batch, heads, positions, tokens]``."""
    seen = []
    own = Attention.get_attention_scores

    def record(self, query, key, mask=None):
        found = own(self, query, key, mask)
        seen.append((self, found.unflatten(0, (-1, self.heads)).clone()))
        return found

    monkeypatch.setattr(Attention, "get_attention_scores", record)
    layers = [m for m in find_module(model.pipe, hook).modules() if isinstance(m, Attention) and m.is_cross_attention]  # fmt: skip
    before = [layer.processor for layer in layers]
    for layer in layers:
        layer.set_processor(AttnProcessor())
    try:
        generate(model, RUN, PROMPTS, [0, 1], output_type="latent")
    finally:
        for layer, processor in zip(layers, before, strict=True):
            layer.set_processor(processor)
        monkeypatch.undo()
    return [[maps for one, maps in seen if one is layer] for layer in layers]


class _Functions:
    """``torch.nn.functional`` as a module sees it, but for one function."""

    def __init__(self, attention):
        self.scaled_dot_product_attention = attention

    def __getattr__(self, name):
        return getattr(torch.nn.functional, name)


def joint_maps(name, model, hook, monkeypatch, *, run=RUN):
    """What diffusers' fused attention is called with, written out: of the picture's queries, what
    they attend to the text. SD3 has the text last, FLUX first."""
    layers = [m for n, m in find_module(model.pipe, hook).named_modules() if n == "attn"]
    seen, current, n_text = {id(one): [] for one in layers}, [], []

    def entered(module, args, kwargs):
        current[:] = [id(module)]
        text = kwargs.get("encoder_hidden_states")
        if text is not None:
            n_text[:] = [text.shape[1]]

    def fused(query, key, value, *args, **kwargs):
        if current and current[0] in seen:
            swap = (lambda x: x.transpose(1, 2)) if name == "FLUX" else lambda x: x
            q, k, n = swap(query), swap(key), n_text[0]
            weights = (q.float() @ k.float().transpose(2, 3) / q.shape[3] ** 0.5).softmax(3)
            seen[current[0]].append(weights[:, :, n:, :n] if name == "FLUX" else weights[:, :, :-n, -n:])  # fmt: skip
        return own(query, key, value, *args, **kwargs)

    if name == "FLUX":
        own = transformer_flux.dispatch_attention_fn
        monkeypatch.setattr(transformer_flux, "dispatch_attention_fn", fused)
    else:
        own = torch.nn.functional.scaled_dot_product_attention
        monkeypatch.setattr(attention_processor, "F", _Functions(fused))
    everywhere = [m for n, m in model.pipe.transformer.named_modules() if n.endswith(".attn")]
    handles = [m.register_forward_pre_hook(entered, with_kwargs=True) for m in everywhere]
    try:
        generate(model, run, PROMPTS, [0, 1], output_type="latent")
    finally:
        for handle in handles:
            handle.remove()
        monkeypatch.undo()
    return [seen[id(one)] for one in layers]


def maps_of(name, model, hook, monkeypatch):
    if name in TOKENIZERS:
        return joint_maps(name, model, hook, monkeypatch)
    return plain_maps(model, hook, monkeypatch)


def places(name, model, prompt, word):
    """Written out: the letters of the tokenizer of the tests, after the token that begins."""
    found = set()
    for key, first in TOKENIZERS.get(name, [("tokenizer", 0)]):
        tokenizer = getattr(model.pipe, key)
        text = tokenizer.convert_ids_to_tokens(tokenizer(prompt)["input_ids"])
        part = tokenizer.convert_ids_to_tokens(tokenizer(word, add_special_tokens=False)["input_ids"])  # fmt: skip
        part = [token for token in part if token != "</s>"]
        starts = [i for i in range(len(text)) if text[i : i + len(part)] == part]
        found |= {first + i + k for i in starts for k in range(len(part))}
    return sorted(found)


def cond_of(name, values):
    """The conditional half; FLUX is called without another."""
    return values if name == "FLUX" else values.chunk(2)[1]


@pytest.mark.parametrize(("name", "hook"), HOOKS)
def test_the_maps_of_words_are_those_of_a_plain_softmax(
    name, hook, architectures, monkeypatch, tmp_path
):
    model = architectures(name)
    layers = maps_of(name, model, hook, monkeypatch)
    with plain_hooks(model.pipe, [hook]) as seen:
        generate(model, RUN, PROMPTS, [0, 1], output_type="latent")
    untouched = seen[hook]
    settings = CollectSettings(hooks=[hook], words=["cat", "dogs", "bird"], dtype="float32")
    store = collect(tmp_path / "s", model, SAMPLES, RUN, settings, progress=False).store
    table = store.arrow(f"attention/{hook}")
    words = [("cat",), ("cat", "dogs")]  # bird is in none
    assert table["word"].to_pylist() == [w for own in words for _ in range(2) for w in own]
    assert table["branch"].to_pylist() == ["cond"] * table.num_rows
    found = np.array(table["attention"].to_pylist(), np.float32)
    ids = list(dict.fromkeys(table["sample_id"].to_pylist()))
    for i, row in enumerate(table.select(["sample_id", "step", "word"]).to_pylist()):
        sample = ids.index(row["sample_id"])
        tokens = places(name, model, PROMPTS[sample], row["word"])
        assert tokens, row
        maps = [cond_of(name, calls[row["step"]])[sample] for calls in layers]
        expected = torch.stack([one[..., tokens].mean((0, 2)) for one in maps]).mean(0)
        np.testing.assert_allclose(found[i], expected.numpy(), atol=2e-4)
    assert found.std(1).min() > 0
    (shard,) = store.activations(hook)  # what the model computes stays bit for bit
    for i in range(4):
        assert np.array_equal(shard.row(i), cond_of(name, rows(untouched[i % 2]))[i // 2].numpy())
    assert verify(store, deep=True) == []
    n, m = connect(store).execute("select count(*), max(len(attention)) from attention").fetchone()
    assert (n, m) == (table.num_rows, found.shape[1])


def test_words_are_whole_and_found_wherever_they_stand(architectures):
    pipe = architectures("SD-1.5").pipe
    assert word_tokens(pipe, "a cat", "cat", 16) == [2, 3, 4]
    assert word_tokens(pipe, "cats", "cat", 16) == []
    assert word_tokens(pipe, "cat cat", "cat", 16) == [1, 2, 3, 4, 5, 6]
    assert word_tokens(pipe, "cat cat", "cat", 7) == [1, 2, 3]  # cut, and an end
    with pytest.raises(UsageError, match=r"^the word '' has no tokens"):
        word_tokens(pipe, "a", "", 16)


def test_models_without_cross_attention_of_text_say_so(architectures, tmp_path):
    for name, hook in (("SD3", f"{BLOCK}-encoder"), ("FLUX", "transformer.single_transformer_blocks.0.attn"),
                       ("SD-1.5", "unet.mid_block.resnets.0"), ("SD-1.5", "text_encoder.encoder.layers.0")):  # fmt: skip
        settings = CollectSettings(hooks=[hook], words=["cat"])
        with pytest.raises(
            HookError, match=r"has no attention from positions of the picture to the prompt"
        ) as raised:
            collect(tmp_path / "s", architectures(name), SAMPLES, RUN, settings, progress=False)
        assert "\n" not in str(raised.value) and not (tmp_path / "s").exists()
    with pytest.raises(HookError, match=r"of QwenImagePipeline has no attention from positions"):
        word_layers(FAMILIES["QwenImagePipeline"].build(tmp_path), BLOCK)


def test_a_store_keeps_one_list_of_words(capsys, model_dir, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n")
    command = ["collect", "--model", model_dir, "--prompts", prompts, "--store", tmp_path / "s", "--hook", UNET,
               "--steps", 2, "--guidance", 3, "--quiet"]  # fmt: skip
    status, out, err = shell(capsys, *command, "--attention", "cat", "--attention", "dog")
    assert (status, err) == (0, "") and f"attention/{UNET}: 2 rows" in out
    status, out, _ = shell(capsys, *command, "--attention", "cat", "--attention", "dog")
    assert status == 0 and "0 samples collected, 1 were there already" in out
    status, _, err = shell(capsys, *command, "--attention", "cat", "--seeds", "0-1")
    assert (
        status == 1 and err.count("\n") == 1 and "has the words cat, dog, now they are cat" in err
    )


@pytest.mark.parametrize(("name", "hook"), HOOKS)
def test_an_edit_acts_where_a_word_looks(name, hook, architectures, monkeypatch):
    """Where the word's map is at least 0.4 of its largest value, by the dense formula; elsewhere,
    and in a picture whose prompt has no such word, nothing changes."""
    model = architectures(name)
    layers = maps_of(name, model, hook, monkeypatch)
    with plain_hooks(model.pipe, [hook]) as seen:
        generate(model, RUN, PROMPTS, [0, 1], output_type="latent")
    plain = seen[hook]
    timesteps = [float(t) for t in model.pipe.scheduler.timesteps]
    d_in, features = rows(plain[0]).shape[-1], list(range(0, 64, 3))
    sae = random_sae(d_in)
    chosen = [(step, f, 0.3, 0.01) for step in range(len(timesteps)) for f in features]
    selection = make_selection(model, chosen, timesteps, hook=hook, d_in=d_in)
    for word, prompts_with in (("cat", (0, 1)), ("dogs", (1,))):
        edit = Intervention(selection, mask_from=word)
        assert edit.described()["mask_from"] == word
        with ablate(model.pipe, edit, saes=sae), plain_hooks(model.pipe, [hook]) as seen:
            generate(model, RUN, PROMPTS, [0, 1], output_type="latent")
        edited = seen[hook]
        if name != "FLUX":
            assert torch.equal(rows(plain[0]).chunk(2)[0], rows(edited[0]).chunk(2)[0])
        x, y = (cond_of(name, rows(one[0])) for one in (plain, edited))
        for sample in (0, 1):
            inside = torch.zeros(x.shape[1], dtype=torch.bool)
            if sample in prompts_with:
                tokens = places(name, model, PROMPTS[sample], word)
                maps = [
                    cond_of(name, calls[0])[sample][..., tokens].mean((0, 2)) for calls in layers
                ]
                one = torch.stack(maps).mean(0)
                inside = one >= 0.4 * one.max()
            expected = torch.where(inside[:, None], dense(sae, x[sample], features), x[sample])
            torch.testing.assert_close(y[sample], expected, atol=5e-5, rtol=5e-5)
            assert torch.equal(y[sample][~inside], x[sample][~inside])


def test_both_calls_of_guidance_are_edited_where_the_conditional_one_looks(
    architectures, monkeypatch
):
    """FLUX with a negative prompt calls its denoiser twice per step; only one call sees the word."""
    model, run = architectures("FLUX"), RunSettings(2, 3.5, "ugly", height=32, width=48, true_cfg=2)
    layers = joint_maps("FLUX", model, BLOCK, monkeypatch, run=run)
    with plain_hooks(model.pipe, [BLOCK]) as seen:
        generate(model, run, PROMPTS, [0, 1], output_type="latent")
    plain, timesteps = seen[BLOCK], [float(t) for t in model.pipe.scheduler.timesteps]
    d_in, features = rows(plain[0]).shape[-1], list(range(0, 64, 3))
    chosen = [(step, f, 0.3, 0.01) for step in range(2) for f in features]
    selection, sae = (
        make_selection(model, chosen, timesteps, hook=BLOCK, d_in=d_in),
        random_sae(d_in),
    )
    for branch in ("both", "cond", "uncond"):
        edit = Intervention(selection, mask_from="cat", branch=branch)
        with ablate(model.pipe, edit, saes=sae), plain_hooks(model.pipe, [BLOCK]) as seen:
            generate(model, run, PROMPTS, [0, 1], output_type="latent")
        for call, own in enumerate(("cond", "uncond")):
            x, y = plain[call], seen[BLOCK][call]
            if branch not in (own, "both"):
                assert torch.equal(x, y)
                continue
            for sample in (0, 1):
                tokens = places("FLUX", model, PROMPTS[sample], "cat")
                maps = [calls[0][sample][..., tokens].mean((0, 2)) for calls in layers]
                one = torch.stack(maps).mean(0)
                inside = (one >= 0.4 * one.max())[:, None]
                expected = torch.where(inside, dense(sae, x[sample], features), x[sample])
                torch.testing.assert_close(y[sample], expected, atol=5e-5, rtol=5e-5)
            assert not torch.equal(x, y)
