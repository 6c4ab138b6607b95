"""What is in a store, and what is missing for the rest of the pages, as JSON; read from the records
and footers."""

import json
import re
from typing import Any

import pyarrow.parquet as pq

from featurestore.errors import DamageError
from featurestore.format.records import Record
from featurestore.format.schemas import family_names
from featurestore.saes import load_config
from featurestore.store import Store
from featurestore.vocabulary import TABLE_KINDS


def overview(store: Store) -> dict[str, Any]:
    """Return run, tables, hooks, SAEs, families and what is missing.

    Raises:
        DamageError: a file is not what its record says.
        SAEError: an SAE's configuration is not what its record says.
    """
    tables = {name: store.records(name) for name in store.tables()}
    samples = tables.get("samples", [])
    columns = _columns(store, samples)
    found = {
        "name": _name(store),
        "root": str(store.root),
        "run": store.run or {},
        "run_id": store.run_id,
        "n_samples": sum(record.rows for record in samples),
        "has_pictures": "image" in columns,
        "families": _families(store, columns),
        "tables": [
            _table(name, records)
            for name, records in tables.items()
            if name.partition("/")[0] in ("samples", *TABLE_KINDS)
        ],
        "hooks": [
            _hook(store, name, records)
            for name, records in tables.items()
            if name.startswith("activations/")
        ],
        "saes": [_sae(store, record, tables) for record in store.records("saes")],
    }
    return {**found, "missing": list(_missing(found))}


def _name(store: Store) -> str:
    """Return what a store is called: its directory, and the one above where that says nothing."""
    path = store.root.resolve()
    return f"{path.parent.name}/{path.name}" if path.name == "store" else path.name


def _columns(store: Store, samples: list[Record]) -> list[str]:
    return list(pq.read_schema(store.root / samples[0].files[0].path).names) if samples else []


def _families(store: Store, columns: list[str]) -> list[dict[str, Any]]:
    names = family_names(columns)
    rows = store.arrow("samples", names) if names else {}
    counted = []
    for name in names:
        counts = {
            c["values"]: c["counts"]
            for c in rows[name].value_counts().to_pylist()
            if c["values"] is not None
        }
        concepts = [{"name": c, "n_samples": counts[c]} for c in sorted(counts, key=_natural)]
        counted.append({"name": name, "concepts": concepts})
    return counted


def _natural(name: str) -> list[str | int]:
    """Return what names are ordered by: numbers in them as numbers, so that 10 comes after 9."""
    parts = re.split("([0-9]{1,18})", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def _table(name: str, records: list[Record]) -> dict[str, Any]:
    n_bytes = sum(entry.bytes for record in records for entry in record.files)
    return {
        "name": name,
        "rows": sum(r.rows for r in records),
        "shards": len(records),
        "bytes": n_bytes,
    }


def _hook(store: Store, table: str, records: list[Record]) -> dict[str, Any]:
    about = _metadata(store, records[0])
    kept = {
        key: about.get(f"featurestore.{key}", "") for key in ("io", "height", "width", "positions")
    }
    return {"name": table.partition("/")[2], **kept}


def _sae(store: Store, record: Record, tables: dict[str, list[Record]]) -> dict[str, Any]:
    name = record.shard
    config = load_config(store, name)
    metrics = next((entry for entry in record.files if entry.path.endswith("metrics.json")), None)
    encoded = {shard.shard for shard in tables.get(f"codes/{name}", [])}
    complete = encoded and encoded == {shard.shard for shard in tables.get(f"stats/{name}", [])}
    return {
        "name": name,
        "config": config,
        "metrics": None if metrics is None else _read_json(store, record, metrics.path),
        "encoded": "all" if complete else "part" if encoded else "no",
        "steps": _steps(store, name, tables) if complete else {},
    }


def _read_json(store: Store, record: Record, path: str) -> Any:
    store.check([record])
    try:
        return json.loads((store.root / path).read_bytes())
    except ValueError as error:
        raise DamageError(
            f"{store.root / path} is no JSON: run 'featurestore verify {store.root}'."
        ) from error


def _steps(store: Store, sae: str, tables: dict[str, list[Record]]) -> dict[str, list[list[float]]]:
    """Return branch → [step, timestep] pairs: as the statistics' metadata have them, else from the
    rows of ``codes``."""
    told = _metadata(store, tables[f"stats/{sae}"][0]).get("featurestore.steps")
    if told:
        return json.loads(told)
    rows = store.arrow(f"codes/{sae}", ["branch", "step", "timestep"]).group_by(["branch", "step"])
    steps: dict[str, list[list[float]]] = {}
    for row in rows.aggregate([("timestep", "min")]).sort_by("step").to_pylist():
        steps.setdefault(row["branch"], []).append([row["step"], row["timestep_min"]])
    return steps


def _metadata(store: Store, record: Record) -> dict[str, str]:
    metadata = pq.read_schema(store.root / record.files[0].path).metadata or {}
    return {key.decode(): value.decode() for key, value in metadata.items()}


def _missing(found: dict[str, Any]) -> Any:
    """Yield what a page will lack, and the command that makes it."""
    root, run = found["root"], found["run"]
    model = run.get("model", "MODEL")
    if not found["n_samples"]:
        yield _lack(
            "samples",
            "Nothing was collected yet.",
            f"featurestore collect --store {root} --model {model} --hook HOOK --prompts "
            f"prompts.jsonl --images",
        )
        return
    if not found["has_pictures"]:
        yield _lack(
            "pictures",
            "The samples were kept without their pictures.",
            f"featurestore collect --store NEW_STORE --model {model} --hook HOOK --prompts "
            f"prompts.jsonl --images",
        )
    if not found["families"]:
        yield _lack(
            "labels",
            "The prompts carry no labels, so there are no concepts to compare.",
            f"featurestore collect --store NEW_STORE --model {model} --hook HOOK --prompts "
            f"labelled.jsonl",
        )
    for family in found["families"]:
        if len(family["concepts"]) == 1:
            only = family["concepts"][0]["name"]
            yield _lack(
                "concepts",
                f"The family {family['name']} has one concept only, {only}: a score compares a "
                f"concept with others.",
                f"featurestore collect --store {root} --model {model} --hook HOOK --prompts "
                f"more.jsonl",
            )
    if not found["saes"]:
        hook = found["hooks"][0]["name"] if found["hooks"] else "HOOK"
        yield _lack(
            "sae",
            "There is no SAE yet.",
            f"featurestore train --store {root} --hook {hook} --name NAME",
        )
    for sae in found["saes"]:
        if sae["encoded"] != "all":
            how = "encoded in part only" if sae["encoded"] == "part" else "not encoded yet"
            yield _lack(
                "codes",
                f"The samples are {how} with SAE {sae['name']}.",
                f"featurestore encode --store {root} --sae {sae['name']}",
            )


def _lack(what: str, why: str, command: str) -> dict[str, str]:
    return {"what": what, "why": why, "command": command}
