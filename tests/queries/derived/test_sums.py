"""Sums and totals: made once by SQL, kept while they are of the present samples, the same bits
whatever the shards."""

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import DamageError, QueryError
from queries import ask, score, select, selections
from queries.derived import sums
from queries.derived.sums import find_sums, keep_sums
from queries.relations import finding
from queries.selections import select_all
from tests.builders.codes import (
    LABELS,
    dense,
    importance,
    make_shards,
    noisy,
    random_codes,
)
from tests.builders.stores import make_store
from tests.queries.oracles import oracle

SETTINGS = settings(max_examples=5)


@SETTINGS
@given(seed=st.integers(0, 10**6), labels=LABELS)
def test_scores_are_the_oracles_to_twelve_digits(tmp_path_factory, seed, labels):
    z = (
        np.round(noisy(random_codes(seed, samples=len(labels)), seed) * 1024) / 1024
    )  # float32 holds their sums exactly
    store = make_store(tmp_path_factory.mktemp("s") / "store", z, {"style": labels})
    table, found = importance(store, "s", "style"), oracle(z, labels)
    share = {c: m / (m.sum(-1, keepdims=True) + 1e-8) for c, m in found[1].items()}
    for concept, scores in found[0].items():
        mine = dense(table, concept, z.shape[1], z.shape[3])
        scale = share[concept] + np.abs(
            scores
        )  # a score is a difference of shares: of these it has twelve digits
        assert (np.abs(mine - scores) <= 1e-12 * scale).all()


@SETTINGS
@given(
    seed=st.integers(0, 10**6),
    labels=LABELS,
    cuts=st.integers(1, 3),
    told=st.booleans(),
    groups=st.sampled_from([1, 50, 2**23]),
)
def test_shards_and_windows_change_no_bit(
    tmp_path_factory, monkeypatch, seed, labels, cuts, told, groups
):
    z = noisy(random_codes(seed, samples=len(labels)), seed)
    whole = make_store(tmp_path_factory.mktemp("s") / "store", z, {"style": labels})
    expected = [ask(whole, name) for name in ("sums", "totals", "importance")]
    monkeypatch.setattr(sums, "_GROUPS_AT_ONCE", groups)
    store = make_shards(tmp_path_factory.mktemp("s") / "store", z, {"style": labels}, cuts, told)
    keep_sums(store, "s")
    assert [ask(store, name) for name in ("sums", "totals", "importance")] == expected
    kept = store.arrow("sums/s").sort_by(
        [("concept", "ascending"), ("step", "ascending"), ("feature", "ascending")]
    )
    assert kept.to_pylist() == expected[0].to_pylist()
    assert store.arrow("totals/s").to_pylist() == expected[1].to_pylist()


def test_windows_shrink_where_memory_does_not_take_them(tmp_path, monkeypatch):
    z, labels = random_codes(1, samples=4), ["a", "a", "b", "b"]
    expected = ask(make_store(tmp_path / "whole", z, {"style": labels}), "sums")
    most, window, asked = 2, sums._window, []

    def scarce(connection, values):
        asked.append((values["first_step"], values["last_step"]))
        if values["last_step"] - values["first_step"] >= most:
            raise duckdb.OutOfMemoryException("Out of Memory Error: full\n\nand a picture")
        return window(connection, values)

    monkeypatch.setattr(sums, "_window", scarce)
    store = make_store(tmp_path / "scarce", z, {"style": labels})
    keep_sums(store, "s")
    assert asked == [(0, 2), (0, 0), (1, 1), (2, 2)]
    assert ask(store, "sums") == expected
    most = 0
    other = make_store(tmp_path / "none", z, {"style": labels})
    with pytest.raises(QueryError, match=r"^Out of Memory Error: full$"):
        keep_sums(other, "s")
    assert other.records("totals/s") == []


