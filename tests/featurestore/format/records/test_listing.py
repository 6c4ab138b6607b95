"""A snapshot of records is quick, and never believed over a record."""

import hashlib
import os

import pyarrow as pa
import pytest

from featurestore import Store
from featurestore.errors import DamageError
from featurestore.format import verified
from featurestore.format.contents import Contents, Part
from featurestore.format.records import FileEntry, Record, listing, parsing

IDS = tuple(range(5))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEATURESTORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(verified, "_SETTLED_NS", 0)
    monkeypatch.setattr(verified, "_file_system", lambda path: "ext4")
    monkeypatch.setattr(listing, "LEAST", 3)
    verified.why_not.cache_clear()
    yield tmp_path / "cache" / "records"
    verified.why_not.cache_clear()


def record(number, table="samples", rows=5):
    """A record of version 2, or of version 1 where the number is odd."""
    sha = hashlib.sha256(f"{number}".encode()).hexdigest()
    shard = f"{number:08d}-{sha[:16]}"
    ids = tuple(10 * number + i for i in IDS)
    entry = FileEntry(f"{table}/{shard}.parquet", 100 + number, sha)
    parts = (Part(rows, 99, sha), Part(0, 1 + number, sha))
    contents = None if number % 2 else Contents({"style": ["neon", None]}, parts)
    made_by = {"by": "test", "n": number % 2}
    return Record(table, shard, "0123456789abcdef", rows, ids, (entry,), made_by, contents)


@pytest.fixture
def store(tmp_path):
    made = Store.create(tmp_path / "store", {"model": "m"})
    for number in range(10):
        made.commit(record(number))
    return made


@pytest.fixture
def read(monkeypatch):
    """The shards whose records were read from their own files."""
    seen = []
    for name in ("read_record", "read_placed_record"):
        reads = getattr(parsing, name)
        monkeypatch.setattr(
            listing, name, lambda *where, reads=reads: seen.append(where[2]) or reads(*where)
        )
    return seen


def test_records_are_read_once_and_are_the_same(store, cache, read):
    first = store.records("samples")
    assert len(read) == 10 and first == [record(number) for number in range(10)]
    again = store.records("samples")
    assert [r.version for r in again] == [r.version for r in first] == [2, 1] * 5
    assert again == first and len(read) == 10
    assert [hash(r.files) for r in first] == [hash(r.files) for r in store.records("samples")]


def test_a_snapshot_is_written_without_what_imports_pandas(store, cache, read, monkeypatch):
    for name in ("array", "table", "scalar"):
        monkeypatch.delattr(pa, name)
    first = store.records("samples")
    assert store.records("samples") == first and len(read) == 10


def test_a_first_look_holds_no_more_in_memory_than_a_second(store, cache, read):
    """Of each record only what is asked for, made of the snapshot's columns: a fifth of it."""
    for records in (store.records("samples"), store.records("samples")):
        assert all("files" not in one.__dict__ for one in records)
        assert [one.files for one in records] == [record(n).files for n in range(10)]


def test_what_is_new_changed_or_gone_is_seen(store, cache, read):
    store.records("samples")
    store.commit(record(10))
    assert len(store.records("samples")) == 11 and len(read) == 11
    changed = record(3, rows=6)
    (store.root / changed.location).write_bytes(changed.to_bytes())
    assert store.records("samples")[3].rows == 6
    (store.root / record(0).location).unlink()
    assert [r.shard for r in store.records("samples")] == [record(n).shard for n in range(1, 11)]


def test_a_change_that_hides_its_time_is_seen(store, cache):
    store.records("samples")
    path = store.root / record(3).location
    status = path.stat()
    path.write_bytes(path.read_bytes().replace(b'"rows":5', b'"rows":6'))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(DamageError, match="changed since it was written"):
        store.records("samples")


def test_a_link_in_the_place_of_a_record_is_seen(store, cache, tmp_path):
    store.records("samples")
    path = store.root / record(3).location
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DamageError, match="is a symbolic link"):
        store.records("samples")


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(
    "how", ["flip", "cut", "empty", "text", "link", "directory", "gone", "another table"]
)
def test_a_damaged_snapshot_is_no_harm(store, cache, read, tmp_path, how):
    whole = store.records("samples")
    (path,) = cache.iterdir()
    data = path.read_bytes()
    if how == "flip":
        for at in range(0, len(data), 37):
            path.write_bytes(flipped(data, at))
            assert store.records("samples") == whole
        return
    if how in ("link", "directory", "gone"):
        path.unlink()
    if how == "link":
        (tmp_path / "mine").write_bytes(data)
        path.symlink_to(tmp_path / "mine")
    if how == "directory":
        path.mkdir()
    if how in ("cut", "empty", "text"):
        path.write_bytes({"cut": data[:-9], "empty": b"", "text": b"x" * 100}[how])
    if how == "another table":  # whole in itself, and of something else
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, pa.schema([("shard", pa.string())])) as stream:
            stream.write_table(pa.table({"shard": ["x"]}))
        body = sink.getvalue().to_pybytes()
        path.write_bytes(hashlib.sha256(body).digest() + body)
    assert store.records("samples") == whole and len(read) == 20
    assert how != "link" or (tmp_path / "mine").read_bytes() == data


def test_an_untrusted_file_system_has_no_snapshot(store, cache, read, monkeypatch):
    monkeypatch.setattr(verified, "_file_system", lambda path: "nfs")
    verified.why_not.cache_clear()
    assert store.records("samples") == store.records("samples")
    assert len(read) == 20 and not cache.exists()


def test_young_records_are_read_again(store, cache, read, monkeypatch):
    monkeypatch.setattr(verified, "_SETTLED_NS", 3600 * 10**9)
    for n in (10, 20):
        store.records("samples")
        assert len(read) == n
