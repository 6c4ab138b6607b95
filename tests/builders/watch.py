"""Watch what this process does to the disk: through Python's audit events, and through the kernel
(inotify).

Audit events tell which line asked, and see Python's own calls only. The kernel sees every call of
every library, but not who made it.
"""

import ctypes
import os
import struct
import sys
from pathlib import Path

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {"os.rename": 2, "os.link": 2, "os.symlink": 2, "os.remove": 1, "os.mkdir": 1, "os.rmdir": 1, "os.truncate": 1,
            "os.chmod": 1, "os.utime": 1, "shutil.rmtree": 1}  # fmt: skip
"""events that change a directory → how many of their arguments are paths"""
_OURS = ("featurestore", "collectors", "sae", "queries", "minicanvas")
_active = []


def _audit(event, args):
    for watch in _active:
        watch.see(event, args)


sys.addaudithook(_audit)


class Writes:
    """What was written below a directory while the block ran, and by which module:
    ``{(path, module)}``."""

    def __init__(self, root):
        self.root, self.seen, self._busy = str(Path(root).resolve()), set(), False

    def see(self, event, args):
        if event == "open":
            paths = [args[0]] if isinstance(args[2], int) and args[2] & _WRITING else []
        else:
            paths = args[: _CHANGES.get(event, 0)]
        for path in paths:
            if not isinstance(path, (str, bytes, os.PathLike)):
                continue
            full = os.path.abspath(os.fsdecode(path))  # noqa: PTH100
            if full == self.root or full.startswith(self.root + os.sep):
                self.seen.add((os.path.relpath(full, self.root), _asked()))

    def __enter__(self):
        _active.append(self)
        return self

    def __exit__(self, *error):
        _active.remove(self)


def _asked():
    """Return the innermost module of ours on the stack."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.partition(".")[0] in _OURS:
            return name
        frame = frame.f_back
    return ""


class Touched:
    """Which files of some directories anything in this process opened, read or changed: what the
    kernel says."""

    _ALL = 0x00000FFF  # IN_ALL_EVENTS
    _HEAD = struct.Struct("iIII")

    def __init__(self, *directories):
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self._descriptor >= 0, os.strerror(ctypes.get_errno())
        self._watched = {}
        for directory in directories:
            number = self._libc.inotify_add_watch(
                self._descriptor, os.fsencode(directory), self._ALL
            )
            assert number >= 0, os.strerror(ctypes.get_errno())
            self._watched[number] = Path(directory)

    def files(self):
        """Return what was touched since the last call."""
        found = set()
        while True:
            try:
                data = os.read(self._descriptor, 2**16)
            except BlockingIOError:
                return found
            while data:
                number, _, _, size = self._HEAD.unpack_from(data)
                name = os.fsdecode(data[self._HEAD.size : self._HEAD.size + size].rstrip(b"\0"))
                found.add(self._watched[number] / name)
                data = data[self._HEAD.size + size :]

    def close(self):
        os.close(self._descriptor)
