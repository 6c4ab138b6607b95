"""Every method with the settings among which one is searched: a defence is what is attached to the
model."""

import ast
import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from benchmarks.unlearning.adv_unlearn import (
    AdvUnlearnSettings,
    train_adv_unlearn,
    trained_parameters,
)
from benchmarks.unlearning.diffusion import with_weights
from benchmarks.unlearning.esd import ESDSettings, train_esd, trained_weights
from benchmarks.unlearning.ledger import Ledger
from benchmarks.unlearning.mean_direction import Directions, mean_directions, steered_away
from benchmarks.unlearning.pace import Pace
from benchmarks.unlearning.random_features import random_selection
from benchmarks.unlearning.salun import Examples, SalUnSettings, train_salun
from featurestore.format import durable
from featurestore.format.canonical import canonical_json, sha256_text
from featurestore.prompts import Prompt
from featurestore.store import Store
from minicanvas import OBJECTS, STYLES, prompt
from queries import ask
from queries.selections import select
from sae.checkpoint import store_sae
from sae.diffusion.pipelines import Model, RunSettings
from sae.diffusion.pipelines import generate as generate_batch
from sae.evaluation.measures.accuracy import grouped
from sae.evaluation.outcomes import Removal, ablation_removal
from sae.intervention.ablate import ablate
from sae.intervention.settings import Intervention
from sae.model import SAE

FAMILIES = {"style": STYLES, "object": OBJECTS}


class Defence(NamedTuple):
    """A method with one setting, for one or several concepts."""

    targets: dict[str, list[str]]
    setting: dict[str, Any]
    attached: Callable[[], AbstractContextManager[Any]]
    """attaches it to the model while the block runs"""
    run: RunSettings
    stored_bytes: int = 0
    interventions: Sequence[Intervention] = ()
    """what it is made of, if of SAE features"""
    prepare: Callable[[], object] = lambda: None
    """what has to be done once before it is attached: training"""
    training: Path | None = None
    """where ``prepare`` keeps the longest training; None: nothing is trained"""


@dataclass(frozen=True)
class Grid:
    """The settings that are tried, as fairly for each method as for ours."""

    tops: Sequence[int] = (2, 8, 32)
    multipliers: Sequence[float] = (-0.2, -0.5, -1.0, -2.0, -5.0, -10.0, -20.0)
    screened: tuple[int, float] = (8, -5.0)
    """features per step and multiplier at which SAEs are compared, before the best are searched"""
    thresholds: Sequence[float] = (1.0, 0.0)
    """in multiples of the features' means: searched where an attack is part of the search"""
    strengths: Sequence[float] = (1.0, 2.0)
    esd: Sequence[tuple[str, ESDSettings]] = (
        ("name", ESDSettings(iterations=(60, 120, 200), learning_rate=5e-4, n_steps=20)),
        ("prompts", ESDSettings(iterations=(60, 120, 240), learning_rate=3e-4, n_steps=20)),
    )
    """what is erased, the concept's name alone or all prompts with it, and how; the next only if
    none before is perfect"""
    adv_unlearn: Sequence[tuple[str, AdvUnlearnSettings]] = (
        ("name", AdvUnlearnSettings((60, 120, 200), 1e-4, n_steps=20, warm_up=20, attack_every=10)),
        (
            "prompts",
            AdvUnlearnSettings((60, 120, 240), 1e-4, n_steps=20, warm_up=20, attack_every=10),
        ),
    )
    """as ESD's"""
    salun: Sequence[SalUnSettings] = (
        SalUnSettings(iterations=(30, 60), learning_rate=1e-4),
        SalUnSettings(iterations=(240,), learning_rate=1e-4),
    )
    """the next only if none before is perfect"""
    examples_per_prompt: int = 8
    """SalUn's pictures to forget"""
    retained: int = 90
    """SalUn's pictures to retain, of one prompt each"""


@dataclass(frozen=True)
class Bench:
    """What all methods are made from."""

    root: Path
    """where trained weights are kept"""
    model: Model
    run: RunSettings
    store: Store
    hooks: Sequence[str]
    saes: Sequence[str]
    """names of SAEs of these hooks"""
    grid: Grid
    ledger: Ledger
    pace: Pace = field(default_factory=Pace)
    basis: Mapping[str, Any] = field(default_factory=dict)
    """what every outcome depends on beside its own setting: weights, libraries"""
    collected: str = ""
    """a hash of what the store was collected for"""
    batch_size: int = 20


def removal(bench: Bench, defence: Defence) -> Removal:
    """Return a defence as what is evaluated; it is attached anew for every batch."""

    def images(prompts: Sequence[Prompt]) -> Iterator[Any]:
        for start in range(0, len(prompts), bench.batch_size):
            batch = prompts[start : start + bench.batch_size]
            with bench.pace.checked(defence.attached)():
                pictures = generate_batch(
                    bench.model, defence.run, [p.prompt for p in batch], [p.seed for p in batch]
                )
            yield from pictures

    return Removal(defence.targets, defence.setting, images, defence.stored_bytes)


