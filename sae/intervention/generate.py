"""Generate pictures into a directory, with or without selected features."""

import contextlib
import functools
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from featurestore.format import durable
from featurestore.prompts import Prompt, prompt_batches
from featurestore.vocabulary import STARTS
from sae.diffusion.faults import picture_fault, say_faults
from sae.diffusion.pipelines import (
    Model,
    RunSettings,
    check_branch,
    describe_run,
    with_guidance,
    with_starts,
)
from sae.diffusion.pipelines import generate as generate_batch
from sae.intervention.ablate import Saes, ablate, find_saes
from sae.intervention.settings import Intervention
from sae.model import SAE

LIST = "generated.jsonl"
NOT_LABELS = frozenset(
    ("file", "prompt", "seed", "guidance", "ablated", "mode", "fault", "run")
) | {f"start_{kind}" for kind in STARTS}
"""fields of its lines that are no labels"""


def generate_images(
    model: Model,
    prompts: Sequence[Prompt],
    run: RunSettings,
    interventions: Sequence[Intervention] = (),
    *,
    saes: Saes = None,
    mode: str = "paper",
    batch_size: int = 8,
    progress: str | None = "generate",
) -> Iterator[Any]:
    """Yield a PIL image for each prompt, in order; ``progress`` names the bar, None: no bar.

    ``saes`` and ``mode`` as :func:`sae.intervention.ablate.attach`.

    Raises:
        SelectionError: a selection does not fit the model or the SAE.
        UsageError: the unconditional half is to be edited, and the run has none.
    """
    run = with_starts(model.pipe, run, prompts)
    scales = {prompt.guidance for prompt in prompts}
    for branch in {branch for one in interventions for branch in one.branches}:
        for scale in scales:
            check_branch(model, with_guidance(run, scale), branch)
    found = find_saes((one.selection for one in interventions), saes)
    edited = functools.partial(_edited, model, interventions, found, mode)
    counts_calls = mode == "saeuron"
    with contextlib.ExitStack() as stack:
        if not counts_calls:
            stack.enter_context(edited())
        bar = stack.enter_context(
            tqdm(
                total=len(prompts),
                desc=progress,
                unit="picture",
                disable=None if progress else True,
            )
        )
        for batch in prompt_batches(prompts, batch_size):
            own = with_guidance(run, batch[0].guidance)
            with edited() if counts_calls else contextlib.nullcontext():
                asked, seeds = [p.prompt for p in batch], [p.seed for p in batch]
                starts = [p.starts for p in batch]
                images = generate_batch(model, own, asked, seeds, starts=starts)
            yield from images
            bar.update(len(batch))


@contextlib.contextmanager
def _edited(
    model: Model, interventions: Sequence[Intervention], saes: Mapping[str, SAE], mode: str
) -> Iterator[None]:
    if not interventions:
        yield
        return
    with ablate(model.pipe, interventions, saes=saes, mode=mode):
        yield


def generate_files(
    out: Path,
    model: Model,
    prompts: Sequence[Prompt],
    run: RunSettings,
    *,
    interventions: Sequence[Intervention] = (),
    saes: Saes = None,
    mode: str = "paper",
    batch_size: int = 8,
    progress: bool = True,
) -> list[Path]:
    """Write a PNG for each prompt and ``generated.jsonl``, one line per file, into ``out``; return
    the files.

    Pictures that are there already, from the same command, are replaced; each is whole or absent.
    Of pictures that are no results (:func:`sae.diffusion.faults.picture_fault`),
    ``generated.jsonl`` says why, and a warning names them. Raises as :func:`generate_images`.
    """
    run = with_starts(model.pipe, run, prompts)
    settings = describe_run(model, run)
    how = {
        "ablated": [one.described() for one in interventions],
        "mode": mode if interventions else None,
    }
    lines, files, faults = [], [], dict[str, str]()
    bar = "generate" if progress else None
    images = generate_images(
        model,
        prompts,
        run,
        interventions,
        saes=saes,
        mode=mode,
        batch_size=batch_size,
        progress=bar,
    )
    for index, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
        path = out / f"{index:05d}-{_slug(prompt.prompt)}-{prompt.seed}.png"
        durable.write_file(path, functools.partial(image.save, format="PNG"))
        line = {
            "file": path.name,
            "prompt": prompt.prompt,
            "seed": prompt.seed,
            **prompt.labels,
            **how,
            **_own(prompt),
        }
        fault = picture_fault(image)
        if fault is not None:
            line["fault"] = faults[path.name] = fault
        lines.append(line)
        files.append(path)
    if faults:
        warnings.warn(say_faults(faults, len(files)), stacklevel=2)
    body = [json.dumps({**line, "run": settings}, ensure_ascii=False) for line in lines]
    durable.write_bytes(out / LIST, "".join(f"{line}\n" for line in body).encode())
    return files


def _own(prompt: Prompt) -> dict[str, Any]:
    own = {f"start_{kind}": sha256 for kind, sha256 in prompt.start_hashes.items()}
    return own if prompt.guidance is None else {"guidance": prompt.guidance, **own}


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "picture"
