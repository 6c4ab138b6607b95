"""``score``, ``sql`` and ``export`` on stores of given codes; test_flow.py has the whole way."""

import csv
import io
import json

import pyarrow.parquet as pq
import pytest

from featurestore import Selection
from tests.builders.cli import run
from tests.builders.codes import random_codes
from tests.builders.stores import make_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    labels = {"style": ["neon", "sketch", 'it\'s, # "x"', None], "object": ["cat", "dog", "cat", "dog"]}
    return make_store(tmp_path_factory.mktemp("cli") / "store", random_codes(1, samples=4), labels)


def test_score_names_the_best_features_of_each_concept(capsys, store):
    status, out, err = run(capsys, "score", store.root, "--sae", "s", "--by", "object", "--top", 2)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["concept", "feature", "mean_score", "best_score", "best_timestep", "n_steps_in_top"]
    assert [line.split()[0] for line in lines[2:6]] == ["cat", "cat", "dog", "dog"]
    assert out.endswith(f"scores kept in {store.root}/scores/s.\n")


def test_export_takes_any_concept_and_either_rule(capsys, store, tmp_path):
    for rule, expected in (
        (["--top", 3], {"top": 3}),
        (["--percentile", 90.5], {"percentile": 90.5}),
        ([], {"top": 2}),
    ):
        path = tmp_path / "x.csv"
        command = ["export", store.root, "--sae", "s", "--concept", 'style=it\'s, # "x"', *rule, "-o", path]
        status, out, _ = run(capsys, *command)
        selection = Selection.load(path)
        assert status == 0
        assert (selection.concept, selection.rule) == ('it\'s, # "x"', expected)
        assert selection.rows.num_rows > 0
        assert out == (
            f"{len(selection.features())} features in {selection.rows.num_rows} rows over 3 timesteps → {path}\n"
        )


def test_rules_that_do_not_fit(capsys, store, tmp_path):
    export = ["export", store.root, "--sae", "s", "--concept", "style=neon", "-o", tmp_path / "x.json"]
    for extra, status, message in [
        (["--top", 1, "--percentile", 50], 1, "--top and --percentile: give one of them"),
        (["--percentile", 100], 1, "expected a number between 0 and 100"),
        (["--top", 0], 2, "x>=1"),
        (["--branch", "uncond"], 1, "was encoded for branch cond, not uncond"),
    ]:
        found, out, err = run(capsys, *export, *extra)
        assert (found, out) == (status, "")
        assert message in err
    assert list(tmp_path.iterdir()) == []


def test_json_has_numbers_as_numbers_and_nothing_that_is_no_json(capsys, store):
    statement = "select sum(n_positions) as n, 'nan'::float as nan, 1.5::decimal(4, 2) as d, ['ü', null] as l, 1 as n from stats"
    status, out, _ = run(capsys, "sql", store.root, statement, "--format", "json")
    (row,) = json.loads(out, parse_constant=lambda name: pytest.fail(name))
    assert (status, type(row["n"])) == (0, int)
    assert {key: row[key] for key in ("nan", "d", "l", "n_1")} == {"nan": None, "d": 1.5, "l": ["ü", None], "n_1": 1}


def test_csv_has_lists_as_json(capsys, store):
    status, out, _ = run(capsys, "sql", store.root, "select features, step from codes limit 1", "--format", "csv")
    header, row = csv.reader(io.StringIO(out))
    assert (status, header) == (0, ["features", "step"])
    assert len(json.loads(row[0])) == 4


def test_a_long_table_is_cut_and_says_so(capsys, store):
    status, out, _ = run(capsys, "sql", store.root, "select i, repeat('x', 99) as t from range(1234) as r(i)")
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
    for form in ("csv", "parquet"):
        status, out, err = run(capsys, "sql", store.root, "select interval 1 day as d", "--format", form)
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert f"does not fit --format {form}" in err


def test_an_empty_answer_still_has_its_columns(capsys, store):
    assert (
        run(capsys, "sql", store.root, "select sae, feature from scores where false")[1].splitlines()[0]
        == "sae  feature"
    )
    assert json.loads(run(capsys, "sql", store.root, "select hook from activations", "--format", "json")[1]) == []
