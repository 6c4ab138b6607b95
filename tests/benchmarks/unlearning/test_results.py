"""The whole table, very small: every cell is made once, a second run only reads, and so does
another machine's."""

import json
import re
import shutil
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pytest
from PIL import Image

from benchmarks.unlearning.adv_unlearn import AdvUnlearnSettings
from benchmarks.unlearning.esd import ESDSettings
from benchmarks.unlearning.ledger import Ledger, outcome_of, outcome_row
from benchmarks.unlearning.methods.defence import Defence, Grid
from benchmarks.unlearning.pace import OutOfTimeError, Pace
from benchmarks.unlearning.results import fast_bfloat16, model_of
from benchmarks.unlearning.salun import SalUnSettings
from benchmarks.unlearning.table import attacks as attacking
from benchmarks.unlearning.table import hardened as hardening
from benchmarks.unlearning.table import looking_again as second
from benchmarks.unlearning.table import run as running
from benchmarks.unlearning.table import searching as table
from benchmarks.unlearning.table import several as together
from benchmarks.unlearning.table.amounts import Amounts
from benchmarks.unlearning.table.page import page, write_page
from benchmarks.unlearning.table.pictures import LABEL, MARGIN, SIDE
from featurestore.prompts import Prompt
from minicanvas import Canvas
from sae.diffusion.pipelines import RunSettings, generate
from sae.evaluation.attack.hardening import Hardened
from sae.evaluation.measures.accuracy import Answer
from sae.evaluation.outcomes import Outcome
from sae.evaluation.search import Look
from tests.builders.canvases import tiny_canvas

AMOUNTS = Amounts(
    concepts={"style": ["neon", "sketch"], "object": ["cat"]}, collect_seeds=(0,), report_seeds=(7,),
    looks=(Look((50,), 2, 2), Look((50, 51), 2)),
    train_steps=20, crossing_steps=20, train_batch=32, expansion=2.0, sequence=2,
    few_concepts={"style": 1, "object": 1}, attacked=1, search_attacked=1, search_tries=2,
    attacks=("tokens",), attacked_concepts=1, attack_rounds={"tokens": 1}, attack_iterations={"tokens": 1},
)  # fmt: skip
GRID = Grid(
    tops=(1, 2, 3), multipliers=(-1.0,), screened=(2, -1.0), thresholds=(1.0,), pulled_tops=(2,), pulls=(0.5,),
    crossing_tops=(1, 2), crossing_multipliers={"style": (-1.0,), "object": (-1.0,)},
    strengths=(1.0,), esd=(("name", ESDSettings(iterations=(1,), n_steps=1)),),
    adv_unlearn=(("name", AdvUnlearnSettings((1,), n_steps=1, warm_up=0, attack_steps=1, retained=1)),),
    salun=(SalUnSettings(iterations=(1,), batch_size=2, mask_batches=1),), examples_per_prompt=1,
    retained=3,
)  # fmt: skip


RUN = RunSettings(2, 3.0)
SMALLEST = Canvas("smallest", ("neon", "sketch"), ("cat", "fox"), Path("nowhere"))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


@pytest.fixture
def canvas(root, monkeypatch):
    """Two styles and two objects in the place of the large benchmark's."""
    return tiny_canvas(monkeypatch, root / "small", SMALLEST, runs=[RUN], seeds=(7, 50))


def _check_that_hardening_is_read_back(root, run, defences, monkeypatch):
    """What hardening adds stands in the ledger: another process has the same defence from there."""
    (own,) = defences["neon"]["ours"].interventions
    (other,) = defences["sketch"]["ours"].interventions
    added = replace(other, selection=replace(other.selection, concept="neon"), strength=-0.25)
    asked = []

    def harden(model, chosen, **given):
        asked.append(given["learn"])
        return Hardened([*chosen, added], [{"round": 1}], "enough")

    monkeypatch.setattr(hardening, "harden", harden)
    path = root / "hardened.jsonl"
    for _ in range(2):
        of_its_own = run._replace(bench=replace(run.bench, ledger=Ledger(path)))
        edits = hardening.hardened(of_its_own, [own]).interventions
        assert [e.identified() for e in edits] == [own.identified(), added.identified()]
        assert edits[1].selection.store == str(run.bench.store.root.resolve())
    assert len(asked) == 1 and str(root) not in path.read_text()
    assert not [*(root / "hardened").iterdir()]
    (row,) = Ledger(path).of_kind("hardening")
    assert (row["concept"], row["reason"], len(row["added"])) == ("neon", "enough", 1)


