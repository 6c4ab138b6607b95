"""Every pipeline class that is known: its calls are read as its source says, collected bit for bit,
edited by the formula."""

from pathlib import Path

import diffusers
import pytest
import torch

from collectors.rows.capture import capture
from featurestore.errors import HookError, UsageError
from sae.diffusion.pipelines import Model, RunSettings, check_run
from sae.diffusion.reading.architectures import ARCHITECTURES, STREAMS
from sae.diffusion.reading.calls import Running
from sae.diffusion.reading.grids import token_grid
from sae.intervention.ablate import ablate
from tests.builders.families import COND, FAMILIES, PROMPTS, common, table
from tests.builders.plain import STREAMS_IN_SOURCE, dense, plain_hooks, random_sae, rows
from tests.builders.selections import make_selection

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning"),  # Mochi
]
RUNS = [
    (name, guided)
    for name, family in FAMILIES.items()
    for guided in (True, False)
    if family.guided or not guided
]


@pytest.fixture(scope="module")
def pipes(tmp_path_factory):
    built = {}

    def get(name):
        if name not in built:
            built.clear()  # One at a time in memory: tests of a pipeline follow each other.
            built[name] = FAMILIES[name].build(tmp_path_factory.mktemp(name))
            built[name].set_progress_bar_config(disable=True)
            for part in built[name].components.values():
                if isinstance(part, torch.nn.Module):
                    part.eval()
        return built[name]

    return get


def captured(pipe, family, prompts, guided):
    found = {hook: [] for hook in family.hooks}

    def keep(one):
        found[one.hook].append(one._replace(values=one.values.clone()))

    with capture(pipe, list(family.hooks), keep):
        pipe(**common(family, prompts, guided))
    return found


@pytest.mark.parametrize(("name", "guided"), RUNS)
def test_each_call_is_read_as_the_source_says_and_collected_bit_for_bit(name, guided, pipes):
    """Fault C3, issue 19: the order of branches, the steps, and every value that a plain hook
    sees."""
    pipe, family = pipes(name), FAMILIES[name]
    with plain_hooks(pipe, family.hooks) as plain:
        found = captured(pipe, family, PROMPTS, guided)
    order = family.order if guided else COND
    for hook in family.hooks:
        calls = [one.call for one in found[hook]]
        assert [call.branches for call in calls] == list(order) * 2
        assert [call.step for call in calls] == [step for step in (0, 1) for _ in order]
        whole = [float(t) for t in pipe.scheduler.timesteps]
        schedule = whole[: len(whole) - family.trailing][-2:]
        assert [call.timestep for call in calls] == [t for t in schedule for _ in order]
        assert {call.schedule for call in calls} == {tuple(schedule)}
        assert len(plain[hook]) == len(calls)
        for one, whole in zip(found[hook], plain[hook], strict=True):
            assert torch.equal(one.values, rows(whole)), hook


@pytest.mark.parametrize(
    "name", [n for n, family in FAMILIES.items() if family.guided and family.oracle]
)
def test_the_branches_are_the_prompt_and_the_negative_prompt(name, pipes):
    """The oracle: calls without guidance, of each prompt on its own, have the same first step."""
    pipe, family = pipes(name), FAMILIES[name]
    first = {}
    for hook, calls in captured(pipe, family, PROMPTS, True).items():
        for one in calls:
            if one.call.step == 0:
                parts = zip(
                    one.call.branches, one.values.chunk(len(one.call.branches)), strict=True
                )
                first |= {(hook, branch): part for branch, part in parts}
    for branch, prompts in (("cond", PROMPTS), ("uncond", ["ugly"] * len(PROMPTS))):
        for hook, calls in captured(pipe, family, prompts, False).items():
            torch.testing.assert_close(first[hook, branch], calls[0].values, atol=1e-5, rtol=1e-4)
    assert any(
        (first[hook, "cond"] - first[hook, "uncond"]).abs().max() > 1e-4 for hook in family.hooks
    )


