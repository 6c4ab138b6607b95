"""Bundles, and a hub played by a directory."""

import fnmatch
import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import zstandard
from huggingface_hub import errors

from featurestore import Store
from featurestore.errors import DamageError, ShareError
from featurestore.format.durable import files
from featurestore.maintenance.verify import verify
from featurestore.sharing.bundle import LIST, pack, unpack
from featurestore.sharing.hub import pull, push
from tests.builders.stores import make_store
from tests.builders.trees import same_tree


@pytest.fixture
def store(tmp_path):
    z = np.random.default_rng(0).random((3, 3, 4, 6), np.float32) * (np.arange(6) % 2)
    made = make_store(tmp_path / "store", z, {"style": ["a", "b", "a"]})
    (made.root / "samples" / "leftover.parquet").write_bytes(b"no record names this")
    (made.root / "samples" / ".x.tmp").write_bytes(b"nor this")
    return made


@pytest.fixture
def bundle(store, tmp_path):
    pack(store, tmp_path / "store.tar.zst")
    return tmp_path / "store.tar.zst"


def without_leftovers(store):
    (store.root / "samples" / "leftover.parquet").unlink()
    (store.root / "samples" / ".x.tmp").unlink()
    return store.root


def test_a_bundle_holds_what_is_committed_and_comes_back_as_it_was(store, bundle, tmp_path):
    read = []
    back = unpack(bundle, tmp_path / "deep" / "back", read.append)
    assert verify(back, deep=False) == []
    same_tree(back.root, without_leftovers(store))
    assert sum(read) == sum(p.stat().st_size for p in back.root.rglob("*") if p.is_file())
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["back"]


def test_the_same_store_gives_the_same_bundle(store, bundle, tmp_path):
    again = shutil.copytree(store.root, tmp_path / "elsewhere")
    assert (
        pack(Store.open(again), tmp_path / "again").sha256
        == hashlib.sha256(bundle.read_bytes()).hexdigest()
    )


def test_packing_again_writes_nothing_into_the_store(store, bundle, tmp_path):
    """So a store that may only be read can be packed once it was."""
    derived = [store.root / name for name in ("README.md", "croissant.json", "manifest/SHA256SUMS")]
    before = [path.stat().st_ino for path in derived]
    pack(Store.open(store.root), tmp_path / "again")
    assert [path.stat().st_ino for path in derived] == before