@SETTINGS
@given(
    seed=st.integers(0, 10**6),
    labels=LABELS,
    rule=st.builds(lambda n: {"top": n}, st.integers(1, 15))
    | st.builds(lambda p: {"percentile": p}, st.floats(0, 100, exclude_min=True, exclude_max=True)),
    rows=st.sampled_from([1, 2**22]),
)
def test_a_selection_is_the_same_asked_for_alone_together_or_in_windows(
    tmp_path_factory, monkeypatch, seed, labels, rule, rows
):
    monkeypatch.setattr(selections, "_ROWS_AT_ONCE", rows)
    z = random_codes(seed, samples=len(labels))  # on a few values: scores tie
    store = make_store(tmp_path_factory.mktemp("s") / "store", z, {"style": labels})
    for selection in select_all(store, "s", "style", **rule):
        expected = ask(store, "selection", {"concept": selection.concept, **rule})
        assert selection.rows.to_pylist() == expected.drop_columns(["concept"]).to_pylist()
        assert selection == select(store, "s", "style", selection.concept, **rule)


@SETTINGS
@given(seed=st.integers(0, 10**6), labels=LABELS, top=st.integers(1, 14))
def test_the_best_features_of_kept_scores_are_those_of_the_question(
    tmp_path_factory, seed, labels, top
):
    z = random_codes(seed, samples=len(labels))
    store = make_store(tmp_path_factory.mktemp("s") / "store", z, {"style": labels})
    record, best = score(store, "s", "style", top=top)
    assert best.equals(ask(store, "best_features", {"top": top}))
    assert record.rows == len(ask(store, "importance"))


def spoil(store, table, number):
    path = store.root / store.records(table)[number].files[0].path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_with_kept_sums_no_statistics_are_read(tmp_path):
    z, labels = random_codes(1, samples=4), ["a", "a", "b", "b"]
    store = make_shards(tmp_path / "store", z, {"style": labels}, 2)
    expected = select(store, "s", "style", "a")
    for table in ("stats/s", "codes/s"):
        spoil(store, table, 0)
    assert select(store, "s", "style", "a") == expected
    spoil(store, "sums/s", 0)
    with pytest.raises(DamageError, match=r"sums/s/.*was changed"):
        select(store, "s", "style", "a")


def test_codes_are_not_read_where_the_statistics_tell_their_steps(tmp_path):
    z, labels = random_codes(1, samples=4), ["a", "a", "b", "b"]
    store = make_shards(tmp_path / "told", z, {"style": labels}, 2)
    spoil(store, "codes/s", 0)
    np.testing.assert_allclose(
        dense(importance(store, "s", "style"), "a", 3, 12), oracle(z, labels)[0]["a"], atol=1e-9
    )
    store = make_shards(tmp_path / "not", z, {"style": labels}, 2, told=False)
    spoil(store, "codes/s", 0)
    with pytest.raises(DamageError, match=r"codes/s/.*was changed"):
        importance(store, "s", "style")


@pytest.mark.parametrize("told", [True, False])
def test_a_sample_in_which_nothing_fired_counts_as_encoded(tmp_path, told):
    z, labels = random_codes(8, samples=5), ["a", "a", "b", "b", "b"]
    z[1], z[4, 2] = 0, 0
    store = make_shards(tmp_path / "store", z, {"style": labels}, 3, told)
    np.testing.assert_allclose(
        dense(importance(store, "s", "style"), "a", 3, 12), oracle(z, labels)[0]["a"], atol=1e-9
    )
    scope, _ = find_sums(store, "s", "style", "cond")
    assert (scope.concepts, list(scope.steps)) == (("a", "b"), [0, 1, 2])
    assert {(r["concept"], r["n_samples"]) for r in store.arrow("sums/s").to_pylist()} == {
        ("a", 2),
        ("b", 3),
    }


def test_a_silent_concept_has_one_row_a_step_that_says_so(tmp_path):
    z, labels = random_codes(8, samples=4), ["a", "a", "silent", "silent"]
    z[2:] = 0
    store = make_store(tmp_path / "store", z, {"style": labels})
    rows = [row for row in ask(store, "sums").to_pylist() if row["concept"] == "silent"]
    assert [(r["step"], r["sum"], r["n_samples"], r["sum_all_features"]) for r in rows] == [
        (s, 0, 2, 0) for s in range(3)
    ]


