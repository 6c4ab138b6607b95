"""The pictures of ``docs/gallery.md``, from the demo's store and model; ``make gallery`` runs this.

Prompts and seed are the same for every concept, and settings are searched by another classifier on
other seeds, as ``featurestore evaluate`` does: no picture is picked out.
"""

import io
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from featurestore import Store
from featurestore.cli.demo.settings import STUDIES, Study
from featurestore.prompts import Prompt
from minicanvas import OBJECTS, STYLES, prompt
from queries import ask, plots, select
from sae import Intervention, RunSettings, load_model
from sae.evaluation.judge import load_judge
from sae.intervention.generate import generate_images

OUT = Path(__file__).parent / "images" / "gallery"
SEED = 100  # never collected
SEARCH_SEEDS = (50, 51)
SETTINGS = [(top, strength) for top in (2, 8) for strength in (-0.5, -1.0, -5.0, -20.0)]
N_CONCEPTS = 6  # of each family
MULTIPLIERS = (0.0, -0.2, -0.5, -1.0, -2.0, -5.0, -20.0)
SIDE = 128
LABEL = 18
OTHERS = {"style": ("cat", "house", "star", "boat", "flower", "heart"), "object": STYLES}


def prompts(family: str) -> list[tuple[str, Prompt]]:
    """Return the concepts shown, each with its prompt: with another object, or style, every
    time."""
    concepts = (STYLES if family == "style" else OBJECTS)[:N_CONCEPTS]
    found = []
    for concept, other in zip(concepts, OTHERS[family], strict=False):
        style, thing = (concept, other) if family == "style" else (other, concept)
        found.append(
            (concept, Prompt(prompt(thing, style), SEED, {"style": style, "object": thing}, 1))
        )
    return found


def draw(store: Store) -> None:
    """Write every picture."""
    OUT.mkdir(parents=True, exist_ok=True)
    model = load_model("minicanvas")
    run = RunSettings(model.steps, model.guidance)

    def drawn(asked: Prompt, edits: list[Intervention]) -> Image.Image:
        return next(iter(generate_images(model, [asked], run, edits, progress=None)))

    keep(twelve(store, drawn), "concepts")
    keep(multipliers(store, drawn), "multipliers")
    for study in STUDIES:
        best = ask(
            store, "best_features", {"sae": study.sae, "family": study.family, "top": 1}
        ).to_pylist()
        feature = next(row["feature"] for row in best if row["concept"] == study.concept)
        figures(store, study, feature)


