"""Issue 19, item 5: text encoders as hooks: collected bit for bit, and edited by the formula while
the prompt is encoded."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from collectors import CollectSettings, collect
from collectors.keep import random_positions
from featurestore import Store
from featurestore.errors import HookError, ModelError, RunError, SelectionError, UsageError
from featurestore.maintenance.verify import verify
from featurestore.prompts import Prompt
from featurestore.store.shards import check_run
from sae.diffusion.modules import match_hooks
from sae.diffusion.pipelines import RunSettings, generate
from sae.intervention.ablate import ablate
from tests.builders.cli import run as shell
from tests.builders.pipelines import edited_text_encoder
from tests.builders.plain import dense, plain_hook, random_sae
from tests.builders.selections import make_selection

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]
CLIP, T5 = "encoder.layers.0", "encoder.block.0"
HOOKS = [
    ("SD-1.5", f"text_encoder.{CLIP}"),
    ("SDXL", f"text_encoder.{CLIP}"),
    ("SDXL", f"text_encoder_2.text_model.{CLIP}"),
    ("SD3", f"text_encoder_2.text_model.{CLIP}"),
    ("SD3", f"text_encoder_3.{T5}"),
    ("FLUX", f"text_encoder_2.{T5}"),
    ("PixArt-Σ", f"text_encoder.{T5}"),
]
PROMPTS = ["a cat", "two dogs"]
SAMPLES = [Prompt(text, i, {}, i + 1) for i, text in enumerate(PROMPTS)]


def run_of(name, **changes):
    guided = {"guidance": 3.0, "true_cfg": 3.0 if name == "FLUX" else 1.0}
    settings = {"negative_prompt": "ugly", "height": 32, "width": 48}
    return RunSettings(**{"n_steps": 2, **guided, **settings, **changes})


@pytest.mark.parametrize(("name", "hook"), HOOKS)
def test_a_text_encoder_is_collected_once_per_prompt_bit_for_bit(
    name, hook, architectures, tmp_path
):
    """Against a plain hook in calls that encode one kind of text only: the prompts alone, and the
    negative prompt as a prompt."""
    model = architectures(name)
    settings = CollectSettings(hooks=[hook], branch="both", dtype="float32")
    store = collect(tmp_path / "s", model, SAMPLES, run_of(name), settings, progress=False).store
    (shard,) = store.activations(hook)
    assert shard.step.tolist() == [0] * 4 and shard.timestep.tolist() == [0.0] * 4
    assert shard.branch.tolist() == ["cond", "uncond"] * 2
    assert shard.metadata["padding"] == "keep" and shard.metadata["height"] == "1"
    for branch, texts in (("cond", PROMPTS), ("uncond", ["ugly"] * 2)):
        alone = run_of(name, guidance=1.0, true_cfg=1.0, negative_prompt="")
        with plain_hook(model.pipe, hook) as seen:
            generate(model, alone, texts, [0, 1], output_type="latent")
        (expected,) = seen
        found = [shard.row(i) for i in range(4) if shard.branch[i] == branch]
        assert np.array_equal(np.stack(found), expected.numpy())
    assert not np.array_equal(shard.row(0), shard.row(2))
    assert verify(store) == []


@pytest.mark.parametrize(("name", "hook"), HOOKS)
def test_ablation_edits_one_text_by_the_formula_while_it_is_encoded(name, hook, architectures):
    model, run = architectures(name), run_of(name)
    with plain_hook(model.pipe, hook) as plain:
        before = generate(model, run, PROMPTS, [0, 1], output_type="latent")
    d_in, features = plain[0].shape[-1], list(range(0, 64, 3))
    sae, chosen = random_sae(d_in), [(0, f, 0.3, 0.01) for f in features]
    nothing = make_selection(model, [], [0.0], hook=hook, d_in=d_in)
    with ablate(model.pipe, nothing, saes=sae):
        same = generate(model, run, PROMPTS, [0, 1], output_type="latent")
    assert all(map(torch.equal, same, before))
    for at, branch in enumerate(("cond", "uncond")):
        selection = make_selection(model, chosen, [0.0], hook=hook, d_in=d_in, branch=branch)
        with ablate(model.pipe, selection, saes=sae), plain_hook(model.pipe, hook) as edited:
            after = generate(model, run, PROMPTS, [0, 1], output_type="latent")
        x, y = plain[at].reshape(-1, d_in), edited[at].reshape(-1, d_in)
        torch.testing.assert_close(y, dense(sae, x, features), atol=5e-5, rtol=5e-5)
        assert not torch.equal(x, y)
        assert torch.equal(plain[1 - at], edited[1 - at])
        # SDXL's first encoder gives the denoiser what enters its last layer; here it has one.
        unused = (name, hook) == ("SDXL", f"text_encoder.{CLIP}")
        assert torch.equal(after[0], before[0]) == unused


def lengths(model, texts):
    """How many tokens a text has, its ends included: written out from the tokenizer."""
    found = model.pipe.tokenizer(texts, truncation=True, max_length=16)
    return [len(ids) for ids in found["input_ids"]]


def test_padding_is_left_out_where_that_is_asked_for(architectures, tmp_path):
    model, hook = architectures("SD-1.5"), f"text_encoder.{CLIP}"
    run = run_of("SD-1.5")
    with plain_hook(model.pipe, hook) as seen:
        generate(model, run, PROMPTS, [0, 1], output_type="latent")
    texts = {"cond": PROMPTS, "uncond": ["ugly"] * 2}
    for positions in ("mean", "random:3"):
        settings = CollectSettings(
            hooks=[hook], branch="both", dtype="float32", positions=positions, padding="drop"
        )
        store = collect(tmp_path / positions, model, SAMPLES, run, settings, progress=False).store
        (shard,) = store.activations(hook)
        assert shard.metadata["padding"] == "drop"
        ids = shard.sample_id[::2].tolist()
        column = store.arrow(f"activations/{hook}", ["position"])["position"].to_pylist() if positions != "mean" else None  # fmt: skip
        for i in range(4):
            branch, sample = str(shard.branch[i]), i // 2
            n = lengths(model, texts[branch])[sample]
            whole = seen[i % 2][sample].numpy()
            if positions == "mean":
                np.testing.assert_allclose(shard.row(i)[0], whole[:n].mean(0), atol=1e-6)
                continue
            (chosen,) = random_positions([ids[sample]], 0, n, 3)
            assert column[i] == chosen.tolist()
            assert np.array_equal(shard.row(i), whole[chosen])
        assert verify(store) == []


def test_what_cannot_be_kept_of_a_text_is_one_line(architectures, tmp_path):
    model, hook = architectures("SD-1.5"), f"text_encoder.{CLIP}"

    def wrong(error, message, **changes):
        settings = CollectSettings(**{"hooks": [hook], **changes})
        with pytest.raises(error, match=message) as raised:
            collect(tmp_path / "s", model, SAMPLES, run_of("SD-1.5"), settings, progress=False)
        assert "\n" not in str(raised.value) and not (tmp_path / "s").exists()

    wrong(UsageError, "^--padding drop with --positions all: texts have different lengths", padding="drop")  # fmt: skip
    wrong(UsageError, r"^--positions random:9 with --padding drop: a text of .* has \d tokens, expected 9", padding="drop", positions="random:9")  # fmt: skip
    with pytest.raises(UsageError, match=r"^padding 'crop': expected one of keep, drop.$"):
        CollectSettings(hooks=[hook], padding="crop")
    wrong(HookError, "has no module 'text_encoder.encoder.layers.7'. Did you mean", hooks=["text_encoder.encoder.layers.7"])  # fmt: skip
    wrong(HookError, "has no module 'text_encoder_2.encoder", hooks=["text_encoder_2.encoder"])
    wrong(HookError, "'vae.encoder' is no part of unet or text_encoder", hooks=["vae.encoder"])
    wrong(HookError, r"position_embedding' has 1 rows in a call of 2 samples", hooks=["text_encoder.embeddings.position_embedding"])  # fmt: skip


def test_hooks_have_the_names_of_the_installed_modules(architectures):
    """Released SAEs name CLIP's layers as transformers did before version 5."""
    pipe = architectures("SDXL").pipe
    assert match_hooks(pipe, [f"text_encoder.text_model.{CLIP}"]) == [f"text_encoder.{CLIP}"]
    assert match_hooks(pipe, ["text_encoder_2.text_model.encoder.layers.*"]) == [f"text_encoder_2.text_model.{CLIP}"]  # fmt: skip


