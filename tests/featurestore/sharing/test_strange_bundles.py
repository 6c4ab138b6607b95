"""Bundles and hubs from strangers, and what leaves a store: bounded, verified, no links."""

import hashlib
import io
import json
import os
import resource
import tarfile
import tracemalloc

import huggingface_hub
import numpy as np
import pytest
import zstandard

from featurestore import Selection, Store
from featurestore.errors import DamageError, SelectionError, ShareError, TakenError
from featurestore.format import durable
from featurestore.sharing.bundle import LIST, pack, unpack
from featurestore.sharing.hub import pull, push
from tests.builders.bundles import bundle_of, write_bundle
from tests.builders.cli import run
from tests.builders.selection_files import selection
from tests.builders.stores import make_store


@pytest.fixture
def store(tmp_path):
    z = np.random.default_rng(0).random((3, 3, 4, 6), np.float32) * (np.arange(6) % 2)
    made = make_store(tmp_path / "store", z, {"style": ["a", "b", "a"]})
    pack(made, tmp_path / "good.tar.zst")
    return made


class Listener:
    """A hub that remembers what it was sent."""

    def __init__(self):
        self.sent = {}

    def create_repo(self, repo, **kwargs):
        return repo

    def upload_folder(self, *, folder_path, **kwargs):
        for path in sorted(folder_path.rglob("*")):
            if path.is_file():
                self.sent[path.relative_to(folder_path).as_posix()] = path.read_bytes()


@pytest.fixture
def hub(monkeypatch):
    made = Listener()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    return made


@pytest.mark.parametrize("table", ["samples", "codes/s", "saes"])
def test_nothing_damaged_is_pushed(store, hub, table):
    """A3: `push` verifies first: a flipped bit sends nothing."""
    record = store.records(table)[0]
    path = store.root / record.files[-1].path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamageError, match=r"was changed: its SHA-256"):
        push(store, "user/name")
    assert hub.sent == {}


def test_push_follows_no_link(store, hub, tmp_path, capsys):
    """A3: `samples/x.parquet → ~/.ssh/id_rsa` is not sent."""
    (tmp_path / "id_rsa").write_text("secret")
    (path,) = store.files("samples")
    path.unlink()
    path.symlink_to(tmp_path / "id_rsa")
    status, _, err = run(capsys, "push", store.root, "user/name")
    assert (status, err.count("\n")) == (1, 1) and "is a symbolic link" in err and hub.sent == {}


def test_two_pushes_at_once_do_not_take_each_others_files(store, hub):
    """A3, A4: what is laid out for one push is not removed by another."""
    with (
        durable.Claim.take(store.root / ".work/claims/push"),
        pytest.raises(TakenError, match="is pushing this store"),
    ):
        push(store, "user/name")
    push(store, "user/name")
    assert (
        "manifest/store.json" in hub.sent
        and hub.sent[f"{store.files('samples')[0].relative_to(store.root)}"]
    )


