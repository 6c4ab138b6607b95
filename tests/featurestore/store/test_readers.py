"""A store's tables through Arrow, Polars and datasets are the same rows, and damaged ones are
refused."""

import datasets
import numpy as np
import polars as pl
import pytest

from featurestore.errors import DamageError, TableError
from tests.builders.saes import HOOK, make_store

TABLE = f"activations/{HOOK}"


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return make_store(tmp_path / "store")


def test_arrow_polars_and_datasets_give_the_same_rows(store):
    table = store.arrow(TABLE)
    assert table.num_rows == 3 * 2 * 3
    frame = store.scan(TABLE)
    assert isinstance(frame, pl.LazyFrame)
    rows = table.to_pylist()
    assert frame.collect().to_dicts() == rows
    assert store.dataset(TABLE).to_list() == rows
    assert list(store.dataset(TABLE, streaming=True)) == rows


def test_activations_are_maps_of_the_files_beside_their_samples_and_steps(store):
    tensors = [shard.rows() for shard in store.activations(HOOK)]
    steps = [step for shard in store.activations(HOOK) for step in shard.step.tolist()]
    samples = [i for shard in store.activations(HOOK) for i in shard.sample_id.tolist()]
    table = store.arrow(TABLE, ["sample_id", "step", "activation"])
    assert all(shard.mapped for shard in store.activations(HOOK))
    assert (samples, steps) == (table["sample_id"].to_pylist(), table["step"].to_pylist())
    np.testing.assert_array_equal(
        np.concatenate(tensors), np.array(table["activation"].to_pylist(), np.float16)
    )


def test_some_columns(store):
    assert store.arrow(TABLE, ["step", "branch"]).column_names == ["step", "branch"]
    assert store.dataset(TABLE, ["step"]).column_names == ["step"]
    assert list(next(iter(store.dataset(TABLE, ["step"], streaming=True)))) == ["step"]
    for read in (store.arrow, store.dataset):
        with pytest.raises(TableError, match=r"has no column 'steps'\. Did you mean 'step'"):
            read(TABLE, ["steps"])


def test_every_reader_refuses_a_damaged_file_and_an_unknown_table(store):
    readers = (
        store.arrow,
        store.scan,
        store.dataset,
        lambda table: [shard.rows() for shard in store.activations(table.split("/")[1])],
    )
    for read in readers:
        with pytest.raises(
            TableError,
            match=r"has no table 'activations/unet\.up_blocks\.1\.attentions\.2'\. Did you mean",
        ):
            read("activations/unet.up_blocks.1.attentions.2")
    path = store.files(TABLE)[1]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    for read in readers:
        with pytest.raises(DamageError, match="featurestore verify"):
            read(TABLE)
