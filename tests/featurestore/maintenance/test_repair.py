"""A store that lost files: what is gone is noticed, what can be told is made anew, the rest is set
aside."""

import os

import numpy as np
import pytest

from featurestore import Store
from featurestore.card import write_card
from featurestore.errors import DamageError
from featurestore.format.ledger import LEDGER, read_ledger
from featurestore.maintenance.repair import ASIDE, repair
from featurestore.maintenance.verify import verify
from tests.builders.cli import run
from tests.builders.hostile import reseal
from tests.builders.stores import make_store


@pytest.fixture
def store(tmp_path):
    z = np.random.default_rng(0).random((4, 3, 4, 6), np.float32) * (np.arange(6) % 2)
    made = make_store(tmp_path / "store", z, {"style": ["a", "b", "a", "b"]})
    write_card(made)
    return made


def files(root):
    return {
        p.relative_to(root).as_posix(): p.read_bytes()
        for p in root.rglob("*")
        if p.is_file() and ".work" not in p.parts
    }


def damage(store):
    return {problem.path: problem.what for problem in verify(store) if problem.damage}


def one(store, table):
    (record,) = store.records(table)
    return record


@pytest.mark.parametrize("table", ["samples", "codes/s", "stats/s"])
def test_a_deleted_record_is_noticed_and_made_anew_byte_by_byte(store, table, capsys):
    """A6: a deleted record is damage with exit 1, not a leftover; its file says what it said."""
    whole = files(store.root)
    location = one(store, table).location.as_posix()
    (store.root / location).unlink()
    assert damage(store) == {
        location: "is missing: this record was committed, and nothing has removed it"
    }
    status, out, _ = run(capsys, "verify", store.root)
    assert status == 1 and "'featurestore repair" in out
    before = files(store.root)
    (step,) = [s for s in repair(store.root, dry_run=True) if s.does == "rebuilt"]
    assert step.path == location and files(store.root) == before, "a dry run changes nothing"
    status, out, _ = run(capsys, "repair", store.root)
    assert status == 0 and f"rebuilt     {location}: is missing" in out
    assert files(store.root) == whole and damage(store) == {}


def test_a_deleted_shard_is_named_with_the_way_to_get_it_back(store, capsys):
    """A6: `verify` finds a deleted file, `repair` sets the rest of the shard aside and names the
    command."""
    record = one(store, "codes/s")
    (store.root / record.files[0].path).unlink()
    assert damage(store) == {record.files[0].path: "is missing"}
    status, out, _ = run(capsys, "repair", store.root)
    assert (
        status == 0 and f"'featurestore encode --store {store.root} --sae s' makes it again" in out
    )
    assert damage(store) == {} and store.records("codes/s") == []
    assert (store.root / ASIDE / record.location).is_file()
    assert record.location.as_posix() not in read_ledger(store.root)


def test_a_changed_file_is_set_aside_whole_and_can_be_made_again(store):
    """A6: what cannot be rebuilt is set aside, never deleted."""
    record = one(store, "samples")
    path = store.root / record.files[0].path
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"?")
    (step,) = repair(store.root)
    assert (step.does, step.advice) == (
        "set aside",
        "the same 'featurestore collect' makes it again",
    )
    assert (store.root / ASIDE / record.files[0].path).read_bytes() == data[:-1] + b"?"
    assert damage(store) == {} and not path.exists()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    (store.root / record.location).write_bytes(record.to_bytes())
    path.write_bytes(b"!")
    repair(store.root)
    assert (store.root / ASIDE / f"{record.files[0].path}.1").read_bytes() == b"!", (
        "nothing set aside is replaced"
    )


def test_a_record_that_was_changed_and_sealed_again_is_put_right(store):
    """A6: the ledger has the SHA-256 of what was committed."""
    whole, record = files(store.root), one(store, "stats/s")
    reseal(store.root / record.location, lambda body: body.update(made_by={"by": "somebody"}))
    assert damage(store) == {record.location.as_posix(): "is not the record that was committed"}
    assert [s.does for s in repair(store.root)] == ["rebuilt"]
    after = files(store.root)
    assert {k: v for k, v in after.items() if not k.startswith(ASIDE)} == whole


def test_an_sae_that_is_lost_is_set_aside(store):
    """A6: nothing tells how an SAE was trained but its record."""
    (store.root / "saes/s/sae.safetensors").write_bytes(b"changed")
    (step,) = repair(store.root)
    assert step.does == "set aside" and "'featurestore train'" in step.advice
    assert (
        store.records("saes") == []
        and (store.root / ASIDE / "saes/s/sae.safetensors").read_bytes() == b"changed"
    )
    assert damage(store) == {}


def test_links_and_strange_records_are_set_aside(store, tmp_path):
    """A1, A6: a link is moved as a link; what it points at is not touched."""
    (tmp_path / "elsewhere").write_text("mine")
    (store.root / "samples/x.parquet").symlink_to(tmp_path / "elsewhere")
    (store.root / "manifest/vectors").mkdir()
    (store.root / "manifest/vectors/0.json").write_text("{}")
    assert set(damage(store)) == {"samples/x.parquet", "manifest/vectors"}
    assert {s.does for s in repair(store.root)} == {"set aside"}
    assert damage(store) == {} and (tmp_path / "elsewhere").read_text() == "mine"
    assert (store.root / ASIDE / "samples/x.parquet").is_symlink()
    assert store.tables() == ["codes/s", "samples", "stats/s"]


