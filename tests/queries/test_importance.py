import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import QueryError, SAEError, UsageError
from featurestore.format import durable
from queries.answers import complete, opened
from queries.engine import DuckDB
from queries.questions import find_question
from queries.scores import score
from queries.selections import save_selection, select, split_concept
from tests.builders.codes import HOSTILE, dense, importance, random_codes
from tests.builders.stores import make_store, timestep
from tests.queries.oracles import oracle


@settings(max_examples=12)
@given(
    seed=st.integers(0, 10**6),
    labels=st.lists(st.sampled_from(HOSTILE), min_size=2, max_size=7).filter(
        lambda x: len(set(x) - {None}) > 1
    ),
)
def test_scores_equal_the_formula(tmp_path_factory, seed, labels):
    z = random_codes(seed, samples=len(labels))
    store = make_store(tmp_path_factory.mktemp("s") / "store", z, {"style": labels})
    table = importance(store, "s", "style")
    scores, means, others, mean_all = oracle(z, labels)
    assert set(table["concept"].to_pylist()) <= set(scores)
    for concept in scores:
        pairs = {
            "score": scores,
            "mean_concept": means,
            "mean_other": others,
            "mean_all": dict.fromkeys(scores, mean_all),
        }
        for column, expected in pairs.items():
            found = dense(table, concept, z.shape[1], z.shape[3], column)
            np.testing.assert_allclose(
                found, expected[concept], atol=1e-9, rtol=0, err_msg=f"{column} of {concept!r}"
            )


@settings(max_examples=8)
@given(
    seed=st.integers(0, 10**6), percentile=st.sampled_from([25.0, 50.0, 75.0, 90.0, 99.0, 99.99])
)
def test_percentiles_equal_torch_quantile_and_a_strict_comparison(
    tmp_path_factory, seed, percentile
):
    labels = ["a", "b", "a", "c"]
    z = random_codes(seed, samples=4)
    store = make_store(tmp_path_factory.mktemp("s") / "store", z, {"style": labels})
    selection = select(store, "s", "style", "a", percentile=percentile)
    table = importance(store, "s", "style")
    scores = torch.from_numpy(dense(table, "a", z.shape[1], z.shape[3]))
    for step in range(z.shape[1]):
        chosen = (scores[step] > torch.quantile(scores[step], percentile / 100)).nonzero().flatten()
        assert sorted(selection.at(timestep(step)).features.tolist()) == chosen.tolist()


def test_the_published_percentiles_select_one_two_three_of_20480(tmp_path):
    z = np.zeros((2, 1, 1, 20480), np.float32)
    z[0, 0, 0] = np.random.default_rng(0).random(20480) + 0.1
    z[1, 0, 0] = np.random.default_rng(1).random(20480) + 0.1
    store = make_store(tmp_path / "store", z, {"style": ["a", "b"]})
    counts = [
        select(store, "s", "style", "a", percentile=p).rows.num_rows
        for p in (99.999, 99.995, 99.99)
    ]
    assert counts == [1, 2, 3]


def test_top_n_takes_positive_scores_and_breaks_ties_by_feature(tmp_path):
    z = np.zeros((2, 1, 1, 6), np.float32)
    z[0, 0, 0, [1, 3, 4]] = 1
    z[1, 0, 0, 5] = 1
    store = make_store(tmp_path / "store", z, {"style": ["a", "b"]})
    assert select(store, "s", "style", "a", top=2).rows["feature"].to_pylist() == [1, 3]
    assert select(store, "s", "style", "a", top=6).rows["feature"].to_pylist() == [1, 3, 4]
    assert select(store, "s", "style", "a", top=10**9).rows["feature"].to_pylist() == [1, 3, 4]


def test_samples_that_were_not_encoded_do_not_count(tmp_path):
    z = random_codes(3, samples=5)
    labels = ["a", "b", "a", "b", "c"]
    store = make_store(tmp_path / "store", z, {"style": labels}, encoded=[0, 1, 2])
    scores, *_ = oracle(z[:3], labels[:3])
    np.testing.assert_allclose(
        dense(importance(store, "s", "style"), "a", 3, 12), scores["a"], atol=1e-9
    )
    with pytest.raises(
        QueryError, match=r"no encoded sample of .* carries style=c\. Known: a, b\."
    ):
        select(store, "s", "style", "c")


def test_a_step_at_which_a_concept_never_fires_scores_zero(tmp_path):
    z = random_codes(4, samples=4)
    z[[0, 2], 1] = 0
    store = make_store(tmp_path / "store", z, {"style": ["a", "b", "a", "b"]})
    found = dense(importance(store, "s", "style"), "a", 3, 12)
    np.testing.assert_allclose(found, oracle(z, ["a", "b", "a", "b"])[0]["a"], atol=1e-9)
    assert (found[1] <= 0).all()


def test_what_fired_in_other_concepts_only_can_be_left_out(tmp_path):
    labels = ["a", "b", "a", "c"]
    store = make_store(tmp_path / "store", random_codes(4, samples=4), {"style": labels})
    asked = find_question("importance")
    values = complete(store, asked, asked.bind({}), None)
    with opened(store, ["importance"], values, engine=DuckDB()) as answer:
        whole, part = (
            answer("importance", {**values, "only_fired": only}).to_pylist()
            for only in (False, True)
        )
    left_out = [row for row in whole if row not in part]
    assert left_out and len(left_out) + len(part) == len(whole)
    assert all(row["mean_concept"] == 0 and row["score"] <= 0 for row in left_out)


