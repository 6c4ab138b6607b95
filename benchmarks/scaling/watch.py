"""A process, watched from outside: time, memory, bytes and files, its children among them."""

import ctypes
import hashlib
import os
import re
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

INSIDE = """
import atexit, hashlib, os, runpy, sys
from pathlib import Path
counted = [0, 0]

def counting(make):
    class Counted:
        def __init__(self, data=b"", **options):
            self._own, self.digest_size = make(data, **options), 32
            counted[0] += memoryview(data).nbytes
        def update(self, data):
            counted[1] += memoryview(data).nbytes
            self._own.update(data)
        def __getattr__(self, name):
            return getattr(self._own, name)
    return Counted

def file_digest(file, *how, whole=hashlib.file_digest):
    counted[1] += os.fstat(file.fileno()).st_size
    return whole(file, *how)

hashlib.sha256, hashlib.file_digest = counting(hashlib.sha256), file_digest
atexit.register(lambda to=sys.argv[1]: Path(to).write_text("%d %d" % tuple(counted)))
kind, what, *sys.argv[1:] = sys.argv[2:]
if kind == "-m":
    runpy.run_module(what, run_name="__main__", alter_sys=True)
else:
    exec(what, {"__name__": "__main__"})
"""
"""runs ``-m module …`` or ``-c code …`` and writes down how many bytes it hashed: at once, as
records and keys are, and in pieces or as a file, as the files of tables are"""
_OPEN, _OVERFLOW, _DIRECTORY, _EVENT = 0x20, 0x4000, 0x40000000, struct.Struct("iIII")
_TICK = os.sysconf("SC_CLK_TCK")
_PEAK = re.compile(r"VmHWM:\s+([0-9]+)")


class Opened(threading.Thread):
    """Counts the files below a directory that anything opens, by what the kernel says."""

    def __init__(self, root: Path) -> None:
        super().__init__(daemon=True)
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        for folder, below, _ in os.walk(root):
            below[:] = [name for name in below if name != ".work"]
            libc.inotify_add_watch(self._fd, os.fsencode(folder), _OPEN)
        self.found: set[tuple[int, bytes]] = set()
        self.overflow, self._end = False, threading.Event()

    def run(self) -> None:
        """Take events until :meth:`count` is called."""
        while not self._end.is_set():
            self._drain()
            time.sleep(0.002)

    def _drain(self) -> None:
        try:
            data = os.read(self._fd, 2**20)
        except BlockingIOError:
            return
        while data:
            number, mask, _, size = _EVENT.unpack_from(data)
            name = data[_EVENT.size : _EVENT.size + size].rstrip(b"\0")
            self.overflow |= bool(mask & _OVERFLOW)
            if name and not mask & _DIRECTORY:
                self.found.add((number, name))
            data = data[_EVENT.size + size :]

    def count(self) -> int | None:
        """Return how many files were opened; None if they were too many to tell."""
        self._end.set()
        self.join()
        self._drain()
        os.close(self._fd)
        return None if self.overflow else len(self.found)


class Tree(threading.Thread):
    """Looks at what a process and its children take: a hundred times per second, and less often
    the longer they run, as it takes time itself."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid, self._end = pid, threading.Event()
        self._peak: dict[int, int] = {}
        self._cpu: dict[int, float] = {}
        self._read: dict[int, int] = {}

    def run(self) -> None:
        """Look until :meth:`stop` is called."""
        began = time.monotonic()
        while not self._end.is_set():
            for pid in _family(self._pid):
                self._look(pid)
            self._end.wait(min(1.0, max(0.01, (time.monotonic() - began) / 200)))

    def _look(self, pid: int) -> None:
        try:
            peak = _PEAK.search(Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))
            spent = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            read = Path(f"/proc/{pid}/io").read_text(encoding="ascii").split()
        except (FileNotFoundError, ProcessLookupError):
            return
        if peak:
            self._peak[pid] = int(peak[1])
        self._cpu[pid] = (int(spent[11]) + int(spent[12])) / _TICK
        self._read[pid] = int(read[1])

    def spent(self) -> float:
        """Return the processor seconds of all so far."""
        return sum(list(self._cpu.values()))

    def stop(self) -> dict[str, float]:
        """Return megabytes at most and megabytes read, by all, and what the children spent."""
        self._end.set()
        self.join()
        children = sum(spent for pid, spent in self._cpu.items() if pid != self._pid)
        read = sum(self._read.values()) / 1e6
        return {"mb": sum(self._peak.values()) / 1024, "read_mb": read, "children": children}


def _family(pid: int) -> Iterator[int]:
    yield pid
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = path.read_text(encoding="ascii").split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        for child in children:
            yield from _family(int(child))


def busy_seconds() -> float:
    """Return the time of the processors so far, of all processes."""
    user, nice, system = Path("/proc/stat").read_text(encoding="utf-8").split()[1:4]
    return (int(user) + int(nice) + int(system)) / _TICK


def _children_seconds() -> float:
    times = os.times()
    return times.children_user + times.children_system


def _within(limit: float, process: "subprocess.Popen[bytes]", tree: Tree) -> tuple[bytes, bytes]:
    """Return what a process wrote; it is ended when it has had so many seconds of the processors,
    which other processes cannot take from it as they do those of the clock."""
    while True:
        try:
            return process.communicate(timeout=1)
        except subprocess.TimeoutExpired:
            if tree.spent() > limit:
                process.kill()
                process.communicate()
                return b"", f"more than {limit:.0f} processor s".encode()


def run(argv: list[str], root: Path, *, code: Path, cache: Path, limit: float) -> dict[str, Any]:
    """Run a command over a store in a new process, and return what it took.

    Seconds, those of the processors, and those that other processes had meanwhile; megabytes of
    memory at most, read (libraries among them), hashed of records and the like, and of the files
    of tables; files of the store that were opened; the first digits of the hash of what it printed.
    Or ``failed``: its last line, or the limit.
    """
    environment = {**os.environ, "PYTHONPATH": str(code), "FEATURESTORE_CACHE": str(cache)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # An installed package has its bytecode.
    told = root.parent / f"hashed-{os.getpid()}.txt"
    opened = Opened(root)
    opened.start()
    before, spent, began = busy_seconds(), _children_seconds(), time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", INSIDE, str(told), *argv],
        env={**environment, "HF_HUB_OFFLINE": "1"},
        cwd=code, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        tree = Tree(process.pid)
        tree.start()
        out, err = _within(limit, process, tree)
    seconds = time.perf_counter() - began
    found, files = tree.stop(), opened.count()
    cpu = _children_seconds() - spent + found.pop("children")
    if process.returncode:
        return {"failed": (err.decode(errors="replace").strip().splitlines() or [""])[-1][:200]}
    records, data = map(int, told.read_text(encoding="ascii").split())
    figures = {
        "s": seconds, "cpu": cpu, "others": busy_seconds() - before - cpu, **found,
        "records_hashed_mb": records / 1e6, "files_hashed_mb": data / 1e6, "files": files,
    }  # fmt: skip
    return {**figures, "answer": hashlib.sha256(out).hexdigest()[:12]}
