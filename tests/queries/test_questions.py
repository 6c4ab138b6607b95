"""Every question of the library: its answer is NumPy's, its columns and rows are what
questions.toml promises."""

import math
import re
import shutil
import warnings

import duckdb
import numpy as np
import pytest
from hypothesis import assume, given, seed, settings
from hypothesis import strategies as st

from featurestore import Store
from featurestore.errors import QueryError, UsageError
from featurestore.format.records import listing
from featurestore.saes import load_config
from queries import ask
from queries.answers import ask_each, schema
from queries.connection.text import SQL, quote_text
from queries.questions import questions
from tests.builders.cases import answer, equal, make_case
from tests.builders.codes import HOSTILE, random_codes
from tests.builders.stores import make_store
from tests.queries import oracles

FEW = "ignore:.* are few for an interval"
pytestmark = pytest.mark.filterwarnings(FEW)
CASES = {
    "seed": st.integers(0, 10**6),
    "labels": st.lists(st.sampled_from(HOSTILE), min_size=2, max_size=6).filter(
        lambda x: len(set(x) - {None}) > 1
    ),
    "silent": st.none() | st.integers(0, 5),
    "feature": st.integers(0, 11),
    "top": st.integers(1, 6),
}
SETTINGS = settings(max_examples=5)
ALIKE = seed(0) if settings.default.derandomize else lambda test: test
"""the same cases for every question, unless new ones are asked for"""


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """A call that makes a case once, and returns it on copies of its stores: what one question keeps
    in a store is not there for the next."""
    made = {}

    def copied(**drawn):
        if repr(drawn) not in made:
            made[repr(drawn)] = make_case(tmp_path_factory.mktemp("made"), **drawn)
        *stores, case = made[repr(drawn)]
        root = tmp_path_factory.mktemp("q")
        copies = [shutil.copytree(one.root, root / one.root.name) for one in stores]
        return *map(Store.open, copies), case

    return copied


@pytest.mark.parametrize("name", list(questions()))
@ALIKE
@SETTINGS
@given(**CASES)
def test_an_answer_is_that_of_numpy(cases, name, **drawn):
    store, other, case = cases(**drawn)
    assume(case.importance or "importance" not in "".join(questions()[name].relations))
    table = answer(name, store, other, case)
    found, expected = (
        [tuple(row.values()) for row in table.to_pylist()],
        getattr(oracles, name)(case),
    )
    if (
        name == "best_features"
    ):  # its oracle has every feature: equal means may come in either order
        every = {row[:2]: row for row in expected}
        for concept in {row[0] for row in expected}:
            means = sorted((row[2] for row in expected if row[0] == concept), reverse=True)[
                : case.top
            ]
            assert [row[2] for row in found if row[0] == concept] == pytest.approx(means, abs=1e-12)
        expected = [every[row[:2]] for row in found]
    assert len(found) == len(expected), (found, expected)
    for a, b in zip(found, expected, strict=True):
        assert equal(a, b), (a, b)


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    return make_case(
        tmp_path_factory.mktemp("q"), 3, ["neon", "a\"b'; --", "neon", "雪", None], None, 2, 3
    )


@pytest.mark.parametrize("name", list(questions()))
def test_an_answer_passes_its_own_data_tests(example, name):
    asked = questions()[name]
    table = answer(name, *example)
    assert table.schema == schema(asked)
    assert table.num_rows
    with duckdb.connect() as connection:
        connection.register("answer", table)
        for test in asked.tests:
            assert (
                connection.sql(f"select * from answer where not coalesce({test}, false)").fetchall()
                == []
            ), test
        keys = connection.execute(
            f"select count(*), count(distinct ({', '.join(asked.key)})) from answer"
        ).fetchall()[0]
        assert keys[0] == keys[1]
        for column in set(asked.columns) - set(asked.nullable):
            quoted = '"' + column + '"'
            assert (
                connection.sql(f"select * from answer where {quoted} is null").fetchall() == []
            ), column


@pytest.mark.parametrize("name", list(questions()))
def test_the_comment_names_the_relations_and_parameters_that_the_statement_uses(name):
    asked = questions()[name]
    assert asked.sql.startswith(f"-- {name}: ")
    assert asked.sql.rstrip().endswith("select * from final")
    code = re.sub(r"--.*", "", asked.sql)
    in_code = set(re.findall(r"\$(\w+)", code))
    documented = asked.documentation.partition("Parameters:")[2].partition("Columns:")[0]
    assert set(re.findall(r"\$(\w+)", documented)) == in_code
    relations = asked.documentation.partition("Relations:")[2].partition("Parameters:")[0]
    for relation in asked.relations:
        assert relation in relations
        assert re.search(rf"\b{relation}\b", code)
    assert code == code.lower()


def test_every_file_is_a_question_with_an_oracle():
    assert {path.stem for path in SQL.glob("*.sql")} == set(questions())
    for name in questions():
        assert callable(getattr(oracles, name))


