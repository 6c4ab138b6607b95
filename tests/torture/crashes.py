"""Power cuts at every moment of a store's life, and every operation refused once."""

import contextlib
import errno
import itertools
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from featurestore import Store
from featurestore.card import make_card
from featurestore.errors import DiskError, FeatureStoreError, ShareError
from featurestore.format.schemas import SCORES, STATS
from featurestore.maintenance.compact import compact
from featurestore.maintenance.verify import verify
from featurestore.sharing.bundle import pack, unpack
from tests.builders.tensors import activation_table
from tests.torture.disk import PowerCut, Trace, traced

RUN = {"model": "torture"}
ROWS = pa.table({"family": ["a"] * 500, "concept": ["b"] * 500, "branch": ["cond"] * 500, "step": list(range(500)),
                 "timestep": [1.0] * 500, "feature": list(range(500)), "score": [i / 7 for i in range(500)],
                 "mean_concept": [i / 3 for i in range(500)], "mean_other": [0.1] * 500, "mean_all": [0.1] * 500},
                schema=SCORES)  # fmt: skip
Promise = Callable[[], object]


def append_shards(root: Path, done: Callable[[str], object], n_shards: int = 3) -> None:
    """Fill a store: two tables, ``n_shards`` each; ``done`` hears of every shard that is promised
    to stay."""
    store = Store.prepare(root, RUN)
    for number, table in itertools.product(range(n_shards), ("scores/one", "scores/two")):
        store.append(
            table, f"{number:08d}", ROWS.slice(100 * number, 100), (), made_by={"number": number}
        )
        done(f"{table}/{number:08d}")


def fill_shards(root: Path, done: Callable[[str], object]) -> None:
    """Fill a store with shards whose rows come in another order than that of their files, as a
    collection does."""
    store = Store.prepare(root, RUN)
    for number in range(2):
        table, values = activation_table(rows=5 + number)
        file = store.begin_shard(
            "activations/one", f"{number:08d}", table.drop_columns(["activation"]), table.schema
        )
        with contextlib.closing(file):
            for row in reversed(range(len(values))):
                file.put(row, values[row])
            store.append_shard(
                "activations/one", f"{number:08d}", file, table["sample_id"].to_pylist(), made_by={}
            )
        done(f"activations/one/{number:08d}")


def supersede_scores(root: Path, done: Callable[[str], object]) -> None:
    """Replace scores by newer ones, as `featurestore score` does: the old ones go first, record
    before file."""
    store = Store.create(root, RUN)
    if store.record("scores/one", "new") is None:
        store.append("scores/one", "old", ROWS.slice(0, 50), (), made_by={})
        old = store.record("scores/one", "old")
        assert old is not None
        store.remove(old)
        store.append("scores/one", "new", ROWS.slice(50, 70), (), made_by={})
    done("scores/one/new")


STATS_ROWS = pa.Table.from_pylist(
    [{"sample_id": i // 10, "step": i % 10, "timestep": 1.0, "branch": "cond", "feature": i, "sum": i / 7,
      "max": i / 9, "n_positions": 1} for i in range(60)], schema=STATS)  # fmt: skip


def compact_shards(root: Path, done: Callable[[str], object], n_shards: int = 3) -> None:
    """Fill a table and compact it; of what was compacted the new shard and the card are
    promised to stay."""
    store = Store.prepare(root, RUN)
    for number in range(n_shards):
        rows = STATS_ROWS.slice(20 * number, 20)
        ids = (2 * number, 2 * number + 1)
        store.append("stats/one", f"{number:08d}", rows, ids, made_by={})
    compact(store)
    (record,) = store.records("stats/one")
    done(f"stats/one/{record.shard}")
    done("README.md")


def unpack_bundle(bundle: Path) -> Callable[[Path, Callable[[str], object]], None]:
    """Return what unpacks a bundle into ``root/store``."""

    def scenario(root: Path, done: Callable[[str], object]) -> None:
        if not (root / "store").exists():
            unpack(bundle, root / "store")
        done("store")

    return scenario


@dataclass
class Outcome:
    """How often something was tried, and what broke."""

    tried: int = 0
    broken: list[str] = field(default_factory=list)


Scenario = Callable[[Path, Callable[[str], object]], None]


def record_life(scenario: Scenario, root: Path) -> tuple[Trace, list[tuple[int, str]]]:
    """Run a scenario on a traced disk; return the trace, and after how many operations each promise
    was made."""
    promises: list[tuple[int, str]] = []
    root.mkdir()
    with traced(root) as trace:
        scenario(root, lambda what: promises.append((len(trace.ops), what)))
    return trace, promises


