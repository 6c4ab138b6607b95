from dataclasses import replace

import datasets
import numpy as np
import pytest

from featurestore import DamageError, PromptsError, Store, StoreError
from featurestore.format.records.labels import contents_hash
from featurestore.maintenance.relabel import Change, relabel
from featurestore.maintenance.verify import verify
from featurestore.prompts import Prompt
from queries import ask
from queries.connection.session import connect
from queries.connection.statement import sql
from queries.scores import score
from tests.builders.stores import make_store

STYLES = ["neon", "Neon", "sketch", None]


@pytest.fixture
def store(tmp_path):
    z = np.random.default_rng(0).random((4, 3, 2, 6)) * (np.arange(6) % 2)
    return make_store(
        tmp_path / "store", z, {"style": STYLES, "object": ["cat", "dog", "cat", "dog"]}
    )


def prompts(**families):
    n = len(next(iter(families.values())))
    return [
        Prompt(f"prompt {i}", 0, {name: values[i] for name, values in families.items()}, i + 1)
        for i in range(n)
    ]


def styles(store):
    return store.arrow("samples", ["style"])["style"].to_pylist()


def test_a_corrected_label_is_a_new_version_and_the_former_one_is_kept(store):
    """B1."""
    right = prompts(style=["neon", "neon", "sketch", "sketch"], object=["cat", "dog", "cat", "dog"])
    files = {path: path.read_bytes() for path in (store.root / "samples").iterdir()}
    planned = relabel(store, right, dry_run=True)
    assert (planned.version, styles(store)) == (None, STYLES)
    done = relabel(store, right)
    assert (done.version, done.n_samples, done.n_matched, done.n_unmatched) == (1, 2, 4, 0)
    assert done.changes == {Change("style", "Neon", "neon"): 1, Change("style", None, "sketch"): 1}
    assert styles(store) == ["neon", "neon", "sketch", "sketch"]
    assert files == {path: path.read_bytes() for path in (store.root / "samples").iterdir()}
    assert relabel(store, right).version is None
    back = relabel(store, prompts(style=STYLES, object=["cat", "dog", "cat", "dog"]))
    assert (back.version, styles(store)) == (2, STYLES)
    history = store.arrow("labels").to_pylist()
    kept = {(row["version"], row["concept"]) for row in history if row["family"] == "style"}
    assert kept == {(1, "neon"), (1, "sketch"), (2, "Neon"), (2, None)}
    assert verify(store, deep=True) == []


def test_sql_sees_the_labels_that_stand(store):
    """B1: free SQL, the labelled views, and a family that the samples have no column for."""
    relabel(store, prompts(style=["neon"] * 2 + ["sketch"] * 2, pet=["no", "yes", None, "yes"]))
    rows = sql(store, "select style, object, pet from samples order by prompt").to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        ("neon", None, "no"), ("neon", None, "yes"), ("sketch", None, None), ("sketch", None, "yes")
    ]  # fmt: skip
    counts = sql(
        store, "select family, concept, count(*) as n from labels group by all order by all"
    ).to_pylist()
    assert [tuple(row.values()) for row in counts] == [
        ("pet", "no", 1), ("pet", "yes", 2), ("style", "neon", 2), ("style", "sketch", 2)
    ]  # fmt: skip
    assert sql(store, "select distinct pet from labelled_stats where pet = 'yes'").num_rows == 1
    assert store.families() == ["style", "object", "pet"]
    with connect(store) as connection:
        by_sql = connection.execute(
            "select sample_id, style, object, pet from samples order by 1"
        ).fetchall()
    read = store.arrow("samples", ["sample_id", "style", "object", "pet"]).sort_by("sample_id")
    assert by_sql == [tuple(row.values()) for row in read.to_pylist()]
    assert {"pet", "style"} < set(store.arrow("samples").column_names)