def test_one_sample_answers_what_needs_no_other_concept(tmp_path):
    store = make_store(tmp_path / "store", random_codes(2, samples=1), {"style": ["only"]})
    assert ask(store, "concepts").to_pylist() == [
        {"family": "style", "concept": "only", "n_samples": 1, "n_encoded": 1}
    ]
    assert ask(store, "timestep_profile", {"feature": "0"}).num_rows == 3
    with pytest.raises(QueryError, match="needs at least two concepts"):
        ask(store, "importance")


def test_what_is_wrong_is_said_in_one_line(example):
    store, other, _ = example
    sae = {"sae": "s"}
    for name, values, error, message in [
        ("profil", {}, QueryError, "no question 'profil'"),
        ("timestep_profil", {}, QueryError, "Did you mean 'timestep_profile'"),
        ("timestep_profile", sae, UsageError, "needs -p feature=…"),
        (
            "timestep_profile",
            {**sae, "feature": "x"},
            UsageError,
            "feature = 'x': expected integer",
        ),
        (
            "timestep_profile",
            {**sae, "feature": "-1"},
            UsageError,
            "feature = '-1': expected at least 0",
        ),
        (
            "timestep_profile",
            {**sae, "feature": 12},
            QueryError,
            "has the features 0 to 11, not 12",
        ),
        (
            "timestep_profile",
            {**sae, "feature": 1, "fetaure": 1},
            UsageError,
            "Did you mean 'feature'",
        ),
        (
            "timestep_profile",
            {**sae, "feature": 1, "branch": "both"},
            UsageError,
            "one of cond, uncond",
        ),
        ("timestep_profile", {"feature": 1}, UsageError, "needs -p"),
        (
            "bootstrap",
            {**sae, "family": "style", "concept": "neon", "level": "nan"},
            UsageError,
            "expected 0 to 1",
        ),
        (
            "overlap",
            {**sae, "family": "style", "concept": "neon", "other_concept": "x"},
            QueryError,
            "Known: ",
        ),
        ("importance", {**sae, "family": "styl"}, QueryError, "Did you mean 'style'"),
        ("importance", {"sae": "z", "family": "style"}, Exception, "'z'"),
        ("compare_stores", sae, UsageError, "needs another store: --other STORE"),
    ]:
        if message == "needs -p":
            error, message = (
                QueryError,
                "expected one SAE that it was encoded with, found several, s, t: add -p sae=",
            )
        with pytest.raises(error) as raised:
            ask(store, name, values)
        assert message in str(raised.value)
        assert "\n" not in str(raised.value)
    with pytest.raises(UsageError, match="takes no other store"):
        ask(store, "concepts", sae, other=other)


def test_a_concept_that_does_not_exist_lists_those_that_do(example):
    store, *_ = example
    with pytest.raises(
        QueryError, match=re.escape("style=noen. Did you mean 'neon'? Known: ")
    ) as raised:
        ask(store, "selection", {"sae": "s", "family": "style", "concept": "noen"})
    for concept in ("neon", "雪"):
        assert concept in str(raised.value)


def test_a_percentile_replaces_the_top_n(example):
    store, *_ = example
    common = {"sae": "s", "family": "style", "concept": "neon"}
    n_rows = [ask(store, "selection", {**common, "percentile": p}).num_rows for p in (50, 90)]
    assert n_rows[0] > n_rows[1] > 0


def test_memory_that_does_not_suffice_is_said(tmp_path, example):
    store, *_ = example
    with pytest.raises(UsageError, match="memory limit 'much': expected a size such as 2GB"):
        ask(store, "concepts", {"sae": "s"}, memory_limit="much")
    assert ask(store, "importance", {"sae": "s", "family": "style"}, memory_limit="1GB").num_rows


def test_the_resampled_samples_stay_within_their_concepts(example):
    from queries.relations.drawn import resamples

    labelled = [(1, "a"), (2, "b"), (3, "a")]
    rows = resamples(labelled, 50, {"random_seed": 1}).to_pylist()
    for replicate in range(50):
        drawn = {row["sample_id"]: row["weight"] for row in rows if row["replicate"] == replicate}
        assert drawn[2] == 1
        assert drawn.get(1, 0) + drawn.get(3, 0) == 2
    assert len({row["weight"] for row in rows}) > 1
    assert np.isclose(np.mean([r["weight"] for r in rows if r["sample_id"] == 1]), 1.3, atol=0.4)


def test_intervals_of_one_step_are_those_of_all_steps(example):
    store, *_ = example
    asked = {"sae": "s", "family": "style", "concept": "neon", "replicates": 30}
    every = ask(store, "bootstrap", asked).to_pylist()
    found = [ask(store, "bootstrap", {**asked, "at_step": step}).to_pylist() for step in range(3)]
    assert [len(rows) > 0 for rows in found] == [True] * 3
    for row, other in zip([row for rows in found for row in rows], every, strict=True):
        assert row == pytest.approx(other, abs=1e-12)


