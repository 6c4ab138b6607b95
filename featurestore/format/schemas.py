"""The tables' names and Arrow schemas (docs/format.md, section 1)."""

import hashlib
import json
import re
from collections.abc import Collection, Iterable

import pyarrow as pa

from featurestore.errors import TableError
from featurestore.format.gate import short
from featurestore.vocabulary import STARTS

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_MAX_NAME = 200
"""characters of a name: a file's name has room for it, a suffix and what a temporary file adds"""
FAMILY = re.compile(r"[a-z][a-z0-9_]*")


def _required(columns: dict[str, pa.DataType]) -> list[pa.Field]:
    return [pa.field(name, kind, nullable=False) for name, kind in columns.items()]


_SAMPLE_HEAD = _required({"sample_id": pa.int64(), "prompt": pa.string(), "seed": pa.int64()})
_SAMPLE_TAIL = _required(
    {
        "guidance": pa.float64(),
        "n_steps": pa.int32(),
        "scheduler": pa.string(),
        "model": pa.string(),
        "model_hash": pa.string(),
        "height": pa.int32(),
        "width": pa.int32(),
    }
)
_IMAGE = pa.field(
    "image", pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
)
_ROW = _required(
    {"sample_id": pa.int64(), "step": pa.int32(), "timestep": pa.float32(), "branch": pa.string()}
)
_OWN_NAMES = {
    "features",
    "feature",
    "values",
    "sum",
    "max",
    "n_positions",
    "hook",
    "sae",
    "activation",
    "position",
    "image",
}
_OWN_NAMES |= {"negative_prompt", "concept", "family"}
START_COLUMNS = {kind: (f"start_{kind}", f"start_{kind}_file") for kind in STARTS}
"""picture that a sample starts from → the columns of its hash and of its file"""
_OWN_NAMES |= {name for names in START_COLUMNS.values() for name in names}
RESERVED = frozenset({field.name for field in (*_SAMPLE_HEAD, *_SAMPLE_TAIL, *_ROW)} | _OWN_NAMES)


def family_names(columns: Iterable[str]) -> list[str]:
    """Return the label columns among a samples table's columns, in their order."""
    return [name for name in columns if name not in RESERVED]


def samples_schema(
    families: Iterable[str], images: bool = False, starts: Collection[str] = ()
) -> pa.Schema:
    """Return the schema of ``samples`` with one nullable string column per concept family;
    ``starts`` are the pictures that samples start from."""
    labels = [pa.field(name, pa.string()) for name in families]
    kinds_of_start = [kind for kind in STARTS if kind in starts]
    hashes = _required({START_COLUMNS[kind][0]: pa.string() for kind in kinds_of_start})
    files = [_IMAGE.with_name(START_COLUMNS[kind][1]) for kind in kinds_of_start if images]
    pictures = [_IMAGE, *files] if images else []
    schema = pa.schema([*_SAMPLE_HEAD, *labels, *_SAMPLE_TAIL, *hashes, *pictures])
    if not images:
        return schema
    kinds = {f.name: {"dtype": str(f.type), "_type": "Value"} for f in schema}
    kinds |= {
        f.name: {"dtype": "float64", "_type": "Value"} for f in schema if f.type == pa.float64()
    }
    kinds |= {field.name: {"_type": "Image"} for field in pictures}
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": kinds}})})


def activations_schema(
    n_positions: int, d_in: int, dtype: str = "float16", chosen: bool = False
) -> pa.Schema:
    """Return the schema of ``activations/<hook>``: ``[n_positions][d_in]`` of ``float16`` or
    ``float32`` a row.

    ``chosen`` adds the column that says which positions of the map these are.
    """
    value = {"float16": pa.float16(), "float32": pa.float32()}[dtype]
    inner = pa.list_(pa.field("element", value, nullable=False), d_in)
    outer = pa.list_(pa.field("element", inner, nullable=False), n_positions)
    position = pa.field(
        "position",
        pa.list_(pa.field("element", pa.int32(), nullable=False), n_positions),
        nullable=False,
    )
    return pa.schema(
        [*_ROW, *([position] if chosen else []), pa.field("activation", outer, nullable=False)]
    )


def attention_schema(n_positions: int) -> pa.Schema:
    """Return the schema of ``attention/<hook>``: ``[n_positions]`` of float16 a row."""
    value = pa.field("element", pa.float16(), nullable=False)
    columns = {"word": pa.string(), "attention": pa.list_(value, n_positions)}
    return pa.schema([*_ROW, *_required(columns)])


def _ragged(value: pa.DataType) -> pa.DataType:
    inner = pa.list_(pa.field("element", value, nullable=False))
    return pa.list_(pa.field("element", inner, nullable=False))


