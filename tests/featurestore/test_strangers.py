"""A store from somebody else: nothing in it is trusted because its checksums hold."""

import json
import os
import shutil

import numpy as np
import pytest

from featurestore import Selection, Store
from featurestore.errors import DamageError, FeatureStoreError, SAEError, SelectionError, ShareError
from featurestore.format.canonical import sealed
from featurestore.format.gate import MalformedError, parse_json
from featurestore.maintenance.verify import verify
from featurestore.saes import load_config
from featurestore.sharing.bundle import pack, unpack
from queries import connect
from tests.builders.cli import run
from tests.builders.hostile import recommit, reseal, reseal_text
from tests.builders.stores import make_store


@pytest.fixture
def store(tmp_path):
    z = np.random.default_rng(0).random((3, 3, 4, 6), np.float32) * (np.arange(6) % 2)
    made = make_store(tmp_path / "deep" / "store", z, {"style": ["a", "b", "a"]})
    pack(made, tmp_path / "b")  # its card and ledger are up to date
    (tmp_path / "b").unlink()
    return made


def record_path(store, table):
    (path,) = (store.root / "manifest" / table).glob("*.json")
    return path


def one_line(error):
    assert "\n" not in str(error.value) and "Traceback" not in str(error.value)
    return str(error.value)