def test_few_samples_are_warned_of_and_one_is_no_interval(tmp_path):
    from queries.relations.drawn import resamples

    labels = ["neon", *["other"] * 20]
    store = make_store(tmp_path / "store", random_codes(2, samples=21), {"style": labels})
    with pytest.warns(
        UserWarning,
        match="^1 samples of 'neon' are few for an interval: with fewer than 20 the true",
    ):
        rows = ask(store, "bootstrap", {"concept": "neon", "replicates": 5}).to_pylist()
    assert rows and all((row["low"], row["high"]) == (-1, 1) for row in rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ask(store, "bootstrap", {"concept": "other", "replicates": 5})
    drawn = resamples([(i, "a") for i in range(3)], 2, {"random_seed": 0, "level": 0.5}).to_pylist()
    assert drawn[0]["widening"] == pytest.approx(
        0.8165 * math.sqrt(3 / 2), abs=1e-4
    )  # t of 2 degrees of freedom


@pytest.mark.parametrize("n", [2, 5, 20])
def test_intervals_of_scores_cover_what_they_promise(n):
    """Line of the fault: percentiles of the resamples covered 0.57, 0.80 and 0.89 at 2, 5 and 20
    samples.

    Samples of two concepts with one feature of known mean beside others; the interval is that of
    bootstrap.sql.
    """
    from queries.relations.drawn import resamples

    rng = np.random.default_rng(0)
    labelled = [(i, "a") for i in range(n)] + [(i, "b") for i in range(n, 5 * n)]
    covered = 0
    for trial in range(200):
        mean = np.array([2.0 if concept == "a" else 0.5 for _, concept in labelled])
        feature = mean * rng.gamma(2, 0.5, 5 * n)  # varies by 0.7 of its mean
        total = feature + rng.gamma(25, 0.32, 5 * n)
        table = resamples(labelled, 100, {"random_seed": trial}).to_pydict()
        weights = np.zeros((100, 5 * n))
        weights[table["replicate"], table["sample_id"]] = table["weight"]
        parts = [(slice(0, n), 1), (slice(n, None), -1)]
        scores = sum(
            sign * (weights[:, s] @ feature[s]) / (weights[:, s] @ total[s]) for s, sign in parts
        )
        score = sum(sign * feature[s].sum() / total[s].sum() for s, sign in parts)
        half = table["widening"][0] * scores.std(ddof=1)
        covered += abs(score - (2 / 10 - 0.5 / 8.5)) <= half
    assert covered / 200 >= 0.88


def test_labels_are_joined(example):
    from queries import connect

    store, *_ = example
    with connect(store) as connection:
        assert set(connection.sql("select distinct family from labels").fetchall()) == {
            ("style",),
            ("total",),
        }
        n = connection.execute("select count(*) from stats").fetchall()[0]
        assert connection.execute("select count(*) from labelled_stats").fetchall()[0] == n
        row = connection.execute(
            f"select count(*) from labelled_codes where style = {quote_text('雪')}"
        ).fetchall()[0]
        assert row == (6,)
        relation = connection.sql("select feature, sum from labelled_stats order by all limit 3")
        assert relation.pl().rows() == list(relation.df().itertuples(index=False, name=None))
        assert load_config(store, "s")["n_latents"] == 12


def test_a_question_asked_many_times_at_once_is_answered_as_one_by_one(example):
    from queries.answers import ask_each

    store, *_ = example
    asked = [
        {"sae": "s", "feature": feature, "top": top} for feature in (2, 0, 5) for top in (1, 3)
    ]
    assert list(ask_each(store, "top_samples", asked)) == [
        ask(store, "top_samples", one) for one in asked
    ]
    assert list(ask_each(store, "top_samples", [])) == []
    with pytest.raises(UsageError, match="asked many times at once: sae, other_sae, branch"):
        list(
            ask_each(store, "top_samples", [{"sae": "s", "feature": 1}, {"sae": "t", "feature": 1}])
        )


def test_a_question_is_asked_of_one_state_of_a_store_that_grows(tmp_path, monkeypatch):
    z, labels = random_codes(4, samples=4), {"style": ["a", "b", "a", "b"]}
    store = make_store(tmp_path / "store", z, labels, encoded=[0, 1])
    with listing.one_state():
        before = store.records("codes/s")
        make_store(tmp_path / "store", z, labels, encoded=[2, 3])
        assert store.records("codes/s") == before
    assert len(store.records("codes/s")) == 2
    seen, read = [], listing._read_standing
    monkeypatch.setattr(
        listing, "_read_standing", lambda root, table: seen.append(table) or read(root, table)
    )
    for name, asked in {"best_scores": {}, "feature_concepts": {"feature": 1}}.items():
        seen.clear()
        ask(store, name, asked)
        collected = [table for table in seen if table.split("/")[0] in listing._COLLECTED]
        assert "codes/s" in collected
        assert len(collected) == len(set(collected)), "records are read once"


def test_the_best_of_several_numbers_are_asked_over_one_connection(tmp_path):
    z, labels = random_codes(4, samples=4), {"style": ["a", "b", "a", "b"]}
    store = make_store(tmp_path / "store", z, labels)
    for name in ("best_scores", "best_features"):
        every = [{"top": top} for top in (2, 5, 1)]
        assert list(ask_each(store, name, every)) == [ask(store, name, one) for one in every]
