"""What can score best, kept: what is answered from it is what the sums answer, to the last bit."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import DamageError
from featurestore.maintenance.relabel import relabel
from featurestore.prompts.prompts import Prompt
from featurestore.vocabulary import CANDIDATES
from queries import ask
from queries.derived import candidates
from queries.derived.keep import keep_derived
from queries.relations import finding
from tests.builders.codes import LABELS, make_shards, noisy, random_codes
from tests.builders.stores import make_store

OF_ALL = ["best_scores", "best_features", "overlap_matrix"]


def kept(store):
    return [record for kind in CANDIDATES for record in store.records(f"{kind}/s")]


def every(store, concept, tops=(1, 3)):
    """What reads candidates, of all concepts and of one, for as many as are kept and for more."""
    found = [ask(store, name, {"family": "style", "top": top}) for name in OF_ALL for top in tops]
    of_one = {"family": "style", "concept": concept}
    return found + [ask(store, "concept_scores", {**of_one, "top": top}) for top in tops]


@settings(max_examples=3)
@given(seed=st.integers(0, 10**6), labels=LABELS, levels=st.sampled_from([2, 9]))
def test_kept_and_found_anew_answer_the_same_to_the_last_bit(
    tmp_path_factory, monkeypatch, seed, labels, levels
):
    z = random_codes(seed, samples=len(labels), levels=levels)
    z[0] = 0  # a concept in which nothing fires, or less does
    z = z if levels == 2 else noisy(z, seed)
    concept = next(label for label in labels if label is not None)
    store = make_shards(tmp_path_factory.mktemp("c") / "store", z, {"style": labels}, 2)
    for kind in CANDIDATES:
        monkeypatch.setitem(candidates.TOP, kind, 2)
    monkeypatch.setattr(candidates, "_ROWS_AT_ONCE", 1)  # a window for each step
    with monkeypatch.context() as patch:
        patch.setattr(finding.os, "access", lambda *_: False)
        expected = every(store, concept)
        assert not kept(store)
    keep_derived(store, "s")
    assert len(kept(store)) == len(CANDIDATES)
    assert every(store, concept) == expected
    for kind, name in zip(CANDIDATES, ("best_sums", "best_step_sums"), strict=True):
        rows = store.arrow(f"{kind}/s").drop(["family", "branch"])
        order = [(name, "ascending") for name in ("concept", "step", "feature")]
        assert (
            rows.sort_by(order).to_pylist()
            == ask(store, name, {"family": "style", "top": 2}).to_pylist()
        )


def spoil(store, table):
    path = store.root / store.records(table)[0].files[0].path
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)


def test_with_kept_candidates_no_sums_are_read(tmp_path):
    store = make_store(tmp_path / "store", random_codes(3, samples=4), {"style": [*"abab"]})
    keep_derived(store, "s")
    expected = every(store, "a")[:2]
    for table in ("sums/s", "feature_samples/s", "stats/s"):
        spoil(store, table)
    found = [ask(store, "best_scores", {"family": "style", "top": top}) for top in (1, 3)]
    assert found == expected
    spoil(store, "candidates/s")
    with pytest.raises(DamageError, match=r"candidates/s/.* was changed"):
        ask(store, "best_scores", {"family": "style"})


def test_the_first_question_about_all_concepts_makes_them(tmp_path):
    store = make_store(tmp_path / "store", random_codes(3, samples=4), {"style": [*"abab"]})
    ask(store, "concept_scores", {"family": "style", "concept": "a"})
    ask(store, "best_scores", {"family": "style", "top": candidates.TOP["candidates"] + 1})
    assert kept(store) == []
    ask(store, "best_scores", {"family": "style"})
    assert [record.table for record in kept(store)] == ["candidates/s"]
    ask(store, "overlap_matrix", {"family": "style"})
    assert [record.table for record in kept(store)] == ["candidates/s", "step_candidates/s"]


def test_those_of_other_labels_or_fewer_samples_are_replaced_and_never_used(tmp_path):
    z, labels = random_codes(5, samples=4), {"style": [*"abab"]}
    store = make_store(tmp_path / "store", z, labels, encoded=[0, 1])
    keep_derived(store, "s")
    seen = [kept(store)]
    make_store(tmp_path / "store", z, labels, encoded=[2, 3])
    whole = make_store(tmp_path / "whole", z, labels)
    assert every(store, "a") == every(whole, "a")
    seen.append(kept(store))
    right = [Prompt(f"prompt {i}", 0, {"style": style}, i + 1) for i, style in enumerate("bbab")]
    assert relabel(store, right).n_samples == 1
    relabelled = make_store(tmp_path / "relabelled", z, {"style": [*"bbab"]})
    assert every(store, "a") == every(relabelled, "a")
    seen.append(kept(store))
    files = [[store.root / record.files[0].path for record in records] for records in seen]
    assert [[path.exists() for path in paths] for paths in files] == [[False] * 2] * 2 + [
        [True] * 2
    ]


def test_more_best_than_before_are_of_another_name(tmp_path, monkeypatch):
    store = make_store(tmp_path / "store", random_codes(5, samples=4), {"style": [*"abab"]})
    monkeypatch.setitem(candidates.TOP, "candidates", 1)
    keep_derived(store, "s")
    old = kept(store)
    monkeypatch.undo()
    keep_derived(store, "s")
    new = kept(store)
    assert old[0].shard != new[0].shard
    assert len(new) == len(old) == 2
    assert new[1] == old[1]