def ours(
    bench: Bench,
    sae: str,
    family: str,
    concept: str,
    tops: Sequence[int],
    *,
    multipliers: Sequence[float],
    thresholds: Sequence[float] = (1.0,),
) -> list[Defence]:
    """Return the paper's rule over features per step, multipliers and thresholds."""
    selections = [select(bench.store, sae, family, concept, top=top) for top in tops]
    settings = itertools.product(selections, multipliers, thresholds)
    return [features(bench, [Intervention(one, strength=m, threshold=t)]) for one, m, t in settings]


def features(
    bench: Bench, interventions: Sequence[Intervention], mode: str = "paper", method: str = "ours"
) -> Defence:
    """Return the defence of some interventions with the bench's SAEs."""
    targets = grouped((one.selection.family, one.selection.concept) for one in interventions)
    as_removal = ablation_removal(
        bench.model, bench.run, targets, interventions, mode=mode, batch_size=bench.batch_size
    )
    setting = {**as_removal.setting, "method": method}
    saes: dict[str, SAE] = {}

    def attached() -> AbstractContextManager[Any]:
        for one in interventions:
            if one.selection.sae not in saes:
                saes[one.selection.sae] = store_sae(bench.store, one.selection.sae)
        return ablate(bench.model.pipe, interventions, saes=saes, mode=mode)

    return Defence(targets, setting, attached, bench.run, as_removal.stored_bytes, interventions)


def random_control(bench: Bench, chosen: Intervention) -> Defence:
    """Return the chosen setting with random features in the place of the selected ones."""
    selection = chosen.selection
    scores = ask(bench.store, "importance", {"sae": selection.sae, "family": selection.family})
    control = replace(chosen, selection=random_selection(selection, scores))
    return features(bench, [control], method="random features")


CONTROLS: dict[str, Callable[[Bench, Intervention], Defence]] = {
    "ours, no error": lambda bench, chosen: features(bench, [chosen], "no-error", "ours, no error"),
    "released arithmetic": lambda bench, chosen: features(
        bench, [chosen], "saeuron", "released arithmetic"
    ),
    "random features": random_control,
}
"""method → our chosen setting with one thing made otherwise"""


def negative_prompts(bench: Bench, family: str, concept: str) -> list[list[Defence]]:
    """Return negative prompts that name the concept."""
    texts = [concept, f"in {concept} style" if family == "style" else f"An image of {concept}."]
    return [[
        Defence(
            {family: [concept]}, {"method": "negative prompt", "text": text}, contextlib.nullcontext,
            replace(bench.run, negative_prompt=text),
        )
        for text in texts
    ]]  # fmt: skip


def mean_direction(bench: Bench, family: str, concept: str) -> list[list[Defence]]:
    """Return differences of means over hooks and strengths, subtracted or projected out."""
    found = []
    for hook in bench.hooks:
        directions = mean_directions(bench.store, hook, family, concept)
        for strength, project in itertools.product(bench.grid.strengths, (False, True)):
            found.append(_steered(bench, family, concept, directions, strength, project))
    return [found]