def cut_power(
    scenario: Scenario,
    work: Path,
    states_per_moment: int,
    ignored_site: str | None = None,
    stop_at_first: bool = False,
) -> Outcome:
    """Cut the power after every operation of a scenario, in several ways each; see what is left,
    and go on from there."""
    trace, promises = record_life(scenario, work / "life")
    reference = tree(work / "life")
    disk, rng, outcome = PowerCut(ignored_site), random.Random(0), Outcome()
    states = list(itertools.product(range(len(trace.ops) + 1), range(states_per_moment)))
    if stop_at_first:  # What a missing sync does shows best with all lost, at the end or after it.
        after = {i + 1 for i, op in enumerate(trace.ops) if op.site == ignored_site}
        states.sort(key=lambda one: (one[1] % 6 != 1, one[0] < len(trace.ops), one[0] not in after))
    for moment, number in states:
        if moment < disk.applied:
            disk = PowerCut(ignored_site)
        for op in trace.ops[disk.applied : moment]:
            disk.apply(op)
        kept = [what for at, what in promises if at <= moment]
        left = work / "left"
        # All kept, all lost, and mixtures; a file may be there with nothing or with garbage in it.
        keep = (1.1, -0.1, 0.5, 0.8, 0.2, 0.95)[number % 6]
        disk.leave(left, rng, keep, garble=rng.choice((0.0, 0.5, 1.0)))
        outcome.tried += 1
        wrong = _wrong(left, kept) or _wrong_after(scenario, left, reference)
        shutil.rmtree(left)
        if wrong:
            outcome.broken.append(f"after operation {moment}, {keep}: {wrong}")
            if stop_at_first:
                return outcome
    return outcome


def sync_sites(scenario: Scenario, work: Path) -> list[str]:
    """Return the places in the code that a scenario's syncs come from."""
    trace, _ = record_life(scenario, work / "sites")
    return sorted({op.site for op in trace.ops if op.kind == "sync"})


def refuse_each(scenario: Scenario, work: Path, error: int) -> Outcome:
    """Refuse each operation once (errno 0: cut the writes short): the store must stay whole, a
    second run end right."""
    trace, _ = record_life(scenario, work / "life")
    reference, outcome = tree(work / "life"), Outcome()
    for number, op in enumerate(trace.ops):
        if not error and op.kind != "write":
            continue
        root = work / f"refused-{number}"
        root.mkdir()
        outcome.tried += 1
        wrong = ""
        with traced(root, fail_at=number, error=error):
            try:
                scenario(root, lambda what: None)
            except (DiskError, ShareError) as refusal:
                if not error:
                    wrong = f"a short write failed: {refusal}"
                elif (
                    "\n" in str(refusal)
                    or str(root) not in str(refusal)
                    or os.strerror(error) not in str(refusal)
                ):
                    wrong = f"unclear: {refusal}"
                elif error == errno.ENOSPC and "are free" not in str(refusal):
                    wrong = f"does not say how much is needed: {refusal}"
            except OSError as raw:
                wrong = f"a bare {type(raw).__name__}: {raw}"
        wrong = wrong or _wrong(root, []) or _wrong_after(scenario, root, reference)
        if wrong:
            outcome.broken.append(f"{op.kind} {op.path} ({number}): {wrong}")
        shutil.rmtree(root)
    return outcome


def _stores(root: Path) -> Iterator[Store]:
    for mark in root.rglob("manifest/store.json"):
        if ".unpacking" not in str(mark.relative_to(root)):
            yield Store.open(mark.parent.parent)


def _wrong(root: Path, promised: list[str]) -> str:
    """Return what is wrong with what is left; empty if every record holds and every promise was
    kept."""
    try:
        stores = list(_stores(root))
    except FeatureStoreError as error:
        return f"does not open: {error}"
    for store in stores:
        damage = [problem for problem in verify(store) if problem.damage]
        if damage:
            return f"{damage[0].path} {damage[0].what}"
    for what in promised:
        if what == "README.md":
            card = root / what
            if not card.exists() or card.read_bytes() != make_card(stores[0]).encode():
                return "the card was promised and is gone"
            continue
        path = root / what if what == "store" else root / "manifest" / f"{what}.json"
        if not path.exists():
            return f"{what} was promised and is gone"
    if "store" in promised and not any(store.tables() for store in stores):
        return "the unpacked store is empty"
    return ""


def _wrong_after(scenario: Scenario, root: Path, reference: dict[str, bytes]) -> str:
    """Run the scenario again where it stopped; return how the end differs from that of an
    undisturbed run."""
    with _no_sync():
        try:
            scenario(root, lambda what: None)
        except FeatureStoreError as error:
            return f"cannot go on: {error}"
    found = tree(root)
    if found != reference:
        different = sorted(
            k for k in set(found) | set(reference) if found.get(k) != reference.get(k)
        )
        return f"ends with another {different[0]}"
    return ""


@contextlib.contextmanager
def _no_sync() -> Iterator[None]:
    real = os.fsync
    os.fsync = lambda descriptor: None  # type: ignore[assignment]
    try:
        yield
    finally:
        os.fsync = real


def tree(root: Path) -> dict[str, bytes]:
    """Return the files of a directory; leftovers, which are never read, do not count."""

    def counts(path: Path) -> bool:
        hidden = any(
            part.endswith((".tmp", ".unpacking")) or part == ".work"
            for part in path.relative_to(root).parts
        )
        return path.is_file() and not hidden

    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if counts(path)
    }


def make_bundle(work: Path, n_shards: int = 3) -> Path:
    """Return a bundle of a small store: two tables, ``n_shards`` each."""
    append_shards(work / "packed", lambda what: None, n_shards)
    pack(Store.open(work / "packed"), work / "packed.tar.zst")
    return work / "packed.tar.zst"