def test_a_selection_lists_every_timestep_also_where_it_is_empty(tmp_path):
    z = random_codes(4, samples=4)
    z[[0, 2], 1] = 0
    store = make_store(tmp_path / "store", z, {"style": ["a", "b", "a", "b"]})
    selection = select(store, "s", "style", "a", top=1)
    assert selection.timesteps == (981.0, 961.0, 941.0)
    assert len(selection.at(961).features) == 0
    assert selection.hook == "unet.up_blocks.1.attentions.1"
    assert selection.model_hash == "f16:0"


def test_questions_that_have_no_answer(tmp_path):
    store = make_store(
        tmp_path / "store",
        random_codes(0, samples=3),
        {"style": ["neon", "sketch", "neon"], "one": ["x"] * 3},
    )
    with pytest.raises(QueryError, match=r"carries style=noen\. Did you mean 'neon'\?"):
        select(store, "s", "style", "noen")
    with pytest.raises(QueryError, match=r"no concept family 'stlye'\. Did you mean 'style'\?"):
        select(store, "s", "stlye", "neon")
    with pytest.raises(
        QueryError, match="needs at least two concepts among the encoded samples, found only 'x'"
    ):
        importance(store, "s", "one")
    with pytest.raises(QueryError, match="was encoded for branch cond, not uncond"):
        importance(store, "s", "style", branch="uncond")
    with pytest.raises(SAEError, match=r"has no SAE 'z'\. Known: s\."):
        select(store, "z", "style", "neon")
    with pytest.raises(UsageError, match="give one of them"):
        select(store, "s", "style", "neon", top=1, percentile=50)
    with pytest.raises(UsageError, match="expected a number above 0 and below 100"):
        select(store, "s", "style", "neon", percentile=100)
    with pytest.raises(UsageError, match="expected FAMILY=CONCEPT"):
        split_concept("neon")


def test_saved_scores_are_a_table_and_replace_what_was_computed_from_less(tmp_path):
    z = random_codes(5, samples=4)
    store = make_store(
        tmp_path / "store",
        z,
        {"style": ["a", "b", "a", "b"], "object": ["x", "x", "y", "y"]},
        encoded=[0, 1],
    )
    first, _ = score(store, "s", "style")
    assert store.arrow("scores/s").num_rows == first.rows
    score(store, "s", "style")
    assert len(store.records("scores/s")) == 1
    make_store(
        tmp_path / "store",
        z,
        {"style": ["a", "b", "a", "b"], "object": ["x", "x", "y", "y"]},
        encoded=[2, 3],
    )
    score(store, "s", "style")
    assert store.arrow("scores/s").equals(importance(store, "s", "style"))
    score(store, "s", "object")
    assert set(store.arrow("scores/s")["family"].to_pylist()) == {"style", "object"}


def test_a_selection_kept_in_the_store_is_a_table(tmp_path):
    store = make_store(
        tmp_path / "store", random_codes(5, samples=4), {"style": ["a", "b", "a", "b"]}
    )
    selection = select(store, "s", "style", "a")
    save_selection(store, selection)
    kept = store.arrow("selections/s")
    assert kept["feature"].to_pylist() == selection.rows["feature"].to_pylist()
    assert set(kept["concept"].to_pylist()) == {"a"}


def test_a_kept_selection_is_not_mistaken_for_an_older_one_of_the_same_concept(tmp_path):
    z, labels = random_codes(5, samples=4), {"style": ["a b/雪", "b", "a b/雪", "b"]}
    store = make_store(tmp_path / "store", z, labels, encoded=[0, 1])
    first = save_selection(store, select(store, "s", "style", "a b/雪"))
    assert first.shard.startswith("style-a-b-")
    assert save_selection(store, select(store, "s", "style", "a b/雪")) == first
    make_store(tmp_path / "store", z, labels, encoded=[2, 3])
    selection = select(store, "s", "style", "a b/雪")
    second = save_selection(store, selection)
    assert second.shard != first.shard
    kept = pq.read_table(store.root / second.files[0].path)
    assert kept["score"].to_pylist() == selection.rows["score"].to_pylist()


def test_codes_whose_statistics_are_missing_are_not_scored_as_silent(tmp_path):
    z, labels = random_codes(5, samples=4), {"style": ["a", "b", "a", "b"]}
    store = make_store(tmp_path / "store", z, labels, encoded=[0, 1])
    make_store(tmp_path / "store", z, labels, encoded=[2, 3])
    durable.remove(store.root / store.records("stats/s")[1].location)
    with pytest.raises(
        QueryError, match=r"was interrupted \(1 of its shards half done\): run 'featurestore encode"
    ):
        importance(store, "s", "style")


def test_one_sample_of_each_concept_and_one_that_never_fires(tmp_path):
    z = random_codes(7, samples=3)
    z[2] = 0
    store = make_store(tmp_path / "store", z, {"style": ["a", "b", "silent"]})
    scores, *_ = oracle(z, ["a", "b", "silent"])
    table = importance(store, "s", "style")
    for concept in scores:
        np.testing.assert_allclose(dense(table, concept, 3, 12), scores[concept], atol=1e-9)
    assert select(store, "s", "style", "silent").rows.num_rows == 0


def test_the_best_features_are_those_of_the_largest_mean_score(tmp_path):
    z = random_codes(6, samples=4)
    store = make_store(tmp_path / "store", z, {"style": ["a", "b", "a", "b"]})
    scores = oracle(z, ["a", "b", "a", "b"])[0]
    best = score(store, "s", "style", top=1)[1].to_pylist()
    assert [row["concept"] for row in best] == ["a", "b"]
    for row in best:
        assert row["mean_score"] == pytest.approx(scores[row["concept"]].mean(0).max())