def test_a_pipeline_that_encodes_the_negative_prompt_first_is_refused(architectures, tmp_path):
    model, hook = architectures("SD-1.5"), f"text_encoder.{CLIP}"

    class Backwards(type(model.pipe)):
        def encode_prompt(self, prompt, device, n, guided, negative, **kwargs):
            cond, uncond = super().encode_prompt(negative, device, n, guided, prompt, **kwargs)
            return uncond, cond

    pipe = Backwards(**model.pipe.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(ModelError, match="Backwards called its text_encoder with 2 equal texts"):
        collect(
            tmp_path / "s", replace(model, pipe=pipe), SAMPLES, run_of("SD-1.5"), CollectSettings(hooks=[hook]),
            progress=False,
        )  # fmt: skip


def test_texts_alone_are_collected_without_drawing(architectures, tmp_path):
    model, hook = architectures("SD-1.5"), f"text_encoder.{CLIP}"
    calls = []
    handle = model.pipe.unet.register_forward_hook(lambda *args: calls.append(1))
    try:
        collect(
            tmp_path / "s", model, SAMPLES, run_of("SD-1.5"), CollectSettings(hooks=[hook]), progress=False
        )  # fmt: skip
        assert calls == []
        both = CollectSettings(hooks=[hook, "unet.mid_block"], timesteps="1")
        store = collect(
            tmp_path / "t", model, SAMPLES, run_of("SD-1.5"), both, progress=False
        ).store
    finally:
        handle.remove()
    assert len(calls) == 2
    for one, steps in (("unet.mid_block", [1, 1]), (hook, [0, 0])):
        (shard,) = store.activations(one)
        assert shard.step.tolist() == steps


def test_an_sae_of_a_text_encoder_goes_the_whole_way(capsys, model_dir, tmp_path):
    """collect → train → encode → score → export → generate, through the command line."""
    prompts, store = tmp_path / "prompts.csv", tmp_path / "store"
    prompts.write_text(
        "prompt,style\n" + "".join(f"{'neon' if i % 2 else 'plain'} {i},{'neon' if i % 2 else 'plain'}\n" for i in range(8))
    )  # fmt: skip
    hook, shown = f"text_encoder.{CLIP}", ["--steps", 2, "--guidance", 3]
    common = ["--model", model_dir]
    for command in (
        ["collect", *common, "--prompts", prompts, "--store", store, "--hook", hook, "--quiet", *shown],
        ["train", "--store", store, "--hook", hook, "--k", 4, "--expansion", 4, "--name", "text", "--steps", 20,
         "--batch-size", 32, "--quiet"],
        ["encode", "--store", store, "--sae", "text", "--quiet"],
        ["export", store, "--sae", "text", "--concept", "style=neon", "--top", 2, "-o", tmp_path / "neon.json"],
        ["generate", *common, "--prompt", "neon 1", "--out", tmp_path / "plain", "--quiet", *shown],
        ["generate", *common, "--prompt", "neon 1", "--out", tmp_path / "edited", "--quiet", *shown, "--ablate",
         tmp_path / "neon.json", "--threshold", 0],
    ):  # fmt: skip
        status, _, err = shell(capsys, *command)
        assert status == 0, err
    (shard,) = Store.open(store).activations(hook)
    assert shard.n_positions == 16
    first, second = (next((tmp_path / d).glob("*.png")).read_bytes() for d in ("plain", "edited"))
    assert first != second


def test_a_text_encoder_called_by_itself_says_so(architectures):
    from sae.diffusion.encoders import watch_encoder

    model = architectures("SD-1.5")
    ids = torch.zeros(1, 16, dtype=torch.long)
    with (
        watch_encoder(model.pipe, "text_encoder"),
        pytest.raises(ModelError, match=r"^the text_encoder was called by itself"),
    ):
        model.pipe.text_encoder(ids)


def test_another_text_encoder_is_another_run(architectures, tmp_path):
    """Fault C: its weights are part of what a run is; ids of samples are as before."""
    model, hook = architectures("SD-1.5"), f"text_encoder.{CLIP}"

    def collected(name, model=model):
        settings = CollectSettings(hooks=[hook], dtype="float32")
        return collect(tmp_path / name, model, SAMPLES, run_of("SD-1.5"), settings, progress=False).store  # fmt: skip

    store = collected("s")
    digest = store.run["text_encoders"]["text_encoder"]
    assert set(store.run["text_encoders"]) == {"text_encoder"} and digest.startswith("f16:")
    old = {key: value for key, value in store.run.items() if key != "text_encoders"}
    assert Store(tmp_path, old).run_id == store.run_id
    edited = edited_text_encoder(model)
    with pytest.raises(RunError, match=r"holds a run with text_encoder f16:.*…, this one has text_encoder f16:.*…: use the same text encoder or another --store. Nothing was changed.$"):  # fmt: skip
        collected("s", edited)
    assert collected("other", edited).committed_samples("samples") == store.committed_samples("samples")  # fmt: skip
    with pytest.raises(
        RunError, match=r"holds a run with text_encoder_2 f16:.*…, this one has no text_encoder_2: "
    ):
        check_run(
            store.root,
            store.run | {"text_encoders": {"text_encoder": digest, "text_encoder_2": digest}},
            store.run,
        )
    Store.create(tmp_path / "old", old)
    for one in (model, edited):  # one that does not say is added to as before
        assert collected("old", one).run == old
    nothing = make_selection(model, [], [0.0], hook=hook, d_in=16)
    chosen = replace(nothing, run={**nothing.run, "text_encoders": store.run["text_encoders"]})
    with ablate(model.pipe, chosen, saes=random_sae(16)):
        pass
    with pytest.raises(SelectionError, match=r"was made for the text_encoder f16:.*…, this pipeline has another"):  # fmt: skip
        ablate(edited.pipe, chosen, saes=random_sae(16)).__enter__()
