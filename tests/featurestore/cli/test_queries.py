"""``score``, ``sql`` and ``export`` on stores of given codes; test_flow.py has the whole way."""

import csv
import io
import json
import os
import shlex

import pyarrow.parquet as pq
import pytest

from featurestore import Selection
from featurestore.cli.terminal.text import text_table
from tests.builders.cli import run
from tests.builders.codes import random_codes
from tests.builders.stores import make_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    labels = {
        "style": ["neon", "sketch", 'it\'s, # "x"', None],
        "object": ["cat", "dog", "cat", "dog"],
    }
    return make_store(tmp_path_factory.mktemp("cli") / "store", random_codes(1, samples=4), labels)


def test_score_names_the_best_features_of_each_concept(capsys, store):
    status, out, err = run(capsys, "score", store.root, "--sae", "s", "--by", "object", "--top", 2)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == [
        "concept",
        "feature",
        "mean_score",
        "best_score",
        "best_timestep",
        "n_steps_in_top",
    ]
    assert [line.split()[0] for line in lines[2:6]] == ["cat", "cat", "dog", "dog"]
    assert out.endswith(f"scores kept in {store.root}/scores/s.\n")


EXPORT = ["export", "{store}", "--sae", "s"]
WRITERS = {
    "a selection": ([*EXPORT, "--concept", "style=neon", "-o"], "queries.selections.select_all"),
    "selections": ([*EXPORT, "--by", "style", "-o"], "queries.selections.select_all"),
    "a decoder": ([*EXPORT, "--decoder"], "queries.decoder.decoder_table"),
    "a database": (["export", "{store}", "--duckdb"], "queries.connection.database.connect"),
    "an SAE": (
        ["sae", "export", "{store}", "s", "--format", "saelens", "--out"],
        "sae.formats.exchange.store_sae",
    ),
    "an answer": (["query", "{store}", "sae_steps", "-o"], "queries.ask"),
    "a statement's": (["sql", "{store}", "select 1", "-o"], "queries.sql"),
    "a plot": (["plot", "{store}", "--sae", "s", "-o"], "queries.plots.load_metrics"),
    "figures": (
        ["judge", "{store}", "--judge", "minicanvas", "--target", "style=neon", "-o"],
        "sae.evaluation.judge.load_judge",
    ),
    "prompts": (["prompts", "{store}", "-o"], "featurestore.cli.options.PromptOptions.file"),
}


@pytest.mark.parametrize("what", WRITERS)
def test_a_place_that_cannot_be_written_is_said_before_anything_is_computed(
    capsys, store, tmp_path, monkeypatch, what
):
    words, computes = WRITERS[what]
    monkeypatch.setattr(computes, lambda *_, **__: pytest.fail(f"{computes} was called"))
    (tmp_path / "file").write_bytes(b"")
    names = {"a decoder": "x.parquet", "a plot": "x.png", "an SAE": "saes/README.md"}
    place = tmp_path / "file" / names.get(what, "selection.json")
    given = place.parent if what in ("selections", "an SAE") else place
    status, _, err = run(capsys, *(word.format(store=store.root) for word in words), given)
    assert status == 1
    assert err == f"Error: cannot write {place}: Not a directory; nothing half-written is left.\n"


def test_export_takes_any_concept_and_either_rule(capsys, store, tmp_path):
    for rule, expected in (
        (["--top", 3], {"top": 3}),
        (["--percentile", 90.5], {"percentile": 90.5}),
        ([], {"top": 2}),
    ):
        path = tmp_path / "x.csv"
        command = [
            "export",
            store.root,
            "--sae",
            "s",
            "--concept",
            'style=it\'s, # "x"',
            *rule,
            "-o",
            path,
        ]
        status, out, _ = run(capsys, *command)
        selection = Selection.load(path)
        assert status == 0
        assert (selection.concept, selection.rule) == ('it\'s, # "x"', expected)
        assert selection.rows.num_rows > 0
        assert out == (
            f"{len(selection.features())} features in {selection.rows.num_rows} rows over 3 "
            f"timesteps → {path}\n"
        )


