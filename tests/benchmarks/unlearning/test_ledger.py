"""What a long run keeps for another machine: rows that tell damage, and outcomes made small."""

import click
import pytest
from click.testing import CliRunner

from benchmarks.unlearning import results as table
from benchmarks.unlearning.ledger import Ledger, outcome_of, outcome_row
from benchmarks.unlearning.methods.keys import code_of
from benchmarks.unlearning.pace import OutOfTimeError, Pace
from featurestore.prompts import Prompt
from sae.evaluation.measures.accuracy import Answer
from sae.evaluation.outcomes import Outcome

PROMPTS = [
    Prompt(f"{o} {s}", seed, {"style": s, "object": o}, 1)
    for seed in (3, 4)
    for s in ("neon", "chalk", None)
    for o in ("cat", "car")
]


def outcome(targets):
    """Every neon picture became chalk, every car a cat; plain pictures look like chalk."""
    answers = []
    for i, p in enumerate(PROMPTS):
        asked = {family: c for family, c in p.labels.items() if c is not None}
        seen = {"style": "chalk", "object": "cat"}
        known = {
            family: (i + 1) / 3e4 for family in asked if asked[family] in targets.get(family, ())
        }
        answers.append(Answer(asked, seen, p.seed, known))
    return Outcome(targets, {"method": "ours"}, "judge", answers, 1.5, 0.1, 5, 7)


@pytest.mark.parametrize(
    "targets", [{"style": ["neon"]}, {"style": ["neon", "chalk"], "object": ["car"]}]
)
def test_an_outcome_comes_back_from_its_row(tmp_path, targets):
    whole, ledger = outcome(targets), Ledger(tmp_path / "deep/kept.jsonl")
    ledger.add("k", kind="cell", **outcome_row(whole, PROMPTS))
    row = Ledger(ledger.path).rows["k"]
    back = outcome_of(row, PROMPTS, targets=targets, setting={"method": "ours"}, judge="judge")
    assert back.scores == pytest.approx(whole.scores, nan_ok=True) and back.frechet == 1.5
    assert [a._replace(p=None) for a in back.answers] == [a._replace(p=None) for a in whole.answers]
    for mine, its in zip(back.answers, whole.answers, strict=True):
        assert mine.p == pytest.approx(its.p, rel=5e-3)
    assert "torch" in row["on"]


def test_a_key_is_added_once_and_other_processes_rows_are_read(tmp_path):
    first, second = Ledger(tmp_path / "kept.jsonl"), Ledger(tmp_path / "kept.jsonl")
    first.add("a", kind="cell", n=1)
    first.add("a", kind="cell", n=2)
    second.add("b", kind="training", n=3)
    first.read()
    assert [(row["key"], row["n"]) for row in first.rows.values()] == [("a", 1), ("b", 3)]
    assert len(first.path.read_text().splitlines()) == 2


def test_a_changed_line_is_named_and_one_cut_short_is_written_over(tmp_path):
    path = tmp_path / "kept.jsonl"
    Ledger(path).add("a", kind="cell", n=1)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:9])
    again = Ledger(path)
    again.add("b", kind="cell", n=2)
    assert [*Ledger(path).rows] == ["a", "b"]
    for damage in (whole.replace(b'"n":1', b'"n":2'), b"not JSON\n"):
        path.write_bytes(whole + damage)
        with pytest.raises(click.ClickException) as caught:
            Ledger(path)
        assert caught.value.message == (
            f"{path}, line 2 is not what was written: restore the file from git, or delete the "
            "line, and what it held is made anew."
        )


def test_a_run_stops_when_its_minutes_are_over():
    entered = []

    class Attached:
        def __enter__(self):
            entered.append(True)

        def __exit__(self, *error):
            return None

    with Pace(minutes=None).checked(Attached)():
        pass
    with pytest.raises(OutOfTimeError), Pace(minutes=0).checked(Attached)():
        pass
    assert entered == [True]


def test_what_is_missing_is_counted_once_and_timed_by_what_was_measured(tmp_path):
    ledger, pace = Ledger(tmp_path / "kept.jsonl"), Pace(counting=True)
    assert pace.told(ledger, 2) == "Nothing is missing."
    for _ in range(2):
        pace.count("a", "picture", 3600)
        pace.count("b", "ESD-x")
    for key, seconds in ("x", 1.0), ("y", 2.0), ("z", 9.0):
        ledger.add(key, kind="cell", seconds_per_picture=seconds)
    ledger.add("t", kind="training", method="ESD-x", seconds=7200)
    assert pace.hours(ledger, 2) == pytest.approx((2 + 2) / 2)
    lines = pace.told(ledger, 2).splitlines()
    assert lines[:3] == ["Missing, at most:", "   3600 pictures", "      1 trainings of ESD-x"]
    assert lines[3].startswith("At most 2.0 hours in 2 processes")


def test_code_is_told_by_what_it_computes(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.unlearning.methods.keys.CODE", tmp_path)

    def code(text):
        (tmp_path / "one.py").write_text(text)
        code_of.cache_clear()
        return code_of("one")

    plain = code("def f(x):\n    return x + 1\n")
    assert code('"""Say."""\n\n\ndef f(x):  # why\n    """Say."""\n    return x + 1\n') == plain
    assert code("def f(x):\n    return x + 2\n") != plain
    monkeypatch.undo()
    code_of.cache_clear()
    assert code_of("esd", "diffusion") != code_of("salun", "diffusion")


def test_the_command_says_what_it_kept_and_what_is_missing(tmp_path, monkeypatch):
    """Stopped by its minutes; asked for an estimate; run for a part, which writes no page."""
    path = tmp_path / "kept.jsonl"
    Ledger(path).add("a", kind="cell", seconds_per_picture=1.0)

    def prepared(root, model, run, *, canvas, amounts, grid, ledger, pace):
        pace.check()
        assert [*amounts.concepts] == ["style"]
        pace.count("b", "picture", 7200)
        return None

    def model_of(canvas, autocast):
        return type("Model", (), {"steps": 2, "guidance": 3.0})

    nothing = {"prepare": prepared, "results": lambda *about: {"defences": {}}}
    for name, stands in {
        **nothing,
        "model_of": model_of,
        "several": lambda *about: {},
        "_say_strangers": id,
    }.items():
        monkeypatch.setattr(table, name, stands)

    def said(*more):
        arguments = ["--root", tmp_path, "--ledger", path, "--family", "style", "--processes", 1]
        result = CliRunner().invoke(table.main, [*map(str, [*arguments, *more])])
        assert result.exit_code == 0, result.output
        return result.output

    kept = f"1 outcomes and 0 attacked pictures in {path}"
    assert said("--minutes", 0) == f"Stopped after 0 minutes: {kept}. The same command goes on.\n"
    assert "   7200 pictures\nAt most 2.0 hours in 1 processes" in said("--estimate")
    assert said() == f"{kept}. No page is written of a part: say where with --out.\n"