PATHS = [
    "../../id_rsa",
    "/etc/hostname",
    "samples/../samples/x.parquet",
    "README.md",
    "codes/s/x.parquet",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("table", ["samples", "scores/s"])
def test_a_record_can_name_no_path_but_its_own(store, tmp_path, capsys, path, table):
    """A1: a record with another path is read by nobody, and nobody deletes, packs or sends what it
    names."""
    secret = tmp_path / "id_rsa"
    secret.write_text("secret")
    assert run(capsys, "score", store.root, "--sae", "s", "--by", "style")[0] == 0
    at = sorted((store.root / "manifest" / table).glob("*.json"))[0]
    reseal(at, lambda body: body["files"][0].update(path=path))
    with pytest.raises(DamageError, match=f"not a commit record: path is .*expected '{table}/"):
        store.records(table)
    assert any(p.damage and store.root / p.path == at for p in verify(store, deep=True))
    commands = [("pack", tmp_path / "b"), ("export", "--duckdb", tmp_path / "d.duckdb")]
    if table == "samples":
        commands += [("sql", "select * from samples"), ("export", "--sae", "s", "--by", "style")]
    for name, *rest in [*commands, ("score", "--sae", "s", "--by", "style")]:
        status, out, err = run(capsys, name, store.root, *rest)
        assert "secret" not in out + err and "Traceback" not in err and err.count("\n") <= 1
        assert status == 1, (name, out, err)
    assert secret.read_text() == "secret"
    assert not (tmp_path / "b").exists() and not (tmp_path / "d.duckdb").exists()


def test_a_bundle_with_a_record_of_another_path_is_not_unpacked(store, tmp_path):
    """A1: `unpack` goes through the same gate, and leaves nothing behind."""
    from tests.builders.bundles import bundle_of

    reseal(record_path(store, "samples"), lambda body: body["files"][0].update(path="../x.parquet"))
    bundle_of(store.root, tmp_path / "b.tar.zst")
    with pytest.raises(
        ShareError, match=r"holds no sound store .*path is '\.\./x\.parquet'"
    ) as error:
        unpack(tmp_path / "b.tar.zst", tmp_path / "out")
    one_line(error)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("table", ["samples", "stats/s", "saes"])
def test_a_record_counts_at_its_own_place_only(store, table):
    """A2: a copy of a record is not a second shard."""
    at = record_path(store, table)
    shutil.copy(at, at.with_name("copy-A.json"))
    with pytest.raises(
        DamageError, match=r"copy-A\.json: is the record of .*not of what lies here"
    ):
        store.records(table)
    assert "is the record of" in " ".join(p.what for p in verify(store) if p.damage)


HOSTILE = [
    (lambda body: body.update(rows="3"), "rows is '3', expected a whole number"),
    (lambda body: body.update(rows=-1), "rows is -1, expected a whole number"),
    (lambda body: body.update(rows=3.5), "rows is 3.5, expected a whole number"),
    (lambda body: body.update(rows=True), "rows is True, expected a whole number"),
    (lambda body: body.update(files=[]), "files is a list, expected a list of files"),
    (lambda body: body.update(files=body["files"] * 2), "its files are"),
    (lambda body: body.update(files=[7]), "7 stands where an object is expected"),
    (lambda body: body["files"][0].update(bytes="9"), "bytes is '9', expected a whole number"),
    (lambda body: body["files"][0].update(sha256="x"), "sha256 is 'x', expected 64 hexadecimal " "digits"),
    (lambda body: body["files"][0].update(mode=7), "it has a field 'mode', which nothing knows"),
    (lambda body: body.update(sample_ids=[1, 1]), "sample_ids is a list, expected a list of " "distinct sample " "" "ids"),
    (lambda body: body.update(sample_ids=[1.5]), "sample_ids is a list"),
    (lambda body: body.update(sample_ids=[2**70]), "sample_ids is a list"),
    (lambda body: body.update(table="../x"), r"table is '\.\./x', expected a table's name"),
    (lambda body: body.update(table="vectors/s"), "table is 'vectors/s', expected a table's name"),
    (lambda body: body.update(shard="a/b"), "shard is 'a/b', expected a shard's name"),
    (lambda body: body.update(schema="zz"), "schema is 'zz', expected 16 hexadecimal digits"),
    (lambda body: body.update(made_by=[]), "made_by is a list, expected an object"),
    (lambda body: body.update(made_by={"mask_from": 3}), "made_by is a dict, expected an object, with words"),
    (lambda body: body.update(made_by={"faults": ["x"]}), "made_by is a dict, expected an object, with words"),
    (lambda body: body.update(extra=1), "it has a field 'extra', which nothing knows"),
    (lambda body: body.pop("rows") and None, "it lacks rows"),
    (lambda body: body.update(made_by=nested(100)), "nested more than 32 deep"),
]  # fmt: skip


def nested(depth):
    body = {}
    for _ in range(depth):
        body = {"a": body}
    return body


@pytest.mark.parametrize(("change", "message"), HOSTILE)
def test_every_field_of_a_record_is_checked(store, change, message):
    """A2: parsed means validated; the line names the file and the field."""
    at = reseal(record_path(store, "samples"), change)
    with pytest.raises(DamageError, match=message) as error:
        store.records("samples")
    assert str(at) in one_line(error)
    assert any(p.damage for p in verify(store))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"made_by":{}', '"made_by":{"x":NaN}', "NaN is not a number that JSON knows"),
        ('"made_by":{}', '"made_by":{"x":1e999}', "the number 1e999 is too large"),
        ('"made_by":{}', '"made_by":{"x":"\\ud800"}', r"half of a surrogate pair"),
        ('"made_by":{}', '"made_by":{"x":1,"x":2}', "the key 'x' stands there twice"),
        (
            '"made_by":{}',
            '"made_by":{"x":' + "[" * 100_000 + "]" * 100_000 + "}",
            "nested more than 32 deep",
        ),
        ('"made_by":{}', '"made_by":{"x":' + "9" * 5000 + "}", "it is not JSON"),
        ('"rows":', '"rows":\udcff', "is not UTF-8"),
    ],
)
def test_json_that_is_none_is_one_line(store, capsys, old, new, message):
    """A2: nesting, NaN, surrogates, repeated keys, bytes that are not text."""
    reseal_text(record_path(store, "samples"), old, new)
    with pytest.raises(DamageError, match=message) as error:
        store.records("samples")
    one_line(error)
    status, _, err = run(capsys, "info", store.root)
    assert status == 1 and err.count("\n") == 1 and message.replace("\\", "") in err


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ({"format": "featurestore", "format_version": 1}, "it lacks run"),
        (
            {"format": "featurestore", "format_version": 1, "run": 7},
            "run is 7, expected an object or null",
        ),
        (
            {"format": "featurestore", "format_version": 1, "run": {"n_steps": 3}},
            "run is a dict, expected an object or null",
        ),
        (
            {"format": "featurestore", "format_version": 1, "run": {"model": "m", "start": 3}},
            "run is a dict, expected an object or null",
        ),
        (
            {"format": "featurestore", "format_version": 1, "run": None, "x": 1},
            "a field 'x', which nothing knows",
        ),
        (
            {"format": "featurestore", "format_version": True, "run": None},
            "format version True, this program",
        ),
    ],
)
def test_a_mark_is_checked(store, mark, message):
    """A2: a mark without a run."""
    (store.root / "manifest/store.json").write_bytes(sealed(mark))
    with pytest.raises(FeatureStoreError, match=message) as error:
        Store.open(store.root)
    one_line(error)


