"""A disk that is watched: every operation on it is recorded, can be refused, and can be lost in a
power cut.

The model of a power cut is the most hostile that POSIX allows. Data written to a file and not yet
synced is kept, lost or garbage, write by write. A name made, moved or removed in a directory that
was not synced since is there or not, name by name, whatever else is; a rename within a directory is
one such change, from one to another it is two. What `fsync` returned for stays.
"""

import contextlib
import io
import os
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Op:
    """One operation: ``kind`` and what it acts on; ``site`` is the function of ``durable`` that
    asked for it."""

    kind: str
    path: str = ""
    target: str = ""
    offset: int = 0
    data: bytes = b""
    site: str = ""


@dataclass
class Trace:
    """What happened, in order."""

    root: Path
    ops: list[Op] = field(default_factory=list)
    fail_at: int | None = None
    """the number of the operation to refuse"""
    error: int = 0
    """errno of the refusal; 0: a short write instead, elsewhere nothing"""
    descriptors: dict[int, str] = field(default_factory=dict)

    def add(self, op: Op) -> bool:
        """Note an operation about to happen; say whether it is to be cut short.

        Raises:
            OSError: it is the one to refuse.
        """
        chosen = len(self.ops) == self.fail_at
        if chosen and self.error:
            self.fail_at = None
            raise OSError(self.error, os.strerror(self.error), op.path)
        self.ops.append(op)
        return chosen

    def relative(self, path: Any) -> str | None:
        """Return a path below the root as text; None elsewhere."""
        full = str(Path(path).absolute())
        return (
            os.path.relpath(full, self.root)
            if full.startswith(f"{self.root}{os.sep}") or full == str(self.root)
            else None
        )


