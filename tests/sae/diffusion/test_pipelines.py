import contextlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from collectors.collection import CollectSettings, collect
from collectors.rows.capture import capture
from featurestore.errors import HookError, ModelError, UsageError
from featurestore.maintenance.verify import verify
from featurestore.prompts import Prompt
from sae.diffusion import direct_calls
from sae.diffusion.modules import denoiser, find_module, match_hooks
from sae.diffusion.pipelines import Model, RunSettings, generate, load_model
from sae.diffusion.reading.architectures import BLOCKS
from sae.diffusion.reading.steps import Steps
from tests.builders.architectures import CASES, GUIDED, PLAIN, RUNS, SIZE
from tests.builders.pipelines import tiny_stable_diffusion

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
PROMPTS = [Prompt("a cat", 3, {"object": "cat"}, 1), Prompt("dogs", 8, {"object": "dog"}, 2)]


def hooks_of(name, model):
    return match_hooks(
        model.pipe, [pattern for patterns in CASES[name].hooks.values() for pattern in patterns]
    )


@contextlib.contextmanager
def plain_hooks(model, hooks):
    """What plain forward hooks see, and the whole output of the module: {hook: [tensor a call]}."""
    seen = {hook: [] for hook in hooks}

    def attach(hook):
        # Written out from the sources of diffusers: these blocks return (encoder_hidden_states,
        # hidden_states).
        module = find_module(model.pipe, hook)
        joint = re.fullmatch(r"transformer\.(single_)?transformer_blocks\.\d+(-encoder)?", hook)
        index = (
            1
            if joint and "PixArt" not in type(model.pipe).__name__ and not hook.endswith("-encoder")
            else 0
        )

        def keep(module, args, output):
            seen[hook].append((output[index] if isinstance(output, tuple) else output).clone())

        return module.register_forward_hook(keep)

    handles = [attach(hook) for hook in hooks]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def as_rows(tensor):
    """``[B, positions, d_in]`` of a map or of tokens."""
    return tensor.permute(0, 2, 3, 1).flatten(1, 2) if tensor.dim() == 4 else tensor