def twelve(store: Store, drawn: Callable[..., Image.Image]) -> Image.Image:
    """Draw twelve concepts, above with and below without their features; a frame where the judge
    still sees the concept below."""
    judge, searcher = load_judge(["minicanvas"]), load_judge(["minicanvas:selection"])
    columns = []
    for study in STUDIES:
        for concept, asked in prompts(study.family):
            other = "object" if study.family == "style" else "style"

            def gain(setting: tuple[int, float], *, concept=concept, asked=asked, study=study,
                     other=other) -> float:  # fmt: skip
                """What is kept less what is left, in probabilities of the search's classifier."""
                edit = removal(store, study, concept, setting)
                of = [replace(asked, seed=seed) for seed in SEARCH_SEEDS]
                seen = searcher.answers(of, [drawn(one, [edit]) for one in of])
                return sum(one.p[other] - one.p[study.family] for one in seen)

            top, strength = max(SETTINGS, key=gain)
            before = drawn(asked, [])
            after = drawn(asked, [removal(store, study, concept, (top, strength))])
            print(f"{study.family} {concept}: top {top}, multiplier {strength:g}")
            (answer,) = judge.answers([asked], [after])
            columns.append((concept, before, after, answer.seen[study.family] == concept))
    n = len(columns) // 2
    sheet = Image.new("RGB", (n * (SIDE + 4) - 4, 2 * (2 * SIDE + 4 + LABEL + 10) - 10), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (concept, before, after, stays) in enumerate(columns):
        x, y = number % n * (SIDE + 4), number // n * (2 * SIDE + 4 + LABEL + 10)
        pen.text((x + SIDE // 2, y + 2), concept, "black", FONT, anchor="ma")
        for row, picture in enumerate((before, after)):
            place = (x, y + LABEL + row * (SIDE + 4))
            sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.NEAREST), place)
            if stays and row:
                pen.rectangle((*place, x + SIDE - 1, place[1] + SIDE - 1), outline="red", width=4)
    return sheet


def multipliers(store: Store, drawn: Callable[..., Image.Image]) -> Image.Image:
    """Draw one prompt for each family at every multiplier."""
    sheet = Image.new(
        "RGB", (len(MULTIPLIERS) * (SIDE + 4) - 4, len(STUDIES) * (SIDE + LABEL + 8) - 8), "white"
    )
    pen = ImageDraw.Draw(sheet)
    for row, study in enumerate(STUDIES):
        asked = dict(prompts(study.family))[study.concept]
        for column, strength in enumerate(MULTIPLIERS):
            edits = (
                [removal(store, study, study.concept, (study.top, strength))] if strength else []
            )
            x, y = column * (SIDE + 4), row * (SIDE + LABEL + 8)
            said = f"{study.concept} {strength:g}" if strength else f"{study.concept}, as it is"
            pen.text((x + SIDE // 2, y + 2), said, "black", FONT, anchor="ma")
            picture = drawn(asked, edits).resize((SIDE, SIDE), Image.Resampling.NEAREST)
            sheet.paste(picture, (x, y + LABEL))
    return sheet


@cache
def removal(store: Store, study: Study, concept: str, setting: tuple[int, float]) -> Intervention:
    """Return what takes a concept out; ``setting``: features per step, and the multiplier."""
    top, strength = setting
    selection = select(store, study.sae, study.family, concept, top=top)
    return Intervention(selection, strength=strength)


def figures(store: Store, study: Study, feature: int) -> None:
    """Draw every kind of ``featurestore plot``: all for the first study, maps for the second."""
    sae, family, concept = study.sae, study.family, study.concept
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "figure.png")
        kinds = ("lines", "heatmap", "interval") if study is STUDIES[0] else ("heatmap",)
        for kind in kinds:
            top = 2 if kind == "interval" else 10
            plots.plot(store, sae, family, concept, path=path, kind=kind, top=top)
            keep(Image.open(path), f"{kind}-{concept}")
        plots.plot_map(store, sae, feature, path, top=3)
        keep(Image.open(path), f"map-{concept}")
        if study is STUDIES[0]:
            three(store, study).savefig(path, dpi=150)
            keep(Image.open(path), "score")
            plots.plot_overlap(store, sae, family, path)
            keep(Image.open(path), "overlap")
            plots.plot_profile(store, sae, feature, path)
            keep(Image.open(path), "profile")
            plots.plot_fvu(store, sae, path)
            keep(Image.open(path), "fvu")


def three(store: Store, study: Study, n_shown: int = 10) -> Figure:
    """Draw the score at the first step in three pictures: shares in the concept's pictures, shares
    in the family's others, the difference."""
    asked = {"sae": study.sae, "family": study.family, "concept": study.concept}
    rows = ask(store, "importance", {"sae": study.sae, "family": study.family}).to_pylist()
    rows = [row for row in rows if row["concept"] == asked["concept"] and row["step"] == 0]
    of, others = (
        {r["feature"]: r[mean] / sum(one[mean] for one in rows) for r in rows}
        for mean in ("mean_concept", "mean_other")
    )
    shown = sorted(of, key=lambda f: -max(of[f], others[f]))[:n_shown]
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    titles = (
        f"share in pictures of {study.concept}",
        "share in the others",
        "score: the difference",
    )
    values = (of, others, {f: of[f] - others[f] for f in shown})
    for axes, title, colour, one in zip(panels, titles, ("C1", "0.6", "C0"), values, strict=True):
        axes.bar(range(n_shown), [one[f] for f in shown], color=colour)
        axes.axhline(0, color="0.5", linewidth=0.8)
        axes.set_xticks(range(n_shown), [str(f) for f in shown], rotation=60, fontsize="small")
        axes.set_title(title, fontsize="medium")
    panels[0].set_xlabel("feature")
    return figure


def keep(image: Image.Image, name: str) -> None:
    """Write a picture, at most 1,000 pixels wide."""
    image = image.convert("RGB")
    image.thumbnail((1000, 1000), Image.Resampling.LANCZOS)
    sink = io.BytesIO()
    image.save(sink, "WEBP", quality=82, method=6)
    (OUT / f"{name}.webp").write_bytes(sink.getvalue())
    print(f"{name}.webp  {image.width} × {image.height}  {len(sink.getvalue()) / 1000:.0f} kB")


FONT = ImageFont.load_default(14)

if __name__ == "__main__":
    draw(Store.open(sys.argv[1]))
