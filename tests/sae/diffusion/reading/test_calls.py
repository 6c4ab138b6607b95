"""Faults C3 and C4: a denoiser call is read from what runs now, through wrappers, beside other
readers; else an error."""

import re
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from collectors.rows.capture import capture
from featurestore.errors import HookError, ModelError, UsageError
from featurestore.prompts import start_picture
from sae.diffusion import declare
from sae.diffusion.attention import word_layers, word_tokens
from sae.diffusion.modules import find_module, match_hooks
from sae.diffusion.pipelines import Model, RunSettings, check_branch, generate
from sae.diffusion.reading.architectures import _declared
from sae.diffusion.reading.calls import Running, check_batch
from sae.diffusion.reading.guidance import guided, passes
from sae.diffusion.starts import start_arguments
from sae.intervention.ablate import attach
from tests.builders.architectures import GUIDED, PLAIN
from tests.builders.families import BLOCK, FAMILIES, PROMPTS, UNET, common
from tests.builders.pipelines import tiny_sd3, tiny_stable_diffusion
from tests.builders.selections import make_sae, make_selection

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")


def calls_of(watched, run, hook=UNET):
    seen = []
    with capture(watched, [hook], lambda one: seen.append(one.call)):
        run()
    return seen


def test_a_pipeline_made_by_from_pipe_is_read_by_its_own_call(architectures):
    """Fault C3: run at guidance 1 after the other ran with guidance, half of its batch stayed
    unedited."""
    model = architectures("SD-1.5")
    generate(model, GUIDED, ["a"], [0], output_type="latent")
    other = diffusers.StableDiffusionImg2ImgPipeline.from_pipe(model.pipe)
    other.set_progress_bar_config(disable=True)
    family = FAMILIES["StableDiffusionImg2ImgPipeline"]
    for watched in (model.pipe, other):
        plain = calls_of(watched, lambda: other(**common(family, PROMPTS, False)))
        assert {call.branches for call in plain} == {("cond",)}
        guided = calls_of(watched, lambda: other(**common(family, PROMPTS, True)))
        assert {call.branches for call in guided} == {("uncond", "cond")}
        assert {call.batch for call in plain} == {2} and {call.batch for call in guided} == {4}


def test_a_batch_that_contradicts_the_reading_is_an_error(architectures):
    """Fault C3: never a guess; it says what was seen."""
    model = architectures("SD-1.5")

    class Trebled(type(model.pipe)):
        pass

    pipe = Trebled(**model.pipe.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    declare(Trebled, branches=("cond", "uncond", "third"))
    try:
        with pytest.raises(
            ModelError,
            match=r"Trebled called its denoiser with 4 samples for 2 pictures, which are not cond",
        ):
            calls_of(
                pipe,
                lambda: generate(
                    Model("t", pipe, 2, 3.0), GUIDED, ["a", "b"], [0, 1], output_type="latent"
                ),
            )
    finally:
        del _declared[Trebled]
    with pytest.raises(
        ModelError, match="3 samples for 2 pictures, which are not uncond and cond of each: say how"
    ):
        check_batch(Running(pipe, {}, {}, 3), ("uncond", "cond"), 2)


def test_embeddings_of_nobody_are_an_error():
    """Fault C3: a second pass that is told by its embeddings, or not at all."""
    pipe, mine, theirs = object(), torch.zeros(1), torch.zeros(1)
    with pytest.raises(
        ModelError,
        match=r"object does not say whether guidance is on \(no do_classifier_free_guidance\)",
    ):
        guided(Running(pipe, {}, {}, 1))
    variables = {"prompt_embeds": mine, "negative_prompt_embeds": theirs}
    for given, branch in ((mine, "cond"), (theirs, "uncond")):
        assert passes(Running(pipe, variables, {"encoder_hidden_states": given}, 1)) == (branch,)
    with pytest.raises(
        ModelError, match="neither its prompt_embeds nor its negative_prompt_embeds: say how"
    ):
        passes(Running(pipe, variables, {"encoder_hidden_states": mine.clone()}, 1))


def test_a_hook_whose_rows_are_not_the_batchs_is_refused(architectures):
    model = architectures("SD-1.5")
    module = find_module(model.pipe, "unet.mid_block")
    handle = module.register_forward_hook(lambda m, args, output: torch.cat([output, output]))
    try:
        with pytest.raises(
            (HookError, RuntimeError),
            match=r"has 4 rows in a call of 2 samples|size of tensor",
        ):
            calls_of(
                model.pipe,
                lambda: generate(model, PLAIN, ["a", "b"], [0, 1], output_type="latent"),
                "unet.mid_block",
            )
    finally:
        handle.remove()


def test_blocks_compiled_one_by_one_give_the_image_stream(tmp_path):
    """Fault C4: an OptimizedModule was no block of two streams, so the text's came in the place of
    the image's."""
    pipe = tiny_sd3(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.text_encoder, pipe.text_encoder_2, pipe.text_encoder_3):
        part.eval()
    model, run = Model("m", pipe, 2, 1.0), RunSettings(1, 1.0, height=32, width=48)
    hooks = [BLOCK, f"{BLOCK}-encoder"]

    def seen():
        found = {}
        with capture(pipe, hooks, lambda one: found.update({one.hook: one.values.clone()})):
            generate(model, run, ["a"], [0], output_type="latent")
        return found

    plain = seen()
    for number, block in enumerate(pipe.transformer.transformer_blocks):
        pipe.transformer.transformer_blocks[number] = torch.compile(block, backend="eager")
    assert match_hooks(pipe, ["transformer.transformer_blocks.*"])[0] == BLOCK
    assert match_hooks(pipe, ["transformer.transformer_blocks.*.attn"])[0] == f"{BLOCK}.attn"
    compiled = seen()
    for hook in hooks:
        assert compiled[hook].shape == plain[hook].shape
        torch.testing.assert_close(compiled[hook], plain[hook])
    assert plain[hooks[0]].shape != plain[hooks[1]].shape


CACHES = {
    "FirstBlockCache": lambda: diffusers.FirstBlockCacheConfig(threshold=0.2),
    "PyramidAttentionBroadcast": lambda: diffusers.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
    ),
    "TaylorSeerCache": lambda: diffusers.TaylorSeerCacheConfig(),
}