class _File(io.FileIO):
    """A file of the traced disk."""

    def __init__(self, path: Any, mode: str, trace: Trace, name: str) -> None:
        trace.add(Op("create", name))
        super().__init__(path, mode)
        self._trace, self._name, self._at = trace, name, 0
        trace.descriptors[self.fileno()] = name

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = super().seek(offset, whence)
        return self._at

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        wanted = bytes(view)
        short = (
            self._trace.add(Op("write", self._name, offset=self._at, data=wanted))
            and len(wanted) > 1
        )
        if short:
            wanted = wanted[: len(wanted) // 2]
            self._trace.ops[-1] = Op("write", self._name, offset=self._at, data=wanted)
        super().write(wanted)
        self._at += len(wanted)
        return len(wanted)


def _site() -> str:
    """Return the functions of ``durable`` on the stack, outermost first."""
    names, frame = [], sys._getframe(2)
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("featurestore.format.durable."):
            names.append(frame.f_code.co_name)
        frame = frame.f_back
    return " > ".join(reversed(names))


@contextlib.contextmanager
def traced(root: Path, fail_at: int | None = None, error: int = 0) -> Iterator[Trace]:
    """Record, below ``root``, what this process asks of the disk; refuse operation ``fail_at``, or
    cut it short."""
    trace = Trace(root.absolute(), fail_at=fail_at, error=error)
    real = {
        name: getattr(os, name)
        for name in ("replace", "rename", "link", "unlink", "mkdir", "rmdir", "fsync", "open")
    }
    real_open = io.open

    def one(name: str, kind: str) -> Any:
        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            if (at := trace.relative(path)) is not None:
                trace.add(Op(kind, at))
            return real[name](path, *args, **kwargs)

        return call

    def two(name: str, kind: str) -> Any:
        def call(source: Any, target: Any, **kwargs: Any) -> Any:
            if (at := trace.relative(source)) is not None:
                if name == "link" and os.path.lexists(target):
                    raise FileExistsError(f"{target} exists")
                trace.add(Op(kind, at, trace.relative(target) or ""))
            return real[name](source, target, **kwargs)

        return call

    def open_descriptor(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        descriptor = real["open"](path, flags, *args, **kwargs)
        if trace.relative(path) is not None and flags & os.O_DIRECTORY:
            trace.descriptors[descriptor] = trace.relative(path) or ""
        return int(descriptor)

    def fsync(descriptor: int) -> None:
        if descriptor in trace.descriptors:
            trace.add(Op("sync", trace.descriptors[descriptor], site=_site()))

    def open_file(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        name = trace.relative(file) if isinstance(file, (str, os.PathLike)) else None
        if name is None or not set(mode) & set("wxa"):
            return real_open(file, mode, *args, **kwargs)
        return io.BufferedWriter(_File(file, mode.replace("b", ""), trace, name))

    patched = {
        "replace": two("replace", "move"), "rename": two("rename", "move"), "link": two("link", "link"),
        "unlink": one("unlink", "unlink"), "mkdir": one("mkdir", "mkdir"), "rmdir": one("rmdir", "unlink"),
        "fsync": fsync, "open": open_descriptor,
    }  # fmt: skip
    for name, function in patched.items():
        setattr(os, name, function)
    io.open = open_file  # type: ignore[assignment]
    try:
        yield trace
    finally:
        for name, function in real.items():
            setattr(os, name, function)
        io.open = real_open


class _Inode:
    def __init__(self) -> None:
        self.synced = b""
        self.pending: list[tuple[int, bytes]] = []

    def contents(self, rng: random.Random, keep: float, garble: float) -> bytes:
        data = bytearray(self.synced)
        for offset, block in self.pending:
            if rng.random() >= keep:
                continue
            written = rng.randbytes(len(block)) if rng.random() < garble else block
            data.extend(b"\0" * (offset - len(data)))
            data[offset : offset + len(block)] = written
        return bytes(data)

    def sync(self) -> None:
        self.synced, self.pending = self.contents(random.Random(0), 1.1, 0.0), []


class _Directory:
    def __init__(self) -> None:
        self.now: dict[str, Any] = {}
        self.synced: dict[str, Any] = {}
        self.pending: list[list[tuple[str, Any]]] = []
        """changes, each a list of (name, node or None) that happen together"""

    def change(self, *names: tuple[str, Any]) -> None:
        self.pending.append(list(names))
        self._apply(self.now, names)

    def entries(self, rng: random.Random, keep: float) -> dict[str, Any]:
        found = dict(self.synced)
        for names in self.pending:
            if rng.random() < keep:
                self._apply(found, names)
        return found

    def sync(self) -> None:
        self.synced, self.pending = dict(self.now), []

    @staticmethod
    def _apply(entries: dict[str, Any], names: Any) -> None:
        for name, node in names:
            if node is None:
                entries.pop(name, None)
            else:
                entries[name] = node


class PowerCut:
    """The disk as the operations so far leave it, and what a power cut may leave of that."""

    def __init__(self, ignored_site: str | None = None) -> None:
        self._top = _Directory()
        self._ignored = ignored_site
        self.applied = 0

    def apply(self, op: Op) -> None:
        """Let an operation happen; a sync of the ignored site does not."""
        self.applied += 1
        directory, name = self._parent(op.path)
        match op.kind:
            case "create":
                directory.change((name, _Inode()))
            case "mkdir" if op.path != ".":
                directory.change((name, _Directory()))
            case "write":
                directory.now[name].pending.append((op.offset, op.data))
            case "sync":
                if op.site != self._ignored:
                    (self._top if op.path == "." else directory.now[name]).sync()
            case "link":
                other, other_name = self._parent(op.target)
                other.change((other_name, directory.now[name]))
            case "move":
                other, other_name = self._parent(op.target)
                if other is directory:
                    directory.change((other_name, directory.now[name]), (name, None))
                else:  # two directories, of which either may be synced without the other
                    other.change((other_name, directory.now[name]))
                    directory.change((name, None))
            case "unlink":
                directory.change((name, None))

    def leave(self, out: Path, rng: random.Random, keep: float, garble: float) -> None:
        """Write what a power cut leaves to a new directory: unsynced changes stay with probability
        ``keep``."""
        contents: dict[int, bytes] = {}

        def write(directory: _Directory, path: Path) -> None:
            path.mkdir()
            for name, node in directory.entries(rng, keep).items():
                if isinstance(node, _Directory):
                    write(node, path / name)
                else:  # one file under two names is one file
                    if id(node) not in contents:
                        contents[id(node)] = node.contents(rng, keep, garble)
                    (path / name).write_bytes(contents[id(node)])

        write(self._top, out)

    def _parent(self, path: str) -> tuple[_Directory, str]:
        directory, *names = self._top, *Path(path).parts
        for name in names[:-1]:
            directory = directory.now[name]
        return directory, names[-1] if names else ""