def _check_that_what_came_back_is_typed(root, run, defence, report, monkeypatch):
    """It counts as typed where the judge sees the concept in what its text makes, and as confirmed
    where the other classifier sees it in the attacked picture, or in one drawn from its tokens; it
    is looked at once."""
    (one,) = report.pictures
    back = replace(one, succeeded=True, found={"text": "neon An image of cat in neon style."})
    came_back = replace(report, pictures=[back])
    asked = []

    def drawn(*given, starts):
        asked.append(given[2:])
        return generate(*given, starts=starts)

    twin = defence._replace(setting={**defence.setting, "method": "ours, twin"})
    with monkeypatch.context() as patched:
        patched.setattr("sae.evaluation.attack.loop.generate", None)
        attacked = attacking.attack_all(run, "style", {"neon": {"twin": twin}})["tokens"]["twin"]
    assert [replace(p, losses=[]) for p in attacked.report.pictures] == [replace(one, losses=[])]

    monkeypatch.setattr("sae.evaluation.attack.hardening.generate", drawn)
    for seen, n in (("neon", 1), ("sketch", 0)):
        judge = SimpleNamespace(sees=lambda images, asked, seen=seen: [asked == [("style", seen)]])
        bench = replace(run.bench, ledger=Ledger(root / f"typed-{seen}.jsonl"))
        for _ in range(2):
            typed = second.typed(run._replace(bench=bench, judge=judge), defence, came_back)
            assert len(typed.came_back) == n and len(came_back.came_back) == 1
    assert asked == 2 * [(["neon An image of cat in neon style."], [one.seed])]
    nothing = second.typed(run, defence, replace(report, pictures=[replace(one, succeeded=False)]))
    assert not nothing.came_back and len(asked) == 2
    assert second.typed(run, defence, replace(came_back, method="latents")) is None
    of_tokens = replace(back, found=one.found)
    _check_that_another_classifier_is_asked(
        root, run, defence, replace(report, pictures=[of_tokens])
    )


def _check_that_another_classifier_is_asked(root, run, defence, came_back):
    (one,), (path,) = came_back.pictures, came_back.paths
    looked = []

    def sees(images, concepts, *, shown):
        looked.extend(images)
        return [concept == ("style", shown) for concept in concepts]

    def asked(concept, report):
        chooser = SimpleNamespace(sees=partial(sees, shown=concept))
        bench = replace(run.bench, ledger=Ledger(root / f"confirmed-{concept}.jsonl"))
        confirmed = second.confirmed(run._replace(bench=bench, chooser=chooser), defence, report)
        (picture,) = confirmed.pictures
        return picture.shown_under_attack

    kept = path.with_name(f"{path.stem}-attacked.png")
    with Image.open(kept) as image:
        attacked = np.asarray(image.convert("RGB"))
    for _ in range(2):
        assert asked("neon", came_back)
        assert not asked("sketch", came_back)
    assert len(looked) == 2 and all((np.asarray(image) == attacked).all() for image in looked)
    elsewhere = replace(came_back, paths=[root / "elsewhere/neon-1.json"])
    assert asked("neon", elsewhere)
    assert np.abs(np.asarray(looked[2]).astype(int) - attacked).max() <= 1
    before = replace(one, succeeded=False, shown_before=True, rounds=0)
    assert not asked("sketch", replace(elsewhere, pictures=[before], paths=[root / "neon-2.json"]))
    assert np.abs(np.asarray(looked[3]).astype(int) - attacked).max() > 1
    unknown = replace(one, found={}, method="latents")
    with pytest.raises(
        click.ClickException, match=r"remove row neon-3 from .*, and it is attacked"
    ):
        asked("neon", replace(elsewhere, pictures=[unknown], paths=[root / "neon-3.json"]))
    held = replace(one, succeeded=False)
    assert not asked("neon", replace(came_back, pictures=[held])) and len(looked) == 4


