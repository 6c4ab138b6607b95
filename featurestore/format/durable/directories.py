"""Directories: made, filled, renamed and removed so that a power cut leaves one state or the
other."""

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from featurestore.format.durable.claims import clear_dead
from featurestore.format.durable.disk import disk_errors, make_missing, sync_directory
from featurestore.format.durable.places import check_links


def make_directory(path: Path) -> None:
    """Create a directory and its parents, each synced into its own parent."""
    with disk_errors(path):
        check_links(path)
        make_missing(path)


@contextlib.contextmanager
def new_directory(path: Path, suffix: str) -> Iterator[Path]:
    """Make a hidden directory beside ``path``, locked while the block runs; what of it is left then
    is removed.

    The block renames it to ``path`` when it is whole. What killed processes left of the kind is
    removed first.
    """
    with disk_errors(path):
        make_missing(path.parent)
        clear_dead(path.parent)
        partial = path.with_name(f".{path.name}.{secrets.token_hex(6)}.{suffix}")
        partial.mkdir()
        descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield partial
    finally:
        os.close(descriptor)
        shutil.rmtree(partial, ignore_errors=True)


def remove_tree(path: Path) -> None:
    """Remove a directory under a store's ``.work``, if it is there; nothing of it was promised."""
    check_links(path)
    shutil.rmtree(path, ignore_errors=True)


def remove_empty(*directories: Path) -> None:
    """Remove directories, one after another, as far as they are empty."""
    with contextlib.suppress(OSError):
        for directory in directories:
            directory.rmdir()


def link_file(source: Path, target: Path) -> None:
    """Make ``target`` another name of a file, or a link to it where the file system has no hard
    links."""
    with disk_errors(target):
        make_missing(target.parent, sync=False)
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError:
            target.symlink_to(source.absolute())


def set_aside(path: Path, target: Path) -> None:
    """Move a file, a link or a directory to a name that is not taken, so that it is nowhere, or
    whole at either."""
    with disk_errors(target):
        make_missing(target.parent)
        assert not os.path.lexists(target), "chosen so"
        path.rename(target)
        sync_directory(target.parent)
        sync_directory(path.parent)


def rename_directory(source: Path, target: Path) -> None:
    """Rename, within its parent, a directory whose files are durable: by :func:`write_file`, or
    :func:`sync_tree`."""
    with disk_errors(target):
        source.rename(target)
        sync_directory(target.parent)


def sync_tree(path: Path) -> None:
    """Make durable what another program wrote into a directory."""
    with disk_errors(path):
        for directory, _, names in os.walk(path):
            for name in names:
                with Path(directory, name).open("rb") as file:
                    os.fsync(file.fileno())
            sync_directory(Path(directory))
