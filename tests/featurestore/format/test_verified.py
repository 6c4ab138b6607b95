"""Verification is paid once, and never for the wrong file."""

import hashlib
import multiprocessing
import os
import pwd
import sqlite3
import tempfile
import time
from types import SimpleNamespace

import numpy as np
import pytest

from featurestore import Store, doctor
from featurestore.errors import DamageError, UsageError
from featurestore.format import checksums, verified
from tests.builders.cli import run
from tests.builders.hostile import recommit
from tests.builders.stores import make_store

OLD = 10 * 10**9


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEATURESTORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(verified, "_SETTLED_NS", 0)
    monkeypatch.setattr(verified, "_file_system", lambda path: "ext4")
    verified.why_not.cache_clear()
    checksums.forget()
    yield tmp_path / "cache" / "verified-1.sqlite"
    verified.why_not.cache_clear()
    checksums.set_verification("cached")


@pytest.fixture
def store(tmp_path):
    z = np.random.default_rng(0).random((3, 3, 4, 6), np.float32) * (np.arange(6) % 2)
    return make_store(tmp_path / "store", z, {"style": ["a", "b", "a"]})


@pytest.fixture
def hashed(monkeypatch):
    """The files whose bytes were read to compare them."""
    seen, real = [], checksums.check_file
    monkeypatch.setattr(
        checksums, "check_file", lambda root, entry: seen.append(entry.path) or real(root, entry)
    )
    return seen


def new_process():
    checksums.forget()


def test_a_second_process_hashes_nothing(store, cache, hashed):
    for table in ("samples", "stats/s"):
        store.arrow(table)
    assert len(hashed) == 2
    new_process()
    for table in ("samples", "stats/s"):
        store.arrow(table)
    assert len(hashed) == 2
    checksums.set_verification("always")
    new_process()
    store.arrow("samples")
    assert len(hashed) == 3


@pytest.mark.parametrize("how", ["in place", "replaced", "same size and time", "shorter"])
def test_what_changes_is_compared_again(store, cache, how):
    store.arrow("samples")
    (path,) = store.files("samples")
    data, status = path.read_bytes(), path.stat()
    changed = data[:100] + bytes([data[100] ^ 1]) + data[101:]
    if how == "replaced":
        path.unlink()
    path.write_bytes(changed[:-1] if how == "shorter" else changed)
    if how == "same size and time":
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    new_process()
    with pytest.raises(DamageError, match=r"samples/.* (was changed|has \d+ bytes)"):
        store.arrow("samples")


def one_row_more(body):
    body["rows"] += 1
    body["contents"]["parts"][0]["rows"] += 1


def test_another_record_of_the_same_file_is_another_thing(store, cache):
    """The key holds what the file was compared with."""
    store.arrow("samples")
    (record,) = store.records("samples")
    recommit(store, record, (store.root / record.files[0].path).read_bytes())
    new_process()
    store.arrow("samples")
    from tests.builders.hostile import reseal

    reseal(store.root / record.location, one_row_more)
    new_process()
    with pytest.raises(DamageError, match="its record says 4"):
        store.arrow("samples")


