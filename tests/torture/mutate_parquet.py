"""Changed Parquet files: footers, pages, tables (seeded, so repeatable)."""

import io
import json
import random
import zlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.format.parquet import thrift
from tests.torture.mutate import hostile_paths, hostile_value, mutate_bytes


def mutate_footer(data: bytes, rng: random.Random) -> bytes:
    """Return a Parquet file with numbers or texts in its footer changed; Thrift stays Thrift."""
    size = int.from_bytes(data[-8:-4], "little")
    footer = thrift.read(data[-8 - size : -8])
    for _ in range(rng.choice([1, 1, 2])):
        _change_number(footer, rng)
    try:
        end = thrift.write(footer)
    except (OverflowError, TypeError, ValueError, AttributeError, KeyError):
        return mutate_bytes(data, rng)
    return data[: -8 - size] + end + len(end).to_bytes(4, "little") + b"PAR1"


def _thrift_places(value: Any, places: list[tuple[Any, Any]]) -> None:
    if isinstance(value, dict):
        for key, (kind, inner) in value.items():
            if kind in (thrift.STRUCT, thrift.LIST):
                _thrift_places(inner[1] if kind == thrift.LIST else inner, places)
            else:
                places.append((value, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            if isinstance(inner, (dict, list)):
                _thrift_places(inner, places)
            else:
                places.append((value, number))


def _thrift_value(value: Any, rng: random.Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice(
            [0, 1, -1, 4, value + 1, value - 1, value * 1000, 2**31 - 1, -(2**31), 2**62]
        )
    if isinstance(value, bytes):
        return rng.choice(
            [b"", b"x", value + b"x", value[::-1], b"\xff", b"sample_id", value[: len(value) // 2]]
        )
    return value


def mutate_pages(data: bytes, rng: random.Random) -> bytes:
    """Return a Parquet file one of whose column chunks contradicts itself: headers of pages, their
    levels, values and order, sealed again.

    The chunk moves to the end of the file, so that it may have any length.
    """
    size = int.from_bytes(data[-8:-4], "little")
    footer = thrift.read(data[-8 - size : -8])
    group = rng.choice(footer[4][1][1])
    about = rng.choice(group[1][1][1])[3][1]
    pages = pages_of(data, about)
    number = rng.randrange(len(pages))
    for _ in range(rng.choice([1, 1, 2, 3])):
        header, body = pages[number]
        action = rng.randrange(5)
        if action < 2:
            _change_number(header, rng)
        elif action < 4:
            pages[number] = header, _other_body(header, body, about[4][1], rng)
        elif rng.random() < 0.5:
            pages.insert(rng.randrange(len(pages) + 1), (dict(header), body))
        else:
            rng.shuffle(pages)
    if rng.random() < 0.1:
        _change_number(about, rng)
    try:
        return with_pages(data[: -8 - size], footer, about, pages)
    except (OverflowError, TypeError, ValueError, AttributeError, KeyError):
        return mutate_bytes(data, rng)


_CODECS = {1: "snappy", 6: "zstd"}
_Page = tuple[thrift.Struct, bytes]


def pages_of(data: bytes, about: thrift.Struct) -> list[_Page]:
    """Return the pages of the column chunk that ``about`` describes: headers and bodies."""
    at = min(about[9][1], about[11][1]) if 11 in about else about[9][1]
    end, pages = at + about[7][1], []
    while at < end:
        header, length = thrift.read_some(data[at : at + 2**16])
        begin = at + length
        at = begin + header[3][1]
        pages.append((header, data[begin:at]))
    return pages


def _change_number(fields: thrift.Struct, rng: random.Random) -> None:
    places: list[tuple[Any, Any]] = []
    _thrift_places(fields, places)
    holder, key = rng.choice(places)
    kind, value = holder[key] if isinstance(holder, dict) else (None, holder[key])
    new = _thrift_value(value, rng)
    holder[key] = (kind, new) if isinstance(holder, dict) else new


def _other_body(header: thrift.Struct, body: bytes, codec: int, rng: random.Random) -> bytes:
    """Return other levels and values; the header mostly says how long they are."""
    raw, packed = body, codec in _CODECS
    if packed:
        try:
            raw = pa.Codec(_CODECS[codec]).decompress(body, header[2][1]).to_pybytes()
        except (pa.ArrowException, OSError, ValueError, OverflowError):
            packed = False
    changed = bytearray(raw)
    for _ in range(rng.choice([1, 1, 2, 4]) if changed else 0):
        at = rng.randrange(rng.choice([min(len(changed), 12), len(changed)]))
        changed[at] = rng.choice([0, 1, 2, 3, 4, 8, 32, 64, 127, 128, 255, rng.randrange(256)])
    raw = bytes(changed) if rng.random() < 0.5 else mutate_bytes(raw, rng)
    body = pa.Codec(_CODECS[codec]).compress(raw).to_pybytes() if packed else raw
    header[3] = thrift.I32, len(body)
    if rng.random() < 0.9:
        header[2] = thrift.I32, len(raw)
    return body


def with_pages(
    before: bytes, footer: thrift.Struct, about: thrift.Struct, pages: list[_Page]
) -> bytes:
    """Return a file whose chunk ``about`` has these pages, each with the checksum that it has."""
    out, places = b"", {True: 0, False: 0}
    for header, body in reversed(pages):
        if 4 in header:
            checksum = zlib.crc32(body)
            header[4] = thrift.I32, checksum - 2**32 if checksum >= 2**31 else checksum
        out = thrift.write(header) + body + out
    at = len(before)
    for header, body in pages:
        is_dictionary = header.get(1, (0, 0))[1] == 2
        places[is_dictionary] = places[is_dictionary] or at
        at += len(thrift.write(header)) + len(body)
    about[7], about[9] = (thrift.I64, len(out)), (thrift.I64, places[False] or len(before))
    if 11 in about:
        about[11] = thrift.I64, places[True] or len(before)
    end = thrift.write(footer)
    return before + out + end + len(end).to_bytes(4, "little") + b"PAR1"


def mutate_table(data: bytes, rng: random.Random, home: str) -> bytes:
    """Return a Parquet file of other rows, columns or metadata, written by pyarrow: sound as a
    file, wrong as a table."""
    table = pq.read_table(io.BytesIO(data))
    action = rng.randrange(7)
    number = rng.randrange(table.num_columns)
    field = table.schema.field(number)
    if action == 0:
        table = table.drop_columns([field.name])
    elif action == 1:
        name = rng.choice(
            [*hostile_paths(home), "sample_id", "step", "STEP", field.name + " ", "select"]
        )
        table = table.rename_columns(
            [name if i == number else n for i, n in enumerate(table.column_names)]
        )
    elif action == 2:
        table = (
            table.slice(0, rng.choice([0, 1, table.num_rows]))
            if rng.random() < 0.5
            else pa.concat_tables([table, table])
        )
    elif action == 3:
        table = table.take(np.random.default_rng(rng.randrange(2**32)).permutation(table.num_rows))
    elif action == 4:
        table = _other_values(table, number, rng, home)
    else:
        known = [
            "height",
            "width",
            "n_latents",
            "io",
            "hook",
            "steps",
            "counts",
            "selection",
            "positions",
            "sae",
            "map_height",
        ]
        metadata = dict(table.schema.metadata or {})
        value = hostile_value(rng, home)
        text = value if isinstance(value, str) else json.dumps(value)
        metadata[f"featurestore.{rng.choice(known)}".encode()] = text.encode(
            "utf-8", "surrogatepass"
        )
        table = table.replace_schema_metadata(metadata)
    sink = io.BytesIO()
    try:
        pq.write_table(table, sink, compression=rng.choice(["none", "zstd", "snappy"]))
    except (pa.ArrowException, ValueError):
        return mutate_bytes(data, rng)
    return sink.getvalue()


def _other_values(table: pa.Table, number: int, rng: random.Random, home: str) -> pa.Table:
    """Replace a column by hostile values, nulls among them, of its own type or another."""
    field, n = table.schema.field(number), table.num_rows
    kinds = [
        pa.int64(),
        pa.float64(),
        pa.string(),
        pa.bool_(),
        pa.list_(pa.int32()),
        pa.binary(),
        pa.null(),
    ]
    if pa.types.is_integer(field.type) and rng.random() < 0.7:
        bits = field.type.bit_width
        column = pa.array(
            [rng.choice([0, -1, 2 ** (bits - 1) - 1, -(2 ** (bits - 1)), 7]) for _ in range(n)],
            field.type,
        )
    elif pa.types.is_floating(field.type) and field.type != pa.float16() and rng.random() < 0.7:
        column = pa.array(
            [rng.choice([float("nan"), float("inf"), -1.0, 0.0, 3e38]) for _ in range(n)],
            field.type,
        )
    elif pa.types.is_string(field.type) and rng.random() < 0.7:
        column = pa.array(
            [rng.choice([*hostile_paths(home), None, "cond"]) for _ in range(n)], pa.string()
        )
    else:
        column = pa.nulls(n, rng.choice([*kinds, field.type]))
    return table.set_column(number, pa.field(field.name, column.type), column)
