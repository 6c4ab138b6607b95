"""The dataset card: a README.md whose YAML names every table, made from the commit records."""

import json

from featurestore import durable, schemas
from featurestore.store import Store

_WHAT = {
    "samples": "one row a generated sample",
    "activations": "one row a (sample, step, branch): activations of a hook",
    "codes": "one row a (sample, step, branch): active features and their values, position by position",
    "stats": "one row a (sample, step, branch, feature) that fired",
    "scores": "importance of features for concepts, one row a (concept, step, feature)",
    "selections": "saved selections of features for a concept",
}


def write_card(store: Store) -> None:
    """Write ``README.md`` anew until it says what the records say: other processes may be committing, and writing it, too."""
    path = store.root / "README.md"
    while (text := make_card(store)) != (path.read_text(encoding="utf-8") if path.is_file() else None):
        durable.write_bytes(path, text.encode())


def make_card(store: Store) -> str:
    """Return the card's text: a function of the store's records and of nothing else."""
    tables = store.tables()
    lines = ["---", "pretty_name: Diffusion activations", "tags:", "- sparse-autoencoder", "- diffusion", "configs:"]
    for table in tables:
        lines += [f"- config_name: {schemas.config_name(table)}"]
        lines += ["  data_files:", "  - split: train", f"    path: {table}/*.parquet"]
    lines += ["---", "", "# Activations and SAE features of a diffusion model", ""]
    lines += ["Written by featurestore (layout: its `docs/format.md`). This page is made from the commit records.", ""]
    lines += ["## Run", "", "```json", json.dumps(store.run, indent=2, sort_keys=True, ensure_ascii=False), "```", ""]
    lines += ["## Tables", "", "| configuration | rows | files | MB | |", "|---|---:|---:|---:|---|"]
    for table in tables:
        records = store.records(table)
        rows, size = sum(r.rows for r in records), sum(e.bytes for r in records for e in r.files)
        what = _WHAT[table.split("/")[0]]
        lines.append(f"| `{schemas.config_name(table)}` | {rows} | {len(records)} | {size / 1e6:.1f} | {what} |")
    lines += ["", *_usage(tables), ""]
    return "\n".join(lines)


def _usage(tables: list[str]) -> list[str]:
    if not tables:
        return ["No table has been written yet."]
    last = tables[-1]
    return [
        "## Use",
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        f'rows = load_dataset("path/of/this/directory", "{schemas.config_name(last)}", split="train")',
        "```",
        "",
        "```sql",
        f"select * from read_parquet('{last}/*.parquet') limit 10;  -- DuckDB, with nothing of ours installed",
        "```",
    ]
