"""What our rule is compared with: method → its settings for a concept, or for several."""

import contextlib
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from benchmarks.unlearning.adv_unlearn import train_adv_unlearn, trained_parameters
from benchmarks.unlearning.esd import ESDSettings, train_esd, trained_weights
from benchmarks.unlearning.mean_direction import Directions, mean_directions, steered_away
from benchmarks.unlearning.methods.defence import Bench, Defence, Grid
from benchmarks.unlearning.methods.keys import code_of, short_hash
from benchmarks.unlearning.methods.trained import trained
from benchmarks.unlearning.salun import Examples, SalUnSettings, train_salun
from minicanvas import Canvas
from sae.diffusion.pipelines import generate

S = TypeVar("S", ESDSettings, SalUnSettings)


def negative_prompts(bench: Bench, family: str, concept: str) -> list[list[Defence]]:
    """Return negative prompts that name the concept."""
    texts = [concept, f"in {concept} style" if family == "style" else f"An image of {concept}."]
    return [[
        Defence(
            {family: [concept]}, {"method": "negative prompt", "text": text},
            contextlib.nullcontext, replace(bench.run, negative_prompt=text),
        )
        for text in texts
    ]]  # fmt: skip


def mean_direction(bench: Bench, family: str, concept: str) -> list[list[Defence]]:
    """Return differences of means over hooks and strengths, subtracted or projected out."""
    found = []
    for hook in bench.hooks:
        directions = mean_directions(bench.store, hook, family, concept)
        for strength, project in itertools.product(bench.grid.strengths, (False, True)):
            found.append(
                _steered(bench, family, concept, directions, strength=strength, project=project)
            )
    return [found]


def _steered(
    bench: Bench,
    family: str,
    concept: str,
    directions: Directions,
    *,
    strength: float,
    project: bool,
) -> Defence:
    setting = {
        "method": "mean direction",
        "hook": directions.hook,
        "strength": strength,
        "project": project,
        "collected": bench.collected,
        "code": code_of("mean_direction"),
    }
    return Defence(
        {family: [concept]},
        setting,
        lambda: steered_away(bench.model.pipe, directions, strength, project),
        bench.run,
        2 * directions.difference.numel() * 4,
    )


def esd(bench: Bench, family: str, *concepts: str) -> list[list[Defence]]:
    """Return ESD-x over lengths of training, a group for each choice of what is erased; of several
    concepts the prompts of all."""

    stored = _bytes(trained_weights(bench.model.pipe.unet))
    code, found = code_of("esd", "diffusion"), []
    for erased, settings in bench.grid.esd:
        asked = [p for c in concepts for p in _erased(bench.canvas, erased, family, c)]
        what = {"method": "ESD-x", "erased": erased, "texts": short_hash(asked), "code": code}
        longer = _for_several(settings, len(concepts))
        train = partial(train_esd, bench.model.pipe, asked, longer)
        found.append(
            trained(bench, family, concepts, what, settings=longer, train=train, stored=stored)
        )
    return found


def adv_unlearn(bench: Bench, family: str, concept: str) -> list[list[Defence]]:
    """Return AdvUnlearn over lengths of training, a group for each choice of what is erased; what
    is retained are prompts with the family's other concepts."""
    others = [c for c in bench.canvas.concepts[family] if c != concept]
    retained = [p for c in others for p in _prompts_of(bench.canvas, family, c)]
    stored = _bytes(trained_parameters(bench.model.pipe.text_encoder))
    code, found = code_of("adv_unlearn", "esd", "diffusion"), []
    for erased, settings in bench.grid.adv_unlearn:
        asked = _erased(bench.canvas, erased, family, concept)
        texts = short_hash([asked, retained])
        what = {"method": "AdvUnlearn", "erased": erased, "texts": texts, "code": code}
        train = partial(train_adv_unlearn, bench.model.pipe, asked, retained, settings)
        found.append(
            trained(
                bench,
                family,
                [concept],
                what,
                settings=settings,
                train=train,
                stored=stored,
                component="text_encoder",
            )
        )
    return found