@pytest.mark.filterwarnings(
    "ignore:the selection .* has no timestep near"
)  # A run of one step has one.
def test_the_small_table_has_every_method_and_a_second_run_only_reads(root, canvas, monkeypatch):
    monkeypatch.setattr(running, "SAES", running.SAES[:1])
    hooks = running.cross_attentions(model_of(canvas, autocast=False))
    assert len(hooks) == 7 and "unet.mid_block.attentions.0.transformer_blocks.0.attn2" in hooks
    monkeypatch.setattr(running, "cross_attentions", lambda model: hooks[:2])
    model, path = model_of(canvas, autocast=False), root / "kept/unlearning.jsonl"
    given = {"canvas": canvas, "amounts": AMOUNTS, "grid": GRID}
    run = running.prepare(root, model, RUN, **given, ledger=Ledger(path))
    shared = [table.results(run, share=(i, 2)) for i in range(2)]
    assert [[o.targets for o in part["tables"]["style"]["ours"]] for part in shared] == [
        [{"style": ["neon"]}],
        [{"style": ["sketch"]}],
    ]
    found = table.results(run)
    cells = run.bench.ledger.of_kind("cell")
    assert all(len(concepts) == 1 for row in cells for concepts in row["targets"].values())
    parts = [together.several(run, found["defences"], share=(i, 2)) for i in range(2)]
    assert [[*part] for part in parts] == [
        ["sequential", "joint", "all but one"],
        ["all but one", "sequential", "joint"],
    ]
    several = together.several(run, found["defences"])
    assert {family: set(methods) for family, methods in found["tables"].items()} == {
        "style": set(table.METHODS),
        "object": set(table.METHODS),
    }
    of_styles = {method: len(outcomes) for method, outcomes in found["tables"]["style"].items()}
    assert of_styles == {m: 2 if m in table.COMPARED else 1 for m in table.METHODS}
    in_a_row = [
        {"style": ["neon"]},
        {"style": ["neon", "sketch"]},
        {"style": ["neon", "sketch"], "object": ["cat"]},
    ]
    assert [(o.setting["method"], o.targets) for o in several["sequential"]] == [
        (method, targets) for method in together.TOGETHER_BY for targets in in_a_row
    ]
    assert [(o.setting["method"], o.targets) for o in several["all but one"]] == [
        (method, {"style": ["sketch"]}) for method in (*together.TOGETHER_BY, "ESD-x", "SalUn")
    ]
    assert [o.targets for o in several["joint"]] == 2 * [{"style": ["neon"], "object": ["cat"]}]
    n_pictures = 4 + 2
    assert all(len(o.answers) == n_pictures for m in found["tables"]["style"].values() for o in m)
    attacked = {
        "ours",
        "ours, toward",
        "ours, cross-attention",
        "ours, exchanged",
        "ours, exchanged beyond k",
        "ours, held",
        "ours, hardened",
        "ours, no error",
        "negative prompt",
        "mean direction",
        "ESD-x",
        "AdvUnlearn",
        "SalUn",
    }
    assert {attack: set(methods) for attack, methods in found["attacks"]["style"].items()} == {
        "tokens": attacked
    }
    attacked_in_order = [m for m in table.METHODS if m in attacked]
    for report, typed, confirmed in (
        found for methods in found["attacks"]["style"].values() for found in methods.values()
    ):
        assert typed is not None and typed.under_attack.value <= report.under_attack.value
        assert confirmed.under_attack.value <= report.under_attack.value
        assert len(report.pictures) + report.not_shown == 1 and report.not_shown == 0
        assert report.before.value <= report.under_attack.value
    rows = Ledger(path).rows.values()
    neon = {"style": ["neon"]}
    in_search = [
        r for r in rows if r["kind"] == "attack" and r["concept"] == "neon" and r["seed"] != 7
    ]
    assert len(in_search) in (1, 2)  # The second best is attacked where the best is brought back.
    searched = [
        r for r in rows if r["kind"] == "cell" and r["targets"] == neon and r["split"] == "search"
    ]
    seeds = [r["seeds"] for r in searched]
    assert seeds.count([50]) == 3 + 1  # of ours, and one towards sketch
    # Two of ours, negative prompts, directions, both of every cross-attention, both exchanged and
    # both beyond k; the trained ones have one setting. The one towards sketch is looked at further
    # if it is among the best two.
    assert seeds.count([50, 51]) in (6 * 2, 1 + 6 * 2)
    assert len(seeds) == 4 + seeds.count([50, 51])
    crossing = [r for r in searched if r["setting"]["method"] == "ours, cross-attention"]
    edited = [[edit["hook"] for edit in r["setting"]["edits"]] for r in crossing]
    assert len(edited) == 2 and all(of == hooks[:2] for of in edited)
    edits = [edit for r in searched for edit in r["setting"].get("edits", ()) if "pull" in edit]
    toward = {(edit["strength"], edit["toward"]["concept"], edit["pull"]) for edit in edits}
    assert toward == {(-1.0, "sketch", 0.5), (0.0, "sketch", 1.0)}  # the latter: exchanged
    _check_that_hardening_is_read_back(root, run, found["defences"]["style"], monkeypatch)
    report = found["attacks"]["style"]["tokens"]["ours"].report
    _check_that_what_came_back_is_typed(
        root, run, found["defences"]["style"]["neon"]["ours"], report, monkeypatch
    )
    text = page(run, found, several)
    assert text.count("\n| ours |") == 5 and "## All styles but one at once" in text
    assert "### All 2\n" in text and "### 1 of 2\n" in text
    assert "### Ours, held, each style\n" in text and "### Ours, hardened, each style\n" in text
    assert text.count("\nPictures of neon:\n") == 1
    (first,) = (part for part in text.split("### ") if part.startswith("The first 1: neon\n"))
    assert {m for m in table.METHODS if f"\n| {m} |" in first} == set(table.METHODS)
    assert all(
        re.search(rf"^\| {re.escape(method)} \| \d", text, re.MULTILINE) for method in table.METHODS
    )
    write_page(root / "docs/results.md", run, found, several)
    assert (root / "docs/results.md").read_text(encoding="utf-8") == text
    with Image.open(root / "docs/images/unlearning_large_style.jpg") as grid:
        assert grid.height == 40 + (1 + len(table.METHODS)) * (
            SIDE + MARGIN
        )  # the untouched model's row, and each method's
        assert (
            grid.width == LABEL + 4 * (SIDE + MARGIN) + 3 * MARGIN
        )  # of two styles and two objects: 2 asked, 2 others
    with Image.open(root / "docs/images/unlearning_large_style_attacked.jpg") as grid:
        assert grid.height == 40 + (1 + len(attacked)) * (SIDE + MARGIN)
        assert grid.width == LABEL + 2 * (SIDE + MARGIN)  # of neon: without and under attack
    # Another machine has the ledger and the SAEs, no more.
    for name in ("attacks", "weights", "hardened"):
        shutil.rmtree(root / name)
    for drawing in ("defence", "competitors"):
        monkeypatch.setattr(f"benchmarks.unlearning.methods.{drawing}.generate", None)
    monkeypatch.setattr("sae.evaluation.attack.loop.generate", None)
    monkeypatch.setattr("sae.evaluation.attack.hardening.generate", None)
    lines = path.read_text()
    counting = Pace(counting=True)
    ledger = Ledger(path)
    again = running.prepare(root, model, RUN, **given, ledger=ledger, pace=counting)
    read = table.results(again)
    assert page(again, read, together.several(again, read["defences"])) == text
    assert (path.read_text(), counting.told(ledger, 1)) == (lines, "Nothing is missing.")

    # Of a ledger that lacks something, a page is written of the rest.
    some = root / "some.jsonl"
    lacking = [r["key"] for r in rows if r.get("method") == "ESD-x" and r["kind"] == "attack"]
    lacking += [r["key"] for r in rows if r["kind"] == "cell" and r["setting"]["method"] == "SalUn"]
    some.write_bytes(
        b"".join(
            line
            for line in lines.encode().splitlines(keepends=True)
            if json.loads(line)["key"] not in lacking
        )
    )
    kept = some.read_bytes()
    given["pace"], given["ledger"] = Pace(so_far=True), Ledger(some)
    part = running.prepare(root, model, RUN, **given)
    of_part = table.results(part)
    for family, methods in of_part["tables"].items():
        assert [*methods] == [m for m in table.METHODS if m != "SalUn"]
        assert [*of_part["attacks"][family]["tokens"]] == [
            m for m in attacked_in_order if m not in ("SalUn", "ESD-x")
        ]
    came_back = [replace(one, succeeded=True) for one in report.pictures]
    ours_on_neon = of_part["defences"]["style"]["neon"]["ours"]
    unknown = partial(second.confirmed, part, ours_on_neon, replace(report, pictures=came_back))
    assert attacking._looked_again(part, unknown) is None
    left = together.several(part, of_part["defences"])
    assert [o.setting["method"] for o in left["all but one"]] == [*together.TOGETHER_BY, "ESD-x"]
    assert "\n| SalUn |" not in page(part, of_part, left) and some.read_bytes() == kept

    given["ledger"] = Ledger(root / "none.jsonl")
    nothing = running.prepare(root, model, RUN, **given)
    with pytest.raises(click.ClickException, match="nothing yet of ours on style, object"):
        write_page(root / "none.md", nothing, table.results(nothing), {})

    # Without the ledger everything is counted, and nothing is made when the time is over.
    pace = Pace(counting=True)
    given |= {"ledger": Ledger(root / "new"), "pace": pace}
    new = running.prepare(root, model, RUN, **given)
    together.several(new, table.results(new)["defences"])
    made = [r for r in rows if r["kind"] == "cell" and sum(map(len, r["targets"].values())) == 1]
    assert pace.missing["picture"] >= sum(r["n"] for r in made)
    assert pace.missing["ESD-x"] == len(
        [r for r in rows if r["kind"] == "training" and r["method"] == "ESD-x"]
    )
    over = new._replace(bench=replace(new.bench, pace=Pace(minutes=0)))
    with pytest.raises(OutOfTimeError):
        table.results(over)
    assert not (root / "new").exists()


