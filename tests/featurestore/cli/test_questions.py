"""``query``, the prompt of ``sql``, ``plot``, and ``export`` of many concepts or of a database."""

import io
import itertools
import json
import shlex
import sys

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from PIL import Image

from featurestore import Selection
from queries import ask
from queries.drawings import grid, maps, matrix
from queries.questions import questions
from queries.selections import select
from tests.builders.cli import run
from tests.builders.codes import random_codes
from tests.builders.stores import make_store
from tests.queries.oracles import oracle

STYLES = ["neon", "sketch", "$x_1$ ❄\n", None, "neon", "../up"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    labels = {"style": STYLES, "object": ["cat", "dog"] * 3}
    return make_store(tmp_path_factory.mktemp("cli") / "store", random_codes(1, samples=6), labels)


def test_every_question_is_listed_and_explained(capsys):
    listed = run(capsys, "query", "--list")[1]
    for name, asked in questions().items():
        assert f"{name}(" in listed
        status, out, _ = run(capsys, "query", "--list", name)
        assert (status, asked.summary in out) == (0, True)
        assert all(f"  {parameter} " in out for parameter in asked.parameters)
        assert out.splitlines()[-1] == asked.example
        words = shlex.split(asked.example)
        given = dict(
            word.split("=") for before, word in itertools.pairwise(words) if before == "-p"
        )
        assert asked.bind(given).keys() >= given.keys()
        assert ("--other" in words) == ("other_stats" in asked.relations)


def test_an_answer_in_every_format(capsys, store, tmp_path):
    command = ["query", store.root, "timestep_profile", "-p", "feature=2"]
    assert run(capsys, *command)[1].splitlines()[0].split()[:3] == ["step", "timestep", "density"]
    rows = json.loads(run(capsys, *command, "--format", "json")[1])
    assert [row["step"] for row in rows] == [0, 1, 2]
    for suffix in ("csv", "parquet", "jsonl.zst", "md", "json"):
        assert run(capsys, *command, "-o", tmp_path / f"x.{suffix}") == (0, "", "")
    assert json.loads((tmp_path / "x.json").read_text()) == rows
    assert pq.read_table(tmp_path / "x.parquet").to_pylist() == rows
    lines = (
        zstandard.ZstdDecompressor()
        .stream_reader(io.BytesIO((tmp_path / "x.jsonl.zst").read_bytes()))
        .read()
    )
    assert [json.loads(line) for line in lines.splitlines()] == rows
    found = duckdb.sql(f"select * from read_csv('{tmp_path / 'x.csv'}')").fetchall()
    assert found == [tuple(row.values()) for row in rows]
    head, rule, *body = (tmp_path / "x.md").read_text().splitlines()
    assert (len(body), set(rule)) == (3, set("|- "))
    assert head.split(" | ")[1] == "timestep"


def test_markdown_keeps_any_text_in_its_cell(capsys, store):
    statement = "select 'a|b' || chr(10) || 'c' as t, null as n, [1, 2] as l"
    out = run(capsys, "sql", store.root, statement, "--format", "markdown")[1]
    assert out.splitlines()[2] == "| a\\|b c |  | [1, 2] |"


def test_parameters_that_are_wrong(capsys, store):
    for extra, message in [
        (["overlap", "-p", "concept"], "-p 'concept': expected KEY=VALUE"),
        (["drift", "-p", "feature=1", "-p", "feature=2"], "-p feature is given twice"),
        (
            ["overlap", "-p", "family=style", "-p", "concept=neon", "-p", "other_concept=no"],
            "Known: ",
        ),
        (
            ["overlap", "-p", "concept=neon", "-p", "other_concept=no"],
            "found several, style, object: add -p family=…",
        ),
        (["concepts", "--engine", "spark", "--memory", "1GB"], "--memory is for DuckDB"),
        ([], "expected STORE and NAME"),
    ]:
        status, out, err = run(capsys, "query", store.root, *extra)
        assert (status, out, message in err, err.count("\n")) == (1, "", True, 1)


def answers(capsys, monkeypatch, store, text):
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    return run(capsys, "sql", store.root, "--format", "csv")


def test_a_prompt_takes_statements_over_several_lines_and_survives_errors(
    capsys, monkeypatch, store
):
    text = (
        "\nselect 1 as a\n  -- not the end;\n , ';' as b\n;\nselect stile from "
        "samples;\nselect 'x;\ny' as c;\nselect 3 as d"
    )
    status, out, err = answers(capsys, monkeypatch, store, text)
    assert (status, out) == (0, '"a","b"\n1,";"\n"c"\n"x;\ny"\n"d"\n3\n')
    assert "Did you mean 'style'" in err
    assert err.rstrip().endswith("(line 1, column 8: stile)")
    assert err.count("\n") == 1


def test_a_prompt_is_left_by_a_word(capsys, monkeypatch, store):
    assert answers(capsys, monkeypatch, store, "quit;\nselect 1;") == (0, "", "")


def test_a_prompt_writes_nothing(capsys, monkeypatch, store, tmp_path):
    _, out, err = answers(
        capsys,
        monkeypatch,
        store,
        f"copy (select 1) to '{tmp_path / 'x'}';\ncreate table t(a int);",
    )
    assert (out, err.count("expected one SELECT"), list(tmp_path.iterdir())) == ("", 2, [])


def test_all_concepts_of_a_family_become_files_that_load_back(capsys, store, tmp_path):
    concepts = sorted({style for style in STYLES if style is not None})
    for form in ("json", "csv", "parquet", "jsonl.zst", "md"):
        status, out, _ = run(
            capsys,
            "export",
            store.root,
            "--sae",
            "s",
            "--by",
            "style",
            "-o",
            tmp_path / form,
            "--format",
            form,
        )
        files = sorted((tmp_path / form).iterdir())
        assert (status, len(files), len(out.splitlines())) == (0, len(concepts), len(concepts))
        loaded = {selection.concept: selection for selection in map(Selection.load, files)}
        assert loaded == {concept: select(store, "s", "style", concept) for concept in concepts}


def test_several_concepts_go_into_the_store_or_a_directory(capsys, store, tmp_path):
    pair = ["--concept", "style=neon", "--concept", "style=sketch"]
    assert (
        len(run(capsys, "export", store.root, "--sae", "s", *pair, "-o", tmp_path)[1].splitlines())
        == 2
    )
    assert len(list(tmp_path.glob("*.json"))) == 2
    for arguments, message in [
        (
            ["--sae", "s", "--concept", "style=neon", "--concept", "object=cat"],
            "expected one family, found object, style",
        ),
        (
            ["--sae", "s", "--concept", "style=neon", "--by", "style"],
            "either --concept FAMILY=CONCEPT or --by FAMILY",
        ),
        (["--concept", "style=neon"], "give --sae"),
        (
            ["--sae", "s", "--concept", "style=neon", "-o", tmp_path / "x.json", "--format", "csv"],
            "--format csv is for the files in a directory, -o DIRECTORY; a single file has",
        ),
        (
            ["--sae", "s", "--by", "style", "--format", "csv"],
            "--format csv is for the files in a directory, -o DIRECTORY; a single file has",
        ),
        (
            ["--duckdb", tmp_path / "x", "--sae", "s", "--percentile", 99],
            "--duckdb exports the whole store: leave out --sae, --percentile.",
        ),
    ]:
        status, _, err = run(capsys, "export", store.root, *arguments)
        assert (status, message in err) == (1, True), err


def test_any_duckdb_reads_the_exported_database(capsys, store, tmp_path):
    path = tmp_path / "store.duckdb"
    path.write_bytes(b"what was there")
    status, out, _ = run(capsys, "export", store.root, "--duckdb", path)
    assert (status, "19 views" in out) == (0, True)
    with duckdb.connect(str(path), read_only=True) as connection:
        assert (
            connection.sql("select count(*) from labelled_stats").fetchall()[0][0]
            == store.records("stats/s")[0].rows
        )
        assert connection.sql("select sae from saes").fetchall() == [("s",)]
        names = connection.sql(
            "select count(distinct concept) from labels where family = 'style'"
        ).fetchall()
        assert names == [(4,)]
    assert path.stat().st_size < 4_000_000


def test_the_grid_of_a_plot_holds_the_scores_of_the_best_features(store):
    features, timesteps, scores = grid(
        ask(store, "concept_scores", {"family": "style", "concept": "neon", "top": 3})
    )
    expected = oracle(random_codes(1, samples=6), STYLES)[0]["neon"]
    means = expected.mean(0)
    assert timesteps == [981.0, 961.0, 941.0]
    np.testing.assert_allclose(
        means[features], sorted(means, reverse=True)[: len(features)], atol=1e-9
    )
    np.testing.assert_allclose(scores, expected.T[features], atol=1e-9)


@pytest.fixture(scope="module")
def pictured(tmp_path_factory):
    """A store with a picture for each sample, and an SAE that was measured."""
    sink = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(sink, "PNG")
    metrics = [{"step": s, "timestep": 9 - s, "branch": "cond", "fvu": 0.5 - s / 9} for s in (0, 1)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.builders.stores.METRICS", {"timesteps": metrics})
        return make_store(
            tmp_path_factory.mktemp("pictured") / "store",
            random_codes(1, samples=6),
            {"style": STYLES},
            pictures=[sink.getvalue()] * 6,
        )


@pytest.mark.filterwarnings("ignore:.* are few for an interval")
@pytest.mark.parametrize(
    ("kind", "of", "said"),
    [
        (kind, ["--concept", f"style={STYLES[2]}"], "features")
        for kind in ("lines", "heatmap", "interval")
    ]
    + [
        ("overlap", ["--by", "style"], "4 concepts"),
        ("profile", ["--feature", 2], "3 timesteps"),
        ("map", ["--feature", 2, "--top", 3], "3 pictures"),
        ("fvu", [], "2 timesteps"),
    ],
)
def test_a_plot_is_a_picture_and_the_same_every_time(capsys, pictured, tmp_path, kind, of, said):
    for name in ("a.svg", "b.svg", "a.png"):
        command = ["plot", pictured.root, "--sae", "s", *of, "--kind", kind, "-o", tmp_path / name]
        status, out, err = run(capsys, *command)
        assert (status, err if kind != "interval" else "") == (0, "")
        assert out.endswith(f"{said} → {tmp_path / name}\n")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "a.svg").read_bytes().startswith(b"<?xml")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_map_shows_a_feature_where_it_fires():
    answer = pa.table(
        {"step": [1], "map_row": [1], "map_column": [2], "value": [0.75], "timestep": [9.0]}
    )
    grey = np.full((8, 8, 3), 128, np.uint8)
    figure = maps("", [grey], [answer], {0: 10.0, 1: 9.0}, size=(2, 4))
    drawn = [axes.get_images()[-1].get_array() for axes in figure.axes[1:3]]
    np.testing.assert_array_equal(drawn[0], np.zeros((2, 4)))
    np.testing.assert_array_equal(drawn[1], [[0, 0, 0, 0], [0, 0, 0.75, 0]])


def test_a_matrix_shows_what_the_question_answers(store):
    rows = ask(store, "overlap_matrix", {"family": "style", "top": 3})
    figure, n = matrix("", rows)
    (image,) = figure.axes[0].get_images()
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    shown = image.get_array()
    assert n == len(names) == 4
    for row in rows.to_pylist():
        if row["concept"] != row["other_concept"]:
            i, j = names.index(row["concept"]), names.index(row["other_concept"])
            assert shown[i, j] == shown[j, i] == row["jaccard"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kind", "map"], "--kind map is drawn for --feature; given: no more than --sae."),
        (["--concept", "style=neon", "--feature", 2],
         "give one of --concept, --feature and --by, not --concept and --feature."),
        (["--kind", "fvu", "--by", "style"],
         "--kind fvu is drawn for no more than --sae; given: --by."),
        ([], "SAE 's' was not measured by training: it has no FVU by timestep."),
        (["--feature", 2, "--kind", "map"], "have no pictures: collect them with --images."),
    ],
)  # fmt: skip
def test_a_kind_says_what_it_is_drawn_for(capsys, store, tmp_path, arguments, message):
    command = ["plot", store.root, "--sae", "s", *arguments, "-o", tmp_path / "x.png"]
    status, _, err = run(capsys, *command)
    assert (status, message in err, list(tmp_path.iterdir())) == (1, True, []), err


def test_what_cannot_be_drawn(capsys, store, tmp_path):
    for concept, name, message in [
        ("style=noen", "x.png", "Did you mean 'neon'?"),
        ("style=neon", "x.jpg", "a picture is .png or .svg"),
    ]:
        command = ["plot", store.root, "--sae", "s", "--concept", concept, "-o", tmp_path / name]
        status, _, err = run(capsys, *command)
        assert (status, message in err, list(tmp_path.iterdir())) == (1, True, [])


def test_spark_without_its_packages_names_the_extra(capsys, monkeypatch, store):
    monkeypatch.setitem(sys.modules, "queries.spark", None)
    status, out, err = run(capsys, "query", store.root, "concepts", "--engine", "spark")
    assert (status, out) == (1, "")
    assert "pip install 'featurestore[spark]'" in err