def test_rules_that_do_not_fit(capsys, store, tmp_path):
    export = [
        "export",
        store.root,
        "--sae",
        "s",
        "--concept",
        "style=neon",
        "-o",
        tmp_path / "x.json",
    ]
    for extra, status, message in [
        (["--top", 1, "--percentile", 50], 1, "--top and --percentile: give one of them"),
        (["--percentile", 100], 1, "expected a number above 0 and below 100"),
        (["--top", 0], 2, "x>=1"),
        (["--branch", "uncond"], 1, "was encoded for branch cond, not uncond"),
    ]:
        found, out, err = run(capsys, *export, *extra)
        assert (found, out) == (status, "")
        assert message in err
    assert list(tmp_path.iterdir()) == []


def test_json_has_numbers_as_numbers_and_nothing_that_is_no_json(capsys, store):
    statement = (
        "select sum(n_positions) as n, 'nan'::float as nan, 1.5::decimal(4, 2) as d, "
        "['ü', null] as l, 1 as n from stats"
    )
    status, out, _ = run(capsys, "sql", store.root, statement, "--format", "json")
    (row,) = json.loads(out, parse_constant=lambda name: pytest.fail(name))
    assert (status, type(row["n"])) == (0, int)
    assert {key: row[key] for key in ("nan", "d", "l", "n_1")} == {
        "nan": None,
        "d": 1.5,
        "l": ["ü", None],
        "n_1": 1,
    }


def test_csv_has_lists_as_json(capsys, store):
    status, out, _ = run(
        capsys, "sql", store.root, "select features, step from codes limit 1", "--format", "csv"
    )
    header, row = csv.reader(io.StringIO(out))
    assert (status, header) == (0, ["features", "step"])
    assert len(json.loads(row[0])) == 4


def test_a_long_table_is_cut_and_says_so(capsys, store):
    status, out, _ = run(
        capsys, "sql", store.root, "select i, repeat('x', 99) as t from range(1234) as r(i)"
    )
    lines = out.splitlines()
    assert (status, len(lines)) == (0, 43)
    assert lines[-1] == "… 1,194 more of 1,234 rows; --format csv shows all"
    assert max(map(len, lines)) < 80


def test_parquet_can_be_piped(capfdbinary, store):
    with pytest.raises(SystemExit) as stop:
        from featurestore.cli import main

        main(["sql", str(store.root), "select feature from stats", "--format", "parquet"])
    assert not stop.value.code
    assert pq.read_table(io.BytesIO(capfdbinary.readouterr().out)).column_names == ["feature"]


def test_what_a_format_cannot_hold_is_one_line(capsys, store):
    statement = "select interval 1 day as d"
    status, out, err = run(capsys, "sql", store.root, statement, "--format", "parquet")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "does not fit --format parquet" in err
    assert run(capsys, "sql", store.root, statement, "--format", "csv") == (0, '"d"\n"1 day"\n', "")


ODD = {
    "date '290000-01-01'": "290000-01-01",
    "'infinity'::date": "infinity",
    "'-infinity'::timestamp": "-infinity",
    "timestamp '290000-01-01 00:00:00'": "290000-01-01 00:00:00",
    "date '0044-03-15 (BC)'": "0044-03-15 (BC)",
    "time '24:00:00'": "24:00:00",
    "'290000-01-01'::timestamptz": "290000-01-01 00:00:00+00",
    "'infinity'::timestamp_s": "infinity",
    "interval '1 month 2 days 3 seconds'": "1 month 2 days 00:00:03",
}


