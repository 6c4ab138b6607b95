"""Generate pictures into a directory, with or without selected features."""

import contextlib
import functools
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from featurestore.errors import SelectionError
from featurestore.format import durable
from featurestore.prompts import Prompt
from featurestore.saes import sae_files_hash
from featurestore.selection import Selection
from sae.checkpoint import load_sae, load_selection_sae
from sae.diffusion.pipelines import Model, RunSettings, check_branch, describe_run
from sae.diffusion.pipelines import generate as generate_batch
from sae.intervention.ablate import ablate
from sae.intervention.settings import ALWAYS, Intervention
from sae.model import SAE


@dataclass(frozen=True)
class Ablation:
    """What is taken out."""

    selections: Sequence[Selection | Intervention]
    multiplier: float = -5.0
    """of the plain selections"""
    saes: Sequence[Path] = ()
    """directories of the SAEs' files, each with its SAE's name unless there is one only; (): in the stores that are named"""
    mode: str = "paper"

    @property
    def interventions(self) -> list[Intervention]:
        """All of them; a plain selection stands for the paper's rule."""
        return [
            Intervention(one, strength=self.multiplier) if isinstance(one, Selection) else one
            for one in self.selections
        ]


@contextlib.contextmanager
def _ablated(model: Model, ablation: Ablation | None, saes: dict[str, SAE]) -> Iterator[None]:
    if ablation is None:
        yield
        return
    with ablate(model.pipe, ablation.interventions, sae=saes or None, mode=ablation.mode):
        yield


def _load_saes(ablation: Ablation) -> dict[str, SAE]:
    """Return the SAEs by the hashes that the selections have for them, each loaded once.

    Raises:
        SelectionError: a directory's SAE is not the one that a selection was made with.
    """
    directories = {path.resolve().name: path for path in ablation.saes}
    saes: dict[str, SAE] = {}
    for intervention in ablation.interventions:
        selection = intervention.selection
        if selection.sae_hash in saes:
            continue
        path = ablation.saes[0] if len(ablation.saes) == 1 else directories.get(selection.sae)
        if path is not None and (found := sae_files_hash(path)) != selection.sae_hash:
            raise SelectionError(
                f"the selection {selection.family}={selection.concept} was made with SAE {selection.sae!r} "
                f"({selection.sae_hash[:12]}…), {path} is another ({found[:12]}…)."
            )
        saes[selection.sae_hash] = load_sae(path) if path is not None else load_selection_sae(selection)
    return saes


def generate_images(
    model: Model,
    prompts: Sequence[Prompt],
    run: RunSettings,
    ablation: Ablation | None = None,
    batch_size: int = 8,
    progress: str | None = "generate",
) -> Iterator[Any]:
    """Yield a PIL image for each prompt, in order; ``progress`` names the bar, None: no bar.

    Raises:
        SelectionError: a selection does not fit the model or the SAE.
        UsageError: the unconditional half is to be edited, and the run has none.
    """
    saes: dict[str, SAE] = {}
    if ablation is not None:
        for intervention in ablation.interventions:
            for branch in intervention.branches:
                check_branch(model, run, branch)
        saes = _load_saes(ablation)
    counts_calls = ablation is not None and ablation.mode == "saeuron"
    with contextlib.ExitStack() as stack:
        if not counts_calls:
            stack.enter_context(_ablated(model, ablation, saes))
        bar = stack.enter_context(
            tqdm(total=len(prompts), desc=progress, unit="picture", disable=None if progress else True)
        )
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            with _ablated(model, ablation if counts_calls else None, saes):
                images = generate_batch(model, run, [p.prompt for p in batch], [p.seed for p in batch])
            yield from images
            bar.update(len(batch))


def generate_files(
    out: Path,
    model: Model,
    prompts: Sequence[Prompt],
    run: RunSettings,
    ablation: Ablation | None = None,
    batch_size: int = 8,
    progress: bool = True,
) -> list[Path]:
    """Write a PNG for each prompt and ``generated.jsonl``, one line a file, into ``out``; returns the files.

    Pictures that are there already, from the same command, are replaced; each is whole or absent.
    """
    settings = describe_run(model, run)
    edited = [described(one) for one in ablation.interventions] if ablation else []
    how = {"ablated": edited, "mode": ablation.mode if ablation else None}
    lines, files = [], []
    images = generate_images(model, prompts, run, ablation, batch_size, "generate" if progress else None)
    for index, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
        path = out / f"{index:05d}-{_slug(prompt.prompt)}-{prompt.seed}.png"
        durable.write_file(path, functools.partial(image.save, format="PNG"))
        lines.append({"file": path.name, "prompt": prompt.prompt, "seed": prompt.seed, **prompt.labels, **how})
        files.append(path)
    body = [json.dumps({**line, "run": settings}, ensure_ascii=False) for line in lines]
    durable.write_bytes(out / "generated.jsonl", "".join(f"{line}\n" for line in body).encode())
    return files


def described(one: Intervention) -> dict[str, Any]:
    """Return what an intervention does, as JSON."""
    selection, window = one.selection, one.window
    named = {"family": selection.family, "concept": selection.concept, "sae": selection.sae, "hook": selection.hook}
    ends = None if window == ALWAYS else {"first": window.first, "last": window.last, "parts": window.parts}
    rule = {"intervention": one.kind, "strength": one.strength, "branches": list(one.branches)}
    return {**named, **rule, "window": ends, "mask": _mask_hash(one)}


def _mask_hash(one: Intervention) -> str | None:
    return None if one.mask is None else hashlib.sha256(bytes(one.mask.flatten().tolist())).hexdigest()[:16]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "picture"