@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize("when", ["before", "while"])
def test_a_cache_of_diffusers_is_refused_while_it_is_on(name, when, architectures):
    """Fault C4: captures repeated the values of an earlier step."""
    model = architectures("FLUX")
    transformer, run = model.pipe.transformer, RunSettings(1, 3.5, height=32, width=48)

    def collect():
        if when == "while":
            transformer.enable_cache(CACHES[name]())
        generate(model, run, ["a"], [0], output_type="latent")

    if when == "before":
        transformer.enable_cache(CACHES[name]())
    try:
        with pytest.raises(
            ModelError, match=r"has diffusers' \w+ on \(at .*\): it puts .* disable_cache\(\)"
        ) as caught:
            calls_of(model.pipe, collect, BLOCK)
        assert "\n" not in str(caught.value)
    finally:
        transformer.disable_cache()
    assert (
        len(
            calls_of(
                model.pipe, lambda: generate(model, run, ["a"], [0], output_type="latent"), BLOCK
            )
        )
        == 1
    )


@pytest.mark.parametrize("name", ["SD-1.5", "FLUX", "PixArt-Σ"])
@pytest.mark.parametrize("first", [0, 1])
def test_two_attached_interventions_are_detached_in_any_order(name, first, architectures):
    """Fault C4."""
    model, run = architectures(name), PLAIN
    hook = UNET if name == "SD-1.5" else BLOCK
    plain = generate(model, run, ["a"], [0], output_type="latent")[0]
    timesteps = [float(t) for t in model.pipe.scheduler.timesteps]
    chosen = [
        [(s, f, 0.5, 0.0) for s in range(len(timesteps)) for f in range(start, 64, 2)]
        for start in (0, 1)
    ]
    handles = [
        attach(model.pipe, make_selection(model, rows, timesteps, hook=hook), saes=make_sae())
        for rows in chosen
    ]
    both = generate(model, run, ["a"], [0], output_type="latent")[0]
    handles[first].detach()
    one = generate(model, run, ["a"], [0], output_type="latent")[0]
    handles[1 - first].detach()
    assert not torch.equal(both, one) and not torch.equal(one, plain)
    assert torch.equal(generate(model, run, ["a"], [0], output_type="latent")[0], plain)


