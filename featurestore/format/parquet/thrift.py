"""Thrift's compact protocol, as far as Parquet's footers and page headers use it.

A struct is ``{field id: (type, value)}`` and a list ``(type of the elements, elements)``: what this
project does not know of passes through unchanged. Source: the compact protocol's specification in
Apache Thrift's repository, ``doc/specs/thrift-compact-protocol.md``.
"""

import struct
from typing import Any

TRUE, FALSE, I8, I16, I32, I64, DOUBLE, BINARY, LIST, STRUCT = 1, 2, 3, 4, 5, 6, 7, 8, 9, 12
_BITS = {I16: 16, I32: 32, I64: 64}
WHOLE = tuple(_BITS)
"""the types of whole numbers"""

Struct = dict[int, tuple[int, Any]]


def read(data: bytes) -> Struct:
    """Return the struct that ``data`` begins with.

    Raises:
        ValueError: it begins with none, or not with all of one.
    """
    return read_some(data)[0]


def read_some(data: bytes) -> tuple[Struct, int]:
    """Return the struct that ``data`` begins with, and how many bytes it takes; raises as
    :func:`read`."""
    try:
        return _fields(data, 0)
    except (IndexError, struct.error) as error:
        raise ValueError("not a whole Thrift struct") from error


def read_number(data: bytes) -> int:
    """Return the whole number that ``data`` begins with; raises IndexError if it does not end
    there."""
    return _read_number(data, 0)[0]


def write(fields: Struct) -> bytes:
    """Return a struct as bytes, its fields in ascending order.

    Raises:
        OverflowError: an integer does not fit its type.
    """
    out, last = bytearray(), 0
    for number, (kind, value) in sorted(fields.items()):
        kind = (TRUE if value else FALSE) if kind in (TRUE, FALSE) else kind
        step, last = number - last, number
        out += bytes([step << 4 | kind]) if step < 16 else bytes([kind]) + _zigzag(number, I16)
        out += b"" if kind in (TRUE, FALSE) else _value(kind, value)
    return bytes(out) + b"\0"


def varint(number: int) -> bytes:
    """Return a non-negative integer as base-128 digits, the lowest first."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _zigzag(number: int, kind: int) -> bytes:
    half = 1 << (_BITS[kind] - 1)
    if not -half <= number < half:
        raise OverflowError(f"{number} does not fit {_BITS[kind]} bits")
    return varint(2 * number if number >= 0 else -2 * number - 1)


def _value(kind: int, value: Any) -> bytes:
    if kind in _BITS:
        return _zigzag(value, kind)
    if kind == BINARY:
        return varint(len(value)) + value
    if kind == STRUCT:
        return write(value)
    if kind == LIST:
        of, items = value
        size = (
            bytes([len(items) << 4 | of])
            if len(items) < 15
            else bytes([0xF0 | of]) + varint(len(items))
        )
        return size + b"".join(_value(of, item) for item in items)
    if kind in (TRUE, FALSE):
        return bytes([TRUE if value else FALSE])
    return struct.pack("<b" if kind == I8 else "<d", value)


# Each returns what it read and the position behind it. Whole numbers of one byte, as most are, are
# read where they stand, without a call: a file's footer has many.
def _fields(data: bytes, at: int) -> tuple[Struct, int]:
    fields: Struct = {}
    number = 0
    while tag := data[at]:
        kind, step = tag & 0x0F, tag >> 4
        at += 1
        if step:
            number += step
        else:
            number, at = _read_number(data, at)
        if kind in _BITS:  # most of what there is
            byte = data[at]
            if byte < 0x80:
                fields[number] = kind, byte >> 1 ^ -(byte & 1)
                at += 1
                continue
            value, at = _read_number(data, at)
            fields[number] = kind, value
        elif kind in (TRUE, FALSE):
            fields[number] = kind, kind == TRUE
        else:
            value, at = _read_value(data, at, kind)
            fields[number] = kind, value
    return fields, at + 1


def _read_value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind == BINARY:
        n, at = _read_varint(data, at)
        # Fewer at the end of the data: then the byte that ends the struct is missing too, and
        # reading it fails.
        return data[at : at + n], at + n
    if kind == STRUCT:
        return _fields(data, at)
    if kind in _BITS:
        return _read_number(data, at)
    if kind == LIST:
        n, of = data[at] >> 4, data[at] & 0x0F
        at += 1
        if n == 15:
            n, at = _read_varint(data, at)
        items = []
        for _ in range(n):
            item, at = _read_value(data, at, of)
            items.append(item)
        return (of, items), at
    if kind in (TRUE, FALSE):
        return data[at] == TRUE, at + 1
    if kind not in (I8, DOUBLE):
        raise ValueError(f"Parquet uses no Thrift type {kind}")
    format = "<b" if kind == I8 else "<d"
    size = struct.calcsize(format)
    return struct.unpack(format, data[at : at + size])[0], at + size


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    byte = data[at]
    result, shift = byte & 0x7F, 7
    while byte >= 0x80:
        at += 1
        byte = data[at]
        result |= (byte & 0x7F) << shift
        shift += 7
    return result, at + 1


def _read_number(data: bytes, at: int) -> tuple[int, int]:
    number, at = _read_varint(data, at)
    return number >> 1 ^ -(number & 1), at
