"""A store that somebody changed on purpose, its checksums made right again: through every reader
and writer.

Each mutant must be refused with one line, or read as what it says; nothing outside the store may be
opened, whatever it names (seen by the kernel), nothing may hang, and no small file may take much
memory.
"""

import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import huggingface_hub
import pyarrow.parquet as pq

from featurestore import Selection, Store
from featurestore.card import make_card, write_card
from featurestore.cli import main
from featurestore.errors import FeatureStoreError
from featurestore.format import checksums, listing, verified
from featurestore.format.contents import row_groups
from featurestore.format.durable import claims
from featurestore.format.schemas import schema_id
from featurestore.prompts import read_prompts
from featurestore.repair import repair, shard_of
from featurestore.saes import load_config
from featurestore.sharing.bundle import LIST, pack, unpack
from featurestore.sharing.hub import push
from featurestore.verify import verify
from queries.database import export_database
from queries.session import connect, sql
from sae.checkpoint import store_sae
from tests.builders.bundles import write_bundle
from tests.builders.selection_files import selection
from tests.builders.stores import HOOK
from tests.builders.watch import Touched, Writes
from tests.torture import flips
from tests.torture.mutate import (
    hostile_value,
    json_bytes,
    mutate_bytes,
    mutate_footer,
    mutate_json,
    mutate_pages,
    mutate_safetensors,
    mutate_table,
    mutate_text,
    seal,
)

FORK = multiprocessing.get_context("fork")
MAX_GROWTH_MB = 600
MAX_SECONDS = 30
_CHUNK = 250
_KINDS = {"record": 4, "parquet": 5, "mark": 1, "ledger": 1, "config": 1, "weights": 1, "link": 1, "selection": 1, "bundle": 1,
          "prompts": 1}  # fmt: skip
"""what is changed → how often, relative to the others"""
Ways = dict[str, Callable[[], object]]


class HangError(BaseException):
    """A way took longer than ``MAX_SECONDS``."""


