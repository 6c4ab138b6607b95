"""A store described in Croissant 1.1, the vocabulary of data sets that search engines and loaders
of machine learning read (https://docs.mlcommons.org/croissant)."""

import json
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from featurestore.errors import DamageError
from featurestore.format.footers import read_schema
from featurestore.format.schemas import config_name
from featurestore.store import Store

CROISSANT = "croissant.json"
_TERMS = (
    "arrayShape", "citeAs", "column", "containedIn", "equivalentProperty", "extract", "field",
    "fileProperty", "fileObject", "fileSet", "format", "includes", "isArray", "isLiveDataset",
    "jsonPath", "key", "md5", "parentField", "path", "recordSet", "references", "regex", "repeated",
    "replace", "samplingRate", "separator", "source", "subField", "transform",
)  # fmt: skip
_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    **{term: f"cr:{term}" for term in _TERMS},
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "description": {"@container": "@language"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "name": {"@container": "@language"},
}
"""the standard one, whole: readers compare it"""
_KEYS = {
    "samples": ("sample_id",),
    "labels": ("sample_id", "version", "family"),
    "activations": ("sample_id", "step", "branch"),
    "codes": ("sample_id", "step", "branch"),
    "stats": ("sample_id", "step", "branch", "feature"),
    "sums": ("family", "concept", "branch", "step", "feature"),
    "totals": ("family", "branch", "step", "feature"),
    "scores": ("family", "concept", "branch", "step", "feature"),
}


def croissant(store: Store) -> str:
    """Return ``croissant.json``: a record set for each table, read from the Parquet files that lie
    beside it; a function of the committed shards and of nothing else.

    A table whose first file is damaged has no record set: who shares the store refuses it anyway.
    """
    tables = store.tables()
    body = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": f"featurestore-{store.run_id}",
        "description": "Activations and SAE features of a diffusion model, written by "
        f"featurestore. Run: {json.dumps(store.run, sort_keys=True, ensure_ascii=False)}",
        "distribution": [_files(table) for table in tables],
        "recordSet": [found for table in tables if (found := _records(store, table))],
    }
    return json.dumps(body, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _files(table: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": f"{config_name(table)}-files",
        "name": f"{config_name(table)}-files",
        "encodingFormat": "application/x-parquet",
        "includes": f"{table}/*.parquet",
    }


def _records(store: Store, table: str) -> dict[str, Any] | None:
    name = config_name(table)
    try:
        (path,) = store.paths(store.records(table)[0])
        schema = read_schema(path)
    except DamageError:  # `verify` says so, and what else is
        return None
    key = _KEYS.get(table.split("/")[0])
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "field": list(_fields(name, schema)),
        **({"key": [{"@id": f"{name}/{column}"} for column in key]} if key else {}),
    }


def _fields(name: str, schema: pa.Schema) -> Iterable[dict[str, Any]]:
    for column in schema:
        sizes, kind = _shape(column.type)
        picture = {"transform": {"jsonPath": "bytes"}} if pa.types.is_struct(kind) else {}
        yield {
            "@type": "cr:Field",
            "@id": f"{name}/{column.name}",
            "name": f"{name}/{column.name}",
            "dataType": _data_type(kind),
            "source": {
                "fileSet": {"@id": f"{name}-files"},
                "extract": {"column": column.name},
                **picture,
            },
            **({"isArray": True, "arrayShape": ",".join(map(str, sizes))} if sizes else {}),
        }


def _shape(kind: pa.DataType) -> tuple[list[int], pa.DataType]:
    """Return the sizes of lists of lists, -1 where rows differ, and the type of their values."""
    sizes = []
    while pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        sizes.append(kind.list_size if pa.types.is_fixed_size_list(kind) else -1)
        kind = kind.value_type
    return sizes, kind


def _data_type(kind: pa.DataType) -> str:
    if pa.types.is_struct(kind):
        return "sc:ImageObject"
    if pa.types.is_integer(kind):
        return f"cr:Int{kind.bit_width}"
    return f"cr:Float{kind.bit_width}" if pa.types.is_floating(kind) else "sc:Text"