def test_a_setting_that_draws_faulty_pictures_is_the_worst_of_a_search():
    prompts = [
        Prompt("cat in neon", 50, {"style": "neon", "object": "cat"}, 1),
        Prompt("cat", 50, {"style": None, "object": "cat"}, 1),
    ]
    defence = Defence({"style": ["neon"]}, {"method": "black"}, nullcontext, RUN)
    worst = running._shown(defence, prompts, SimpleNamespace(name="judge"), others=False)
    assert (worst.scores.ua, worst.scores.cra) == (0, 0)
    row = outcome_row(worst, prompts)
    again = outcome_of(row, prompts, targets=worst.targets, setting=worst.setting, judge="judge")
    assert again.answers == [a._replace(p=again.answers[i].p) for i, a in enumerate(worst.answers)]
    assert again.answers[0].p == {"style": 1.0}


def test_every_seed_of_a_target_and_each_other_prompt_in_turn():
    prompts = [
        Prompt(f"{o} {s}", seed, {"style": f"s{s}", "object": f"o{o}"}, 1)
        for s in range(10) for o in range(10) for seed in range(5)
    ]  # fmt: skip
    kept = running.in_turn(prompts, {"style": ["s3"]}, 1)
    mine, others = (
        [p for p in kept if (p.labels["style"] == "s3") is asks] for asks in (True, False)
    )
    assert [(p.prompt, p.seed) for p in mine] == [
        (f"{o} 3", seed) for o in range(10) for seed in range(5)
    ]
    assert len(others) == 90 == len({p.prompt for p in others})
    for family in ("style", "object"):
        for concept in {p.labels[family] for p in others}:
            assert {p.seed for p in others if p.labels[family] == concept} == set(range(5))
    assert running.in_turn(prompts, {"style": ["s3"]}, 5) == prompts


def test_perfect_is_every_target_gone_and_all_else_kept():
    def outcome(*seen):
        answers = [
            Answer({"style": asked}, {"style": shown}, 0, {"style": 0.1})
            for asked, shown in zip(("neon", "sketch"), seen, strict=True)
        ]
        return Outcome({"style": ["neon"]}, {}, "j", answers)

    assert table.perfect(outcome("x", "sketch")) and not table.perfect(outcome("x", "x"))


def test_bfloat16_is_used_where_the_processor_has_it():
    assert fast_bfloat16({"avx512_bf16": True}) and fast_bfloat16({"amx_bf16": True})
    assert not fast_bfloat16({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False})
