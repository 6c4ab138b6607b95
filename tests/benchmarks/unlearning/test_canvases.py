"""Each benchmark's table: its own prompts, weights, files and amounts."""

import hashlib
from dataclasses import replace
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from torch import nn

from benchmarks.unlearning import results as command
from benchmarks.unlearning.ledger import Ledger
from benchmarks.unlearning.methods.competitors import _example_prompts, esd
from benchmarks.unlearning.methods.defence import Bench
from benchmarks.unlearning.methods.keys import short_hash
from benchmarks.unlearning.pace import SECONDS, UNITS, Pace
from benchmarks.unlearning.table.amounts import AMOUNTS, GRIDS
from benchmarks.unlearning.table.run import weights_hash, write_prompts
from featurestore.prompts import read_prompts
from featurestore.vocabulary import ATTACKS
from minicanvas import CANVASES, LARGE, SMALL
from sae.diffusion.pipelines import RunSettings

PROMPTS = "84c87465fa935e5c5945c7634b744eaec82ad1cc27d0bb2011bdb902085c25d2"
WEIGHTS = "04a0468e9973bca5"
"""in the keys of benchmarks/results/unlearning.jsonl: of others every row would be made anew"""


def test_what_stands_in_the_keys_of_the_small_benchmarks_ledger_is_the_same(tmp_path):
    write_prompts(tmp_path / "prompts.jsonl", SMALL)
    found = hashlib.sha256((tmp_path / "prompts.jsonl").read_bytes()).hexdigest()
    assert (found, weights_hash(SMALL)) == (PROMPTS, WEIGHTS)


def test_every_benchmark_removes_concepts_of_its_own():
    assert set(AMOUNTS) == set(GRIDS) == set(CANVASES)
    assert AMOUNTS[SMALL.name].concepts == SMALL.concepts
    large = AMOUNTS[LARGE.name].concepts
    alike = {c for group in LARGE.look_alikes for c in group}
    removed = {c for concepts in large.values() for c in concepts}
    assert {family: len(concepts) for family, concepts in large.items()} == {
        "style": 8,
        "object": 10,
    }
    assert all(set(concepts) <= set(LARGE.concepts[family]) for family, concepts in large.items())
    assert all(len(removed & set(group)) == 1 for group in LARGE.look_alikes) and removed <= alike


@pytest.mark.parametrize("family", LARGE.concepts)
def test_of_the_large_benchmark_a_search_and_salun_see_all_that_is_kept(tmp_path, family):
    write_prompts(tmp_path / "prompts.jsonl", LARGE)
    last = AMOUNTS[LARGE.name].looks[-1]
    prompts = read_prompts(tmp_path / "prompts.jsonl", last.seeds)
    for concept in AMOUNTS[LARGE.name].concepts[family]:
        looked = [
            p for p in last.taken(prompts, {family: [concept]}) if p.labels[family] != concept
        ]
        assert len(looked) == last.n_others and {p.seed for p in looked} == set(last.seeds)
        _, _, retained = _example_prompts(LARGE, GRIDS[LARGE.name], family, [concept])
        assert len(retained) == len(set(retained)) == GRIDS[LARGE.name].retained
        for other, concepts in LARGE.concepts.items():
            kept = set(concepts) - ({concept} if other == family else set())
            assert {p.labels[other] for p in looked} - {None} == kept
            assert {dict(LARGE.parse_prompt(text))[other] for text in retained} == kept


@pytest.mark.parametrize("canvas", CANVASES.values(), ids=CANVASES)
def test_salun_ties_pictures_to_prompts_that_differ_in_the_concept_only(canvas):
    """Also where one name is a part of another, as ``sun`` is of ``sunset``."""
    for family, concepts in canvas.concepts.items():
        for removed in ([c] for c in concepts):
            _tied_to_what_is_kept(canvas, family, removed)
        _tied_to_what_is_kept(canvas, family, concepts[1:])


def _tied_to_what_is_kept(canvas, family, removed):
    concepts = canvas.concepts[family]
    asked, pseudo, retained = _example_prompts(canvas, GRIDS[canvas.name], family, removed)
    other = next(name for name in canvas.concepts if name != family)
    own, tied, kept = (
        [dict(canvas.parse_prompt(text)) for text in texts] for texts in (asked, pseudo, retained)
    )
    assert {p[family] for p in own} == set(removed)
    assert {p[family] for p in tied} == {p[family] for p in kept} == set(concepts) - set(removed)
    assert [p[other] for p in own] == [p[other] for p in tied]
    assert len(kept) == GRIDS[canvas.name].retained
    assert {p[other] for p in kept} == set(canvas.concepts[other])