def test_a_table_that_nobody_knows_is_one_line(store, capsys):
    """A2: an unknown kind of table."""
    (store.root / "manifest/vectors/s").mkdir(parents=True)
    (store.root / "manifest/vectors/s/0.json").write_bytes(b"{}")
    with pytest.raises(DamageError, match="'vectors' is no table that this version knows"):
        store.tables()
    assert run(capsys, "info", store.root)[0] == 1
    assert ("manifest/vectors", True) in {(p.path, p.damage) for p in verify(store)}


@pytest.mark.parametrize(
    "place",
    ["samples", "manifest/samples", "samples/{}.parquet", "manifest/samples/{}.json", "manifest"],
)
def test_no_link_in_a_store_is_followed(store, tmp_path, capsys, place):
    """A1: a symbolic link out of the store, in the place of a file or of a directory."""
    shard = record_path(store, "samples").stem
    path = store.root / place.format(shard)
    shutil.move(path, tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DamageError, match="is a symbolic link") as error:
        Store.open(store.root).arrow("samples")
    one_line(error)
    if place != "manifest":
        assert any(p.damage and "link" in p.what for p in verify(store))
    status, _, err = run(capsys, "pack", store.root, tmp_path / "b")
    assert status == 1 and "is a symbolic link" in err and not (tmp_path / "b").exists()


def test_a_pipe_is_not_waited_for(store):
    """A5: something that is not a file, where a file should be."""
    (path,) = store.files("samples")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DamageError, match="is not a regular file"):
        store.arrow("samples")
    at = record_path(store, "codes/s")
    at.unlink()
    os.mkfifo(at)
    with pytest.raises(DamageError, match="it is not a regular file"):
        store.records("codes/s")
    assert len([p for p in verify(store, deep=True) if p.damage]) >= 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_in": 1e400}, "the number Infinity is too large|Infinity is not a number"),
        ({"d_in": 0}, "d_in is 0, expected a whole number from 1"),
        ({"d_in": 2**40}, "d_in is 1099511627776, expected a whole number"),
        ({"n_latents": True}, "n_latents is True"),
        ({"io": "x"}, "io is 'x', expected one of output, input, difference"),
        ({"hook": "../x"}, r"hook is '\.\./x', expected a module's path"),
        ({"hook": ".."}, r"hook is '\.\.', expected a module's path"),
        ({"pickle": 1}, "a field 'pickle', which nothing knows"),
    ],
)
def test_the_configuration_of_an_sae_is_checked(store, change, message):
    """A2: `config.json` of an SAE, in the store and given as a directory."""
    (record,) = store.records("saes")
    path = next(p for p in store.paths(record) if p.name == "config.json")
    data = json.dumps(json.loads(path.read_bytes()) | change).encode()
    index = next(i for i, e in enumerate(record.files) if e.path.endswith("config.json"))
    path.write_bytes(data)
    import hashlib

    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    reseal(store.root / record.location, lambda body: body["files"][index].update(entry))
    with pytest.raises(SAEError, match=message) as error:
        load_config(store, "s")
    one_line(error)
    with pytest.raises(FeatureStoreError):
        connect(store)
    assert [p.path for p in verify(store, deep=True) if p.damage][-1] in (
        "saes/s/config.json",
        "manifest/saes/s.json",
    )


