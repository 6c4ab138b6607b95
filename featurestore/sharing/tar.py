"""Reading a tar file from a stranger: regular files only, one after another, nothing held but a
block.

Python's ``tarfile`` reads extended headers and maps of sparse files whole, however large they say
that they are; a bundle has neither, but for the short header that a long name needs.
"""

import tarfile
from collections.abc import Iterator
from typing import NamedTuple, Protocol

_BLOCK = 512
_MAX_HEADER = 4096
_EXTENDED = tarfile.XHDTYPE


class Reads(Protocol):
    """What can be read from."""

    def read(self, size: int, /) -> bytes:
        """Return at most ``size`` bytes."""


class Member(NamedTuple):
    """A file in a tar file."""

    name: str
    size: int
    content: "Content"


class Content:
    """A member's bytes; what is not read is skipped when the next member is asked for."""

    def __init__(self, stream: Reads, size: int) -> None:
        self._stream, self._left = stream, size

    def read(self, size: int = -1) -> bytes:
        """Return at most ``size`` bytes, b"" at the end.

        Raises:
            EOFError: the file ends too early.
        """
        wanted = self._left if size < 0 else min(size, self._left)
        data = _exactly(self._stream, wanted)
        self._left -= len(data)
        return data

    def skip(self) -> None:
        """Read what is left."""
        while self.read(2**20):
            pass


def members(stream: Reads) -> Iterator[Member]:
    """Yield the members of a tar file; the content of each must be read before the next is asked
    for.

    Raises:
        EOFError: the file ends too early.
        tarfile.TarError: it is no tar file, or holds a link or another thing that is not a regular
        file.
    """
    extended: dict[str, str] = {}
    while any(block := _exactly(stream, _BLOCK)):
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        if header.size < 0:
            raise tarfile.ReadError(f"{header.name[:80]!r} has a negative size")
        if header.type == _EXTENDED and not extended:
            extended = _extended(
                _exactly(stream, _padded(header)) if header.size <= _MAX_HEADER else b""
            )
            continue
        if header.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise tarfile.ReadError(f"{header.name[:80]!r} is not a regular file")
        size = int(extended.get("size", header.size))
        content = Content(stream, size)
        yield Member(extended.get("path", header.name), size, content)
        content.skip()
        _exactly(stream, -size % _BLOCK)
        extended = {}


def _padded(header: tarfile.TarInfo) -> int:
    return header.size + -header.size % _BLOCK


def _extended(data: bytes) -> dict[str, str]:
    """Return the records ``<length> <key>=<value>`` of an extended header, which may give a path
    and a size only."""
    found: dict[str, str] = {}
    data = data.rstrip(b"\0")
    while data:
        digits, space, _ = data.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 5 else 0
        key, equals, value = data[len(digits) + 1 : length].partition(b"=")
        if not (space and equals and value.endswith(b"\n")) or key not in (b"path", b"size"):
            raise tarfile.ReadError("it has an extended header that no bundle has")
        text = value[:-1].decode()
        if key == b"size" and not (text.isascii() and text.isdigit() and len(text) < 20):
            raise tarfile.ReadError("an extended header gives no size")
        found[key.decode()], data = text, data[length:]
    if not found:
        raise tarfile.ReadError("it has an extended header that no bundle has")
    return found


def _exactly(stream: Reads, size: int) -> bytes:
    parts = []
    while size:
        part = stream.read(min(size, 2**20))
        if not part:
            raise EOFError("it ends too early")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