def test_a_damaged_store_is_not_packed(store, tmp_path):
    (path,) = store.files("samples")
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamageError, match="was changed since it was written"):
        pack(store, tmp_path / "b")
    path.unlink()
    with pytest.raises(DamageError, match="is missing or has another size"):
        pack(store, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def rewritten(bundle, change, tmp_path):
    """A bundle whose members ``{name: bytes}`` went through ``change``."""
    members = {}
    with zstandard.open(bundle, "rb") as raw, tarfile.open(fileobj=raw, mode="r|") as tar:
        for member in tar:
            members[member.name] = tar.extractfile(member).read()
    changed = change(members) or members
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, data in changed.items() if isinstance(changed, dict) else changed:
            member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    other = tmp_path / "other.tar.zst"
    other.write_bytes(zstandard.compress(sink.getvalue()))
    return other


def test_a_bundle_of_version_1_is_read(bundle, tmp_path):
    def older(members):
        body = json.loads(members[LIST])
        body["files"] = [one for one in body["files"] if one["path"] != "croissant.json"]
        members[LIST] = json.dumps(body | {"format_version": 1}).encode()
        del members["croissant.json"]

    back = unpack(rewritten(bundle, older, tmp_path), tmp_path / "back")
    assert verify(back, deep=True) == []


def listed(members, **entry):
    body = json.loads(members[LIST])
    body["files"].append(
        {"path": "x", "bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()} | entry
    )
    members[LIST] = json.dumps(body).encode()


def link(members):
    listed(members, path="samples/x.parquet")
    member = tarfile.TarInfo("samples/x.parquet")
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return [*members.items(), (member, b"")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: m.update({"README.md": m["README.md"][:-1] + b"?"}),
            r"README\.md is not what was packed",
        ),
        (lambda m: m.pop("README.md"), r"it ends before README\.md"),
        (lambda m: m.update({"extra": b"x"}), "it holds 'extra', which its list does not name"),
        (
            lambda m: m.update({"manifest/store.json": b"{}"}),
            "it holds 'manifest/store.json' where its list says",
        ),
        (lambda m: listed(m, path="../x"), r"names '\.\./x', which leads out of it"),
        (lambda m: listed(m, path="/tmp/x"), "names '/tmp/x', which leads out of it"),
        (lambda m: listed(m, path="README.md"), "names a file twice"),
        (link, "'samples/x.parquet' is not a regular file"),
        (lambda m: listed(m, path="x"), "names 'x', which is no file of a store"),
        (lambda m: m.pop(LIST), "does not begin with the list of a bundle"),
        (
            lambda m: m.update({LIST: b'{"format":"featurestore-bundle","format_version":9}'}),
            "of version 9",
        ),
        (lambda m: m.update({LIST: b"[]"}), "does not begin with the list"),
    ],
)
def test_other_bundles_are_refused_and_nothing_is_left(bundle, tmp_path, change, message):
    def apply(members):
        result = change(members)
        return result if isinstance(result, list) else None

    other = rewritten(bundle, apply, tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ShareError, match=message):
        unpack(other, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("keep", [0, 10, 200, 0.5, 0.9])
def test_a_bundle_that_is_cut_short_is_refused(bundle, tmp_path, keep):
    data = bundle.read_bytes()
    bundle.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(ShareError, match=r"store\.tar\.zst.* nothing was written"):
        unpack(bundle, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_nothing_is_written_over(store, bundle, tmp_path):
    with pytest.raises(ShareError, match="exists: name a new directory"):
        unpack(bundle, store.root)
    with pytest.raises(ShareError, match="cannot be read: No such file"):
        unpack(tmp_path / "absent", tmp_path / "out")


class Hub:
    """A hub's repositories as directories; ``fail_after`` files the connection breaks."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls, self.fail_after = root, [], 10**9

    def create_repo(self, repo, repo_type, private, exist_ok):
        assert repo_type == "dataset" and exist_ok
        (self.root / repo).mkdir(parents=True, exist_ok=True)
        return f"hub/{repo}"

    def upload_folder(
        self, *, repo_id, folder_path, repo_type, revision, commit_message, delete_patterns
    ):
        assert repo_type == "dataset"
        there, sent = self.root / repo_id, set()
        for path in sorted(p for p in Path(folder_path).rglob("*") if p.is_file()):
            if len(self.calls) == self.fail_after:
                raise ConnectionError("the line is dead")
            target = there / path.relative_to(folder_path)
            sent.add(target)
            if not target.exists() or target.read_bytes() != path.read_bytes():
                self.calls.append(str(target.relative_to(there)))
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        for pattern in delete_patterns:
            for path in [
                p for p in there.rglob("*") if p.is_file() and p.relative_to(there).match(pattern)
            ]:
                if path not in sent:
                    path.unlink()

    def download(self, repo, repo_type, revision, local_dir, allow_patterns):
        for path in (p for p in (self.root / repo).rglob("*") if p.is_file()):
            relative = path.relative_to(self.root / repo)
            if any(fnmatch.fnmatch(str(relative), pattern) for pattern in allow_patterns):
                (Path(local_dir) / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, Path(local_dir) / relative)
        Path(local_dir).mkdir(parents=True, exist_ok=True)
        (Path(local_dir) / ".gitattributes").write_text("")
        (Path(local_dir) / ".cache").mkdir(exist_ok=True)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    made = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.download)
    return made


def test_a_store_goes_to_the_hub_and_back(store, hub, tmp_path):
    assert push(store, "user/name") == "hub/user/name"
    told = ("README.md", "croissant.json")
    records = [call for call in hub.calls if call.startswith("manifest/") or call in told]
    assert hub.calls[-len(records) :] == records, "data first"
    assert not any("leftover" in call or ".tmp" in call for call in hub.calls)
    back = pull("user/name", tmp_path / "back")
    shutil.rmtree(store.root / ".work")
    same_tree(back.root, without_leftovers(store))
    assert not list(tmp_path.glob(".back*"))


def test_an_interrupted_push_goes_on_and_sends_nothing_twice(store, hub):
    hub.fail_after = 3
    with pytest.raises(ShareError, match=r"the hub cannot be used now \(the line is dead\)"):
        push(store, "user/name")
    hub.fail_after = 10**9
    push(store, "user/name")
    assert len(hub.calls) == len(set(hub.calls))
    n_sent = len(hub.calls)
    push(store, "user/name")
    assert len(hub.calls) == n_sent


def test_what_came_from_a_hub_is_checked(store, hub, tmp_path):
    push(store, "user/name")
    path = next((tmp_path / "hub" / "user" / "name" / "samples").glob("*.parquet"))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(ShareError, match=r"samples/.* was changed.*1 files in all"):
        pull("user/name", tmp_path / "back")
    (tmp_path / "hub" / "user" / "other").mkdir()
    with pytest.raises(ShareError, match="user/other is no store"):
        pull("user/other", tmp_path / "back2")
    with pytest.raises(ShareError, match="exists: name a new directory"):
        pull("user/name", store.root)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.LocalTokenNotFoundError("x"), "nobody is logged in: run 'hf auth login'"),
        (errors.HFValidationError("x"), "cannot be a repository: expected user/name"),
        (errors.LocalEntryNotFoundError("offline"), r"cannot be used now \(offline\)"),
        (OSError("no route"), r"cannot be used now \(no route\)"),
    ],
)
def test_what_a_hub_says_is_one_line(store, hub, tmp_path, monkeypatch, error, message):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(hub, "create_repo", refuse)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    for call in (lambda: push(store, "user/name"), lambda: pull("user/name", tmp_path / "out")):
        with pytest.raises(ShareError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_packing_is_durable(store, tmp_path, monkeypatch):
    monkeypatch.setattr(
        files,
        "sync_file",
        lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    )
    with pytest.raises(Exception, match="No space left on device"):
        pack(store, tmp_path / "b.tar.zst")
    assert not list(tmp_path.glob("*b.tar.zst*"))