@pytest.mark.parametrize(("name", "guided"), RUNS)
def test_ablation_edits_one_branch_by_the_formula_and_nothing_else(name, guided, pipes):
    pipe, family = pipes(name), FAMILIES[name]
    order, features = family.order if guided else COND, list(range(0, 64, 3))
    for hook in family.hooks:
        with plain_hooks(pipe, [hook]) as plain:
            before = pipe(**common(family, PROMPTS, guided))[0]
        timesteps = [float(t) for t in pipe.scheduler.timesteps]
        d_in = rows(plain[hook][0]).shape[-1]
        sae, model = random_sae(d_in), Model("m", pipe, 2, 1.0)
        chosen = [(step, f, 0.3, 0.01) for step in range(len(timesteps)) for f in features]
        nothing = make_selection(model, [], timesteps, hook=hook, d_in=d_in)
        with ablate(pipe, nothing, saes=sae):
            assert torch.equal(pixels(pipe(**common(family, PROMPTS, guided))[0]), pixels(before))
        for branch in sorted({part for call in order for part in call}):
            selection = make_selection(
                model, chosen, timesteps, hook=hook, d_in=d_in, branch=branch
            )
            with ablate(pipe, selection, saes=sae), plain_hooks(pipe, [hook]) as edited:
                pipe(**common(family, PROMPTS, guided))
            for call, (old, new) in enumerate(
                zip(plain[hook][: len(order)], edited[hook], strict=False)
            ):
                parts = zip(
                    order[call],
                    rows(old).chunk(len(order[call])),
                    rows(new).chunk(len(order[call])),
                    strict=True,
                )
                for part, x, y in parts:
                    if part != branch:
                        assert torch.equal(x, y)
                        continue
                    x, y = x.reshape(-1, d_in), y.reshape(-1, d_in)
                    expected = dense(sae, x, features)
                    torch.testing.assert_close(y, expected, atol=5e-5, rtol=5e-5)
                    assert not torch.equal(x, y)


@pytest.mark.parametrize(("name", "grid"), [("Kandinsky5T2IPipeline", (1, 2, 3)), ("Kandinsky5T2VPipeline", (2, 2, 3))])  # fmt: skip
def test_kandinsky_5_has_its_channels_last_and_sizes_of_its_own(name, grid, pipes):
    """A picture of 32 × 48 has 4 × 6 latent pixels, 2 × 3 patches; 5 frames are 2 latent ones."""
    pipe, family = pipes(name), FAMILIES[name]
    for calls in captured(pipe, family, PROMPTS, False).values():
        assert {one.call.grid for one in calls} == {grid}
    for hook in ("transformer", "transformer.out_layer", "transformer.out_layer.norm"):
        message = (
            rf"^module '{hook}' returns maps of frames in an order of its own, \[2, .*: hook a"
        )
        with capture(pipe, [hook], lambda one: None), pytest.raises(HookError, match=message):
            pipe(**common(family, PROMPTS, False))
    model = Model("m", pipe, 2, 1.0)
    check_run(model, RunSettings(2, 1.0, height=32, width=48))
    if hasattr(pipe, "resolutions"):
        message = r"^--height 64 --width 72: Kandinsky5T2IPipeline draws pictures of sizes of its own, here 64 × 64: ask for these\.$"  # fmt: skip
        with pytest.raises(UsageError, match=message):
            check_run(model, RunSettings(2, 1.0, height=64, width=72))


def test_squares_of_patches_have_no_grid(pipes):
    """Kandinsky 5's sparse attention orders its tokens by squares of 8 × 8 patches."""
    pipe = pipes("Kandinsky5T2VPipeline")
    given = {"hidden_states": torch.zeros(1, 2, 32, 32, 4), "sparse_params": {"to_fractal": True}}
    assert token_grid(Running(pipe, {}, given, 1)) is None
    assert token_grid(Running(pipe, {}, given | {"sparse_params": None}, 1)) == (2, 16, 16)


def pixels(output):
    return (
        output
        if isinstance(output, torch.Tensor)
        else torch.stack([torch.as_tensor(one) for one in output])
    )


def test_the_blocks_of_two_streams_are_those_of_the_installed_diffusers():
    assert {name: streams[0] for name, streams in STREAMS.items()} == STREAMS_IN_SOURCE


def test_every_known_pipeline_is_a_class_of_diffusers():
    for name in ARCHITECTURES:
        assert isinstance(getattr(diffusers, name), type), name


def test_every_known_pipeline_is_tested_and_every_tested_one_is_in_the_documentation():
    others = {
        "StableDiffusionPipeline",
        "StableDiffusionXLPipeline",
        "FluxPipeline",
        "PixArtSigmaPipeline",
    }  # test_pipelines.py
    assert set(ARCHITECTURES) == set(FAMILIES) | others
    page = (Path(__file__).parents[3] / "docs/pipelines.md").read_text(encoding="utf-8")
    (found,) = (
        block.splitlines()
        for block in page.split("\n\n")
        if block.startswith("| pipeline | guidance")
    )
    assert found == table()
