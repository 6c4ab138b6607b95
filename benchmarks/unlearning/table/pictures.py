"""What each method leaves of a concept's pictures, and of others: one grid to look at."""

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from benchmarks.unlearning.methods.defence import Defence, removal
from benchmarks.unlearning.table.run import Run
from featurestore.prompts import Prompt
from sae.diffusion.pipelines import generate

N_ASKED, N_OTHERS, SIDE, MARGIN, LABEL = 4, 5, 96, 4, 150


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
    return _grid(rows, prompts, len(asked))


def _spread(prompts: Sequence[Prompt], n: int) -> list[Prompt]:
    """Return n of them, going through both families of labels."""
    n = min(n, len(prompts))
    stride = len(prompts) // n
    if (stride + 1) * (n - 1) < len(prompts):
        stride += 1  # A whole number of rows would meet the same label again.
    return list(prompts[: stride * n : stride])[:n]


def _grid(
    rows: Mapping[str, Sequence[Image.Image]], prompts: Sequence[Prompt], n_asked: int
) -> Image.Image:
    step, font = SIDE + MARGIN, ImageFont.load_default(13)
    left, top = (
        [LABEL + i * step + (3 * MARGIN if i >= n_asked else 0) for i in range(len(prompts))],
        40,
    )
    grid = Image.new("RGB", (left[-1] + step, top + len(rows) * step), "white")
    pen = ImageDraw.Draw(grid)
    for x, prompt in zip(left, prompts, strict=True):
        pen.multiline_text(
            (x, 4), f"{prompt.labels['object']}\n{prompt.labels['style']}", "black", font
        )
    for i, (method, images) in enumerate(rows.items()):
        y = top + i * step
        pen.text((4, y + SIDE // 2 - 8), method, "black", font)
        for x, image in zip(left, images, strict=True):
            grid.paste(image.resize((SIDE, SIDE), Image.Resampling.NEAREST), (x, y))
    return grid
