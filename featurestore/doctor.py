"""Look at an installation: versions, disk, what is missing, and the line that mends it. Devices are
the caller's."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

from featurestore.errors import DiskError
from featurestore.format import durable

PACKAGE = "featurestore"
OURS = ("featurestore", "sae", "collectors", "queries", "minicanvas")
"""top-level names that this distribution installs; two of them are also names of unrelated
distributions on PyPI"""
LEAST_FREE = 5 * 10**9
"""bytes: less is soon full (docs/collecting.md)"""


class Finding(NamedTuple):
    """Something that was looked at."""

    what: str
    found: str
    state: str = "ok"
    """``ok``, ``missing`` (nothing works without it) or ``optional`` (some commands do not)"""
    mend: str = ""
    """the line that mends it"""


def packages() -> Iterator[Finding]:
    """Yield Python, this package and everything that it requires, with the versions that are
    installed."""
    version = platform.python_version()
    fits = sys.version_info >= (3, 11)
    yield Finding(
        "Python",
        version,
        "ok" if fits else "missing",
        "" if fits else "install Python 3.11 or later",
    )
    yield Finding(PACKAGE, importlib.metadata.version(PACKAGE))
    for requirement in _requirements(None):
        yield _package(
            requirement, "missing", f"pip install '{requirement.name}{requirement.specifier}'"
        )


def extras() -> Iterator[Finding]:
    """Yield what only some commands need: the extras of this package that are for users, and
    programs."""
    found = importlib.metadata.metadata(PACKAGE).get_all("Provides-Extra") or []
    for extra in found:
        if extra not in ("dev", "peers"):
            for requirement in _requirements(extra):
                finding = _package(requirement, "optional", f"pip install '{PACKAGE}[{extra}]'")
                yield finding._replace(what=f"{finding.what} ({extra})")
    if "spark" in found:
        java = shutil.which("java")
        mend = "" if java else "install Java 17, such as apt-get install openjdk-17-jre-headless"
        yield Finding("java (spark)", java or "not found", "ok" if java else "optional", mend)


def names() -> Iterator[Finding]:
    """Yield the top-level names that another distribution has, too: pip lets the later one
    overwrite the files."""
    owners = importlib.metadata.packages_distributions()
    for name in OURS:
        others = sorted({owner for owner in owners.get(name, []) if owner != PACKAGE})
        if others:
            mend = (
                f"pip uninstall {' '.join(others)}; pip install --force-reinstall --no-deps "
                f"{PACKAGE}"
            )
            yield Finding(f"the name {name}", f"is also of {', '.join(others)}", "missing", mend)
        elif importlib.util.find_spec(name) is None:
            mend = f"pip install --force-reinstall --no-deps {PACKAGE}"
            yield Finding(f"the name {name}", "not found", "missing", mend)


def disk(where: Path) -> Iterator[Finding]:
    """Yield free space where stores, spilled queries and downloaded models go, and whether a store
    can lie at ``where``."""
    home = os.path.expanduser("~")  # noqa: PTH111 - which raises nothing where there is no home
    cache = Path(os.environ.get("HF_HOME") or Path(home, ".cache", "huggingface"))
    for what, path, way in (
        ("stores", where, "another --store"),
        ("temporary files", Path(tempfile.gettempdir()), "TMPDIR=/larger/disk"),
        ("models", cache, "HF_HOME=/larger/disk"),
    ):
        free = shutil.disk_usage(durable.nearest_existing(path)).free
        enough = free >= LEAST_FREE
        mend = "" if enough else f"free some, or use {way}"
        yield Finding(
            f"disk for {what}",
            f"{free / 1e9:.1f} GB free at {path}",
            "ok" if enough else "optional",
            mend,
        )
    yield _file_system(where)


def _file_system(where: Path) -> Finding:
    """Return whether the file system at ``where`` has what commits need: hard links and locks."""
    what, there = "hard links and locks", durable.nearest_existing(where)
    try:
        with tempfile.TemporaryDirectory(prefix=".featurestore-doctor-", dir=there) as directory:
            durable.create_once(Path(directory, "record"), b"")
            claim = durable.Claim.take(Path(directory, "claim"))
            if claim is not None:
                claim.release()
    except (DiskError, OSError) as error:
        return Finding(
            what,
            f"not at {there} ({error})",
            "missing",
            "use a directory on another file system for --store",
        )
    return Finding(what, f"work at {there}")


def _requirements(extra: str | None) -> list[Requirement]:
    """Return what this package requires, or what one of its extras does, on this system."""
    found = [Requirement(text) for text in importlib.metadata.requires(PACKAGE) or []]
    needed = [r for r in found if r.marker is None or r.marker.evaluate({"extra": ""})]
    if extra is None:
        return needed
    return [
        r
        for r in found
        if r not in needed and r.marker is not None and r.marker.evaluate({"extra": extra})
    ]


def _package(requirement: Requirement, lacking: str, mend: str) -> Finding:
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(
            requirement.name,
            f"not installed, expected {requirement.specifier or 'any'}",
            lacking,
            mend,
        )
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding(
            requirement.name, f"{version}, expected {requirement.specifier}", lacking, mend
        )
    return Finding(requirement.name, version)
