"""The two ways in: evaluate what removes concepts from a model, or score a folder of pictures that
exist already."""

import functools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from featurestore.errors import UsageError
from featurestore.format import durable
from featurestore.prompts import Prompt
from sae.diffusion.pipelines import Model, RunSettings
from sae.evaluation.attack.attacking import attack
from sae.evaluation.attack.settings import AttackSettings
from sae.evaluation.judge import Judge, check_labels
from sae.evaluation.measures.accuracy import Targets, asks
from sae.evaluation.measures.frechet import frechet_distance
from sae.evaluation.outcomes import Outcome, Reference
from sae.evaluation.pictures import check_pictures, read_pictures
from sae.evaluation.protocols import Evaluation, Say, Search, run_protocol
from sae.evaluation.removals import Request
from sae.evaluation.report import report
from sae.evaluation.together import NOTHING_KEPT, Toward
from sae.intervention.settings import Intervention

FILE = "evaluation.json"


def evaluate(
    model: Model,
    requests: Sequence[Request],
    *,
    prompts: Sequence[Prompt],
    judge: Judge,
    out: Path,
    run: RunSettings | None = None,
    protocol: str = "each",
    search: Search | None = None,
    search_attack: AttackSettings | None = None,
    search_pictures: int = 2,
    toward: Toward = NOTHING_KEPT,
    reference: Path | None = None,
    mode: str = "paper",
    saes: Sequence[Path] = (),
    batch_size: int = 8,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Remove concepts by a protocol, draw every prompt, judge, and return the figures; keep them in
    ``out``.

    ``requests`` are made by :func:`sae.evaluation.removals.requests`. What is in ``out`` already
    is read, so that an interrupted call goes on. ``run`` is by default the model's own. With
    ``search_attack`` the best settings of a search are attacked on ``search_pictures`` of its
    pictures, and the first is taken of which nothing comes back. ``toward``: what is
    removed is edited towards. ``reference`` is a folder of pictures to measure
    the distance of retained pictures from, by default the untouched model's pictures.

    Raises:
        UsageError: the judge cannot answer a label, what is reported on is searched on, or a search
            has no prompt for a concept, or there is an attack and no search; nothing was drawn.
        SelectionError: a selection was made for another model or SAE.
    """
    check_labels(judge, [*(p.labels for p in prompts), *({r.family: r.concept} for r in requests)])
    if search is not None:
        check_labels(search.judge, (p.labels for p in search.prompts))
    evaluation = Evaluation.in_folder(
        out,
        model=model,
        run=run,
        prompts=prompts,
        judge=judge,
        batch_size=batch_size,
        mode=mode,
        saes=saes,
    )
    if search_attack is not None:
        if search is None:
            raise UsageError(
                "an attack in the search, and no search: say what settings are chosen by."
            )
        comes_back = functools.partial(
            _attacked,
            evaluation=evaluation,
            search=search,
            settings=search_attack,
            pictures=search_pictures,
            out=out / "search-attacks",
        )
        search = replace(search, comes_back=comes_back)
    before, outcomes = run_protocol(
        evaluation,
        requests,
        protocol,
        search=search,
        reference=None if reference is None else Reference(_features(judge, reference)),
        say=say,
        toward=toward,
    )
    body = report(evaluation, before, outcomes, protocol=protocol, search=search)
    durable.write_bytes(
        out / FILE, (json.dumps(body, indent=1, ensure_ascii=False) + "\n").encode()
    )
    return body


def score_folder(
    pictures: Path,
    *,
    judge: Judge,
    targets: Targets,
    names: Sequence[str] = (),
    reference: Path | None = None,
) -> Outcome:
    """Judge a folder of pictures that were drawn while ``targets`` were removed, by whomever.

    ``names`` are patterns of the files' names, as :func:`sae.evaluation.pictures.read_pictures`
    takes them. Seconds and memory of the outcome are None: they are not known.

    Raises:
        UsageError: the judge cannot answer a target or a label, or fewer than two pictures can be
            compared with ``reference``.
        PromptsError: the folder, its list or a picture cannot be read.
        ModelError: a picture is black.
    """
    check_labels(
        judge, [{family: concept} for family, concepts in targets.items() for concept in concepts]
    )
    found = read_pictures(pictures, names, judge.labels)
    check_labels(judge, [p.labels for p in found])
    images = [picture.open() for picture in found]
    check_pictures(images, [picture.path.name for picture in found])
    outcome = Outcome(
        {f: list(c) for f, c in targets.items()}, {}, judge.name, judge.answers(found, images)
    )
    if reference is not None:
        kept = [
            image for image, p in zip(images, found, strict=True) if not asks(p.labels, targets)
        ]
        if len(kept) < 2:
            raise UsageError(
                f"--reference: {len(kept)} of the {len(found)} pictures in {pictures} ask for "
                f"nothing that was removed, and a distance needs two at least."
            )
        outcome.frechet = frechet_distance(judge.features(kept), _features(judge, reference, names))
    return outcome


def _attacked(
    edits: Sequence[Intervention],
    *,
    evaluation: Evaluation,
    search: Search,
    settings: AttackSettings,
    pictures: int,
    out: Path,
) -> float:
    """Return which share of attacked pictures of a search shows what ``edits`` remove."""
    report = attack(
        evaluation.model,
        edits,
        prompts=search.prompts,
        judge=search.judge,
        out=out,
        settings=settings,
        run=evaluation.run,
        saes=evaluation.saes,
        mode=evaluation.mode,
        pictures=pictures,
        batch_size=evaluation.batch_size,
        progress=False,
    )
    return report.under_attack.value


def _features(judge: Judge, folder: Path, names: Sequence[str] = ()) -> Any:
    return judge.features(
        [picture.open() for picture in read_pictures(folder, names, judge.labels)]
    )