def test_sums_of_fewer_samples_are_replaced_and_never_used(tmp_path):
    z, labels = random_codes(5, samples=4), ["a", "b", "a", "b"]
    store = make_store(tmp_path / "store", z, {"style": labels}, encoded=[0, 1])
    keep_sums(store, "s")
    old = [record for kind in ("sums", "totals") for record in store.records(f"{kind}/s")]
    keep_sums(store, "s")
    assert [record for kind in ("sums", "totals") for record in store.records(f"{kind}/s")] == old
    make_store(tmp_path / "store", z, {"style": labels}, encoded=[2, 3])
    assert find_sums(store, "s", "style", "cond", make=False)[1] == {"sums": [], "totals": []}
    found = dense(importance(store, "s", "style", concepts=["a"]), "a", 3, 12)
    np.testing.assert_allclose(found, oracle(z, labels)[0]["a"], atol=1e-9)
    new = [record for kind in ("sums", "totals") for record in store.records(f"{kind}/s")]
    assert not {record.shard for record in new} & {record.shard for record in old}
    assert len(new) == 2
    assert not any((store.root / record.files[0].path).exists() for record in old)


def test_a_store_that_cannot_be_written_is_scored_without_keeping_anything(tmp_path, monkeypatch):
    z, labels = random_codes(5, samples=4), ["a", "b", "a", "b"]
    store = make_store(tmp_path / "store", z, {"style": labels})
    expected = ask(store, "importance")
    other = make_store(tmp_path / "other", z, {"style": labels})
    monkeypatch.setattr(finding.os, "access", lambda *_: False)
    assert ask(other, "importance").equals(expected)
    assert other.records("sums/s") == other.records("totals/s") == []


def test_families_that_cannot_be_scored_have_no_sums(tmp_path):
    labels = {"style": ["a", "b", "a"], "one": ["x"] * 3}
    store = make_store(tmp_path / "store", random_codes(5, samples=3), labels)
    keep_sums(store, "s")
    assert [record.shard.rpartition("-")[0] for record in store.records("totals/s")] == [
        "style-cond"
    ]


@pytest.mark.parametrize("told", [True, False])
def test_two_branches_of_one_shard_are_apart(tmp_path, told):
    z, other, labels = random_codes(1, samples=4), random_codes(2, samples=4), ["a", "b", "a", "b"]
    store = make_store(tmp_path / "store", z, {"style": labels}, uncond=other, told=told)
    keep_sums(store, "s")
    for branch, codes in (("cond", z), ("uncond", other)):
        found = dense(importance(store, "s", "style", branch, ["b"]), "b", 3, 12)
        np.testing.assert_allclose(found, oracle(codes, labels)[0]["b"], atol=1e-9)


def test_features_that_the_sae_has_not_are_damage(tmp_path, monkeypatch):
    store = make_store(tmp_path / "store", random_codes(1, samples=2), {"style": ["a", "b"]})
    monkeypatch.setattr(
        "queries.derived.scope.load_config", lambda *_: {"n_latents": 5, "height": 1, "width": 4}
    )
    with pytest.raises(
        DamageError,
        match=r"stats/s/.* holds features outside 0…4\. Run 'featurestore verify --deep'",
    ):
        find_sums(store, "s", "style", "cond")
    assert store.records("sums/s") == store.records("totals/s") == []


def test_one_concept_is_whole_row_groups_of_sums(tmp_path, monkeypatch):
    monkeypatch.setattr(sums, "_ROWS_PER_GROUP", 1)
    store = make_store(
        tmp_path / "store", random_codes(1, samples=4), {"style": ["a", "b", "a", "c"]}
    )
    keep_sums(store, "s")
    with pq.ParquetFile(store.files("sums/s")[0]) as file:
        groups = [
            file.read_row_group(i, ["concept"])["concept"].to_pylist()
            for i in range(file.num_row_groups)
        ]
    assert [set(group) for group in groups] == [{"a"}, {"b"}, {"c"}]


def test_an_interruption_leaves_no_files(tmp_path, monkeypatch):
    store = make_shards(
        tmp_path / "store", random_codes(1, samples=4), {"style": ["a", "b"] * 2}, 2
    )
    monkeypatch.setattr(sums, "by_concept", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        score(store, "s", "style")
    assert store.records("scores/s") == store.records("totals/s") == store.records("sums/s") == []
    assert not [
        path
        for kind in ("scores", "sums")
        for path in (store.root / kind).rglob("*")
        if path.is_file()
    ]
