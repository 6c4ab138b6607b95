"""What attacks bring back, looked at once more: typed as text, and by the other classifier."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import click
import torch
from PIL import Image

from benchmarks.unlearning.methods.defence import Defence
from benchmarks.unlearning.methods.keys import short_hash
from benchmarks.unlearning.table.run import Run
from sae.diffusion.pipelines import generate
from sae.evaluation.attack.hardening import shown_typed
from sae.evaluation.attack.prefix import prefixed
from sae.evaluation.attack.report import Attacked, AttackReport

TYPED, CONFIRMED = "typed", "confirmed"
"""kinds of rows in the ledger"""


def typed(run: Run, defence: Defence, report: AttackReport) -> AttackReport | None:
    """Draw what came back once more from its text: tokens need not be what a text is read as.

    Returns the report of what came back so; of words it is the same, and None where no texts were
    searched.
    """
    if report.method == "words":
        return report
    if report.method not in ("tokens", "random"):
        return None

    def by_its_text(one: Attacked, path: Path) -> bool:
        return shown_typed(run.bench.model, defence.run, run.judge, [one])[0]

    came_back = [one.succeeded for one in report.pictures]
    return _again(TYPED, run, defence, report, asked=came_back, look=by_its_text)


def confirmed(run: Run, defence: Defence, report: AttackReport) -> AttackReport:
    """Return the report of what the classifier sees, too, that settings are chosen by.

    An attack asks the judge after each round and ends with what it sees first, so some of it is a
    picture that only this judge takes for the concept.
    """

    def by_the_other(one: Attacked, path: Path) -> bool:
        picture = attacked_picture(run, defence, one, path)
        return run.chooser.sees([picture], [(one.family, one.concept)])[0]

    shown = [one.shown_under_attack for one in report.pictures]
    return _again(CONFIRMED, run, defence, report, asked=shown, look=by_the_other)


def attacked_picture(run: Run, defence: Defence, one: Attacked, path: Path) -> Image.Image:
    """Return the picture that an attack ended with, as it was kept beside ``path``, or drawn from
    its tokens by the defence, which the caller attaches; without rounds the one without an attack.

    Raises:
        ClickException: it is not there, and the attack found no tokens.
    """
    kept = path.with_name(f"{path.stem}-{'attacked' if one.rounds else 'defended'}.png")
    if kept.is_file():
        with Image.open(kept) as image:
            return image.convert("RGB")
    model, asked = run.bench.model, ([one.prompt], [one.seed])
    if not one.rounds:
        return generate(model, defence.run, *asked)[0]
    if "tokens" not in one.found:
        raise click.ClickException(
            f"{kept.name} is not there, and {one.method} found no tokens to draw it from: remove "
            f"row {path.stem} from {run.bench.ledger.path}, and it is attacked anew."
        )
    with prefixed(model.pipe, asked[0], [torch.tensor([ids]) for ids in one.found["tokens"]]):
        return generate(model, defence.run, *asked)[0]


def _again(
    kind: str,
    run: Run,
    defence: Defence,
    report: AttackReport,
    *,
    asked: Sequence[bool],
    look: Callable[[Attacked, Path], bool],
) -> AttackReport:
    """Return a report in which those that are ``asked`` about show their concept only if ``look``
    says so, too: from the ledger, or looked at and added to it."""
    bench, pictures = run.bench, []
    for one, path, is_asked in zip(report.pictures, report.paths, asked, strict=True):
        key = short_hash([kind, path.stem])
        if is_asked and key not in bench.ledger.rows:
            bench.pace.check()
            if bench.pace.counting:
                bench.pace.count(key, "picture")
            else:
                defence.prepare()
                with defence.attached():
                    shown = look(one, path)
                of = {"method": defence.setting["method"], "concept": one.concept}
                bench.ledger.add(key, kind=kind, succeeded=shown, **of)
        no = is_asked and key in bench.ledger.rows and not bench.ledger.rows[key]["succeeded"]
        pictures.append(replace(one, shown_before=False, succeeded=False) if no else one)
    return replace(report, pictures=pictures)
