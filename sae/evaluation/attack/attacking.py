"""Attack what removes concepts from a model: which pictures, under which defence, and which
pipelines can be attacked."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featurestore.errors import ModelError, UsageError
from featurestore.prompts import Prompt
from sae.diffusion.pipelines import Model, RunSettings, with_starts
from sae.diffusion.reading.architectures import architecture
from sae.diffusion.sizes import takes
from sae.diffusion.starts import default_strength
from sae.evaluation.attack.loop import AttackLoop, Say
from sae.evaluation.attack.prefix import encoders
from sae.evaluation.attack.report import AttackReport
from sae.evaluation.attack.settings import AttackSettings, Defended
from sae.evaluation.attack.victims import Case
from sae.evaluation.judge import Judge, check_labels
from sae.evaluation.search import least_taken
from sae.intervention.ablate import Saes, ablate, find_saes
from sae.intervention.settings import Intervention

_GOLDEN = (5**0.5 - 1) / 2


def attack(
    model: Model,
    interventions: Sequence[Intervention],
    *,
    prompts: Sequence[Prompt],
    judge: Judge,
    out: Path,
    settings: AttackSettings | None = None,
    run: RunSettings | None = None,
    saes: Saes = None,
    mode: str = "paper",
    pictures: int | None = None,
    batch_size: int = 8,
    progress: bool = True,
    say: Say = lambda line: None,
) -> AttackReport:
    """Search for what makes the edited ``model`` show the concepts that ``interventions`` remove.

    Attacked are ``prompts`` that ask for one of the concepts, at most ``pictures`` of each, spread
    over them; ``batch_size`` at once. Everything is kept in ``out``, an interrupted call goes on
    there, and ``report.html`` shows the pictures.

    Raises:
        SelectionError: a selection was made for another model or SAE.
        UsageError: nothing is removed, no prompt asks for it, the judge cannot see it, or it is not
            shown without a defence.
        ModelError: the pipeline or its scheduler cannot be attacked.
    """
    if not interventions:
        raise UsageError("nothing to attack: no selection is ablated.")
    if mode == "saeuron":
        raise UsageError(
            "mode saeuron counts its calls and has no timestep to attack: use mode paper or "
            "no-error."
        )
    run = with_starts(model.pipe, run or RunSettings(model.steps, model.guidance), prompts)
    found = find_saes([one.selection for one in interventions], saes)
    removed = dict.fromkeys((one.selection.family, one.selection.concept) for one in interventions)
    uncond = any("uncond" in one.branches for one in interventions)
    defended = Defended(
        model=model,
        run=run,
        attached=functools.partial(ablate, model.pipe, list(interventions), saes=found, mode=mode),
        setting={"mode": mode, "edits": [one.identified() for one in interventions]},
        guided=bool(run.negative_prompt) or uncond,
    )
    cases = [case for key in removed for case in spread(prompts, *key, pictures)]
    with defended.attached():
        pass  # A selection of another model is refused before anything is drawn or read.
    return attack_defence(
        defended,
        cases,
        judge=judge,
        out=out,
        settings=settings or AttackSettings(),
        batch_size=batch_size,
        progress=progress,
        say=say,
    )


def spread(prompts: Sequence[Prompt], family: str, concept: str, n: int | None) -> list[Case]:
    """Return at most ``n`` of the prompts that ask for a concept, in order, spread over all: of
    seeds, texts and labels each alike.

    Raises:
        UsageError: none does.
    """
    asked = [p for p in prompts if p.labels.get(family) == concept]
    if not asked:
        raise UsageError(f"no prompt asks for {family}={concept}: give prompts with this label.")
    n = len(asked) if n is None else n
    # Multiples of the golden ratio, without their whole parts, are far from each other.
    order = sorted(range(len(asked)), key=lambda i: i * _GOLDEN % 1)
    about = [asked[i] for i in order]
    taken = least_taken([[("", p.seed), ("", p.prompt), *p.labels.items()] for p in about], n)
    return [Case(asked[i], family, concept) for i in sorted(order[place] for place in taken)]


def attack_defence(
    defended: Defended,
    cases: Sequence[Case],
    *,
    judge: Judge,
    out: Path,
    settings: AttackSettings,
    batch_size: int = 8,
    progress: bool = True,
    say: Say = lambda line: None,
) -> AttackReport:
    """Attack any defence; see :func:`attack`."""
    check_labels(judge, [{case.family: case.concept} for case in cases])
    _check_attackable(defended.model.pipe, settings)
    for case in cases:
        if case.prompt.guidance is not None:
            raise UsageError(
                f"prompt {case.prompt.prompt!r} has a guidance scale of its own, "
                f"{case.prompt.guidance:g}, and an attack has one for all: leave the column out, "
                f"and give --guidance."
            )
    made = AttackLoop(defended, judge, out, settings, say=say)
    made.run(cases, batch_size, progress)
    starts = {one.sha256: one.path for case in cases for one in case.prompt.starts.values()}
    return AttackReport.read(out, [made.path(case) for case in cases], settings.method, starts)


def _check_attackable(pipe: Any, settings: AttackSettings) -> None:
    """Refuse pipelines whose denoiser is told more than the text, models without words, and more
    tokens than a text may have."""
    name, starts = type(pipe).__name__, architecture(pipe).starts
    noised = set(starts) == {"image"} and default_strength(pipe) is not None
    if starts and not (noised and settings.method != "latents"):
        raise ModelError(
            f"{name} starts from a picture: attacked are text-to-image pipelines, and of those "
            f"that noise a picture (img2img) the tokens and embeddings before the prompt."
        )
    if not takes(pipe, "prompt"):
        raise ModelError(f"{name} takes no prompt: there are no words that could be attacked.")
    for encoder in encoders(pipe) if settings.method != "latents" else ():
        room = encoder.tokenizer.model_max_length - 2  # besides the marks of begin and end
        if settings.n_tokens > room:
            raise UsageError(
                f"attack {settings.method}: n_tokens = {settings.n_tokens}, a text of {name} has "
                f"room for {room}."
            )