def feature(**changes):
    return {
        "feature": 3,
        "score": 0.1,
        "mean_concept": 0.2,
        "mean_other": 0.3,
        "mean_all": 0.4,
    } | changes


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([feature(feature=1.5)], "feature is 1.5, expected a whole number"),
        ([feature(feature=True)], "feature is True"),
        ([feature(), feature()], "feature 3 stands twice at step 0"),
        (
            [feature(mean_concept=1e308)],
            r"mean_concept is 1e\+308, expected a number of at most 1e\+38",
        ),
        ([feature(score="0.1")], "score is '0.1', expected a number"),
        ([feature(colour=1)], "a field 'colour', which nothing knows"),
        ([7], "7 stands where an object is expected"),
    ],
)
def test_the_rows_of_a_selection_are_checked(tmp_path, features, message):
    """A2: feature 1.5, features twice, a mean of 1e308."""
    from tests.builders.selection_files import selection

    selection(tmp_path / "store").save(tmp_path / "good.json")
    body = json.loads((tmp_path / "good.json").read_text())
    body["timesteps"][0]["features"] = features
    (tmp_path / "bad.json").write_text(json.dumps(body))
    with pytest.raises(SelectionError, match=message) as error:
        Selection.load(tmp_path / "bad.json")
    assert str(tmp_path / "bad.json") in one_line(error)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_in": True}, "d_in is True"),
        ({"rule": {}}, "rule is a dict"),
        ({"branch": "left"}, "branch is 'left', expected one of cond, uncond"),
        ({"io": "x"}, "io is 'x', expected one of output, input, difference"),
        ({"pickle": "x"}, "a field 'pickle', which nothing knows"),
        ({"store": "a\0b"}, r"store is 'a\\x00b', expected a path"),
        (
            {"timesteps": [{"step": 0, "timestep": True, "features": []}]},
            "timestep is True, expected a number",
        ),
    ],
)
def test_the_header_of_a_selection_is_checked(tmp_path, change, message):
    """A2: a timestep `true`, and every other field."""
    from tests.builders.selection_files import selection

    selection(tmp_path / "store").save(tmp_path / "good.json")
    body = json.loads((tmp_path / "good.json").read_text())
    (tmp_path / "bad.json").write_text(json.dumps(body | change))
    with pytest.raises(SelectionError, match=message) as error:
        Selection.load(tmp_path / "bad.json")
    one_line(error)


@pytest.mark.parametrize("zeros", [(100, 200), (0.4, 0.6), (0.9, 1.0)])
def test_what_is_sealed_again_around_other_bytes_is_named(store, zeros):
    """A5: `verify --deep` names a zeroed range and a resealed footer; readers refuse them with one
    line."""
    for table in ("codes/s", "stats/s", "samples"):
        (record,) = store.records(table)
        path = store.root / record.files[0].path
        data = bytearray(path.read_bytes())
        first, last = (int(z if z > 1 else z * len(data)) for z in zeros)
        data[first:last] = bytes(last - first)
        recommit(store, record, bytes(data))
    problems = {p.path for p in verify(store, deep=True) if p.damage}
    for table in ("codes/s", "stats/s", "samples"):
        (record,) = store.records(table)
        path = record.files[0].path
        try:
            store.arrow(table)
        except DamageError as error:
            assert "\n" not in str(error) and "is no Parquet file" in str(error)
            assert path in problems


def test_deep_json_is_refused_at_any_depth_without_recursion():
    """A2: the parser itself."""
    for depth in (33, 500, 5000, 200_000):
        with pytest.raises(MalformedError, match="nested more than 32 deep"):
            parse_json("[" * depth + "]" * depth)
    assert parse_json("[" * 31 + "]" * 31)
    assert parse_json('{"a": "é\\ud83d\\ude00", "b": 1e3}') == {"a": "é😀", "b": 1000.0}


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"d_in": 1e999}', b'{"d_in": NaN}', b"\xff", b'{"k": 1, "k": 2}']
)
def test_the_configuration_of_an_sae_in_a_directory_is_checked(tmp_path, content):
    """A2: an SAE's directory, ours or another library's: what is not JSON is refused in one line."""
    from sae import load_sae
    from sae.formats.libraries.config import read_fields

    (tmp_path / "config.json").write_bytes(content)
    (tmp_path / "sae.safetensors").write_bytes(b"")
    with pytest.raises(SAEError, match=r"config\.json is no JSON: ") as error:
        load_sae(tmp_path)
    one_line(error)
    with pytest.raises(SAEError, match=r"config\.json is no JSON: ") as error:
        read_fields(tmp_path / "config.json")
    one_line(error)


def test_a_kept_table_that_cannot_be_opened_is_one_line(store, monkeypatch, capsys):
    """A2: what passes the gate, and what DuckDB cannot open all the same."""
    score = ("score", store.root, "--sae", "s", "--by", "style")
    assert run(capsys, *score)[0] == 0
    (path,) = [p for p in store.root.rglob("*.parquet") if "sums" in p.parts]
    data = path.read_bytes()
    size = int.from_bytes(data[-8:-4], "little")
    path.write_bytes(data[: -8 - size] + b"\xff" * size + data[-8:])
    monkeypatch.setattr(Store, "check", lambda self, records: list(records))
    status, _, err = run(capsys, "export", store.root, "--sae", "s", "--concept", "style=a")
    assert (status, err.count("\n")) == (1, 1)
    assert f"{store.root}: table sums cannot be opened (" in err
    assert err.endswith(f"Run 'featurestore verify {store.root}'.\n")
