"""What each method leaves of a concept's pictures and of others, and what an attack brings back:
grids to look at."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from benchmarks.unlearning.methods.defence import Defence, removal
from benchmarks.unlearning.table.looking_again import attacked_picture
from benchmarks.unlearning.table.run import Run
from featurestore.prompts import Prompt
from sae.diffusion.pipelines import generate
from sae.evaluation.attack.report import Attacked, AttackReport

N_ASKED, N_OTHERS, SIDE, MARGIN, LABEL = 4, 5, 96, 4, 175
HEAD = 40
"""height of the columns' names"""


def draw(run: Run, family: str, concept: str, defences: Mapping[str, Defence]) -> Image.Image:
    """Return a grid: a row a method, the untouched model's first; columns of the concept, then of
    others, one seed."""
    seed = run.amounts.report_seeds[0]
    styled = [p for p in run.prompts if p.seed == seed and p.labels["style"] is not None]
    asked = _spread([p for p in styled if p.labels[family] == concept], N_ASKED)
    others = _spread([p for p in styled if p.labels[family] != concept], N_OTHERS)
    prompts = asked + others
    untouched = generate(
        run.bench.model, run.bench.run, [p.prompt for p in prompts], [p.seed for p in prompts]
    )
    rows = {"untouched": untouched}
    for method, defence in defences.items():
        defence.prepare()
        rows[method] = list(removal(run.bench, defence).images(prompts))
    heads = [f"{p.labels['object']}\n{p.labels['style']}" for p in prompts]
    return _grid(rows, heads, {len(asked)})


def draw_attacked(
    run: Run,
    defences: Mapping[str, Mapping[str, Defence]],
    attacks: Mapping[str, AttackReport],
) -> Image.Image:
    """Return a grid: a row a method, the untouched model's first; of each concept the first
    picture, without an attack and with the tokens that the attack ended with, framed where it came
    back.

    A concept is left out where some method's attack on it is missing. ``defences``: concept →
    method → defence. ``attacks``: method → its attacks with tokens.
    """
    firsts = {method: _firsts(report) for method, report in attacks.items()}
    concepts = [c for c in defences if all(c in found for found in firsts.values())]
    any_method = next(iter(firsts.values()))
    model, framed = run.bench.model, set[tuple[str, int]]()
    rows: dict[str, list[Image.Image | None]] = {"untouched": []}
    for concept in concepts:
        one, _ = any_method[concept]
        rows["untouched"] += [*generate(model, run.bench.run, [one.prompt], [one.seed]), None]
    for method, found in firsts.items():
        row = rows.setdefault(method, [])
        for concept in concepts:
            (one, path), defence = found[concept], defences[concept][method]
            defence.prepare()
            with defence.attached():
                row += generate(model, defence.run, [one.prompt], [one.seed])
                # Without rounds it is shown without an attack.
                row.append(attacked_picture(run, defence, one, path) if one.rounds else None)
            if one.rounds and one.succeeded:
                framed.add((method, len(row) - 1))
    heads = [head for concept in concepts for head in (concept, "under attack")]
    return _grid(rows, heads, range(2, len(heads), 2), framed)


def _firsts(report: AttackReport) -> dict[str, tuple[Attacked, Path]]:
    """Return each concept's first picture, and where its outcome is."""
    pairs = zip(reversed(report.pictures), reversed(report.paths), strict=True)
    return {one.concept: (one, path) for one, path in pairs}


def _spread(prompts: Sequence[Prompt], n: int) -> list[Prompt]:
    """Return n of them, going through both families of labels."""
    n = min(n, len(prompts))
    stride = len(prompts) // n
    if (stride + 1) * (n - 1) < len(prompts):
        stride += 1  # A whole number of rows would meet the same label again.
    return list(prompts[: stride * n : stride])[:n]


def _grid(
    rows: Mapping[str, Sequence[Image.Image | None]],
    heads: Sequence[str],
    gaps: Collection[int],
    framed: Collection[tuple[str, int]] = (),
) -> Image.Image:
    """Return rows of pictures under the names of their columns; ``gaps``: columns with more room
    before them; ``framed``: rows and columns of those in a red frame."""
    step, font = SIDE + MARGIN, ImageFont.load_default(13)
    left = [
        LABEL + i * step + 3 * MARGIN * sum(gap <= i for gap in gaps) for i in range(len(heads))
    ]
    grid = Image.new("RGB", (left[-1] + step, HEAD + len(rows) * step), "white")
    pen = ImageDraw.Draw(grid)
    for x, head in zip(left, heads, strict=True):
        pen.multiline_text((x, 4), head, "black", font)
    for i, (name, images) in enumerate(rows.items()):
        y = HEAD + i * step
        pen.text((4, y + SIDE // 2 - 8), name, "black", font)
        for j, (x, image) in enumerate(zip(left, images, strict=True)):
            if image is None:
                continue
            grid.paste(image.resize((SIDE, SIDE), Image.Resampling.NEAREST), (x, y))
            if (name, j) in framed:
                pen.rectangle((x, y, x + SIDE - 1, y + SIDE - 1), outline="red", width=3)
    return grid
