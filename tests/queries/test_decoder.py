"""``export --decoder``: a row for each feature, its vector that of the file, its numbers those of
NumPy."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save

from queries.decoder import decoder_table
from tests.builders.cli import run
from tests.builders.codes import random_codes
from tests.builders.stores import make_store
from tests.queries.oracles import oracle

STYLES = ["neon", "sketch", "it's", None, "neon"]
W_DEC = np.random.default_rng(0).standard_normal((12, 8), np.float32)
Z = random_codes(5, samples=5)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    labels = {"style": STYLES, "object": ["cat"] * 5}
    return make_store(
        tmp_path_factory.mktemp("decoder") / "store", Z, labels, weights=save({"W_dec": W_DEC})
    )


def test_a_row_is_what_the_store_knows_about_a_feature(store):
    table = decoder_table(store, "s")
    assert table["feature"].to_pylist() == list(range(12))
    np.testing.assert_array_equal(np.array(table["vector"].to_pylist(), np.float32), W_DEC)
    np.testing.assert_allclose(table["density"], (Z > 0).any((1, 2)).mean(0))
    np.testing.assert_allclose(table["peak"], Z.max((0, 1, 2)))
    means = {concept: of.mean(0) for concept, of in oracle(Z, STYLES)[0].items()}
    for feature, concept in enumerate(table["style"].to_pylist()):
        best = max(means, key=lambda c, i=feature: means[c][i])
        assert concept == (best if means[best][feature] > 0 else None)
    assert "object" not in table.column_names  # one concept: nothing to compare it with
    assert table["text"][11].as_py() == "feature 11: no concept; never fires"


def test_the_command_writes_what_an_atlas_opens(capsys, store, tmp_path):
    path = tmp_path / "decoder.parquet"
    status, out, err = run(capsys, "export", store.root, "--sae", "s", "--decoder", path)
    assert (status, out, err) == (0, f"12 features → {path}\n", "")
    found = pq.read_table(path)
    assert found.equals(decoder_table(store, "s"))
    assert str(found.schema.field("vector").type) == "list<element: float>"


def test_what_the_command_needs(capsys, store, tmp_path):
    for arguments, message in [
        (["--decoder", tmp_path / "x.parquet"], "--decoder needs --sae."),
        (["--decoder", tmp_path / "x.csv", "--sae", "s"], "is written as .parquet"),
        (["--decoder", tmp_path / "x.parquet", "--sae", "s", "--by", "style"],
         "--decoder exports an SAE's decoder: leave out --by."),
        (["--decoder", tmp_path / "x.parquet", "--sae", "s", "--top", 2, "-o", "x", "--format", "csv"],
         "--decoder exports an SAE's decoder: leave out --top, -o, --format."),
        (["--decoder", "x.parquet", "--duckdb", "y", "--sae", "s"],
         "give one of --duckdb, --decoder."),
    ]:  # fmt: skip
        status, _, err = run(capsys, "export", store.root, *arguments)
        assert (status, message in err) == (1, True), err
    assert not list(tmp_path.iterdir())
