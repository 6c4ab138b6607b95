import pytest
import torch

from featurestore.errors import UsageError
from featurestore.prompts import Prompt
from sae.diffusion.modules import find_module
from sae.diffusion.pipelines import RunSettings, generate
from sae.intervention.ablate import ablate
from sae.intervention.generate import generate_images
from sae.intervention.rules import paper_rule
from sae.intervention.settings import Intervention
from tests.builders.architectures import CASES, RUNS, SIZE
from tests.builders.selections import D_IN, N_LATENTS, make_sae, make_selection

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
UNET = ["unet.up_blocks.1.attentions.1"]
BLOCK = "transformer.transformer_blocks.0"
HOOKS = {
    "SD-1.5": UNET,
    "SD-2": UNET,
    "SDXL": UNET,
    "SD3": [BLOCK, f"{BLOCK}-encoder", "transformer.transformer_blocks.1"],
    "FLUX": [
        BLOCK,
        f"{BLOCK}-encoder",
        *(f"transformer.single_transformer_blocks.0{end}" for end in ("", "-encoder")),
    ],
    "PixArt-Σ": [BLOCK],
}
FEATURES = list(range(0, N_LATENTS, 3))


def outputs(model, hook, run, guidance):
    """What the hooked module returns in the first step, ``{branch: [positions, D_IN]}``, and the
    latents of the picture."""
    seen = []
    joint = (
        "PixArt" not in type(model.pipe).__name__
        and hook.startswith("transformer")
        and not hook.endswith("-encoder")
    )

    def keep(module, args, output):
        tensor = output[int(joint)] if isinstance(output, tuple) else output
        seen.append((tensor.permute(0, 2, 3, 1) if tensor.dim() == 4 else tensor).clone())

    handle = find_module(model.pipe, hook).register_forward_hook(keep)
    try:
        (latents,) = generate(model, run, ["a cat"], [4], output_type="latent")
    finally:
        handle.remove()
    order = {"one call": ("uncond", "cond"), "a call each": ("cond", "uncond"), "none": ("cond",)}[
        guidance
    ]
    first = torch.cat(seen[:2]) if guidance == "a call each" else seen[0]
    return {branch: first[i].reshape(-1, D_IN) for i, branch in enumerate(order)}, latents


@pytest.mark.parametrize(("name", "guidance"), RUNS)
def test_ablation_edits_one_stream_of_one_branch_by_the_formula(name, guidance, architectures):
    model, run, sae = architectures(name), CASES[name].guidance[guidance], make_sae(3)
    for hook in HOOKS[name]:
        before, plain = outputs(model, hook, run, guidance)
        timesteps = [float(t) for t in model.pipe.scheduler.timesteps]
        for rows in ([], [(0, 5, 0.3, 1e9)]):
            with ablate(
                model.pipe,
                make_selection(model, rows, timesteps, hook=hook),
                strength=-5.0,
                saes=sae,
            ):
                assert torch.equal(outputs(model, hook, run, guidance)[1], plain)
        rows = [(step, f, 0.2, 0.01) for step in range(run.n_steps) for f in FEATURES]
        for branch in before:
            selection = make_selection(model, rows, timesteps, hook=hook, branch=branch)
            with ablate(model.pipe, selection, strength=-5.0, saes=sae):
                after, edited = outputs(model, hook, run, guidance)
            assert not torch.equal(edited, plain)
            expected = paper_rule(
                sae,
                before[branch],
                torch.tensor(FEATURES),
                strength=-5.0,
                mean_concept=torch.tensor(0.2),
                mean_all=torch.tensor(0.01),
            )
            torch.testing.assert_close(after[branch], expected, atol=2e-5, rtol=2e-5)
            assert not torch.equal(after[branch], before[branch])
            for other in set(before) - {branch}:
                assert torch.equal(after[other], before[other])


@pytest.mark.parametrize("io", ["input", "difference"])
@pytest.mark.parametrize("hook", [BLOCK, f"{BLOCK}-encoder"])
def test_the_input_and_the_difference_of_a_joint_blocks_streams_are_edited(io, hook, architectures):
    model, run = architectures("SD3"), CASES["SD3"].guidance["one call"]
    before, plain = outputs(model, hook, run, "one call")
    timesteps = [float(t) for t in model.pipe.scheduler.timesteps]
    rows = [(step, f, 0.5, 0.0) for step in range(run.n_steps) for f in FEATURES]
    with ablate(
        model.pipe,
        make_selection(model, rows, timesteps, hook=hook, io=io),
        strength=-5.0,
        saes=make_sae(),
    ):
        after, edited = outputs(model, hook, run, "one call")
    assert not torch.equal(edited, plain)
    assert not torch.equal(after["cond"], before["cond"])
    assert torch.equal(after["uncond"], before["uncond"])


def test_a_selection_of_the_half_that_a_run_lacks_is_refused(architectures):
    model = architectures("FLUX")
    selection = make_selection(model, [], [1000.0], hook=BLOCK, branch="uncond")
    run = RunSettings(2, 3.5, **SIZE)
    with pytest.raises(
        UsageError,
        match="branch uncond with --true-cfg 1: without guidance there is no unconditional",
    ):
        next(
            generate_images(
                model, [Prompt("a", 0, {}, 1)], run, [Intervention(selection)], progress=None
            )
        )
