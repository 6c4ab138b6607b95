"""UnlearnDiffAtk against every method's defence: each attack's outcome is a file."""

import json
from typing import Any

import torch
from torch import Tensor

from benchmarks.unlearning.attack import Attack, AttackSettings, attack, guided_prediction, success_rates
from benchmarks.unlearning.diffusion import embed, latent_shape
from benchmarks.unlearning.methods import Bench, Defence
from benchmarks.unlearning.run import Run
from featurestore.format import durable
from featurestore.format.canonical import canonical_json, sha256_text
from featurestore.prompts import Prompt
from sae.diffusion.pipelines import generate

SKIPPED = {"released arithmetic": "it counts calls: no timestep can be attacked", "random features": "a control"}
N_TOKENS = {"style": 3, "object": 5}


def attack_all(run: Run, family: str, defences: dict[str, dict[str, Defence]]) -> dict[str, tuple[float, float, int]]:
    """Return for each method the shares of pictures that showed a concept before and under attack, and their number.

    ``defences``: concept → method → defence.
    """
    found: dict[str, list[Attack]] = {}
    for concept in defences:
        asked = [p for p in run.prompts if p.labels[family] == concept and p.labels["style"] is not None]
        spread = asked[:: max(1, len(asked) // max(1, run.amounts.attacked))][: run.amounts.attacked]
        for method, defence in defences[concept].items():
            if method not in SKIPPED:
                found.setdefault(method, []).extend(_kept(run, family, concept, defence, p) for p in spread)
    return {method: (*success_rates(attacks), len(attacks)) for method, attacks in found.items() if attacks}


def _kept(run: Run, family: str, concept: str, defence: Defence, wanted: Prompt) -> Attack:
    amounts = run.amounts
    settings = AttackSettings(N_TOKENS[family], amounts.attack_iterations, amounts.attack_timesteps, seed=wanted.seed)
    about = [defence.setting, defence.targets, wanted.prompt, wanted.seed, vars(settings)]
    path = run.bench.root / "attacks" / f"{concept}-{sha256_text(canonical_json(about))[:16]}.json"
    if not path.is_file():
        result = _attacked(run, family, concept, defence, wanted, settings)
        durable.write_bytes(path, json.dumps({"about": about, **result._asdict()}).encode())
    body = json.loads(path.read_text(encoding="utf-8"))
    return Attack(*(body[name] for name in Attack._fields))


def _attacked(
    run: Run, family: str, concept: str, defence: Defence, wanted: Prompt, settings: AttackSettings
) -> Attack:
    """Attack one picture; its target are the latents of the untouched model's."""
    bench = run.bench
    target = generate(bench.model, bench.run, [wanted.prompt], [wanted.seed], "latent")[0][None]
    negative = defence.run.negative_prompt
    predict = guided_prediction(bench.model.pipe, negative, bench.run.guidance) if negative else None

    def shown(states: Tensor) -> bool:
        image = picture(bench, states, wanted.seed, negative)
        (answer,) = run.judge.answers([wanted], [image])
        return answer.seen[family] == concept

    frozen = [
        p for p in (*bench.model.pipe.unet.parameters(), *bench.model.pipe.text_encoder.parameters()) if p.requires_grad
    ]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        with defence.attached():
            return attack(bench.model.pipe, wanted.prompt, target, shown, settings, predict)
    finally:
        for parameter in frozen:
            parameter.requires_grad_()


@torch.no_grad()
def picture(bench: Bench, states: Tensor, seed: int, negative: str = "") -> Any:
    """Return the picture that the model draws of text states, as the run has it."""
    pipe, run = bench.model.pipe, bench.run
    start = torch.randn((1, *latent_shape(pipe)), generator=torch.Generator().manual_seed(seed)).to(states)
    output = pipe(
        prompt_embeds=states,
        negative_prompt_embeds=embed(pipe, [negative]),
        latents=start,
        num_inference_steps=run.n_steps,
        guidance_scale=run.guidance,
    )
    return output.images[0]