def test_values_that_python_does_not_have(capsys, store):
    """D3: in every format, alone and within lists, structs and maps."""
    columns = [f"{value} as c{i}" for i, value in enumerate(ODD)]
    statement = f"select {', '.join(columns)}"
    expected = list(ODD.values())
    (row,) = json.loads(run(capsys, "sql", store.root, statement, "--format", "json")[1])
    assert list(row.values()) == expected
    _, cells = csv.reader(
        io.StringIO(run(capsys, "sql", store.root, statement, "--format", "csv")[1])
    )
    assert cells == expected
    assert run(capsys, "sql", store.root, statement, "--format", "markdown")[1].splitlines()[2] == (
        f"| {' | '.join(expected)} |"
    )
    for name in expected:
        assert name in run(capsys, "sql", store.root, statement)[1]
    nested = (
        "select [date 'infinity', null] as l, {'a': time '24:00:00'} as s, map {'k': date "
        "'290000-01-01'} as m, null as n"
    )
    (row,) = json.loads(run(capsys, "sql", store.root, nested, "--format", "json")[1])
    assert row == {
        "l": ["infinity", None],
        "s": {"a": "24:00:00"},
        "m": [["k", "290000-01-01"]],
        "n": None,
    }
    assert run(capsys, "sql", store.root, nested, "--format", "csv")[0] == 0


def test_ids_as_text_in_json(capsys, store):
    """D3: JavaScript rounds integers above 2^53."""
    statement = (
        "select sample_id, [sample_id] as l, seed, 1.5 as x from samples order by sample_id limit 1"
    )
    (i,) = store.arrow("samples").sort_by("sample_id")["sample_id"].to_pylist()[:1]
    status, out, err = run(capsys, "sql", store.root, statement, "--format", "json")
    assert (status, json.loads(out)) == (0, [{"sample_id": i, "l": [i], "seed": 0, "x": 1.5}])
    assert (
        err
        == "Note: sample_id has integers above 2^53, which JavaScript rounds: --text-ids writes "
        "them as text.\n"
    )
    _, out, err = run(capsys, "sql", store.root, statement, "--format", "json", "--text-ids")
    assert (json.loads(out), err) == (
        [{"sample_id": str(i), "l": [str(i)], "seed": "0", "x": 1.5}],
        "",
    )


def test_cells_that_a_spreadsheet_takes_for_formulas_are_noted(capsys, store):
    """D3: the cells stay what they are."""
    status, out, err = run(
        capsys, "sql", store.root, "select '=1+2' as x, '-' as y, -3 as n", "--format", "csv"
    )
    assert (status, out) == (0, '"x","y","n"\n"=1+2","-",-3\n')
    assert err.startswith("Note: 2 cells begin with =, +, - or @") and err.count("\n") == 1
    assert run(capsys, "sql", store.root, "select 'a=1' as x, -3 as n", "--format", "csv")[2] == ""


def test_a_terminal_and_a_page_obey_nothing_that_a_value_says(capsys, store):
    """D3: ESC and other control characters, marks of direction, and HTML."""
    statement = "select chr(27) || '[31m<b>' || chr(155) || chr(8238) || '&' as x"
    shown = run(capsys, "sql", store.root, statement)[1].splitlines()[2]
    assert shown == r"\x1b[31m<b>\x9b\u202e&"
    page = run(capsys, "sql", store.root, statement, "--format", "markdown")[1].splitlines()[2]
    assert page == r"| \\x1b[31m&lt;b&gt;\\x9b\\u202e&amp; |"
    out = run(capsys, "sql", store.root, statement, "--format", "json")[1]
    assert "\x1b" not in out and "\x9b" not in out
    assert json.loads(out) == [{"x": "\x1b[31m<b>\x9b\u202e&"}]
    err = run(capsys, "export", store.root, "--sae", "s", "--concept", "style=\x1b[31m")[2]
    assert "\x1b" not in err and r"\x1b[31m" in err


