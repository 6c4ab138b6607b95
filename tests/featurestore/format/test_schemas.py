"""The columns of every kind of table are known, and compared with those of its files."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.format import schemas
from featurestore.format.footers import check_footer
from featurestore.format.records import FileEntry, Record, shard_files
from featurestore.vocabulary import PLAIN_TABLES, TABLE_KINDS


def sound(kind):
    """The schema of a kind of table, for one whose shape is free with a small one."""
    if kind == "samples":
        return schemas.samples_schema(["style"])
    if kind == "activations":
        metadata = {"featurestore.height": "1", "featurestore.width": "2"}
        return schemas.activations_schema(2, 3).with_metadata(metadata)
    if kind == "attention":
        return schemas.attention_schema(2)
    return schemas.expected(kind, pa.schema([]))


def wrong(root, kind, schema):
    """What the gate says of a file of a kind of table that has these columns and no rows."""
    table = kind if kind in PLAIN_TABLES else f"{kind}/x"
    (name,) = shard_files(table, "00000000-0123456789abcdef")
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(schema.empty_table(), path)
    entry = FileEntry(name, path.stat().st_size, "0" * 64)
    shard = "00000000-0123456789abcdef"
    return check_footer(path, Record(table, shard, schemas.schema_id(schema), 0, (), (entry,)))


@pytest.mark.parametrize("kind", [*PLAIN_TABLES, *TABLE_KINDS])
def test_the_columns_of_every_kind_of_table_are_checked(tmp_path, kind):
    """A2: another type, another name, a column more or fewer, nulls where there are none."""
    schema = sound(kind)
    assert wrong(tmp_path, kind, schema) is None
    first = schema.field(0)
    others = {
        "type": schema.set(0, pa.field(first.name, pa.binary(), nullable=False)),
        "name": schema.set(0, first.with_name(f"{first.name}2")),
        "fewer": schema.remove(0),
        "more": schema.append(pa.field("sequence", pa.binary())),
        "nulls": schema.set(0, first.with_nullable(not first.nullable)),
    }
    for what, other in others.items():
        said = wrong(tmp_path, kind, other)
        assert said is not None, what
        assert said.startswith((f"has other columns than {kind!r} has: ", "is no Parquet file"))
        assert "\n" not in said and len(said) < 400
