"""Bundles of anything, as a stranger would make them."""

import hashlib
import io
import json
import tarfile

import zstandard

from featurestore.sharing.bundle import FORMAT, LIST, VERSION


def bundle_of(root, out):
    """A bundle of all files of a directory, whatever they hold, with a right list."""
    files = {
        p.relative_to(root).as_posix(): p.read_bytes()
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }
    files = {name: data for name, data in files.items() if not name.startswith(".")}
    listed = [
        {"path": n, "bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()}
        for n, d in files.items()
    ]
    head = json.dumps({"format": FORMAT, "format_version": VERSION, "files": listed}).encode()
    write_bundle(out, {LIST: head, **files})
    return out


def write_bundle(out, members):
    """A bundle of these members, ``{name: bytes}``."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    out.write_bytes(zstandard.compress(sink.getvalue()))
