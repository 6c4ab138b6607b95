"""Generate pictures into a directory, with or without selected features."""

import contextlib
import functools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from collectors.models import Model, RunSettings, check_branch, describe_run
from collectors.models import generate as generate_batch
from collectors.prompts import Prompt
from featurestore import durable
from featurestore.selection import Selection
from sae.ablate import ablate
from sae.checkpoint import load_sae


@dataclass(frozen=True)
class Ablation:
    """What is taken out."""

    selections: Sequence[Selection]
    multiplier: float = -5.0
    sae: Path | None = None
    """directory of the SAE's files; None: in the store that each selection names"""


@contextlib.contextmanager
def _ablated(model: Model, ablation: Ablation | None) -> Iterator[None]:
    if ablation is None:
        yield
        return
    sae = load_sae(ablation.sae) if ablation.sae is not None else None
    with ablate(model.pipe, ablation.selections, ablation.multiplier, sae):
        yield


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
        UsageError: a selection is of the unconditional half, and the run has none.
    """
    for selection in ablation.selections if ablation else ():
        check_branch(model, run, selection.branch)
    with (
        _ablated(model, ablation),
        tqdm(total=len(prompts), desc=progress, unit="picture", disable=None if progress else True) as bar,
    ):
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            yield from generate_batch(model, run, [p.prompt for p in batch], [p.seed for p in batch])
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
    described = describe_run(model, run)
    edited = (
        [{"family": s.family, "concept": s.concept, "sae": s.sae, "hook": s.hook} for s in ablation.selections]
        if ablation
        else []
    )
    how = {"ablated": edited, "multiplier": ablation.multiplier if ablation else None}
    lines, files = [], []
    images = generate_images(model, prompts, run, ablation, batch_size, "generate" if progress else None)
    for index, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
        path = out / f"{index:05d}-{_slug(prompt.prompt)}-{prompt.seed}.png"
        durable.write_file(path, functools.partial(image.save, format="PNG"))
        lines.append({"file": path.name, "prompt": prompt.prompt, "seed": prompt.seed, **prompt.labels, **how})
        files.append(path)
    body = [json.dumps({**line, "run": described}, ensure_ascii=False) for line in lines]
    durable.write_bytes(out / "generated.jsonl", "".join(f"{line}\n" for line in body).encode())
    return files


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "picture"