def _steered(
    bench: Bench, family: str, concept: str, directions: Directions, strength: float, project: bool
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


def esd(bench: Bench, family: str, concept: str) -> list[list[Defence]]:
    """Return ESD-x over lengths of training, a group for each choice of what is erased."""

    stored = _bytes(trained_weights(bench.model.pipe.unet))
    code, found = code_of("esd", "diffusion"), []
    for erased, settings in bench.grid.esd:
        asked = _erased(erased, family, concept)
        what = {"method": "ESD-x", "erased": erased, "texts": _hash(asked), "code": code}
        train = partial(train_esd, bench.model.pipe, asked, settings)
        found.append(_trained(bench, family, concept, what, settings, train, stored))
    return found


def adv_unlearn(bench: Bench, family: str, concept: str) -> list[list[Defence]]:
    """Return AdvUnlearn over lengths of training, a group for each choice of what is erased; what
    is retained are prompts with the family's other concepts."""
    others = [c for c in FAMILIES[family] if c != concept]
    retained = [p for c in others for p in _prompts_of(family, c)]
    stored = _bytes(trained_parameters(bench.model.pipe.text_encoder))
    code, found = code_of("adv_unlearn", "esd", "diffusion"), []
    for erased, settings in bench.grid.adv_unlearn:
        asked = _erased(erased, family, concept)
        texts = _hash([asked, retained])
        what = {"method": "AdvUnlearn", "erased": erased, "texts": texts, "code": code}
        train = partial(train_adv_unlearn, bench.model.pipe, asked, retained, settings)
        part = "text_encoder"
        found.append(_trained(bench, family, concept, what, settings, train, stored, part))
    return found


def salun(bench: Bench, family: str, concept: str) -> list[list[Defence]]:
    """Return SalUn over lengths of training, a group for each training; the pictures are the
    untouched model's own."""

    asked, pseudo, kept = _example_prompts(bench.grid, family, concept)

    def train(settings: SalUnSettings) -> dict[int, dict[str, Tensor]]:
        forget, retain = _drawn(bench, asked), _drawn(bench, kept)
        return train_salun(bench.model.pipe, forget, pseudo, retain, settings)

    texts, code = _hash([asked, pseudo, kept]), code_of("salun", "diffusion")
    what = {"method": "SalUn", "texts": texts, "code": code}
    stored = _bytes(dict(bench.model.pipe.unet.named_parameters()))
    return [
        _trained(bench, family, concept, what, settings, partial(train, settings), stored)
        for settings in bench.grid.salun
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


def _bytes(weights: dict[str, Any]) -> int:
    """Return what weights take as float16."""
    return 2 * sum(p.numel() for p in weights.values())


def _erased(erased: str, family: str, concept: str) -> list[str]:
    """Return the prompts that are erased: the concept's name alone, or all with it."""
    if erased == "prompts":
        return _prompts_of(family, concept)
    return [f"An image in {concept} style." if family == "style" else prompt(concept)]


def _prompts_of(family: str, concept: str) -> list[str]:
    if family == "style":
        return [prompt(o, concept) for o in OBJECTS]
    return [prompt(concept, s) for s in STYLES]


def _trained(
    bench: Bench,
    family: str,
    concept: str,
    what: dict[str, str],
    settings: ESDSettings | AdvUnlearnSettings | SalUnSettings,
    train: Callable[[], dict[int, dict[str, Tensor]]],
    stored: int,
    component: str = "unet",
) -> list[Defence]:
    """Return weights as defences, one for each length of a training: trained once, then kept."""
    how = {**what, **{k: v for k, v in asdict(settings).items() if k != "iterations"}}
    method, key = what["method"], _hash([how, family, concept, dict(bench.basis)])
    name = f"{method}-{family}-{concept}-{key}"

    def path(n: int) -> Path:
        return bench.root / "weights" / f"{name}-{n}.safetensors"

    def defence(length: int) -> Defence:
        def prepare() -> None:
            if path(length).is_file():
                return
            began = time.perf_counter()
            trained = train()
            seconds = time.perf_counter() - began
            for n, weights in trained.items():
                data = safetensors.torch.save(
                    {name: w.half().contiguous() for name, w in weights.items()}
                )
                durable.write_bytes(path(n), data)
            concepts = {"family": family, "concept": concept, "basis": _hash(dict(bench.basis))}
            bench.ledger.add(key, kind="training", method=method, seconds=seconds, **concepts)

        @contextlib.contextmanager
        def attached() -> Iterator[None]:
            weights = {n: w.float() for n, w in safetensors.torch.load_file(path(length)).items()}
            with with_weights(getattr(bench.model.pipe, component), weights):
                yield

        setting = {**how, "iterations": length}
        last = path(max(settings.iterations))
        return Defence(
            {family: [concept]},
            setting,
            attached,
            bench.run,
            stored,
            prepare=prepare,
            training=last,
        )

    return [defence(length) for length in settings.iterations]


def training_seconds(bench: Bench, method: str) -> list[float]:
    """Return how long each known training of a method took, to the longest length that is tried."""
    basis = _hash(dict(bench.basis))
    rows = bench.ledger.of_kind("training")
    return [r["seconds"] for r in rows if r["method"] == method and r["basis"] == basis]


@functools.cache
def code_of(*modules: str) -> str:
    """Return a hash of what modules of this folder compute: comments, docstrings and layout change
    nothing."""
    texts = []
    for module in modules:
        tree = ast.parse(Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(body := getattr(node, "body", None), list):
                node.body = [one for one in body if not _is_text(one)]  # type: ignore[attr-defined]
        texts.append(ast.unparse(tree))
    return _hash(texts)


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _hash(what: Any) -> str:
    return sha256_text(canonical_json(what))[:16]


def _example_prompts(
    grid: Grid, family: str, concept: str
) -> tuple[list[str], list[str], list[str]]:
    """Return the prompts of pictures to forget, those to tie them to, and those to retain."""
    concepts = [c for c in FAMILIES[family] if c != concept]
    asked = [p for p in _prompts_of(family, concept) for _ in range(grid.examples_per_prompt)]
    pseudo = [p.replace(concept, concepts[i % len(concepts)]) for i, p in enumerate(asked)]
    others = [p for c in concepts for p in _prompts_of(family, c)]
    kept = others[:: max(1, len(others) // grid.retained)][: grid.retained]
    return asked, pseudo, kept


def _drawn(bench: Bench, prompts: list[str]) -> Examples:
    """Return pictures that the untouched model draws."""
    latents = []
    for start in range(0, len(prompts), bench.batch_size):
        batch = prompts[start : start + bench.batch_size]
        seeds = [100_000 + start + i for i in range(len(batch))]
        latents += generate_batch(bench.model, bench.run, batch, seeds, output_type="latent")
    return Examples(torch.stack(latents), prompts)