@dataclass
class Report:
    """What became of mutants."""

    tried: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    """what was changed, and through which ways it went, mutant by mutant"""
    refused: int = 0
    broken: list[str] = field(default_factory=list)
    died: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    large: list[str] = field(default_factory=list)
    peak_mb: int = 0

    def add(self, other: "Report") -> None:
        """Add another report's numbers to these."""
        for name in ("tried", "refused", "broken", "died", "outside", "hangs", "large"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.peak_mb = max(self.peak_mb, other.peak_mb)

    @property
    def mutants(self) -> int:
        """How many there were."""
        return len(self.tried)

    @property
    def ways(self) -> int:
        """Through how many readers and writers they went, all together."""
        return sum(len(ways) for _, ways in self.tried)

    @property
    def wrong(self) -> list[str]:
        """Everything that must not be."""
        return [*self.broken, *self.died, *self.outside, *self.hangs, *self.large]


def command(*args: object) -> None:
    """Run the command line; raise what it does not turn into one line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(arg) for arg in args])
        except SystemExit as stop:
            lines = [line for line in err.getvalue().splitlines() if line.startswith("Error:")]
            if stop.code == 1 and args[0] not in ("verify", "repair") and len(lines) != 1:
                raise AssertionError(f"{args[0]} says {err.getvalue()[-200:]!r}") from stop
            if stop.code:
                raise FeatureStoreError("refused") from stop


class Home:
    """A directory beside the store with what a stranger would like to read, change or delete."""

    def __init__(self, path: Path, store: Path) -> None:
        self.path = path
        path.mkdir()
        (path / "id_rsa").write_text("secret")
        shutil.copy(next((store / "samples").glob("*.parquet")), path / "x.parquet")
        self.files = {p.name: p.read_bytes() for p in path.iterdir()}


class Chamber:
    """A store in a directory of its own, put back to what it was after each mutant."""

    def __init__(self, work: Path) -> None:
        self.work, self.root = work, work / "deep" / "store"
        self.root.parent.mkdir(parents=True)
        store = flips.make(self.root)
        write_card(store)
        for args in (
            ("score", self.root, "--sae", "s", "--by", "style"),
            ("export", self.root, "--sae", "s", "--by", "style"),
        ):
            command(*args)
        self.home = Home(work / "home", self.root)
        shutil.copytree(self.home.path, work / "deep" / "home")
        self.whole = self._tree()
        self.selections = {}
        for suffix in (".json", ".csv", ".parquet", ".jsonl.zst", ".md"):
            selection(work / "store").save(work / f"selection{suffix}")
            self.selections[suffix] = (work / f"selection{suffix}").read_bytes()
        self.prompts = (
            b'{"prompt": "a cat", "seed": 3, "style": "neon"}\n{"prompt": "a dog", "style": null}\n'
        )

    def _tree(self) -> dict[str, bytes]:
        found = (p for p in self.root.rglob("*") if p.is_file() and not p.is_symlink())
        return {p.relative_to(self.root).as_posix(): p.read_bytes() for p in found}

    def restore(self) -> None:
        """Put back every file, and remove what came."""
        for path in sorted(self.root.rglob("*"), reverse=True):
            name = path.relative_to(self.root).as_posix()
            if path.is_symlink() or (path.is_file() and self.whole.get(name) != path.read_bytes()):
                path.unlink()
            elif path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        for name, data in self.whole.items():
            if not (self.root / name).exists():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                (self.root / name).write_bytes(data)
        for path in self.work.glob("out*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def change(chamber: Chamber, rng: random.Random) -> tuple[str, Ways]:
    """Change one thing in the chamber, or beside it; return what it was, and the ways that are to
    be tried."""
    kind = rng.choice(
        ["record"] * 4
        + ["parquet"] * 5
        + ["mark", "ledger", "config", "weights", "link", "selection", "bundle", "prompts"]
    )
    if kind in ("selection", "bundle", "prompts"):
        return _beside(chamber, kind, rng)
    names = sorted(chamber.whole)
    chosen = {
        "record": [n for n in names if n.startswith("manifest/") and n.count("/") > 1],
        "parquet": [n for n in names if n.endswith(".parquet")],
        "mark": ["manifest/store.json"], "ledger": ["manifest/SHA256SUMS", "README.md"],
        "config": ["saes/s/config.json"], "weights": ["saes/s/sae.safetensors"],
        "link": [n for n in names if "/" in n],
    }[kind]  # fmt: skip
    name = rng.choice(chosen)
    path, data, home = chamber.root / name, chamber.whole[name], str(chamber.home.path)
    if kind in ("record", "mark"):
        path.write_bytes(_sealed(data, rng, home))
        if kind == "record" and rng.random() < 0.1:
            shutil.move(
                path,
                path.with_name(
                    rng.choice(["copy.json", "00000000-0123456789abcdef.json", "a b.json"])
                ),
            )
    elif kind == "ledger":
        path.write_bytes(mutate_text(data, rng, home))
    elif kind == "link":
        path.unlink()
        path.symlink_to(
            rng.choice(
                [
                    chamber.home.path / "x.parquet",
                    chamber.home.path,
                    path,
                    Path("../../home/id_rsa"),
                ]
            )
        )
    else:
        if kind == "parquet":
            how = rng.choice(
                [mutate_footer, mutate_footer, mutate_pages, mutate_pages, mutate_table,
                 mutate_table, mutate_bytes]
            )  # fmt: skip
            new = how(data, rng, home) if how is mutate_table else how(data, rng)  # type: ignore[operator]
        elif kind == "config":
            new = json_bytes(mutate_json(json.loads(data), rng, home))
        else:
            new = mutate_safetensors(data, rng, home)
        path.write_bytes(new)
        _reseal(chamber.root, name, new, rng)
    return f"{kind} {name}", _ways(chamber, name, rng)


def _sealed(data: bytes, rng: random.Random, home: str) -> bytes:
    body = json.loads(data)
    del body["sha256"]
    return mutate_bytes(data, rng) if rng.random() < 0.1 else seal(mutate_json(body, rng, home))


def _reseal(root: Path, name: str, data: bytes, rng: random.Random) -> None:
    """Make the record of a file say what the file is now; rows and schema too, more often than
    not."""
    shard = shard_of(name)
    assert shard is not None
    location = root / "manifest" / shard[0] / f"{shard[1]}.json"
    body = json.loads(location.read_bytes())
    del body["sha256"]
    for entry in body["files"]:
        if entry["path"] == name:
            entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    if name.endswith(".parquet"):
        with contextlib.suppress(Exception), pq.ParquetFile(io.BytesIO(data)) as file:
            if rng.random() < 0.7:
                body |= {"rows": file.metadata.num_rows, "schema": schema_id(file.schema_arrow)}
        if body.get("contents"):
            body["contents"]["parts"] = _parts(data, body["rows"])
    location.write_bytes(seal(body))


def _parts(data: bytes, rows: int) -> list[dict[str, Any]]:
    """Return the parts of a file as its footer tells them; all in one where it cannot be read."""
    groups, ends = [rows], [max(1, len(data) - 8)]
    with contextlib.suppress(Exception), pq.ParquetFile(io.BytesIO(data)) as file:
        told = list(row_groups(file.metadata))
        groups, ends = [group.rows for group in told], [group.end for group in told]
    bounds = [0, *ends, len(data)]
    return [
        {"rows": n, "bytes": end - begin, "sha256": hashlib.sha256(data[begin:end]).hexdigest()}
        for n, begin, end in zip([*groups, 0], bounds, bounds[1:], strict=True)
    ]


def _beside(chamber: Chamber, kind: str, rng: random.Random) -> tuple[str, Ways]:
    home, out = str(chamber.home.path), chamber.work / "out"
    if kind == "selection":
        suffix = rng.choice(sorted(chamber.selections))
        path, data = chamber.work / f"out{suffix}", chamber.selections[suffix]
        binary = suffix in (".parquet", ".jsonl.zst")
        if suffix == ".json":
            path.write_bytes(json_bytes(mutate_json(json.loads(data), rng, home)))
        elif suffix == ".parquet":
            path.write_bytes(rng.choice([mutate_footer, mutate_bytes])(data, rng))
        else:
            path.write_bytes(mutate_bytes(data, rng) if binary else mutate_text(data, rng, home))
        return f"selection{suffix}", {"Selection.load": lambda: Selection.load(path).at(500.0)}
    if kind == "prompts":
        path = chamber.work / f"out.{rng.choice(['jsonl', 'csv', 'json', 'txt', 'tsv'])}"
        path.write_bytes(mutate_text(chamber.prompts, rng, home))
        return f"prompts{path.suffix}", {"read_prompts": lambda: read_prompts(str(path), [0])}
    bundle = chamber.work / "out.tar.zst"
    files = {name: data for name, data in chamber.whole.items() if not name.startswith(".")}
    listed: Any = [
        {"path": n, "bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()}
        for n, d in files.items()
    ]
    head = {"format": "featurestore-bundle", "format_version": 1, "files": listed}
    action = rng.randrange(4)
    if action == 0:
        name = rng.choice(sorted(files))
        files[name] = mutate_bytes(files[name], rng)
    elif action == 1:
        value = hostile_value(rng, home)
        files[str(value).replace("\x00", "0").encode("utf-8", "replace").decode()[:90] or "x"] = (
            b"x"
        )
    write_bundle(
        bundle, {LIST: json_bytes(mutate_json(head, rng, home) if action != 0 else head), **files}
    )
    if action == 3:
        bundle.write_bytes(mutate_bytes(bundle.read_bytes(), rng))
    return "bundle", {"unpack": lambda: unpack(bundle, out).arrow("samples")}


class _Listener:
    def create_repo(self, repo: str, **_: object) -> str:
        return repo

    def upload_folder(self, **_: object) -> None:
        """Take everything."""


def _push(root: Path) -> None:
    with mock.patch.object(huggingface_hub, "HfApi", _Listener):
        push(Store.open(root), "user/name")


def _ways(chamber: Chamber, name: str, rng: random.Random) -> Ways:
    """Return the ways through which a file of the store is read, and one of those that take longer,
    or write."""
    root, work = chamber.root, chamber.work
    table = (shard_of(name) or ("samples", ""))[0]
    kind = table.partition("/")[0]
    at = ("--store", root, "--sae", "s")
    always: Ways = {
        "open": lambda: [Store.open(root).records(t) for t in [*Store.open(root).tables(), "saes"]],
        "read": lambda: Store.open(root).arrow(table),
        "verify": lambda: verify(Store.open(root), deep=True),
    }
    if rng.random() < 0.5:
        always["connect"] = lambda: connect(Store.open(root)).close()
        always["card"] = lambda: make_card(Store.open(root))
    if kind in ("activations",):
        always["activations"] = lambda: [
            shard.rows() for shard in Store.open(root).activations(HOOK)
        ]
    if kind == "saes" or name.startswith("saes/"):
        always |= {
            "load_config": lambda: load_config(Store.open(root), "s"),
            "store_sae": lambda: store_sae(Store.open(root), "s"),
        }
    if kind in ("samples", "labels"):
        always |= {
            "families": lambda: Store.open(root).families(),
            "labels": lambda: Store.open(root).corrected_labels(),
        }
    some: Ways = {
        "sql": lambda: sql(
            Store.open(root), f"select * from {kind if kind != 'saes' else 'codes'}"
        ),
        "scan": lambda: Store.open(root).scan(table),
        "info": lambda: command("info", root),
        "pack": lambda: pack(Store.open(root), work / "out.pack"),
        "push": lambda: _push(root),
        "duckdb": lambda: export_database(Store.open(root), work / "out.duckdb"),
        "score": lambda: command("score", root, "--sae", "s", "--by", "style"),
        "export": lambda: command("export", root, "--sae", "s", "--by", "style"),
        "export -o": lambda: command(
            "export", root, "--sae", "s", "--by", "style", "-o", work / "out.selections"
        ),
        "encode": lambda: command("encode", *at, "--quiet"),
        "repair --dry-run": lambda: repair(root, dry_run=True),
        "repair": lambda: repair(root),
        "write_card": lambda: write_card(Store.open(root)),
        "append": lambda: [
            Store.open(root).commit(record) for record in Store.open(root).records(table)
        ],
        "remove": lambda: [
            Store.open(root).remove(record) for record in Store.open(root).records("scores/s")
        ],
    }
    weights = [1 if key == "encode" else 4 for key in some]
    (chosen,) = rng.choices(list(some), weights)
    return always | {chosen: some[chosen]}


def _try(what: str, way: str, call: Callable[[], object], report: Report) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS)
    try:
        call()
    except FeatureStoreError as error:
        report.refused += 1
        if "\n" in str(error):
            report.broken.append(f"{what}: {way} says it in several lines")
    except HangError:
        report.hangs.append(f"{what}: {way}")
    except Exception as error:  # noqa: BLE001
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        report.broken.append(f"{what}: {way}: {type(error).__name__}: {str(error)[:150]} ({place})")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    report.peak_mb = max(report.peak_mb, grown)
    if grown > MAX_GROWTH_MB:
        report.large.append(f"{what}: {way} takes {grown} MB")


def _hang(number: int, frame: object) -> None:
    raise HangError


def _hurt_cache(directory: Path, rng: random.Random) -> None:
    """Change, now and then, a file of what was remembered: nothing of it may be needed."""
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    if files and rng.random() < 0.3:
        path = rng.choice(files)
        path.write_bytes(mutate_bytes(path.read_bytes(), rng))


def _chunk(work: Path, seeds: range, results: Any) -> None:
    """Try the mutants of some seeds in this process."""
    report = Report()
    # What libraries leave in the system's directories is theirs: everything of ours goes below
    # ``work``.
    os.environ |= {
        "TMPDIR": str(work / "tmp"),
        "HOME": str(work / "tmp"),
        "XDG_CACHE_HOME": str(work / "tmp" / "cache"),
    }
    os.environ["FEATURESTORE_CACHE"] = str(work / "tmp" / "cache")
    (work / "tmp").mkdir()
    tempfile.tempdir = None
    # What this process remembers of files and records is used for the smallest table, and at once.
    listing.LEAST, verified._SETTLED_NS = 1, 0
    chamber = Chamber(work / "chamber")
    touched = Touched(chamber.home.path, chamber.work / "deep" / "home")
    previous = signal.signal(signal.SIGALRM, _hang)
    try:
        for seed in seeds:
            checksums.forget()
            claims._cleared.clear()
            # Of its own: what lies in the cache depends on the clock, the mutant on its seed alone.
            _hurt_cache(work / "tmp" / "cache", random.Random(f"cache {seed}"))
            rng = random.Random(seed)
            what, ways = change(chamber, rng)
            touched.files()
            report.tried.append((f"{seed} {what}", tuple(ways)))
            with Writes(Path("/")) as writes:
                for way, call in ways.items():
                    (work / "last").write_text(f"{seed} {what}: {way}")
                    _try(f"{seed} {what}", way, call, report)
                    report.outside += [
                        f"{seed} {what}: {way} touches {path}" for path in touched.files()
                    ]
            mine = f"{str(work).lstrip('/')}/"
            report.outside += [
                f"{seed} {what}: writes /{p}"
                for p, _ in writes.seen
                if not p.startswith((mine, "dev/", "proc/"))
            ]
            chamber.restore()
    finally:
        signal.signal(signal.SIGALRM, previous)
        touched.close()
    results.put(report)


def _chunks(n: int, seed: int) -> Iterator[range]:
    for first in range(0, n, _CHUNK):
        yield range(seed + first, seed + min(n, first + _CHUNK))


def mutate(
    work: Path,
    n: int,
    seed: int = 0,
    *,
    kept: Path | None = None,
    progress: Callable[[Report], object] = lambda report: None,
) -> Report:
    """Try ``n`` mutants; a process for every few hundred, so that one that dies is counted and
    named.

    What became of each few hundred is kept in the directory ``kept``, if there is one, so that
    another run goes on.
    """
    total, left = Report(), list(_chunks(n, seed))
    while left:
        seeds = left.pop(0)
        path = None if kept is None else kept / f"{seeds.start}-{seeds.stop}.json"
        if path is not None and path.exists():
            found = Report(**json.loads(path.read_bytes()))
        else:
            found, again = _tried(work, seeds)
            left[:0] = again
            if path is not None and not again:
                path.write_text(json.dumps(asdict(found)))
        total.add(found)
        progress(total)
    return total


def _tried(work: Path, seeds: range) -> tuple[Report, list[range]]:
    """Try the mutants of some seeds in a process; where it ends, return the seeds to try again."""
    place = work / f"mutants-{seeds.start}-{seeds.stop}"
    place.mkdir()
    results = FORK.Queue()
    child = FORK.Process(target=_chunk, args=(place, seeds, results))
    child.start()
    report = _report(child, results, len(seeds))
    child.join()
    # A mutant follows from its seed: those around it are tried again without it.
    last = "" if report is not None else (place / "last").read_text()
    shutil.rmtree(place, ignore_errors=True)
    if report is not None:
        return report, []
    what, _, way = last.rpartition(": ")
    ended = int(last.partition(" ")[0])
    died = f"{last} ended the process with status {child.exitcode}"
    around = range(seeds.start, ended), range(ended + 1, seeds.stop)
    return Report(tried=[(what, (way,))], died=[died]), [some for some in around if some]


def _report(child: Any, results: Any, n: int) -> Report | None:
    for _ in range(60 + n * 20):
        with contextlib.suppress(Exception):
            found = results.get(timeout=1)
            assert isinstance(found, Report)
            return found
        if not child.is_alive() and results.empty():
            return None
    child.kill()
    return None