def salun(bench: Bench, family: str, *concepts: str) -> list[list[Defence]]:
    """Return SalUn over lengths of training, a group for each training; the pictures are the
    untouched model's own, of several concepts those of all."""

    asked, pseudo, kept = _example_prompts(bench.canvas, bench.grid, family, concepts)

    def train(settings: SalUnSettings) -> dict[int, dict[str, Tensor]]:
        forget, retain = _drawn(bench, asked), _drawn(bench, kept)
        return train_salun(bench.model.pipe, forget, pseudo, retain, settings)

    texts, code = short_hash([asked, pseudo, kept]), code_of("salun", "diffusion")
    what = {"method": "SalUn", "texts": texts, "code": code}
    stored = _bytes(dict(bench.model.pipe.unet.named_parameters()))
    return [
        trained(
            bench,
            family,
            concepts,
            what,
            settings=settings,
            train=partial(train, settings),
            stored=stored,
        )
        for settings in (_for_several(one, len(concepts)) for one in bench.grid.salun)
    ]


COMPETITORS: dict[str, Callable[[Bench, str, str], list[list[Defence]]]] = {
    "negative prompt": negative_prompts,
    "mean direction": mean_direction,
    "ESD-x": esd,
    "AdvUnlearn": adv_unlearn,
    "SalUn": salun,
}
"""method → its settings for a concept, in groups: the next only if the best of those before is not
perfect"""
TOGETHER: dict[str, Callable[..., list[list[Defence]]]] = {"ESD-x": esd, "SalUn": salun}
"""method → the same for several concepts of a family, trained for all at once"""


def _for_several(settings: S, n: int) -> S:
    """Return a training for n concepts: of √n and n times the lengths for one."""
    lengths = {round(i * by) for i in settings.iterations for by in (math.sqrt(n), n)}
    return replace(settings, iterations=tuple(sorted(lengths)))


def _bytes(weights: dict[str, Any]) -> int:
    """Return what weights take as float16."""
    return 2 * sum(p.numel() for p in weights.values())


def _erased(canvas: Canvas, erased: str, family: str, concept: str) -> list[str]:
    """Return the prompts that are erased: the concept's name alone, or all with it."""
    if erased == "prompts":
        return _prompts_of(canvas, family, concept)
    return [f"An image in {concept} style." if family == "style" else canvas.prompt(concept)]


def _prompts_of(canvas: Canvas, family: str, concept: str) -> list[str]:
    if family == "style":
        return [canvas.prompt(o, concept) for o in canvas.objects]
    return [canvas.prompt(concept, s) for s in canvas.styles]


def _example_prompts(
    canvas: Canvas, grid: Grid, family: str, concepts: Sequence[str]
) -> tuple[list[str], list[str], list[str]]:
    """Return the prompts of pictures to forget, those to tie them to, and those to retain."""
    each = grid.examples_per_prompt
    instead = [_prompts_of(canvas, family, c) for c in canvas.concepts[family] if c not in concepts]
    asked, pseudo = [], []
    for concept in concepts:
        with_it = [p for p in _prompts_of(canvas, family, concept) for _ in range(each)]
        asked += with_it
        pseudo += [instead[i % len(instead)][i // each] for i in range(len(with_it))]
    others = [p for prompts in instead for p in prompts]
    others *= math.ceil(grid.retained / len(others))  # Drawn again, they are other pictures.
    kept = others[:: max(1, len(others) // grid.retained)][: grid.retained]
    return asked, pseudo, kept


def _drawn(bench: Bench, prompts: list[str]) -> Examples:
    """Return pictures that the untouched model draws."""
    latents = []
    for start in range(0, len(prompts), bench.batch_size):
        batch = prompts[start : start + bench.batch_size]
        seeds = [100_000 + start + i for i in range(len(batch))]
        latents += generate(bench.model, bench.run, batch, seeds, output_type="latent")
    return Examples(torch.stack(latents), prompts)