def test_wide_characters_are_aligned(capsys, store):
    """D4."""
    lines = run(
        capsys, "sql", store.root, "select * from (values ('雪', 'a'), ('neon', 'b')) t(x, y)"
    )[1].splitlines()
    assert lines == ["x     y", "────  ─", "雪    a", "neon  b"]


def test_a_terminal_s_width_is_kept(monkeypatch, capsys):
    monkeypatch.setattr(
        "featurestore.cli.terminal.text.shutil.get_terminal_size",
        lambda: os.terminal_size((40, 24)),
    )
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    text = text_table(["name", "n", "more"], [["a" * 50, "1", "b" * 50]], [False, True, False])
    cut = f"{'a' * 16}…  1  {'b' * 16}…"
    assert text.splitlines() == ["name               n  more", f"{'─' * 17}  ─  {'─' * 17}", cut]
    narrow = text_table([f"c{i}" for i in range(9)], [["x" * 20] * 9])
    assert max(map(len, narrow.splitlines()[:-1])) <= 40
    assert narrow.splitlines()[-1] == "… and the columns c3, c4, c5, c6, c7, c8"


def test_a_store_may_be_named_when_questions_are_listed(capsys, store):
    """D4."""
    listed = run(capsys, "query", "--list")
    assert run(capsys, "query", store.root, "--list") == listed
    assert run(capsys, "query", store.root, "bootstrap", "--list") == run(
        capsys, "query", "--list", "bootstrap"
    )
    assert "no question 'bootstra'" in run(capsys, "query", "--list", "bootstra")[2]


def test_samples_that_are_not_encoded_are_counted(capsys, tmp_path):
    """B5: with the command that encodes them."""
    codes = random_codes(1, samples=4)
    part = make_store(tmp_path / "part", codes, {"style": ["neon", "sketch"] * 2}, encoded=[0, 1])
    for command in (
        ["score", part.root, "--sae", "s", "--by", "style"],
        ["export", part.root, "--sae", "s", "--by", "style", "-o", tmp_path / "out"],
        ["plot", part.root, "--sae", "s", "--concept", "style=neon", "-o", tmp_path / "neon.png"],
        ["query", part.root, "concepts"],
    ):
        status, _, err = run(capsys, *command)
        assert status == 0
        assert (
            "Warning: 2 of 4 samples are encoded with SAE 's', and the answer is about these alone"
            in err
        ), command
        assert (
            f"featurestore collect --store {part.root} --sae s" in err
        )  # this store has no activations to encode
    whole = make_store(tmp_path / "whole", codes, {"style": ["neon", "sketch"] * 2})
    assert run(capsys, "score", whole.root, "--sae", "s", "--by", "style")[2] == ""


def test_an_empty_answer_still_has_its_columns(capsys, store):
    assert (
        run(capsys, "sql", store.root, "select sae, feature from scores where false")[
            1
        ].splitlines()[0]
        == "sae  feature"
    )
    assert (
        json.loads(
            run(capsys, "sql", store.root, "select hook from activations", "--format", "json")[1]
        )
        == []
    )


def test_a_terminal_is_told_what_comes_next(capsys, store, tmp_path, monkeypatch):
    score = ["score", store.root, "--sae", "s", "--by", "object"]
    assert run(capsys, *score)[2] == ""  # not a script
    monkeypatch.setattr(
        "featurestore.cli.terminal.hints.sys.stderr.isatty", lambda: True, raising=False
    )
    told = run(capsys, *score)[2].splitlines()[-1]
    assert (
        told
        == f"Next: featurestore export {store.root} --sae s --concept object=cat -o SELECTION.json"
    )
    path = tmp_path / "it's cat.json"
    told = run(capsys, "export", store.root, "--sae", "s", "--concept", "object=cat", "-o", path)[
        2
    ].splitlines()[-1]
    assert shlex.split(told.removeprefix("Next: "))[:2] == ["featurestore", "generate"]
    assert str(path) in shlex.split(told)
