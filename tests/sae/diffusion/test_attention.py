"""Issue 19, item 6: where a word looks, against a plain computation of softmax(QKᵀ)."""

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor

from collectors import CollectSettings, collect
from featurestore.errors import HookError, UsageError
from featurestore.maintenance.verify import verify
from featurestore.prompts import Prompt
from queries.connection.session import connect
from sae.diffusion.attention import word_tokens
from sae.diffusion.modules import find_module
from sae.diffusion.pipelines import RunSettings, generate
from sae.intervention.ablate import ablate
from sae.intervention.settings import Intervention
from tests.builders.cli import run as shell
from tests.builders.plain import dense, plain_hook, random_sae, rows
from tests.builders.selections import make_selection

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]
UNET = "unet.up_blocks.1.attentions.1"
HOOKS = {
    "SD-1.5": UNET,
    "SD-2": UNET,
    "SDXL": UNET,
    "PixArt-Σ": "transformer.transformer_blocks.0",
}
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


def places(model, prompt, word):
    """Written out: the letters of the tokenizer of the tests, after the token that begins."""
    text = model.pipe.tokenizer.convert_ids_to_tokens(model.pipe.tokenizer(prompt)["input_ids"])
    part = model.pipe.tokenizer.convert_ids_to_tokens(model.pipe.tokenizer(word, add_special_tokens=False)["input_ids"])  # fmt: skip
    starts = [i for i in range(len(text)) if text[i : i + len(part)] == part]
    return sorted({i + k for i in starts for k in range(len(part))})


@pytest.mark.parametrize("name", HOOKS)
def test_the_maps_of_words_are_those_of_a_plain_softmax(name, architectures, monkeypatch, tmp_path):
    model, hook = architectures(name), HOOKS[name]
    layers = plain_maps(model, hook, monkeypatch)
    with plain_hook(model.pipe, hook) as untouched:
        generate(model, RUN, PROMPTS, [0, 1], output_type="latent")
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
        tokens = places(model, PROMPTS[sample], row["word"])
        assert tokens, row
        maps = [calls[row["step"]].chunk(2)[1][sample] for calls in layers]  # uncond, cond
        expected = torch.stack([one[..., tokens].mean((0, 2)) for one in maps]).mean(0)
        np.testing.assert_allclose(found[i], expected.numpy(), atol=2e-4)
    assert found.std(1).min() > 0
    (shard,) = store.activations(hook)  # what the model computes stays bit for bit
    for i in range(4):
        assert np.array_equal(shard.row(i), rows(untouched[i % 2]).chunk(2)[1][i // 2].numpy())
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
    for name, hook in (("SD3", "transformer.transformer_blocks.0"), ("FLUX", "transformer.transformer_blocks.0"),
                       ("SD-1.5", "unet.mid_block.resnets.0"), ("SD-1.5", "text_encoder.encoder.layers.0")):  # fmt: skip
        settings = CollectSettings(hooks=[hook], words=["cat"])
        with pytest.raises(HookError, match=r"has no cross-attention to the prompt") as raised:
            collect(tmp_path / "s", architectures(name), SAMPLES, RUN, settings, progress=False)
        assert "\n" not in str(raised.value) and not (tmp_path / "s").exists()


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


def halves_of(tensor):
    return rows(tensor).chunk(2)


@pytest.mark.parametrize("name", HOOKS)
def test_an_edit_acts_where_a_word_looks(name, architectures, monkeypatch):
    """Where the word's map is at least 0.4 of its largest value, by the dense formula; elsewhere,
    and in a picture whose prompt has no such word, nothing changes."""
    model, hook = architectures(name), HOOKS[name]
    layers = plain_maps(model, hook, monkeypatch)
    with plain_hook(model.pipe, hook) as plain:
        generate(model, RUN, PROMPTS, [0, 1], output_type="latent")
    timesteps = [float(t) for t in model.pipe.scheduler.timesteps]
    d_in, features = rows(plain[0]).shape[-1], list(range(0, 64, 3))
    sae = random_sae(d_in)
    chosen = [(step, f, 0.3, 0.01) for step in range(len(timesteps)) for f in features]
    selection = make_selection(model, chosen, timesteps, hook=hook, d_in=d_in)
    for word, prompts_with in (("cat", (0, 1)), ("dogs", (1,))):
        edit = Intervention(selection, mask_from=word)
        assert edit.described()["mask_from"] == word
        with ablate(model.pipe, edit, saes=sae), plain_hook(model.pipe, hook) as edited:
            generate(model, RUN, PROMPTS, [0, 1], output_type="latent")
        assert torch.equal(halves_of(plain[0])[0], halves_of(edited[0])[0])
        x, y = halves_of(plain[0])[1], halves_of(edited[0])[1]
        for sample in (0, 1):
            inside = torch.zeros(x.shape[1], dtype=torch.bool)
            if sample in prompts_with:
                tokens = places(model, PROMPTS[sample], word)
                maps = [calls[0].chunk(2)[1][sample][..., tokens].mean((0, 2)) for calls in layers]
                one = torch.stack(maps).mean(0)
                inside = one >= 0.4 * one.max()
            expected = torch.where(inside[:, None], dense(sae, x[sample], features), x[sample])
            torch.testing.assert_close(y[sample], expected, atol=5e-5, rtol=5e-5)
            assert torch.equal(y[sample][~inside], x[sample][~inside])