def test_leftovers_are_removed_or_set_aside(store):
    """A6: what killed runs left."""
    (store.root / "samples/.x.parquet.0123456789ab.tmp").write_bytes(b"half")
    (store.root / "samples/00000009-0123456789abcdef.parquet").write_bytes(b"uncommitted")
    assert {s.does for s in repair(store.root)} == {"removed", "set aside"}
    assert verify(store) == []
    assert not (store.root / "samples/.x.parquet.0123456789ab.tmp").exists()


@pytest.mark.parametrize("content", [None, b"\xff", b"{}"])
def test_a_lost_mark_is_made_anew_if_the_samples_agree(store, content):
    """A6: the card tells the run, and the run gives the samples' ids."""
    path = store.root / "manifest/store.json"
    mark = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert [s.does for s in repair(store.root, dry_run=True)] == ["rebuilt"]
    repair(store.root)
    assert path.read_bytes() == mark
    path.unlink()
    card = (store.root / "README.md").read_text()
    (store.root / "README.md").write_text(card.replace('"guidance": 3.0', '"guidance": 4.0'))
    with pytest.raises(DamageError, match=r"the run in README\.md is not that of the samples"):
        repair(store.root)


@pytest.mark.parametrize("run", ['{"model": "m"}', "{}", "[1]", '{"model": "m", "start": 3}'])
def test_a_card_that_tells_another_run_is_not_believed(store, run):
    (store.root / "manifest/store.json").unlink()
    (store.root / "README.md").write_text(f"\n```json\n{run}\n```\n")
    with pytest.raises(DamageError, match=r"the run in README\.md is not that of the samples"):
        repair(store.root)


def test_what_a_file_is_called_is_shown_and_not_obeyed(store, capsys):
    """A stranger's file may have ESC in its name."""
    (store.root / "samples/\x1b[2Jx.parquet").write_bytes(b"")
    for command in ("verify", "repair"):
        _, out, err = run(capsys, command, store.root)
        assert "\x1b" not in out + err and "\\x1b[2Jx.parquet: has no commit record" in out


@pytest.mark.parametrize("content", [b"\xff\xfe not text", b"", b"x" * 10**6, None])
def test_a_damaged_card_is_written_anew(store, tmp_path, capsys, content):
    """A5: README.md is derived: whatever stands there, `score` and `pack` rewrite it."""
    whole = (store.root / "README.md").read_bytes()
    if content is None:
        (store.root / "README.md").unlink()
        (tmp_path / "mine").write_text("mine")
        (store.root / "README.md").symlink_to(tmp_path / "mine")
    else:
        (store.root / "README.md").write_bytes(content)
    assert run(capsys, "pack", store.root, tmp_path / "b")[0] == 0
    assert (store.root / "README.md").read_bytes() == whole and not (
        store.root / "README.md"
    ).is_symlink()
    assert content is not None or (tmp_path / "mine").read_text() == "mine"
    (store.root / "README.md").write_bytes(content or b"")
    assert run(capsys, "score", store.root, "--sae", "s", "--by", "style")[0] == 0


@pytest.mark.parametrize(
    "content", [b"\xff", b"abc  manifest/x\n", b"0" * 64 + b"  manifest/../x/y.json\n"]
)
def test_a_damaged_ledger_is_no_harm_and_written_anew(store, content):
    """A6: the ledger is derived, and checked like everything else."""
    whole = (store.root / LEDGER).read_bytes()
    (store.root / LEDGER).write_bytes(content)
    (problem,) = verify(store)
    assert (problem.path, problem.damage) == (LEDGER, False)
    store.arrow("samples")
    repair(store.root)
    assert (store.root / LEDGER).read_bytes() == whole


def test_the_ledger_is_checked_by_sha256sum(store):
    """The form is everybody's: `sha256sum -c manifest/SHA256SUMS`."""
    import subprocess

    done = subprocess.run(
        ["sha256sum", "-c", LEDGER], cwd=store.root, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.count(": OK") == 4


def test_what_may_not_be_read_is_one_line(store, capsys, tmp_path):
    """A5: a file and a directory without rights; root may read everything, so an ordinary user
    looks."""
    pytest.importorskip("pwd")
    os.chmod(tmp_path, 0o755)  # noqa: PTH101
    for parent in [p for p in tmp_path.parents if p.stat().st_mode & 0o055 != 0o055]:
        parent.chmod(parent.stat().st_mode | 0o055)
    path = store.root / one(store, "samples").files[0].path
    path.chmod(0)
    (store.root / "manifest/stats").chmod(0)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if os.getuid() == 0:
                os.setuid(65534)
            other = Store(store.root, store.run)
            said = []
            for read in (
                lambda: other.arrow("samples"),
                other.tables,
                lambda: other.records("stats/s"),
            ):
                try:
                    read()
                except DamageError as error:
                    said.append("Permission denied" in str(error) and "\n" not in str(error))
            problems = {p.path: p.what for p in verify(other) if p.damage}
            named = {path.relative_to(store.root).as_posix(), "manifest/stats"} <= set(problems)
            status = 0 if said == [True] * 3 and named else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    (store.root / "manifest/stats").chmod(0o755)


def test_an_interrupted_repair_is_gone_on_with(store, monkeypatch):
    """A6: a repair that stops half way loses nothing."""
    record = one(store, "codes/s")
    (store.root / record.files[0].path).write_bytes(b"changed")
    calls = []
    monkeypatch.setattr(
        "featurestore.format.durable.directories.sync_directory",
        lambda path: calls.append(path) or stop(calls),
    )
    with pytest.raises(KeyboardInterrupt):
        repair(store.root)
    monkeypatch.undo()
    repair(store.root)
    assert damage(store) == {}
    found = files(store.root / ASIDE)
    assert set(found) == {record.location.as_posix(), record.files[0].path}


def stop(calls):
    if len(calls) > 3:
        raise KeyboardInterrupt