def test_a_store_on_a_hub_that_names_other_paths_is_not_pulled(store, tmp_path, monkeypatch):
    """A1: `pull` goes through the same gate."""
    from tests.builders.hostile import reseal

    (location,) = (store.root / "manifest/samples").glob("*.json")
    reseal(location, lambda body: body["files"][0].update(path="../x.parquet"))

    def download(repo, repo_type, revision, local_dir, allow_patterns):
        import shutil

        shutil.copytree(store.root, local_dir)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ShareError, match=r"manifest/samples/.*path is '\.\./x\.parquet'"):
        pull("user/name", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def grown(call):
    """Return how much the peak of Python's memory, and that of the process, grew in a call, in
    MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    try:
        call()
        python = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return python / 1e6, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3


def refused(call, kind, message):
    def one():
        with pytest.raises(kind, match=message) as error:
            call()
        assert "\n" not in str(error.value)

    assert max(grown(one)) < 200


def bomb(n_bytes, head=b""):
    """A zstd frame of many zeros, a chunk at a time."""
    sink = io.BytesIO()
    with zstandard.ZstdCompressor(level=3).stream_writer(sink, closefd=False) as writer:
        writer.write(head)
        for _ in range(n_bytes // 2**20):
            writer.write(bytes(2**20))
    return sink.getvalue()


def header(name, size, kind=tarfile.REGTYPE):
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


N = 2**31


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (header(LIST, N), r"its list has 2,147,483,648 bytes, a bundle of this size has at most"),
        (header("x", N, tarfile.XHDTYPE), "extended header that no bundle has"),
        (header("x", N, tarfile.GNUTYPE_LONGNAME), "is not a regular file"),
        (header("x", N, tarfile.GNUTYPE_SPARSE), "is not a regular file"),
        (header("x", N, tarfile.LNKTYPE), "is not a regular file"),
        (header("x", N), "does not begin with the list of a bundle"),
    ],
)
def test_a_small_bundle_takes_little_memory(tmp_path, head, message):
    """A7: a listing, or an extended header, that says that it is large is not read whole."""
    (tmp_path / "b").write_bytes(bomb(2**28, head))
    assert (tmp_path / "b").stat().st_size < 200_000
    refused(lambda: unpack(tmp_path / "b", tmp_path / "out"), ShareError, message)
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_a_bundle_that_says_more_than_the_disk_holds_is_refused_before_it_is_written(tmp_path):
    """A7: what the list says is compared with the space that is there."""
    entry = {"path": "README.md", "bytes": 2**60, "sha256": "0" * 64}
    body = {"format": "featurestore-bundle", "format_version": 1, "files": [entry]}
    write_bundle(tmp_path / "b", {LIST: json.dumps(body).encode()})
    refused(
        lambda: unpack(tmp_path / "b", tmp_path / "out"),
        ShareError,
        r"it holds 1,152,921,504,606,846,976 bytes, [\d,]+ are free",
    )


HEAD = b'{"format":"featurestore-bundle","format_version":1,"files":'


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (b'{"files":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested more than 32 deep"),
        (HEAD + b'[{"path":1}]}', "it lacks bytes, sha256"),
        (HEAD + b'[{"path":"README.md","bytes":1e999,"sha256":""}]}', "1e999 is too large"),
        (HEAD + b'[],"more":1}', "a field 'more', which nothing knows"),
        (HEAD + b'[{"path":"README.md","bytes":-1,"sha256":""}]}', "bytes is -1"),
    ],
)
def test_the_list_of_a_bundle_is_checked(tmp_path, change, message):
    """A2: bundle listings."""
    write_bundle(tmp_path / "b", {LIST: change})
    refused(lambda: unpack(tmp_path / "b", tmp_path / "out"), ShareError, message)


OTHER = [
    "saes/s/evil.py",
    ".work/x",
    "manifest/x.json",
    "samples/a/b.parquet",
    "../x",
    "samples/x\x00.parquet",
]


@pytest.mark.parametrize("path", OTHER)
def test_a_bundle_holds_files_of_a_store_only(store, tmp_path, path):
    """A1: no other file comes along."""
    if "\x00" not in path and ".." not in path:
        (store.root / path).parent.mkdir(parents=True, exist_ok=True)
        (store.root / path).write_bytes(b"x")
        files = {
            p.relative_to(store.root).as_posix(): p.read_bytes()
            for p in store.root.rglob("*")
            if p.is_file()
        }
    else:
        files = {path: b"x"}
    listed = [
        {"path": n, "bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()}
        for n, d in files.items()
    ]
    head = {"format": "featurestore-bundle", "format_version": 1, "files": listed}
    write_bundle(tmp_path / "b", {LIST: json.dumps(head).encode(), **files})
    refused(
        lambda: unpack(tmp_path / "b", tmp_path / "out"),
        ShareError,
        r"which (is no file of a store|leads out of it)",
    )


def test_a_bundle_whose_records_do_not_name_its_files_is_refused(store, tmp_path):
    """A1: a data file that no record names, or that a record names and that did not come."""
    (store.root / "samples/extra.parquet").write_bytes(b"x")
    bundle_of(store.root, tmp_path / "b")
    refused(
        lambda: unpack(tmp_path / "b", tmp_path / "out"),
        ShareError,
        r"samples/extra\.parquet is named by no record",
    )
    (store.root / "samples/extra.parquet").unlink()
    store.files("samples")[0].unlink()
    bundle_of(store.root, tmp_path / "b")
    refused(
        lambda: unpack(tmp_path / "b", tmp_path / "out"),
        ShareError,
        r"samples/.*\.parquet did not come",
    )


def test_a_directory_or_a_pipe_as_bundle_is_one_line(tmp_path, capsys):
    """A7: `unpack DIRECTORY STORE`."""
    os.mkfifo(tmp_path / "pipe")
    for what in (tmp_path, tmp_path / "pipe"):
        status, _, err = run(capsys, "unpack", what, tmp_path / "out")
        assert (status, err.count("\n")) == (
            1,
            1,
        ) and "is not a file: expected what 'featurestore pack' writes" in err


def test_what_a_killed_unpack_left_is_removed_by_the_next(store, tmp_path):
    """A6: `*.unpacking`, but not one that is being written."""
    dead = tmp_path / ".other.0123456789ab.unpacking"
    (dead / "samples").mkdir(parents=True)
    (dead / "samples/x").write_bytes(b"half")
    with durable.new_directory(tmp_path / "live", "unpacking") as live:
        assert not dead.exists()
        unpack(tmp_path / "good.tar.zst", tmp_path / "out")
        assert live.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["good.tar.zst", "out", "store"]
    assert Store.open(tmp_path / "out").tables() == store.tables()


def test_a_compressed_selection_is_bounded(tmp_path):
    """A7: a small `.jsonl.zst` that makes gigabytes."""
    path = tmp_path / "neon.jsonl.zst"
    path.write_bytes(bomb(2**30))
    assert path.stat().st_size < 200_000
    refused(
        lambda: Selection.load(path), SelectionError, r"bytes hold more than [\d,]+ when unpacked"
    )
    selection(tmp_path / "store").save(path)
    assert Selection.load(path).features() == [3]


def test_a_selection_in_parquet_is_bounded(tmp_path):
    """A7: a footer that counts more rows than a selection can have."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from featurestore.selection_files import ROWS

    n = 2**22
    zeros = {f.name: pa.array(np.zeros(n), pa.float64()).cast(f.type) for f in ROWS}
    with pq.ParquetWriter(
        tmp_path / "big.parquet", ROWS, compression="zstd", use_dictionary=False
    ) as writer:
        table = pa.table(zeros, schema=ROWS)
        for _ in range(5):
            writer.write_table(table, row_group_size=n)
    del zeros, table
    refused(
        lambda: Selection.load(tmp_path / "big.parquet"),
        SelectionError,
        "its footer counts 20971520 rows",
    )
