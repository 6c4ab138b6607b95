import errno
import multiprocessing
import os

import pytest

from featurestore.errors import DiskError
from featurestore.format import durable


def test_a_file_is_written_whole_with_its_hash(tmp_path):
    import hashlib

    written = durable.write_bytes(tmp_path / "deep/er/file", b"hello")
    assert (tmp_path / "deep/er/file").read_bytes() == b"hello"
    assert written == (5, hashlib.sha256(b"hello").hexdigest())


def test_a_place_is_tried_and_nothing_is_left_there(tmp_path):
    durable.check_file(tmp_path / "deep/er/file")
    assert list(tmp_path.iterdir()) == []
    durable.write_bytes(tmp_path / "file", b"old")
    durable.check_file(tmp_path / "file")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"
    for place, why in [
        (tmp_path, "Is a directory"),
        (tmp_path / "file/in/it", "Not a directory"),
        (tmp_path / ("x" * 300), "File name too long"),
    ]:
        with pytest.raises(DiskError, match=f"^cannot write {place}: {why}; nothing half-written"):
            durable.check_file(place)


def test_a_failing_writer_leaves_what_was_there(tmp_path):
    durable.write_bytes(tmp_path / "file", b"old")

    def fail(file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(
        DiskError,
        match=r"file: No space left on device; nothing half-written is left\. It needs at least 4 "
        r"bytes, [\d,]+ are free",
    ):
        durable.write_file(tmp_path / "file", fail)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("operation", ["fsync", "link", "replace"])
def test_a_refused_operation_leaves_nothing(tmp_path, monkeypatch, operation):
    def refuse(*args, **kwargs):
        raise OSError(errno.EIO, "Input/output error")

    if operation == "replace":
        monkeypatch.setattr("pathlib.Path.replace", refuse)
    else:
        monkeypatch.setattr(f"os.{operation}", refuse)
    write = durable.create_once if operation == "link" else durable.write_bytes
    with pytest.raises(DiskError, match="Input/output error"):
        write(tmp_path / "file", b"data")
    assert list(tmp_path.iterdir()) == []


def test_create_once_creates_once(tmp_path):
    assert durable.create_once(tmp_path / "file", b"first")
    assert not durable.create_once(tmp_path / "file", b"second")
    assert (tmp_path / "file").read_bytes() == b"first"


def _race(path, name, results):
    results.put((name, durable.create_once(path, name.encode())))


def test_of_several_processes_one_creates(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [
        context.Process(target=_race, args=(tmp_path / "file", f"w{i}", results)) for i in range(4)
    ]
    for worker in workers:
        worker.start()
    outcomes = dict(results.get() for _ in workers)
    for worker in workers:
        worker.join()
    winners = [name for name, created in outcomes.items() if created]
    assert len(winners) == 1
    assert (tmp_path / "file").read_bytes() == winners[0].encode()


def test_removing_what_is_absent_is_no_error(tmp_path):
    durable.remove(tmp_path / "nothing")
