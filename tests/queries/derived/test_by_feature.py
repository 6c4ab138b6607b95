"""Statistics ordered by feature: made once by SQL, kept while they are of the present codes; what
is answered from them is what the statistics themselves answer, to the last bit."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import DamageError
from featurestore.format import durable
from featurestore.maintenance.relabel import relabel
from featurestore.prompts.prompts import Prompt
from featurestore.vocabulary import BY_FEATURE
from queries import ask
from queries.answers import ask_each
from queries.derived import by_feature
from queries.derived.by_feature import find_by_feature, keep_by_feature
from queries.derived.sums import keep_sums
from queries.questions import questions
from queries.relations import finding
from tests.builders.codes import LABELS, make_shards, noisy, random_codes
from tests.builders.stores import make_store

SETTINGS = settings(max_examples=3)
OF_ONE = [
    name
    for name, asked in questions().items()
    if "feature" in asked.parameters and set(asked.relations) & {*BY_FEATURE, "sample_totals"}
]
OF_ALL = ["dead_features", "dense_features", "sae_steps"]


def kept(store):
    return [record for kind in BY_FEATURE for record in store.records(f"{kind}/s")]


def spoil(store, table):
    path = store.root / store.records(table)[0].files[0].path
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)


def every(store):
    """Each question about all features, about some one after another (the last fires nowhere), and
    about one alone."""
    found = [ask(store, name) for name in OF_ALL]
    for name in OF_ONE:
        found += ask_each(store, name, [{"feature": feature} for feature in (0, 3, 7, 11)])
        found.append(ask(store, name, {"feature": 3}))
    return found


def test_questions_about_a_feature_read_what_is_ordered_by_feature():
    assert {
        "feature_concepts",
        "feature_card",
        "top_samples",
        "sample_bands",
        "coactivation",
        "timestep_profile",
    } <= {*OF_ONE}


@SETTINGS
@given(
    seed=st.integers(0, 10**6),
    labels=LABELS,
    cuts=st.integers(1, 3),
    rows=st.sampled_from([1, 7, 2**16]),
)
def test_kept_and_made_for_the_question_answer_the_same_to_the_last_bit(
    tmp_path_factory, monkeypatch, seed, labels, cuts, rows
):
    z = noisy(random_codes(seed, samples=len(labels)), seed)
    monkeypatch.setattr(by_feature, "_ROWS_PER_GROUP", rows)
    monkeypatch.setattr(by_feature, "_ROWS_AT_ONCE", max(rows // 2, 1))
    store = make_shards(tmp_path_factory.mktemp("s") / "store", z, {"style": labels}, cuts)
    with monkeypatch.context() as patch:
        patch.setattr(finding.os, "access", lambda *_: False)
        expected = every(store)
        assert not kept(store)
    keep_by_feature(store, "s")
    assert len(kept(store)) == len(BY_FEATURE)
    assert every(store) == expected
    keep_sums(store, "s")
    assert every(store) == expected
    for kind in BY_FEATURE:
        assert store.arrow(f"{kind}/s").to_pylist() == ask(store, kind).to_pylist()


def test_with_kept_tables_no_statistics_are_read(tmp_path):
    store = make_store(
        tmp_path / "store", random_codes(3, samples=4), {"style": ["a", "b", "a", "b"]}
    )
    keep_by_feature(store, "s")
    keep_sums(store, "s")
    expected = every(store)
    spoil(store, "stats/s")
    assert every(store) == expected
    spoil(store, "feature_samples/s")
    with pytest.raises(DamageError, match=r"feature_samples/s/.* was changed"):
        ask(store, "top_samples", {"feature": 1})


def test_one_feature_is_asked_of_the_statistics_where_nothing_is_kept(tmp_path):
    store = make_store(tmp_path / "store", random_codes(3, samples=4), {"style": ["a", "b"] * 2})
    ask(store, "top_samples", {"feature": 1})
    found = list(ask_each(store, "top_samples", [{"feature": 1}, {"feature": 2}]))
    assert found[1] == ask(store, "top_samples", {"feature": 2})
    ask(store, "coactivation", {"feature": 1})  # needs all features: from here on they are there
    assert len(kept(store)) == len(BY_FEATURE)


def test_tables_of_fewer_samples_are_replaced_and_never_used(tmp_path):
    z, labels = random_codes(5, samples=4), {"style": ["a", "b", "a", "b"]}
    store = make_store(tmp_path / "store", z, labels, encoded=[0, 1])
    keep_by_feature(store, "s")
    old = kept(store)
    keep_by_feature(store, "s")
    assert kept(store) == old
    make_store(tmp_path / "store", z, labels, encoded=[2, 3])
    assert find_by_feature(store, "s", "cond", make=False) == {}
    whole = make_store(tmp_path / "whole", z, labels)
    asked = {"feature": 1, "top": 9}
    assert ask(store, "coactivation", asked) == ask(whole, "coactivation", asked)
    assert ask(store, "top_samples", asked) == ask(whole, "top_samples", asked)
    assert len(kept(store)) == len(BY_FEATURE)
    assert not any((store.root / record.files[0].path).exists() for record in old)


def test_corrected_labels_leave_them_as_they_are(tmp_path):
    z = random_codes(5, samples=4)
    store = make_store(tmp_path / "store", z, {"style": ["a", "b", "a", "b"]})
    keep_by_feature(store, "s")
    old = kept(store)
    right = [Prompt(f"prompt {i}", 0, {"style": style}, i + 1) for i, style in enumerate("bbab")]
    assert relabel(store, right).n_samples == 1
    keep_by_feature(store, "s")
    assert kept(store) == old


@pytest.mark.parametrize("told", [True, False])
def test_two_branches_are_apart(tmp_path, told):
    z, other, labels = random_codes(1, samples=4), random_codes(2, samples=4), {"style": [*"abab"]}
    store = make_store(tmp_path / "store", z, labels, uncond=other, told=told)
    alone = make_store(tmp_path / "alone", other, labels)
    keep_by_feature(store, "s")
    keep_by_feature(alone, "s")
    assert len(kept(store)) == 2 * len(BY_FEATURE)
    for feature in range(12):
        asked = {"feature": feature}
        found = ask(store, "top_samples", {**asked, "branch": "uncond"})
        assert found == ask(alone, "top_samples", asked)


def test_a_row_group_holds_whole_features(tmp_path, monkeypatch):
    monkeypatch.setattr(by_feature, "_ROWS_PER_GROUP", 2)
    store = make_store(tmp_path / "store", random_codes(1, samples=6), {"style": [*"ababab"]})
    keep_by_feature(store, "s")
    for kind in BY_FEATURE:
        with pq.ParquetFile(store.files(f"{kind}/s")[0]) as file:
            groups = [
                set(file.read_row_group(i, ["feature"])["feature"].to_pylist())
                for i in range(file.num_row_groups)
            ]
        assert len(groups) > 1
        assert sum(map(len, groups)) == len(set().union(*groups))


def test_of_equal_heights_the_first_step_is_the_peak_however_close_others_are(tmp_path):
    z = np.zeros((2, 3, 1, 2), np.float32)
    z[0, :, 0, 0] = [1, 1, 1]
    z[1, :, 0, 0] = [1, np.nextafter(np.float16(1), np.float16(2)), 1]
    store = make_store(tmp_path / "store", z, {"style": ["a", "b"]})
    assert ask(store, "feature_samples")["peak_step"].to_pylist() in ([0, 1], [1, 0])
    rows = ask(store, "top_samples", {"feature": 0}).to_pylist()
    assert [(row["peak_step"], row["max"] > 1) for row in rows] == [(1, True), (0, False)]


def test_features_that_the_sae_has_not_are_damage(tmp_path, monkeypatch):
    store = make_store(tmp_path / "store", random_codes(1, samples=2), {"style": ["a", "b"]})
    monkeypatch.setattr(by_feature, "load_config", lambda *_: {"n_latents": 5})
    with pytest.raises(DamageError, match=r"stats/s/ holds features outside 0…4\. Run"):
        find_by_feature(store, "s", "cond")
    assert not kept(store)


def test_an_interruption_leaves_no_files(tmp_path, monkeypatch):
    store = make_store(tmp_path / "store", random_codes(1, samples=2), {"style": ["a", "b"]})
    place, n = durable.place_file, 0

    def second(*arguments):
        nonlocal n
        n += 1
        if n == 2:
            raise KeyboardInterrupt
        return place(*arguments)

    monkeypatch.setattr(durable, "place_file", second)
    with pytest.raises(KeyboardInterrupt):
        keep_by_feature(store, "s")
    assert find_by_feature(store, "s", "cond", make=False) == {}
    monkeypatch.undo()
    assert list(find_by_feature(store, "s", "cond")) == list(BY_FEATURE)
    assert len(kept(store)) == len(BY_FEATURE)


def test_steps_beyond_sixty_have_numbers_of_their_own(tmp_path):
    """The mask of 130 steps is two rows a sample, and coactivation counts all of their bits."""
    rng = np.random.default_rng(0)
    z = (rng.random((3, 130, 1, 4)) < 0.5).astype(np.float32)
    store = make_store(tmp_path / "store", z, {"style": ["a", "b", "a"]})
    masks = ask(store, "feature_masks").to_pylist()
    assert {row["first_step"] for row in masks} == {0, 120}
    for feature in range(4):
        found = ask(store, "coactivation", {"feature": feature}).to_pylist()
        active = z.any(2).reshape(-1, 4)
        expected = {f: int((active[:, f] & active[:, feature]).sum()) for f in range(4)}
        assert {r["feature"]: r["n_both"] for r in found} == {
            f: n for f, n in expected.items() if f != feature
        }