@pytest.mark.parametrize(
    "content",
    [b"", b"not a database at all, but long enough to be one" * 100, None, "link", "directory"],
)
def test_a_damaged_cache_is_no_harm(store, cache, hashed, content, tmp_path):
    store.arrow("samples")
    whole = cache.read_bytes()
    cache.unlink()
    if content is None:
        cache.write_bytes(whole[: len(whole) // 2])
    elif content == "link":
        (tmp_path / "elsewhere").write_bytes(b"mine")
        cache.symlink_to(tmp_path / "elsewhere")
    elif content == "directory":
        cache.mkdir()
    else:
        cache.write_bytes(content)
    for _ in range(3):
        new_process()
        assert store.arrow("samples").num_rows == 3
    assert content != "link" or (tmp_path / "elsewhere").read_bytes() == b"mine"
    assert len(hashed) >= 2


def test_a_locked_cache_is_not_waited_for_long(store, cache, monkeypatch):
    store.arrow("samples")
    real, waits = sqlite3.connect, []

    def connect(path, timeout):
        waits.append(timeout)
        return real(path, timeout=0.1)

    monkeypatch.setattr(sqlite3, "connect", connect)
    other = real(cache)
    other.execute("begin exclusive")
    new_process()
    assert store.arrow("samples").num_rows == 3 and waits and max(waits) <= 10
    other.close()


def test_what_is_young_or_from_the_future_is_not_remembered(store, cache, hashed, monkeypatch):
    """A file may change again within the clock's grain; a clock may have gone back."""
    monkeypatch.setattr(verified, "_SETTLED_NS", 3600 * 10**9)
    for n in (1, 2):
        new_process()
        store.arrow("samples")
        assert len(hashed) == n
    status = store.files("samples")[0].stat()
    monkeypatch.setattr(verified, "_SETTLED_NS", OLD)
    assert not verified.is_settled(status, status.st_ctime_ns + OLD - 1)
    assert verified.is_settled(status, status.st_ctime_ns + OLD)
    assert not verified.is_settled(status, status.st_ctime_ns - 1)


@pytest.mark.parametrize("kind", ["nfs4", "fuse.sshfs", "vfat", "cifs"])
def test_a_file_system_that_is_not_trusted_is_compared_every_time(
    store, cache, hashed, monkeypatch, kind
):
    monkeypatch.setattr(verified, "_file_system", lambda path: kind)
    verified.why_not.cache_clear()
    assert verified.why_not(store.root) == (
        f"on the file system {kind} an unchanged file cannot be told from a changed one"
    )
    for n in (1, 2):
        new_process()
        store.arrow("samples")
        assert len(hashed) == n
    assert not cache.exists()


def test_a_command_says_once_why_nothing_is_remembered(store, cache, capsys, monkeypatch):
    monkeypatch.setattr(verified, "_file_system", lambda path: "nfs4")
    verified.why_not.cache_clear()
    status, _, err = run(capsys, "sql", store.root, "select prompt from samples")
    assert (status, err) == (
        0,
        f"Note: {store.root}: every command compares all files that it reads with their records, "
        f"for on the file system nfs4 an unchanged file cannot be told from a changed one. "
        f"--verify says when it does so (docs/reliability.md).\n",
    )
    # In one Python process: what a command said, and what was read without one, is no later one's.
    assert run(capsys, "query", "--list")[2] == ""
    store.arrow("samples")
    assert run(capsys, "query", "--list")[2] == ""
    new_process()
    assert run(capsys, "--verify", "always", "sql", store.root, "select 1 from samples")[2] == ""
    monkeypatch.setattr(verified, "_file_system", lambda path: "ext4")
    verified.why_not.cache_clear()
    new_process()
    checksums.set_verification("cached")
    assert run(capsys, "sql", store.root, "select 1 from samples")[2] == ""


def test_a_clock_that_went_back_is_said_once_and_hides_nothing(
    store, cache, hashed, capsys, monkeypatch
):
    now = time.time_ns() - 3600 * 10**9
    monkeypatch.setattr(verified.time, "time_ns", lambda: now)
    query = ("sql", store.root, "select sum(sum) from stats where branch = 'cond'")
    for n in (1, 2):
        new_process()
        status, out, err = run(capsys, *query)
        assert (status, len(hashed)) == (0, n)
        assert err == (
            f"Note: {store.root}: every command compares those files with their records whose times "
            f"are still to come, for the clock of this machine, or of the one that wrote them, went "
            f"back. --verify says when it does so (docs/reliability.md).\n"
        )
    (path,) = store.files("stats/s")
    data = path.read_bytes()
    path.write_bytes(data[:40] + bytes([data[40] ^ 1]) + data[41:])
    new_process()
    assert run(capsys, *query)[0] == 1
    path.write_bytes(data)
    monkeypatch.undo()
    new_process()
    assert run(capsys, *query) == (0, out, "")


@pytest.mark.parametrize("grain_ns", [1, 10**6, 10**9, 2 * 10**9])
def test_no_grain_of_a_file_systems_clock_hides_a_change(grain_ns):
    """A file system without nanoseconds, or FAT's two seconds: what is remembered and changed after
    that has another time."""
    rng = np.random.default_rng(0)
    remembered = 0
    for _ in range(500):
        changed, looked, again = np.cumsum(rng.integers(0, 5 * 10**9, 3)).tolist()
        first, second = ((t // grain_ns) * grain_ns for t in (changed, again))
        status = SimpleNamespace(st_mtime_ns=first, st_ctime_ns=first)
        if verified.is_settled(status, looked):
            remembered += 1
            assert second != first
    assert remembered > 50


def test_a_cache_that_belongs_to_another_user_is_not_used(
    store, cache, hashed, capsys, monkeypatch
):
    verified.remember([])
    monkeypatch.setattr(os, "geteuid", lambda: cache.parent.stat().st_uid + 1)
    for n in (1, 2):
        new_process()
        status, _, err = run(capsys, "sql", store.root, "select prompt from samples")
        assert (status, len(hashed)) == (0, n)
        assert err.count("\n") == 1 and "is not a directory that only you can write to" in err


def test_another_users_cache_is_not_used(store, cache, hashed):
    cache.parent.mkdir(parents=True)
    cache.parent.chmod(0o777)
    assert "is not a directory that only you can write to" in (verified.why_not(store.root) or "")
    for n in (1, 2):
        new_process()
        store.arrow("samples")
        assert len(hashed) == n


def _add(number, results):
    verified.remember([hashlib.sha256(f"{number} {i}".encode()).digest() for i in range(200)])
    results.put(number)


def test_two_writers_lose_nothing(cache, tmp_path):
    verified.why_not(tmp_path)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    writers = [context.Process(target=_add, args=(number, results)) for number in range(4)]
    for writer in writers:
        writer.start()
    assert sorted(results.get() for _ in writers) == [0, 1, 2, 3]
    for writer in writers:
        writer.join()
    keys = [hashlib.sha256(f"{n} {i}".encode()).digest() for n in range(4) for i in range(200)]
    assert len(verified.known(keys)) == 800


def test_the_command_line_chooses(store, cache, hashed, capsys, monkeypatch):
    query = ("sql", store.root, "select prompt from samples")
    for mode, n in (("cached", 1), ("cached", 1), ("always", 2), ("never", 2)):
        new_process()
        assert run(capsys, "--verify", mode, *query)[0] == 0
        assert len(hashed) == n, mode
    (path,) = store.files("samples")
    path.write_bytes(path.read_bytes()[:-1])
    new_process()
    status, _, err = run(capsys, "--verify", "never", *query)
    assert status == 1 and "has" in err and "its record says" in err
    with pytest.raises(
        UsageError, match="verification 'often': expected one of cached, always, never"
    ):
        checksums.set_verification("often")
    checksums._mode = ""
    monkeypatch.setenv("FEATURESTORE_VERIFY", "often")
    with pytest.raises(UsageError, match="FEATURESTORE_VERIFY is 'often'"):
        Store.open(store.root).arrow("stats/s")


def test_the_cache_of_a_user_without_a_home_is_a_directory_of_its_own(tmp_path, monkeypatch):
    """A container's user often has neither HOME nor an entry in the system's list of users."""

    def unknown(uid):
        raise KeyError(uid)

    for name in ("HOME", "XDG_CACHE_HOME", "FEATURESTORE_CACHE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    assert verified.cache_directory() == tmp_path / f"featurestore-{os.geteuid()}"
    assert {finding.what for finding in doctor.disk(tmp_path)} >= {"disk for models"}