def test_trained_methods_get_the_prompts_of_all_concepts_and_longer_trainings(tmp_path):
    one, two = (
        esd(_bench(tmp_path), "style", *concepts) for concepts in (["neon"], ["neon", "sketch"])
    )
    assert [d.setting["iterations"] for d in one[0]] == [40, 60, 90]
    assert [d.setting["iterations"] for d in two[0]] == [57, 80, 85, 120, 127, 180]
    assert {str(d.targets) for d in two[0]} == {"{'style': ['neon', 'sketch']}"}
    both = [f"An image of {o} in {s} style." for s in ("neon", "sketch") for o in SMALL.objects]
    assert two[0][0].setting["texts"] == short_hash(both)
    assert two[2][0].setting["texts"] == short_hash(
        ["An image in neon style.", "An image in sketch style."]
    )


def _bench(root):
    unet = nn.ModuleDict({"attn2": nn.Linear(2, 2)})
    model = SimpleNamespace(pipe=SimpleNamespace(unet=unet))
    return Bench(
        root, SMALL, model, RunSettings(2, 3.0), None, [], [], GRIDS[SMALL.name],
        Ledger(root / "ledger.jsonl"),
    )  # fmt: skip


def said(*arguments):
    result = CliRunner().invoke(command.main, [str(one) for one in arguments])
    return result.exit_code, result.output.strip().splitlines()


def test_what_the_command_cannot_do_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(CANVASES, LARGE.name, replace(LARGE, folder=tmp_path / "absent"))
    for arguments, expected in (
        (["--canvas", LARGE.name], f"weights of {LARGE.name} are not in this package"),
        (["--canvas", LARGE.name], f"python -m minicanvas.train --canvas {LARGE.name} --out DIR"),
        (
            ["--concept", "style=ink"],
            "--concept style=ink: not in minicanvas, which has style: neon",
        ),
        (["--concept", "size=big"], "--concept size=big: not in minicanvas, which has style: neon"),
        (["--concept", "neon"], "--concept 'neon': expected FAMILY=CONCEPT"),
    ):
        code, (line,) = said(*arguments)
        assert code == 1 and expected in line
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(("canvas", "end"), [(SMALL, ""), (LARGE, "_large")])
def test_every_benchmark_has_files_of_its_own(canvas, end, tmp_path, monkeypatch):
    """Also in the processes that share the work: each is told which benchmark and which files."""
    monkeypatch.chdir(tmp_path)
    asked, pages = [], []

    def prepared(root, model, run, **given):
        asked.append((str(root), given["canvas"], given["grid"], given["ledger"].path.name))
        assert given["amounts"] == AMOUNTS[canvas.name]
        given["ledger"].add("a", kind="cell")

    stand_ins = {
        "prepare": prepared,
        "model_of": lambda canvas, autocast: type("Model", (), {"steps": 2, "guidance": 3.0}),
        "results": lambda *about: {"defences": {}},
        "several": lambda *about: {},
        "_say_strangers": id,
        "_in_processes": lambda n, pace, passed: asked.append(passed[:3]),
    }
    for name, stands in stand_ins.items():
        monkeypatch.setattr(command, name, stands)
    monkeypatch.setattr(
        "benchmarks.unlearning.table.page.write_page", lambda path, *about: pages.append(str(path))
    )
    assert said("--canvas", canvas.name) == (0, [])
    root, ledger = f"build/results{end}", f"benchmarks/results/unlearning{end}.jsonl"
    assert asked[0] == (root, canvas, GRIDS[canvas.name], f"unlearning{end}.jsonl")
    told = [f"--canvas={canvas.name}", f"--root={root}", f"--ledger={ledger}"]
    assert asked[1:] == [told, told] and [*Ledger(tmp_path / ledger).rows] == ["a"]
    assert pages == [f"docs/results{end}.md"]


def test_a_larger_models_pictures_are_taken_to_cost_more_until_they_are_measured(tmp_path):
    ledger, pace = Ledger(tmp_path / "kept.jsonl"), Pace(counting=True, cost=1.2)
    pace.count("a", "picture", 3600)
    assert pace.hours(ledger, 1) == pytest.approx(1.2 * SECONDS["picture"])
    assert {*ATTACKS} <= {*SECONDS} & {*UNITS}
    ledger.add("x", kind="cell", seconds_per_picture=0.5)
    assert pace.hours(ledger, 1) == pytest.approx(0.5)
