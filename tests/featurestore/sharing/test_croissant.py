"""``croissant.json`` in a bundle, read by the reference implementation, which checks it."""

import io
import json
import logging

import numpy as np
import pytest
from PIL import Image

from featurestore.sharing.bundle import pack, unpack
from featurestore.sharing.croissant import CROISSANT, croissant
from tests.builders.codes import random_codes
from tests.builders.stores import make_store

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
STYLES = ["neon", None, "sketch"]


@pytest.fixture
def store(tmp_path):
    sink = io.BytesIO()
    Image.new("RGB", (8, 8), "teal").save(sink, "PNG")
    z = random_codes(0, samples=3)
    return make_store(tmp_path / "store", z, {"style": STYLES}, pictures=[sink.getvalue()] * 3)


def read(dataset, name):
    """A record set's rows, with the columns' own names."""
    return [
        {key.removeprefix(f"{name}/"): value for key, value in row.items()}
        for row in dataset.records(name)
    ]


def test_the_reference_reader_reads_the_tables_of_a_bundle(store, tmp_path, caplog):
    mlcroissant = pytest.importorskip("mlcroissant", reason="pip install mlcroissant")
    pack(store, tmp_path / "b.tar.zst")
    back = unpack(tmp_path / "b.tar.zst", tmp_path / "back")
    with caplog.at_level(logging.ERROR):  # recommended properties that only the owner knows
        dataset = mlcroissant.Dataset(str(back.root / CROISSANT))
    assert not dataset.metadata.ctx.issues.errors
    samples = read(dataset, "samples")
    assert [row["style"] for row in samples] == [b"neon", None, b"sketch"]
    assert samples[0]["image"].size == (8, 8)
    stats, expected = read(dataset, "stats.s"), store.arrow("stats/s").to_pylist()
    assert len(stats) == len(expected)
    for row, kept in zip(stats, expected, strict=True):
        assert row.pop("branch").decode() == kept.pop("branch")
        assert row == kept
    codes = store.arrow("codes/s")["values"].to_pylist()
    for row, kept in zip(read(dataset, "codes.s"), codes, strict=True):
        assert [list(map(float, values)) for values in row["values"]] == kept


def test_every_column_of_every_table_is_described(store):
    body = json.loads(croissant(store))
    sets = {one["name"]: one for one in body["recordSet"]}
    assert set(sets) == {table.replace("/", ".") for table in store.tables()}
    for table in store.tables():
        one = sets[table.replace("/", ".")]
        columns = [field["source"]["extract"]["column"] for field in one["field"]]
        assert columns == store.arrow(table).column_names
    values = next(f for f in sets["codes.s"]["field"] if f["name"] == "codes.s/values")
    assert (values["dataType"], values["arrayShape"]) == ("cr:Float16", "-1,-1")


def test_the_description_is_a_function_of_what_is_committed(store, tmp_path):
    z = np.zeros((1, 3, 4, 12), np.float32)
    other = make_store(tmp_path / "other", z, {"style": ["neon"]})
    assert croissant(store) == croissant(store) != croissant(other)
