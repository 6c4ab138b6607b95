"""A store is read by everyone else's tools, with this project out of reach, and they agree."""

import json
import subprocess
import sys
import sysconfig
import textwrap

import numpy as np
import pytest

from collectors.collection import CollectSettings, collect
from featurestore import Store
from featurestore.prompts import Prompt
from featurestore.vocabulary import BY_FEATURE, CANDIDATES
from sae.diffusion.pipelines import RunSettings

HOOK = "unet.up_blocks.1.attentions.1"

READER = textwrap.dedent(
    """
    import importlib.util, json, sys
    store, tables = sys.argv[1], json.loads(sys.argv[2])
    assert all(importlib.util.find_spec(name) is None for name in ("featurestore", "collectors", "sae", "queries", "minicanvas"))
    import datasets, duckdb, numpy as np, polars as pl, pyarrow.parquet as pq
    datasets.disable_progress_bars()

    def plain(value):
        if isinstance(value, (list, tuple, np.ndarray)) or hasattr(value, "to_list"):
            return [plain(v) for v in (value.to_list() if hasattr(value, "to_list") else value)]
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return value.item() if isinstance(value, np.generic) else value

    for table in tables:
        config, glob = table.replace("/", "."), f"{store}/{table}/*.parquet"
        rows = pq.read_table(f"{store}/{table}").to_pylist()
        assert rows
        loaded = datasets.load_dataset(store, config, split="train")
        assert [plain(r) for r in loaded] == rows, (table, "datasets")
        streamed = datasets.load_dataset(store, config, split="train", streaming=True)
        assert [plain(r) for r in streamed] == rows, (table, "streaming")
        assert [plain(r) for r in pl.scan_parquet(glob).collect().to_dicts()] == rows, (table, "polars")
        found = duckdb.sql(f"from read_parquet('{glob}')").to_arrow_table().to_pylist()
        assert [plain(r) for r in found] == rows, (table, "duckdb")
        if table.startswith("activations/"):
            tensor = datasets.load_dataset(store, config, split="train").with_format("numpy", dtype=np.float16)[:]["activation"]
            np.save(sys.argv[3], np.asarray(tensor))
    print(json.dumps({table: pq.read_table(f"{store}/{table}").num_rows for table in tables}))
    """
)


@pytest.fixture(scope="module")
def store(model, tmp_path_factory):
    from queries.derived.keep import keep_derived
    from queries.scores import score
    from queries.selections import save_selection, select
    from sae.encoding import encode
    from sae.training.train import TrainSettings, train

    prompts = [
        Prompt(f"picture {i}", i, {"style": "ab"[i % 2], "object": [None, "雪"][i // 2]}, i + 1)
        for i in range(4)
    ]
    settings = CollectSettings(hooks=[HOOK], shard_samples=2)
    store = collect(
        tmp_path_factory.mktemp("s") / "store",
        model,
        prompts,
        RunSettings(3, 3.0),
        settings,
        progress=False,
    ).store
    train(
        store,
        HOOK,
        "small",
        TrainSettings(k=4, expansion=2, steps=5, batch_size=64),
        progress=False,
    )
    encode(store, "small", progress=False)
    keep_derived(store, "small")
    score(store, "small", "style")
    save_selection(store, select(store, "small", "style", "a"))
    return store


def test_everyone_reads_the_same(store, tmp_path):
    tables = store.tables()
    assert {t.split("/")[0] for t in tables} == {
        "samples",
        "activations",
        "codes",
        "stats",
        "sums",
        "totals",
        *BY_FEATURE,
        *CANDIDATES,
        "scores",
        "selections",
    }
    (tmp_path / "reader.py").write_text(READER)
    # Without `site`, the packages are there but the project, installed as a link, is not.
    packages = sysconfig.get_path("purelib")
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": packages,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
        "HOME": str(tmp_path),
    }
    result = subprocess.run(
        [sys.executable, "-S", tmp_path / "reader.py", store.root, json.dumps(tables), tmp_path / "tensor.npy"],
        capture_output=True, text=True, env=environment, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == {
        t: sum(r.rows for r in store.records(t)) for t in tables
    }
    mapped = np.concatenate([shard.rows() for shard in store.activations(HOOK)])
    np.testing.assert_array_equal(np.load(tmp_path / "tensor.npy"), mapped)


def test_stats_are_the_sums_of_the_tensors_codes(store):
    """From the activations and the SAE's weights alone, in NumPy."""
    import safetensors.numpy

    weights = safetensors.numpy.load_file(store.root / "saes/small/sae.safetensors")
    stats = (
        store.arrow("stats/small")
        .to_pandas()
        .set_index(["sample_id", "step", "feature"])
        .sort_index()
    )
    for shard in Store.open(store.root).activations(HOOK):
        for i in range(shard.n_rows):
            x = shard.row(i).astype(np.float32)
            pre = np.maximum((x - weights["b_dec"]) @ weights["W_enc"].T + weights["b_enc"], 0)
            kept = np.where(pre >= np.sort(pre, 1)[:, [-4]], pre, 0)
            found = stats.loc[(shard.sample_id[i], shard.step[i])]
            expected = kept.sum(0)
            assert set(found.index) == set(np.flatnonzero(expected))
            np.testing.assert_allclose(found["sum"], expected[found.index], rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(found["n_positions"], (kept > 0).sum(0)[found.index])


def test_the_dataset_card_names_every_table(store):
    card = (store.root / "README.md").read_text()
    for table in store.tables():
        assert f"config_name: {table.replace('/', '.')}\n" in card
