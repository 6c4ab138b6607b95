"""Thrift's compact protocol, as far as Parquet's footers and page headers use it.

A struct is ``{field id: (type, value)}`` and a list ``(type of the elements, elements)``: what this
project does not know of passes through unchanged. Source: the compact protocol's specification in
Apache Thrift's repository, ``doc/specs/thrift-compact-protocol.md``.
"""

import struct
from typing import Any

TRUE, FALSE, I8, I16, I32, I64, DOUBLE, BINARY, LIST, STRUCT = 1, 2, 3, 4, 5, 6, 7, 8, 9, 12
_BITS = {I16: 16, I32: 32, I64: 64}

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
    reader = _Reader(data)
    try:
        return reader.fields(), reader._position
    except (IndexError, struct.error) as error:
        raise ValueError("not a whole Thrift struct") from error


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


class _Reader:
    """Bytes and how far they were read."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def fields(self) -> Struct:
        fields: Struct = {}
        number = 0
        while tag := self._byte():
            kind, step = tag & 0x0F, tag >> 4
            number = number + step if step else self._zigzag()
            if kind in _BITS:  # most of what there is
                fields[number] = kind, self._zigzag()
            else:
                fields[number] = kind, kind == TRUE if kind in (TRUE, FALSE) else self._value(kind)
        return fields

    def _value(self, kind: int) -> Any:
        if kind in _BITS:
            return self._zigzag()
        if kind == BINARY:
            return self._take(self._varint())
        if kind == STRUCT:
            return self.fields()
        if kind == LIST:
            size = self._byte()
            n, of = self._varint() if size >> 4 == 15 else size >> 4, size & 0x0F
            return of, [self._value(of) for _ in range(n)]
        if kind in (TRUE, FALSE):
            return self._byte() == TRUE
        if kind not in (I8, DOUBLE):
            raise ValueError(f"Parquet uses no Thrift type {kind}")
        format = "<b" if kind == I8 else "<d"
        return struct.unpack(format, self._take(struct.calcsize(format)))[0]

    def _byte(self) -> int:
        self._position += 1
        return self._data[self._position - 1]

    def _take(self, n: int) -> bytes:
        # Fewer at the end of the data: then the byte that ends the struct is missing too, and
        # reading it fails.
        self._position += n
        return self._data[self._position - n : self._position]

    def _varint(self) -> int:
        byte = self._byte()
        if byte < 0x80:
            return byte
        result, shift = byte & 0x7F, 7
        while (byte := self._byte()) >= 0x80:
            result |= (byte & 0x7F) << shift
            shift += 7
        return result | byte << shift

    def _zigzag(self) -> int:
        number = self._varint()
        return number >> 1 ^ -(number & 1)
