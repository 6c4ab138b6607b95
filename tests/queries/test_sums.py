"""Scores by dense sums are those of importance.sql to the last bit, whatever is kept, read or left out."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurestore.errors import DamageError
from featurestore.format.schemas import SCORES
from queries import ask, sums
from queries.importance import importance, save_scores
from queries.selections import select, select_all
from queries.totals import find_scope, keep_totals
from tests.builders.codes import HOSTILE, dense, random_codes
from tests.builders.stores import make_store
from tests.queries.oracles import oracle

SETTINGS = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LABELS = st.lists(st.sampled_from(HOSTILE), min_size=2, max_size=7).filter(lambda x: len(set(x) - {None}) > 1)


def make_shards(root, z, labels, cuts, told=True):
    """A store whose samples lie in several shards, of which every other one says its steps unless all do (``told``)."""
    for number, part in enumerate(np.array_split(np.arange(len(z)), cuts)):
        if len(part):
            store = make_store(root, z, labels, encoded=part.tolist(), told=told or number % 2 == 0)
    return store


def noisy(z, seed):
    return (z * np.random.default_rng(seed).random(z.shape)).astype(np.float32)


@SETTINGS
@given(seed=st.integers(0, 10**6), labels=LABELS, cuts=st.integers(1, 3), told=st.booleans(), kept=st.booleans(),
       window=st.sampled_from([1, 1000, 2**30]))  # fmt: skip
def test_dense_sums_give_the_bits_of_the_sql(tmp_path_factory, monkeypatch, seed, labels, cuts, told, kept, window):
    monkeypatch.setattr(sums, "SUMS_BYTES", window)
    z = noisy(random_codes(seed, samples=len(labels)), seed)
    store = make_shards(tmp_path_factory.mktemp("s") / "store", z, {"style": labels}, cuts, told)
    if kept:
        keep_totals(store, "s")
    table, expected = importance(store, "s", "style"), ask(store, "importance")
    assert table.equals(expected.cast(SCORES))
    for concept in {row["concept"] for row in table.select(["concept"]).to_pylist()}:
        alone = importance(store, "s", "style", concepts=[concept]).to_pylist()
        assert alone == [row for row in expected.to_pylist() if row["concept"] == concept]


@SETTINGS
@given(
    seed=st.integers(0, 10**6),
    labels=LABELS,
    rule=st.builds(lambda n: {"top": n}, st.integers(1, 15))
    | st.builds(lambda p: {"percentile": p}, st.floats(0, 100, exclude_min=True, exclude_max=True)),
)
def test_selections_are_those_of_the_sql(tmp_path_factory, seed, labels, rule):
    z = random_codes(seed, samples=len(labels))  # on a few values: scores tie
    store = make_store(tmp_path_factory.mktemp("s") / "store", z, {"style": labels})
    for selection in select_all(store, "s", "style", **rule):
        assert selection.rows.to_pylist() == ask(store, "selection", {"concept": selection.concept, **rule}).to_pylist()


@SETTINGS
@given(seed=st.integers(0, 10**6), labels=LABELS, top=st.integers(1, 14))
def test_the_best_features_are_those_of_the_sql(tmp_path_factory, seed, labels, top):
    z = random_codes(seed, samples=len(labels))
    store = make_store(tmp_path_factory.mktemp("s") / "store", z, {"style": labels})
    record, best = save_scores(store, "s", "style", top=top)
    expected = ask(store, "best_features", {"top": top})
    assert best.schema == expected.schema
    means = [round(value, 12) for value in best["mean_score"].to_pylist()]
    assert means == [round(value, 12) for value in expected["mean_score"].to_pylist()]
    every = {(row["concept"], row["feature"]): row for row in ask(store, "best_features", {"top": 12 * 3}).to_pylist()}
    for row in best.to_pylist():  # equal means may come in either order
        same = every[row["concept"], row["feature"]]
        assert (row["best_score"], row["best_timestep"]) == (same["best_score"], same["best_timestep"])
    assert record.rows == len(ask(store, "importance"))


def test_steps_in_the_top_are_counted(tmp_path):
    z = random_codes(3, samples=4)
    store = make_store(tmp_path / "store", z, {"style": ["a", "b", "a", "b"]})
    found, expected = save_scores(store, "s", "style", top=2)[1], ask(store, "best_features", {"top": 2})
    assert found["n_steps_in_top"].to_pylist() == expected["n_steps_in_top"].to_pylist()


def spoil(store, table, number):
    path = store.root / store.records(table)[number].files[0].path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_with_kept_totals_only_the_concepts_own_shards_are_read(tmp_path):
    z, labels = random_codes(1, samples=4), ["a", "a", "b", "b"]
    store = make_shards(tmp_path / "store", z, {"style": labels}, 2)
    expected = select(store, "s", "style", "a")
    keep_totals(store, "s")
    first = next(
        i for i, r in enumerate(store.records("stats/s")) if r.sample_ids == store.records("samples")[0].sample_ids[:2]
    )
    spoil(store, "stats/s", 1 - first)
    spoil(store, "codes/s", first)
    assert select(store, "s", "style", "a") == expected
    for concepts in (["b"], None):
        with pytest.raises(DamageError, match=r"stats/s/.*was changed"):
            select_all(store, "s", "style", concepts)


def test_codes_are_not_read_where_the_statistics_tell_their_steps(tmp_path):
    z = random_codes(1, samples=4)
    labels = ["a", "a", "b", "b"]
    store = make_shards(tmp_path / "told", z, {"style": labels}, 2)
    spoil(store, "codes/s", 0)
    np.testing.assert_allclose(
        dense(importance(store, "s", "style"), "a", 3, 12), oracle(z, ["a", "a", "b", "b"])[0]["a"], atol=1e-9
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
    np.testing.assert_allclose(dense(importance(store, "s", "style"), "a", 3, 12), oracle(z, labels)[0]["a"], atol=1e-9)
    scope, _ = find_scope(store, "s", "style", "cond")
    assert (scope.concepts, scope.counts, list(scope.steps)) == (("a", "b"), (2, 3), [0, 1, 2])


def test_totals_of_fewer_samples_are_replaced_and_never_used(tmp_path):
    z, labels = random_codes(5, samples=4), ["a", "b", "a", "b"]
    store = make_store(tmp_path / "store", z, {"style": labels}, encoded=[0, 1])
    (old,) = keep_totals(store, "s")
    assert keep_totals(store, "s") == [old]
    make_store(tmp_path / "store", z, {"style": labels}, encoded=[2, 3])
    assert find_scope(store, "s", "style", "cond")[1] is None
    found = dense(importance(store, "s", "style", concepts=["a"]), "a", 3, 12)
    np.testing.assert_allclose(found, oracle(z, labels)[0]["a"], atol=1e-9)
    (new,) = keep_totals(store, "s")
    assert store.records("totals/s") == [new] != [old]
    assert not (store.root / old.files[0].path).exists()
    assert find_scope(store, "s", "style", "cond")[1] == new


def test_kept_totals_are_the_sums(tmp_path):
    z, labels = random_codes(5, samples=5), ["a", "b", None, "b", "b"]
    store = make_store(tmp_path / "store", z, {"style": labels})
    keep_totals(store, "s")
    rows = store.read("totals/s").to_pylist()
    total, mean_all = np.zeros((3, 12)), np.zeros((3, 12))
    for row in rows:
        assert (row["family"], row["branch"], row["timestep"]) == ("style", "cond", 981 - 20 * row["step"])
        total[row["step"], row["feature"]], mean_all[row["step"], row["feature"]] = row["total"], row["mean_all"]
    np.testing.assert_allclose(total, z[[0, 1, 3, 4]].sum((0, 2)), rtol=1e-12)
    np.testing.assert_allclose(mean_all, oracle(z, labels)[3], rtol=1e-12, atol=1e-15)


def test_families_that_cannot_be_scored_have_no_totals(tmp_path):
    labels = {"style": ["a", "b", "a"], "one": ["x"] * 3}
    store = make_store(tmp_path / "store", random_codes(5, samples=3), labels)
    assert [record.shard.rpartition("-")[0] for record in keep_totals(store, "s")] == ["style-cond"]


@pytest.mark.parametrize("told", [True, False])
def test_two_branches_of_one_shard_are_apart(tmp_path, told):
    z, other, labels = random_codes(1, samples=4), random_codes(2, samples=4), ["a", "b", "a", "b"]
    store = make_store(tmp_path / "store", z, {"style": labels}, uncond=other, told=told)
    keep_totals(store, "s")
    for branch, codes in (("cond", z), ("uncond", other)):
        found = dense(importance(store, "s", "style", branch, ["b"]), "b", 3, 12)
        np.testing.assert_allclose(found, oracle(codes, labels)[0]["b"], atol=1e-9)


def test_features_that_the_sae_has_not_are_damage(tmp_path):
    store = make_store(tmp_path / "store", random_codes(1, samples=2), {"style": ["a", "b"]})
    scope, _ = find_scope(store, "s", "style", "cond")
    with pytest.raises(DamageError, match=r"stats/s/.* holds features outside 0…4\. Run 'featurestore verify --deep'"):
        sums.concept_sums(replace(scope, n_latents=5), [0, 1], range(3))


def test_an_interruption_leaves_no_threads_and_no_files(tmp_path, monkeypatch):
    store = make_shards(tmp_path / "store", random_codes(1, samples=4), {"style": ["a", "b"] * 2}, 2)
    before = threading.active_count()
    monkeypatch.setattr(sums.np, "bincount", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save_scores(store, "s", "style")
    assert threading.active_count() == before
    assert store.records("scores/s") == store.records("totals/s") == []
    assert not [path for path in (store.root / "scores").rglob("*") if path.is_file()]
