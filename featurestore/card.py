"""The dataset card: a README.md whose YAML names every table, made from the commit records."""

import json
from pathlib import Path

import pyarrow as pa

from featurestore.errors import DamageError
from featurestore.format import durable, footers, schemas
from featurestore.format.gate import MalformedError, read_regular
from featurestore.format.ledger import update_ledger
from featurestore.format.records import list_shards
from featurestore.store import Store

_WHAT = {
    "samples": "one row per generated sample",
    "labels": "labels that were corrected later, one row per (sample, family); of a sample's "
    "versions the largest counts",
    "activations": "one row per (sample, step, branch): activations of a hook",
    "attention": "one row per (sample, step, word of its prompt): how much each position attends "
    "to it",
    "codes": "one row per (sample, step, branch): active features and their values, position by "
    "position",
    "stats": "one row per (sample, step, branch, feature) that fired",
    "sums": "sums over the samples of a concept, one row per (family, concept, branch, step, "
    "feature)",
    "totals": "sums over all samples of a concept family, one row per (family, branch, step, "
    "feature)",
    "feature_masks": "at which steps a feature fired in a sample, as bits, ordered by feature",
    "feature_samples": "a feature in each sample in which it fired, all steps together, ordered by "
    "feature",
    "feature_steps": "a feature at each step at which it fired, all samples together, ordered by "
    "feature",
    "candidates": "of sums, what has the best mean scores of a concept",
    "step_candidates": "of sums, what has the best scores of a concept at a step",
    "scores": "importance of features for concepts, one row per (concept, step, feature)",
    "selections": "saved selections of features for a concept",
}


def write_card(store: Store) -> None:
    """Write ``README.md``, and the ledger, anew until they say what the records say; other
    processes may do so, too.

    Whatever stands there is derived: a file that is damaged, or a link, is replaced.
    """
    update_ledger(store.root)
    path = store.root / "README.md"
    while not holds(path, card := make_card(store).encode()):
        durable.write_bytes(path, card)


def holds(path: Path, data: bytes) -> bool:
    """Say whether a derived file has these bytes: else it is written anew."""
    try:
        return read_regular(path, len(data)) == data
    except (MalformedError, OSError):
        return False


def make_card(store: Store) -> str:
    """Return the card's text: a function of the committed shards and of nothing else."""
    tables = store.tables()
    lines = [
        "---",
        "pretty_name: Diffusion activations",
        "tags:",
        "- sparse-autoencoder",
        "- diffusion",
        "configs:",
    ]
    for table in tables:
        lines += [f"- config_name: {schemas.config_name(table)}"]
        lines += ["  data_files:", "  - split: train", *_data_files(store, table)]
    lines += ["---", "", "# Activations and SAE features of a diffusion model", ""]
    lines += [
        "Written by featurestore (layout: its `docs/format.md`). This page is made from the "
        "commit records.",
        "",
    ]
    lines += [
        "## Run",
        "",
        "```json",
        json.dumps(store.run, indent=2, sort_keys=True, ensure_ascii=False),
        "```",
        "",
    ]
    lines += [
        "## Tables",
        "",
        "| configuration | rows | files | MB | |",
        "|---|---:|---:|---:|---|",
    ]
    for table in tables:
        records = store.records(table)
        rows, size = sum(r.rows for r in records), sum(r.n_bytes for r in records)
        what = _WHAT[table.split("/")[0]]
        lines.append(
            f"| `{schemas.config_name(table)}` | {rows} | {len(records)} | {size / 1e6:.1f} | "
            f"{what} |"
        )
    lines += ["", *_columns(store, tables), *_usage(tables), ""]
    return "\n".join(lines)


def _data_files(store: Store, table: str) -> list[str]:
    """Return where a table's files are: all in its directory, unless some there count no more."""
    records = store.records(table)
    replaced = {name for record in records for name in record.covers if name != record.shard}
    if replaced.isdisjoint(list_shards(store.root, table)):
        return [f"    path: {table}/*.parquet"]
    return ["    path:", *(f"    - {entry.path}" for r in records for entry in r.files)]


def _columns(store: Store, tables: list[str]) -> list[str]:
    """Return the columns of each kind of table, and what made its first shard."""
    lines = ["## Columns", ""] if tables else []
    for table in tables:
        first = store.records(table)[0]
        try:
            (path,) = store.paths(first)
            schema = footers.read_schema(path)
        except DamageError:  # `verify` says so, and what else is
            continue
        columns = ", ".join(f"`{field.name}` {_type(field.type)}" for field in schema)
        made_by = ", ".join(
            f"{key} {value}"
            for key, value in sorted(first.made_by.items())
            if isinstance(value, str)
        )
        lines += [
            f"- `{schemas.config_name(table)}`: {columns}"
            + (f" (made by {made_by})" if made_by else "")
        ]
    return [*lines, ""] if lines else []


def _type(kind: pa.DataType) -> str:
    """Return a type's name for people: ``float16[64][128]`` for lists of lists."""
    if pa.types.is_fixed_size_list(kind):
        inner, sizes = kind, ""
        while pa.types.is_fixed_size_list(inner):
            inner, sizes = inner.value_type, f"{sizes}[{inner.list_size}]"
        return f"{_type(inner)}{sizes}"
    if pa.types.is_list(kind):
        return f"{_type(kind.value_type)}[]"
    if pa.types.is_floating(kind):
        return f"float{kind.bit_width}"
    return "image" if pa.types.is_struct(kind) else str(kind)


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
        f'rows = load_dataset("path/of/this/directory", "{schemas.config_name(last)}", '
        f'split="train")',
        "```",
        "",
        "```sql",
        f"select * from read_parquet('{last}/*.parquet') limit 10;  -- DuckDB, with nothing of "
        f"ours installed",
        "```",
    ]
