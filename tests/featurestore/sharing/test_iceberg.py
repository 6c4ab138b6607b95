"""A store as an Iceberg catalog, read back by pyiceberg. (DuckDB's and Spark's readers are
extensions that have to be downloaded, which tests do not.)"""

import sys

import pytest

from featurestore.errors import DamageError, ShareError, UsageError
from featurestore.maintenance.relabel import relabel
from featurestore.prompts.prompts import Prompt
from featurestore.sharing.iceberg import NAMESPACE, export_iceberg
from queries import score
from tests.builders.cli import run
from tests.builders.codes import random_codes
from tests.builders.stores import make_store

LABELS = {"style": ["neon", None, "sketch", "neon"]}


@pytest.fixture
def store(tmp_path):
    made = make_store(tmp_path / "store", random_codes(0, samples=4), LABELS)
    score(made, "s", "style")
    return made


def rows(warehouse, name):
    """What pyiceberg reads, in the order of its files."""
    sql = pytest.importorskip("pyiceberg.catalog.sql", reason="pip install 'featurestore[iceberg]'")
    catalog = sql.SqlCatalog(NAMESPACE, uri=f"sqlite:///{warehouse}/catalog.db")
    try:
        return catalog.load_table((NAMESPACE, name)).scan().to_arrow()
    finally:
        catalog.close()


def test_every_table_is_read_back_as_it_is(store, tmp_path):
    done = export_iceberg(store, tmp_path / "warehouse")
    assert {one.name for one in done} == {
        "samples", "codes_s", "stats_s", "sums_s", "totals_s", "scores_s",
    }  # fmt: skip
    for one in done:
        kept = store.arrow(one.name.replace("_", "/", 1))
        assert rows(tmp_path / "warehouse", one.name).to_pylist() == kept.to_pylist()
        assert one.rows == kept.num_rows
    copied = [path.name for path in (tmp_path / "warehouse/data").iterdir()]
    assert copied == ["codes_s"] == [one.name for one in done if one.copied]


def test_corrected_labels_are_those_of_the_catalog(store, tmp_path):
    given = [Prompt(f"prompt {i}", 0, {"style": f"new {i}"}, i) for i in range(4)]
    relabel(store, given)
    export_iceberg(store, tmp_path / "warehouse")
    found = rows(tmp_path / "warehouse", "samples")
    assert found["style"].to_pylist() == ["new 0", "new 1", "new 2", "new 3"]
    assert found.to_pylist() == store.arrow("samples").to_pylist()


def test_the_command_says_what_was_copied_and_what_was_left_out(capsys, store, tmp_path):
    status, out, err = run(capsys, "export", store.root, "--iceberg", tmp_path / "warehouse")
    assert (status, err) == (0, "")
    (codes,) = (line for line in out.splitlines() if "featurestore.codes_s" in line)
    assert codes.endswith("float16 values as float32")
    assert "Activations are left out: Iceberg has no float16." in out


def test_what_cannot_be_exported_leaves_nothing(store, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="lies in the store"):
        export_iceberg(store, store.root / "warehouse")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ShareError, match="exists: name a new directory"):
        export_iceberg(store, tmp_path / "full")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pyiceberg.catalog.sql", None)
        with pytest.raises(UsageError, match=r"pip install 'featurestore\[iceberg\]'"):
            export_iceberg(store, tmp_path / "warehouse")
    (path,) = store.files("stats/s")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamageError):
        export_iceberg(store, tmp_path / "warehouse")
    assert not (tmp_path / "warehouse").exists()