def test_scores_are_of_the_labels_that_stand(store, tmp_path):
    """B1: what was computed from the former labels is out of date."""
    relabel(store, prompts(style=["a", "a", "b", "b"]))
    fresh = make_store(
        tmp_path / "fresh",
        np.random.default_rng(0).random((4, 3, 2, 6)) * (np.arange(6) % 2),
        {"style": ["b", "a", "a", "b"]},
    )
    before, _ = score(store, "s", "style")
    corrected = prompts(style=["b", "a", "a", "b"])
    foretold, done = relabel(store, corrected, dry_run=True), relabel(store, corrected)
    assert foretold.outdated == done.outdated == (("s", "style"),)
    assert relabel(store, corrected).outdated == ()  # Nothing changed.
    after, _ = score(store, "s", "style")
    expected, _ = score(fresh, "s", "style")
    assert before.shard != after.shard
    columns = ["concept", "step", "feature", "score"]
    assert (
        store.arrow("scores/s", columns).equals(fresh.arrow("scores/s", columns))
        and expected.rows == after.rows
    )
    name = {"family": "style", "concept": "a", "top": 2}
    assert ask(store, "selection", name).equals(ask(fresh, "selection", name))


def test_every_reader_sees_the_labels_that_stand(store, tmp_path, monkeypatch):
    """B1."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    relabel(store, prompts(style=["neon", "neon"], pet=["no", "yes"]))
    expected = [("prompt 0", "neon", None, "no"), ("prompt 1", "neon", None, "yes")]
    expected += [("prompt 2", "sketch", "cat", None), ("prompt 3", None, "dog", None)]
    columns = ["prompt", "style", "object", "pet"]
    rows = store.arrow("samples").to_pylist()
    assert [tuple(row[name] for name in columns) for row in rows] == expected
    assert store.scan("samples").collect().to_dicts() == rows
    assert store.scan("samples").select(columns).collect().rows() == expected
    assert store.dataset("samples").to_list() == rows
    assert list(store.dataset("samples", streaming=True)) == rows
    for streaming in (False, True):
        some = store.dataset("samples", ["pet", "prompt"], streaming=streaming)
        assert [tuple(row.values()) for row in some] == [
            (pet, prompt) for prompt, _, _, pet in expected
        ]
    assert store.arrow("samples", ["pet", "prompt"]).column_names == ["pet", "prompt"]


def test_a_part_of_the_samples_can_be_relabelled(store):
    done = relabel(store, prompts(style=["neon", "neon"], object=["cat", "dog"]))
    assert (done.n_samples, done.n_matched, done.n_unmatched) == (1, 2, 2)
    assert styles(store) == ["neon", "neon", "sketch", None]


def test_prompts_of_no_sample_are_refused(store):
    with pytest.raises(
        PromptsError,
        match=r"none of the 1 prompts is a sample of .*: prompt, seed and guidance scale must",
    ):
        relabel(store, [Prompt("prompt 0", 7, {"style": "x"}, 1)])
    assert "labels" not in store.tables()


def test_records_of_labels_are_checked(store):
    relabel(store, prompts(style=["a", "a", "b", "b"]))
    record = store.records("labels")[0]
    assert record.made_by["contents"] != contents_hash({})
    path = store.root / record.location
    path.write_bytes(
        replace(record, made_by={**record.made_by, "families": ['x"; drop']}).to_bytes()
    )
    with pytest.raises(DamageError, match="in 'made_by' is no concept family"):
        Store.open(store.root).families()


def test_two_relabellings_at_once_do_not_lose_one(store, monkeypatch):
    """The second sees the same version free, and is refused with one line; nothing committed
    changes."""
    first = prompts(style=["a", "a", "b", "b"])
    real = Store.records

    def stale(self, table):  # what another process read before the first was committed
        return [] if table == "labels" else real(self, table)

    relabel(store, first)
    monkeypatch.setattr(Store, "records", stale)
    with pytest.raises(StoreError, match=r"another process|at the same time"):
        relabel(store, prompts(style=["b", "b", "a", "a"]))
    monkeypatch.undo()
    assert styles(store) == ["a", "a", "b", "b"] and verify(store, deep=True) == []