LABELS = pa.schema(
    [
        *_required({"sample_id": pa.int64(), "version": pa.int32(), "family": pa.string()}),
        pa.field("concept", pa.string()),
    ]
)
CODES = pa.schema(
    [*_ROW, *_required({"features": _ragged(pa.int32()), "values": _ragged(pa.float16())})]
)
STATS = pa.schema(
    [
        *_ROW,
        *_required(
            {
                "feature": pa.int32(),
                "sum": pa.float32(),
                "max": pa.float32(),
                "n_positions": pa.int32(),
            }
        ),
    ]
)
SCORES = pa.schema(
    _required(
        {
            "family": pa.string(),
            "concept": pa.string(),
            "branch": pa.string(),
            "step": pa.int32(),
            "timestep": pa.float32(),
            "feature": pa.int32(),
            "score": pa.float64(),
            "mean_concept": pa.float64(),
            "mean_other": pa.float64(),
            "mean_all": pa.float64(),
        }
    )
)
SUMS = pa.schema(
    _required(
        {
            "family": pa.string(),
            "concept": pa.string(),
            "branch": pa.string(),
            "step": pa.int32(),
            "timestep": pa.float32(),
            "feature": pa.int32(),
            "sum": pa.float64(),
            "n_samples": pa.int64(),
            "sum_all_features": pa.float64(),
        }
    )
)
TOTALS = pa.schema(
    _required(
        {
            "family": pa.string(),
            "branch": pa.string(),
            "step": pa.int32(),
            "timestep": pa.float32(),
            "feature": pa.int32(),
            "total": pa.float64(),
            "mean_all": pa.float64(),
            "n_samples": pa.int64(),
            "total_all_features": pa.float64(),
        }
    )
)
FEATURE_SAMPLES = pa.schema(
    _required(
        {
            "branch": pa.string(),
            "feature": pa.int32(),
            "sample_id": pa.int64(),
            "sum": pa.float64(),
            "max": pa.float32(),
            "peak_step": pa.int32(),
            "n_steps": pa.int32(),
            "n_positions": pa.int64(),
        }
    )
)
FEATURE_STEPS = pa.schema(
    _required(
        {
            "branch": pa.string(),
            "feature": pa.int32(),
            "step": pa.int32(),
            "timestep": pa.float32(),
            "sum": pa.float64(),
            "max": pa.float32(),
            "n_samples": pa.int64(),
            "n_positions": pa.int64(),
        }
    )
)
FEATURE_MASKS = pa.schema(
    _required(
        {
            "branch": pa.string(),
            "feature": pa.int32(),
            "sample_id": pa.int64(),
            "first_step": pa.int32(),
            "steps": pa.int64(),
            "later_steps": pa.int64(),
        }
    )
)


_FIXED = {
    "labels": LABELS,
    "codes": CODES,
    "stats": STATS,
    "sums": SUMS,
    "totals": TOTALS,
    "feature_samples": FEATURE_SAMPLES,
    "feature_steps": FEATURE_STEPS,
    "feature_masks": FEATURE_MASKS,
    "candidates": SUMS,
    "step_candidates": SUMS,
    "scores": SCORES,
    "selections": SCORES,
}


def expected(kind: str, found: pa.Schema) -> pa.Schema:
    """Return the schema that a kind of table has, with the families or the shape that ``found``
    says.

    ``found`` that has no shape at all raises KeyError, ValueError or AttributeError.
    """
    if kind == "samples":
        starts = [kind for kind, (name, _) in START_COLUMNS.items() if name in found.names]
        return samples_schema(family_names(found.names), "image" in found.names, starts)
    if kind == "activations":
        outer = found.field("activation").type
        shape = outer.list_size, outer.value_type.list_size
        return activations_schema(
            *shape,
            outer.value_type.value_type.to_pandas_dtype().__name__,
            "position" in found.names,
        )
    if kind == "attention":
        return attention_schema(found.field("attention").type.list_size)
    return _FIXED[kind]


def schema_id(schema: pa.Schema) -> str:
    """Return the 16 hexadecimal digits that name a schema's columns; metadata does not count."""
    return hashlib.sha256("".join(f"{f.name}:{f.type}\n" for f in schema).encode()).hexdigest()[:16]


def is_name(name: str) -> bool:
    """Say whether a text can name a table's second part, or a shard."""
    return len(name) <= _MAX_NAME and NAME.fullmatch(name) is not None


def check_name(name: str, what: str) -> str:
    """Return ``name`` if it can name a table; ``what`` says in the error what it names.

    Raises:
        TableError: it cannot.
    """
    if not is_name(name):
        raise TableError(
            f"{what} {short(name)} cannot be a name in a store: use at most {_MAX_NAME} letters, "
            f"digits, '_', '-' and '.'; the first must be a letter or a digit."
        )
    return name


def config_name(table: str) -> str:
    """Return the ``load_dataset`` configuration of a table: its directory with ``/`` as ``.``."""
    return table.replace("/", ".")
