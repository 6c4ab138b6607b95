"""Issue 19, item 4: every scheduler class of the installed diffusers, on one pipeline; the table of
docs/pipelines.md."""

import inspect
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import SchedulerMixin

from collectors.rows.capture import capture
from sae.diffusion.modules import find_module
from sae.intervention.ablate import ablate
from sae.intervention.settings import Intervention, Window
from tests.builders.pipelines import tiny_sd3, tiny_stable_diffusion
from tests.builders.selections import make_sae, make_selection

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]
DIFFUSION = [
    "CMStochasticIterative",
    "CogVideoXDDIM",
    "DDIM",
    "DDIMInverse",
    "DDIMParallel",
    "DDPM",
    "DDPMParallel",
    "DEISMultistep",
    "DPMSolverMultistep",
    "DPMSolverMultistepInverse",
    "DPMSolverSinglestep",
    "EDMDPMSolverMultistep",
    "EDMEuler",
    "EulerAncestralDiscrete",
    "EulerDiscrete",
    "HeunDiscrete",
    "IPNDM",
    "KDPM2AncestralDiscrete",
    "KDPM2Discrete",
    "LCM",
    "PNDM",
    "SASolver",
    "TCD",
    "UniPCMultistep",
]
FLOW = ["FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete"]
OTHERS = {
    "of other models than these": [
        "Amused",
        "BlockRefinement",
        "CogVideoXDPM",
        "DDPMWuerstchen",
        "DiscreteDDIM",
        "EntropyBound",
        "FlowMapEulerDiscrete",
        "FlowMatchLCM",
        "Helios",
        "HeliosDMD",
        "KarrasVe",
        "LTXEulerAncestralRF",
        "MiniMaxH3",
        "Piflow",
        "RFD4Proteina",
        "RePaint",
        "SCM",
        "ScoreSdeVe",
        "UnCLIP",
        "VQDiffusion",
    ],
    "needs packages that are not installed": [
        "CosineDPMSolverMultistep",
        "DPMSolverSDE",
        "LMSDiscrete",
    ],
}
N_STEPS = 4


@pytest.fixture(scope="module")
def pipes(tmp_path_factory):
    root = tmp_path_factory.mktemp("schedulers")
    made = {"diffusion": tiny_stable_diffusion(root / "a"), "flow": tiny_sd3(root / "b")}
    for pipe in made.values():
        pipe.set_progress_bar_config(disable=True)
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval()
    return made


def with_scheduler(pipes, name):
    pipe = pipes["flow" if name in FLOW else "diffusion"]
    own = {} if name in FLOW else pipe.scheduler.config
    pipe.scheduler = getattr(diffusers, f"{name}Scheduler").from_config(own)
    return pipe


def draw(pipe):
    generator = torch.Generator().manual_seed(0)
    how = {
        "num_inference_steps": N_STEPS,
        "guidance_scale": 3.0,
        "height": 32,
        "width": 48,
        "output_type": "latent",
    }
    pipe(["a cat"], generator=generator, **how)


def recorded(pipe, hook):
    """The calls as they are read, and what a plain hook sees in each."""
    calls, values, plain = [], [], []
    index = 1 if hook.startswith("transformer") else 0
    handle = find_module(pipe, hook).register_forward_hook(
        lambda m, args, output: plain.append(output[index].clone())
    )

    def keep(one):
        calls.append(one.call)
        values.append(one.values.clone())

    try:
        with capture(pipe, [hook], keep):
            draw(pipe)
    finally:
        handle.remove()
    rows = [p.permute(0, 2, 3, 1).flatten(1, 2) if p.dim() == 4 else p for p in plain]
    assert all(torch.equal(a, b) for a, b in zip(values, rows, strict=True))
    return calls, rows


HOOKS = {True: "transformer.transformer_blocks.0", False: "unet.up_blocks.1.attentions.1"}


@pytest.mark.parametrize("name", [*DIFFUSION, *FLOW])
def test_steps_windows_and_edits_follow_the_scheduler(name, pipes):
    """Fault C6 too: continuous timesteps, repeated ones, more calls than steps that were asked
    for."""
    pipe, hook = with_scheduler(pipes, name), HOOKS[name in FLOW]
    calls, before = recorded(pipe, hook)
    schedule = [float(t) for t in pipe.scheduler.timesteps]
    assert [call.step for call in calls] == list(range(len(schedule)))
    assert [call.timestep for call in calls] == schedule
    assert {call.branches for call in calls} == {("uncond", "cond")}
    rows = [(step, f, 0.5, 0.0) for step in range(len(schedule)) for f in range(0, 64, 2)]
    model = type("Model", (), {"pipe": pipe})
    selection = make_selection(model, rows, schedule, hook=hook)
    first = len(schedule) // 2
    window = Window(first / (len(schedule) - 1), 1.0, parts=True)
    with ablate(pipe, Intervention(selection, "zero", window=window), saes=make_sae(3)):
        _, after = recorded(pipe, hook)
    unchanged = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert unchanged[:first] == [True] * first
    assert not any(unchanged[first:])
    assert torch.equal(
        before[first].chunk(2)[0], after[first].chunk(2)[0]
    )  # the unconditional half of the first edit


def kind(schedule):
    words = ["whole" if all(t == int(t) for t in schedule) else "continuous"]
    words += ["repeated"] if len(set(schedule)) < len(schedule) else []
    return ", ".join(words + (["ascending"] if schedule[0] < schedule[-1] else []))


def test_the_documented_table_is_the_tested_one(pipes):
    lines = ["| scheduler | on | calls for 4 steps | timesteps |", "|---|---|---|---|"]
    for name in (*DIFFUSION, *FLOW):
        pipe = with_scheduler(pipes, name)
        draw(pipe)
        schedule = [float(t) for t in pipe.scheduler.timesteps]
        lines.append(
            f"| `{name}Scheduler` | {'SD3' if name in FLOW else 'SD-1.5'} | {len(schedule)} | "
            f"{kind(schedule)} |"
        )
    lines += [
        f"| {', '.join(f'`{name}Scheduler`' for name in names)} | | | {why} |"
        for why, names in OTHERS.items()
    ]
    page = (Path(__file__).parents[4] / "docs/pipelines.md").read_text(encoding="utf-8")
    (found,) = (
        block.splitlines() for block in page.split("\n\n") if block.startswith("| scheduler")
    )
    assert found == lines, "\n".join(lines)


def test_no_scheduler_of_the_installed_diffusers_is_left_out():
    there = {
        name.removesuffix("Scheduler")
        for name, one in inspect.getmembers(diffusers, inspect.isclass)
        if name.endswith("Scheduler") and not name.startswith("Flax")
    }
    assert there == {*DIFFUSION, *FLOW, *(name for names in OTHERS.values() for name in names)}
    assert all(
        issubclass(getattr(diffusers, f"{name}Scheduler"), SchedulerMixin)
        for name in (*DIFFUSION, *FLOW)
    )