def halves(tensors, guidance):
    """``{(step, branch): [B, positions, d_in]}`` of a module's outputs, call by call."""
    if guidance == "a call each":
        return {
            (i // 2, ("cond", "uncond")[i % 2]): as_rows(tensor) for i, tensor in enumerate(tensors)
        }
    branches = {"one call": ("uncond", "cond"), "none": ("cond",)}[guidance]
    parts = [as_rows(tensor).chunk(len(branches)) for tensor in tensors]
    return {
        (i, branch): part[j] for i, part in enumerate(parts) for j, branch in enumerate(branches)
    }


@pytest.mark.parametrize(("name", "guidance"), RUNS)
def test_a_store_holds_what_plain_forward_hooks_see_bit_for_bit(
    name, guidance, architectures, tmp_path
):
    model, run = architectures(name), CASES[name].guidance[guidance]
    hooks = hooks_of(name, model)
    patterns = [pattern for patterns in CASES[name].hooks.values() for pattern in patterns]
    settings = CollectSettings(
        hooks=patterns, branch="cond" if guidance == "none" else "both", dtype="float32"
    )
    with plain_hooks(model, hooks) as seen:
        store = collect(tmp_path / "store", model, PROMPTS, run, settings, progress=False).store
    timesteps = [float(t) for t in model.pipe.scheduler.timesteps]
    assert verify(store, deep=True) == []
    ids = store.arrow("samples")["sample_id"].to_pylist()
    for hook in hooks:
        expected = halves(seen[hook], guidance)
        (shard,) = store.activations(hook)
        keys = set()
        for i in range(shard.n_rows):
            step, branch, sample = (
                int(shard.step[i]),
                str(shard.branch[i]),
                ids.index(shard.sample_id[i]),
            )
            np.testing.assert_array_equal(
                shard.row(i), expected[step, branch][sample].numpy(), err_msg=hook
            )
            assert shard.timestep[i] == np.float32(timesteps[step])
            keys.add((sample, step, branch))
        assert len(keys) == shard.n_rows == 2 * len(expected)
        output = seen[hook][0]
        size = tuple(output.shape[2:]) if output.dim() == 4 else (1, output.shape[1])
        assert (int(shard.metadata["height"]), int(shard.metadata["width"])) == size


@pytest.mark.parametrize(("name", "guidance"), [(n, g) for n, g in RUNS if g != "none"])
def test_the_branches_are_the_prompt_and_the_negative_prompt(name, guidance, architectures):
    """The oracle: a run without guidance, of each prompt on its own, has the same first step."""
    model, run = architectures(name), CASES[name].guidance[guidance]
    hook = hooks_of(name, model)[-1]

    def first_call(prompt, settings):
        found = {}

        def keep(captured):
            parts = captured.values.chunk(len(captured.call.branches))
            for branch, part in zip(captured.call.branches, parts, strict=True):
                found.setdefault(branch, part.clone())

        with capture(model.pipe, [hook], keep):
            generate(model, settings, [prompt], [5], output_type="latent")
        return found

    both = first_call("a cat", run)
    plain = RunSettings(run.n_steps, run.guidance if guidance == "a call each" else 1.0, **SIZE)
    assert set(both) == {"cond", "uncond"}
    assert (both["cond"] - both["uncond"]).abs().max() > 1e-4
    for branch, prompt in (("cond", "a cat"), ("uncond", "ugly")):
        alone = first_call(prompt, plain)
        assert set(alone) == {"cond"}
        torch.testing.assert_close(both[branch], alone["cond"], atol=2e-6, rtol=1e-5)


def test_a_branch_that_the_pipeline_leaves_out_is_no_row_of_zeros(
    architectures, tmp_path, monkeypatch
):
    model = architectures("FLUX")
    run = RunSettings(2, 3.5, **SIZE, true_cfg=2.0)
    settings = CollectSettings(hooks=["transformer.transformer_blocks.0"], branch="both")
    assert collect(tmp_path / "s", model, PROMPTS, run, settings, progress=False).n_samples == 2
    whole = type(model.pipe).__call__
    monkeypatch.setattr(
        type(model.pipe),
        "__call__",
        lambda self, **options: whole(self, **(options | {"negative_prompt": None})),
    )
    with pytest.raises(
        HookError, match=r"saw 4 of 8 \(sample, step, branch\): the pipeline left some out"
    ):
        collect(tmp_path / "t", model, PROMPTS, run, settings, progress=False)
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("name", CASES)
def test_noise_does_not_depend_on_the_batch(name, architectures):
    model, run = architectures(name), next(iter(CASES[name].guidance.values()))
    seen = []

    def keep_first(module, args, kwargs):
        seen.append(
            (args[0] if args else kwargs.get("hidden_states", kwargs.get("sample"))).clone()
        )

    def drawn(prompts, seeds):
        seen.clear()
        handle = denoiser(model.pipe).register_forward_pre_hook(keep_first, with_kwargs=True)
        latents = generate(model, run, prompts, seeds, output_type="latent")
        handle.remove()
        return seen[0], latents

    noise, together = drawn(["a", "b", "c"], [1, 2, 3])
    assert not torch.equal(noise[0], noise[1])
    for i, (prompt, seed) in enumerate([("a", 1), ("b", 2), ("c", 3)]):
        own, (alone,) = drawn([prompt], [seed])
        assert torch.equal(own[0], noise[i])
        # What is made of it differs in rounding, which random weights amplify: by more on some
        # processors than on others.
        torch.testing.assert_close(together[i], alone, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("name", "guidance"), RUNS)
@pytest.mark.parametrize("io", ["input", "difference"])
def test_the_input_and_the_difference_of_both_streams(name, guidance, io, architectures):
    model, run = architectures(name), CASES[name].guidance[guidance]
    hooks = [
        h for h in hooks_of(name, model) if re.search(r"(attentions|blocks)\.\d+(-encoder)?$", h)
    ]
    hooks = [h for h in hooks if not h.startswith("unet.down_blocks")]
    plain = {hook: [] for hook in hooks}

    def attach(hook):
        def keep(module, args, kwargs, output):
            stream = "encoder_hidden_states" if hook.endswith("-encoder") else "hidden_states"
            entering = kwargs[stream] if stream in kwargs else args[0]
            where = 1 if "transformer_blocks" in hook and not hook.endswith("-encoder") else 0
            leaving = output[where] if isinstance(output, tuple) else output
            plain[hook].append(as_rows(entering if io == "input" else leaving - entering).clone())

        return find_module(model.pipe, hook).register_forward_hook(keep, with_kwargs=True)

    captured = {hook: [] for hook in hooks}
    handles = [attach(hook) for hook in hooks]
    with capture(
        model.pipe, hooks, lambda seen: captured[seen.hook].append(seen.values.clone()), io
    ):
        generate(model, run, ["a"], [0], output_type="latent")
    for handle in handles:
        handle.remove()
    for hook in hooks:
        assert plain[hook]
        assert all(torch.equal(a, b) for a, b in zip(captured[hook], plain[hook], strict=True)), (
            hook
        )


def test_a_dataclass_output_is_read_by_its_first_field(architectures, monkeypatch):
    model = architectures("SD-1.5")
    module = find_module(model.pipe, "unet.mid_block.attentions.0")
    forward, whole, seen = module.forward, [], []

    def as_dataclass(*args, **kwargs):
        whole.append(forward(*args, **kwargs)[0])
        return Transformer2DModelOutput(sample=whole[-1])

    monkeypatch.setattr(module, "forward", as_dataclass)
    with capture(
        model.pipe, ["unet.mid_block.attentions.0"], lambda c: seen.append(c.values.clone())
    ):
        generate(model, PLAIN, ["a"], [0], output_type="latent")
    assert len(seen) == 2
    assert all(torch.equal(a, as_rows(b)) for a, b in zip(seen, whole, strict=True))


def test_steps_are_told_apart_in_half_precision(architectures, tmp_path):
    """FLUX's denoiser gets the timestep / 1000 in the model's precision: 40 steps would share
    values."""
    model = load_model(str(architectures.directory("FLUX")), "cpu", "bfloat16")
    run, hook = RunSettings(40, 3.5, **SIZE), "transformer.transformer_blocks.0"
    store = collect(
        tmp_path / "s", model, PROMPTS[:1], run, CollectSettings(hooks=[hook]), progress=False
    ).store
    (shard,) = store.activations(hook)
    assert shard.timestep.tolist() == [float(t) for t in model.pipe.scheduler.timesteps]
    assert shard.step.tolist() == list(range(40))


@pytest.mark.parametrize("name", CASES)
def test_what_an_error_offers_can_be_captured(name, architectures):
    model = architectures(name)
    with pytest.raises(
        HookError, match=r"no module matches 'nothing\.\*'\. Can be captured: "
    ) as caught:
        match_hooks(model.pipe, ["nothing.*"])
    assert "\n" not in str(caught.value)
    offered = (
        str(caught.value)
        .partition("Can be captured: ")[2]
        .partition(", and modules")[0]
        .split(", ")
    )
    hooks = match_hooks(model.pipe, offered)
    assert {type(m).__name__ for m in denoiser(model.pipe).modules()} & BLOCKS == {
        type(find_module(model.pipe, hook)).__name__ for hook in hooks
    }
    seen = set()
    with capture(model.pipe, hooks, lambda captured: seen.add(captured.hook)):
        generate(model, PLAIN, ["a"], [0], output_type="latent")
    assert seen == set(hooks)


def test_patterns_match_within_one_part_of_a_path(architectures):
    unet, sd3 = architectures("SD-1.5").pipe, architectures("SD3").pipe
    blocks = ["unet.up_blocks.1.attentions.0", "unet.up_blocks.1.attentions.1"]
    assert match_hooks(unet, ["unet.up_blocks.*.attentions.*"]) == blocks
    assert match_hooks(unet, ["unet.up_blocks.1.attentions.[!0]", blocks[0]]) == blocks[::-1]
    assert match_hooks(unet, ["unet.mid_*"]) == ["unet.mid_block"]
    assert match_hooks(unet, ["unet.up_?locks.*"]) == ["unet.up_blocks.0", "unet.up_blocks.1"]
    assert match_hooks(sd3, ["transformer.transformer_blocks.*-encoder"]) == [
        "transformer.transformer_blocks.0-encoder"
    ]


@pytest.mark.parametrize(
    ("name", "hook", "reason"),
    [
        ("SD-1.5", "unet.up_blocks", r"did not run in a denoiser call\. Can be captured: unet\."),
        (
            "SD-1.5",
            "unet.mid_block-encoder",
            r"returns no encoder_hidden_states\. Can be captured: unet\.",
        ),
        (
            "SD-1.5",
            "unet.time_embedding",
            r"returns a tensor of shape \[4, 64\]: only a map .* Can be captured: unet\.",
        ),
        (
            "SD-1.5",
            "unet.up_block.1",
            r"the model has no module 'unet\.up_block\.1'\. Did you mean 'unet\.up_blocks\.1'",
        ),
        (
            "SD-1.5",
            "vae.encoder",
            "is no part of unet or text_encoder: it does not run at every step, nor once per prompt",
        ),
        (
            "SD3",
            "transformer.transformer_blocks.1-encoder",
            r"no encoder_hidden_states\. Can be captured: transformer\.",
        ),
        (
            "FLUX",
            "transformer.time_text_embed",
            r"a tensor of shape \[2, 16\]: only .* Can be captured: transformer\.",
        ),
        (
            "FLUX",
            "transformer.time_*.*",
            r"a tensor of shape \[2, 256\]: only .* Can be captured: transformer\.",
        ),
    ],
)
def test_a_hook_that_cannot_be_captured_says_why_and_what_can(
    name, hook, reason, architectures, tmp_path
):
    model, run = architectures(name), next(iter(CASES[name].guidance.values()))
    with pytest.raises(HookError, match=reason) as caught:
        collect(
            tmp_path / "store", model, PROMPTS, run, CollectSettings(hooks=[hook]), progress=False
        )
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "run", "branch", "message"),
    [
        (
            "SDXL",
            RunSettings(1, 0.0, **SIZE),
            "uncond",
            "branch uncond with --guidance 0: without guidance",
        ),
        ("PixArt-Σ", PLAIN, "both", "branch both with --guidance 1: without guidance"),
        (
            "FLUX",
            RunSettings(2, 3.5, **SIZE),
            "both",
            "branch both with --true-cfg 1: without guidance",
        ),
        (
            "FLUX",
            RunSettings(2, 3.5, "ugly", **SIZE),
            "cond",
            "--negative-prompt: FluxPipeline uses it with --true-cfg",
        ),
        (
            "SD3",
            RunSettings(2, 3.0, **SIZE, true_cfg=2.0),
            "cond",
            "--true-cfg 2: StableDiffusion3Pipeline has none",
        ),
        (
            "FLUX",
            RunSettings(2, 3.5, "", 32, 44),
            "cond",
            "--width 44: FluxPipeline needs a multiple of 8",
        ),
        (
            "SD-1.5",
            RunSettings(2, 3.5, "", 36, 48),
            "cond",
            "--height 36: StableDiffusionPipeline needs a multiple of 8",
        ),
    ],
)
def test_settings_that_a_pipeline_would_ignore_are_refused(
    name, run, branch, message, architectures, tmp_path
):
    settings = CollectSettings(hooks=next(iter(CASES[name].hooks.values())), branch=branch)
    with pytest.raises(UsageError, match=re.escape(message)):
        collect(tmp_path / "store", architectures(name), PROMPTS, run, settings, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_unet_with_guidance_distilled_has_no_unconditional_half(tmp_path):
    pipe = tiny_stable_diffusion(tmp_path / "lcm", time_cond_proj_dim=8)
    pipe.set_progress_bar_config(disable=True)
    model, run = Model("lcm", pipe, 2, 5.0), RunSettings(2, 5.0, **SIZE)
    settings = CollectSettings(hooks=["unet.mid_block"])
    assert collect(tmp_path / "store", model, PROMPTS, run, settings, progress=False).n_samples == 2
    with pytest.raises(
        UsageError,
        match="lcm has guidance distilled: without guidance there is no unconditional half",
    ):
        collect(
            tmp_path / "other",
            model,
            PROMPTS,
            run,
            CollectSettings(hooks=["unet"], branch="both"),
            progress=False,
        )


@pytest.mark.parametrize("passes", [["cond"], ["cond", "uncond"]])
def test_a_repeated_timestep_is_another_step_and_a_second_pass_is_not(passes):
    steps, schedule = Steps(), (5.0, 3.0, 3.0, 1.0)
    found = [steps.advance(schedule, t, (branch,)) for t in schedule for branch in passes]
    assert found == [step for step in range(4) for _ in passes]
    with pytest.raises(
        ModelError, match="called at timestep 7, which the scheduler's list does not hold"
    ):
        steps.advance(schedule, 7.0, ("cond",))


def test_models_that_are_no_pipeline(tmp_path):
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=190,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    CLIPTextModel(config).save_pretrained(tmp_path / "clip")
    with pytest.raises(
        ModelError, match=r"is no diffusers pipeline: it has no model_index\.json"
    ) as caught:
        load_model(str(tmp_path / "clip"), "cpu")
    assert "\n" not in str(caught.value)


def test_a_denoiser_called_outside_of_its_pipeline_is_refused(architectures):
    """Fault C3: what an earlier run left in the pipeline says nothing about a call of its own."""
    model = architectures("SD-1.5")
    generate(model, GUIDED, ["a"], [0], output_type="latent")
    call = {"sample": torch.zeros(2, 4, 16, 16), "timestep": torch.tensor(1)}
    call["encoder_hidden_states"] = torch.zeros(2, 16, 16)
    seen = []
    with capture(model.pipe, ["unet.mid_block"], seen.append):
        with pytest.raises(
            ModelError,
            match=r"called by itself, and no pipeline says .* sae\.diffusion\.direct_calls",
        ):
            model.pipe.unet(**call)
        with direct_calls(model.pipe, ("uncond", "cond")):
            model.pipe.unet(**call)
            with direct_calls(model.pipe, timestep=7.0):
                model.pipe.unet(**call)
    with (
        capture(model.pipe, ["unet.mid_block"], seen.append),
        direct_calls(model.pipe, ("a", "b", "c")),
        pytest.raises(
            ModelError, match="called with 2 samples, which are not a and b and c of each"
        ),
    ):
        model.pipe.unet(**call)
    assert [(c.call.timestep, c.call.branches) for c in seen] == [
        (1.0, ("uncond", "cond")),
        (7.0, ("cond",)),
    ]


@pytest.mark.parametrize("name", ["FLUX", "PixArt-Σ"])
def test_one_pipeline_may_be_watched_twice_and_gets_its_methods_back(name, architectures):
    model, run = architectures(name), next(iter(CASES[name].guidance.values()))
    hook, outer, inner = "transformer.transformer_blocks.0", [], []
    with capture(model.pipe, [hook], outer.append):
        with capture(model.pipe, [hook], inner.append):
            generate(model, run, ["a"], [0], output_type="latent")
        generate(model, run, ["a"], [0], output_type="latent")
    assert [c.call for c in outer] == [c.call for c in inner] * 2
    assert {branch for c in inner for branch in c.call.branches} == {"cond", "uncond"}
    assert not denoiser(model.pipe)._forward_pre_hooks


def test_the_documented_table_is_the_tested_one():
    page = (Path(__file__).parents[3] / "docs/pipelines.md").read_text(encoding="utf-8")
    (lines,) = (
        block.splitlines() for block in page.split("\n\n") if block.startswith("| architecture")
    )
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    table = {}
    for name, _, guidance, *cells in rows:
        table[name, guidance] = {
            kind for kind, cell in zip(header[3:], cells, strict=True) if cell == "yes"
        }
    assert table == {
        (name, guidance): {*CASES[name].hooks, "input, difference"} for name, guidance in RUNS
    }