def test_the_pipeline_of_the_documentation(tmp_path):
    """Issue 19: a pipeline of one's own in ten lines; the page's example, run."""
    page = (Path(__file__).parents[4] / "docs/own_pipeline.md").read_text(encoding="utf-8")
    source = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    lines = source.partition("class Backwards")[2].splitlines()
    assert len([line for line in lines if line.strip()]) <= 14
    names = {}
    exec(source, names)
    own = names["Backwards"](
        **tiny_stable_diffusion(tmp_path).components, requires_safety_checker=False
    )
    try:
        found = {}
        with capture(own, [UNET], lambda one: found.setdefault(one.call, one.values.clone())):
            own(["a cat", "dogs"], torch.Generator().manual_seed(0))
        schedule = tuple(float(t) for t in own.scheduler.timesteps)
        assert [(call.branches, call.step, call.timestep) for call in found] == [
            (("cond", "uncond"), step, schedule[step]) for step in (0, 1)
        ]
        # The oracle: in the first step, the half of an empty negative prompt is the conditional
        # half of an empty prompt.
        empty = {}
        with capture(own, [UNET], lambda one: empty.setdefault(one.call.step, one.values.clone())):
            own(["", ""], torch.Generator().manual_seed(0))
        torch.testing.assert_close(
            next(iter(found.values()))[2:], empty[0][:2], atol=1e-5, rtol=1e-4
        )
    finally:
        _declared.clear()


class Redrawn(StableDiffusionPipeline):
    """A pipeline of one's own that takes a picture under another name."""

    def __call__(self, prompt, init_image, num_inference_steps, guidance_scale):
        raise NotImplementedError


def test_words_third_parts_and_pictures_are_declared(tmp_path):
    """Issue 19, item 1."""
    own = Redrawn(**tiny_stable_diffusion(tmp_path).components, requires_safety_checker=False)
    model, run = Model("m", own, 2, 3.0), RunSettings(2, 3.0)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    picture = {"image": start_picture(tmp_path / "a.png", "test")}
    try:
        declare(Redrawn)
        check_branch(model, run, "skip")  # Not known: the run says.
        with pytest.raises(HookError, match="has no attention from positions of the picture"):
            word_layers(own, UNET)
        declare(Redrawn, third="perturbed", words=str.lower, starts={"image": "init_image"})
        assert word_tokens(own, "A cat", "CAT", 16) == [2, 3, 4]
        assert word_layers(own, UNET)
        check_branch(model, run, "perturbed")
        with pytest.raises(UsageError, match="has the parts cond and uncond and perturbed"):
            check_branch(model, run, "skip")
        given = start_arguments(own, [picture], (64, 64))
        assert [image.size for image in given.pop("init_image")] == [(64, 64)] and not given
    finally:
        _declared.clear()


def test_a_declaration_that_says_nothing_is_refused():
    with pytest.raises(UsageError, match=r"^declare expects third as one of \('', 'perturbed', "):
        declare(object, third="cond")
    with pytest.raises(UsageError, match=r"^declare expects starts from image, mask, control, found 'video'"):  # fmt: skip
        declare(object, starts={"video": "video"})
    with pytest.raises(
        UsageError, match="declare expects a pipeline's class, found 'FluxPipeline'"
    ):
        declare("FluxPipeline")
    with pytest.raises(
        UsageError, match=r"expects branches such as \('uncond', 'cond'\), found \(\)"
    ):
        declare(object, branches=())
    with pytest.raises(UsageError, match=r"found \('cond', 'cond'\)"):
        declare(object, branches=("cond", "cond"))


def test_a_loop_without_the_variables_says_which_are_missing(tmp_path):
    class Other(diffusers.StableDiffusionPipeline):
        def __call__(self, x, states):
            for moment in (3.0,):
                self.unet(x, torch.tensor(moment), states)

    pipe = Other(**tiny_stable_diffusion(tmp_path).components, requires_safety_checker=False)
    x, states = torch.zeros(1, 4, 16, 16), torch.zeros(1, 16, 16)
    with pytest.raises(
        ModelError,
        match=r"Other does not say whether guidance is on \(no "
        r"do_classifier_free_guidance\)|'latents'",
    ):
        pipe._guidance_scale, pipe._guidance_rescale = 1.0, 0.0
        calls_of(pipe, lambda: pipe(x, states))
