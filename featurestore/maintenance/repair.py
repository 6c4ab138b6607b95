"""Bring a store whose files were lost or changed back to a sound state; nothing is ever deleted.

What follows from something else is made anew: the card, the ledger, a record whose file is whole
(its bytes must have the SHA-256 that the ledger has of it), the store's mark (its run must give the
ids of the samples). What cannot be is set aside in ``.set-aside/``, so that its command makes it
again; what killed processes left half-written is removed.
"""

from dataclasses import dataclass
from pathlib import Path

from featurestore.card import write_card
from featurestore.errors import DamageError, NotAStoreError
from featurestore.format import durable
from featurestore.format.canonical import sealed
from featurestore.format.gate import MalformedError, parse_json, read_regular
from featurestore.format.ledger import LEDGER, read_ledger, update_ledger
from featurestore.format.records import (
    MARK,
    Record,
    is_name,
    is_table,
    shard_files,
)
from featurestore.maintenance.evidence import gives_ids, rebuilt_record
from featurestore.maintenance.verify import Problem, verify
from featurestore.store import Store
from featurestore.vocabulary import FORMAT, FORMAT_VERSION

ASIDE = ".set-aside"
_MAX_CARD_BYTES = 64 * 2**20
_AGAIN = {
    "samples": "the same 'featurestore collect' makes it again",
    "activations": "the same 'featurestore collect' makes it again",
    "attention": "the same 'featurestore collect' makes it again",
    "codes": "'featurestore encode --store {store} --sae {name}' makes it again",
    "stats": "'featurestore encode --store {store} --sae {name}' makes it again",
    "labels": "'featurestore relabel' makes it again",
    "selections": "'featurestore export' without -o makes it again",
    "saes": "'featurestore train' or 'featurestore sae import' makes it again",
}
_DERIVED = "it is derived, and made again when it is needed"


@dataclass(frozen=True)
class Step:
    """What is done about a problem."""

    path: str
    """relative to the store"""
    found: str
    does: str
    """``rebuilt``, ``set aside``, ``removed`` or ``left``"""
    advice: str = ""
    aside: tuple[str, ...] = ()
    record: Record | None = None
    mark: bytes = b""
    forget: str = ""


def repair(path: Path, deep: bool = False, dry_run: bool = False) -> list[Step]:
    """Mend a store; return what was done, or with ``dry_run`` would be. ``deep`` also looks at
    every value.

    Raises:
        NotAStoreError: there is no store at ``path``.
        DamageError: its mark is lost, and nothing says which run it was.
        DiskError: the operating system refused.
    """
    steps = [_mark_step(path)] if not _opens(path) else []
    if not dry_run:
        _apply(path, steps)
    run = None if dry_run and steps else Store.open(path).run
    store = Store(path, run)
    steps += _plan(store, [problem for problem in verify(store, deep) if problem.path != str(MARK)])
    if not dry_run:
        _apply(path, steps[1:] if steps and steps[0].mark else steps)
        write_card(store)
    return steps


def _opens(path: Path) -> bool:
    if not (path / "manifest").is_dir():
        raise NotAStoreError(f"no store at {path}: it has no directory 'manifest'.")
    try:
        Store.open(path)
    except (NotAStoreError, DamageError):
        return False
    return True


def _mark_step(root: Path) -> Step:
    """Return what makes the mark anew from the run that the card tells, which must give the ids of
    the samples."""
    lost = f"{root / MARK} is lost or damaged, and"
    try:
        card = read_regular(root / "README.md", _MAX_CARD_BYTES).decode()
        run = parse_json(card.partition("\n```json\n")[2].partition("\n```\n")[0])
    except (OSError, MalformedError, UnicodeDecodeError) as error:
        raise DamageError(
            f"{lost} README.md does not tell the run ({error}): put either back from a copy."
        ) from error
    if not isinstance(run, dict) or not gives_ids(root, run):
        raise DamageError(
            f"{lost} the run in README.md is not that of the samples: put either back from a copy."
        )
    mark = sealed({"format": FORMAT, "format_version": FORMAT_VERSION, "run": run})
    found = "was lost or changed; the run in README.md gives the ids of the samples"
    aside = (str(MARK),) if (root / MARK).is_symlink() or (root / MARK).exists() else ()
    return Step(str(MARK), found, "rebuilt", aside=aside, mark=mark)


def _plan(store: Store, problems: list[Problem]) -> list[Step]:
    try:
        committed = read_ledger(store.root)
    except DamageError:
        committed = {}
    steps: list[Step] = []
    handled: set[tuple[str, str]] = set()
    for problem in problems:
        shard = shard_of(problem.path)
        if shard in handled:
            continue
        steps.append(_step(store, problem, shard, committed))
        if shard is not None:
            handled.add(shard)
    return steps


def shard_of(path: str) -> tuple[str, str] | None:
    """Return table and shard of a record's or a data file's path, relative to the store; None for
    other files."""
    folder, _, name = path.removeprefix("manifest/").rpartition("/")
    if path.startswith("manifest/"):
        shard = name.removesuffix(".json")
    elif folder.startswith("saes/"):
        folder, _, shard = folder.partition("/")
    else:
        shard = name.removesuffix(".parquet")
    known = is_table(folder) and is_name(shard) and not name.startswith(".")
    return (
        (folder, shard)
        if known and (path.endswith(".json") or path in shard_files(folder, shard))
        else None
    )


def _step(
    store: Store, problem: Problem, shard: tuple[str, str] | None, committed: dict[str, str]
) -> Step:
    path, found = problem.path, problem.what
    where = store.root / path
    if path == LEDGER:
        return Step(path, found, "rebuilt", aside=(path,))
    if durable.TEMPORARY.fullmatch(where.name) and not problem.damage:
        return Step(path, found, "removed", "unless another process is writing it")
    if where.is_symlink() or (shard is None and path.startswith("manifest/")):
        return Step(path, found, "set aside", aside=(path,))
    if shard is None:
        return Step(
            path, found, "left", "give yourself the right to read it, or put it back from a copy"
        )
    return _shard_step(store, problem, shard, committed)


def _shard_step(
    store: Store, problem: Problem, of: tuple[str, str], committed: dict[str, str]
) -> Step:
    """Return what mends a shard: its record anew if its file is whole, else all of it set aside."""
    table, shard = of
    location = f"manifest/{table}/{shard}.json"
    files = [path for path in shard_files(table, shard) if _there(store.root / path)]
    record_there = [location] if _there(store.root / location) else []
    rebuilt = rebuilt_record(store, table, shard, committed.get(location, ""))
    if rebuilt is not None:
        return Step(location, problem.what, "rebuilt", aside=tuple(record_there), record=rebuilt)
    kind, _, name = table.partition("/")
    advice = _AGAIN.get(kind, _DERIVED).format(store=store.root, name=name)
    if not problem.damage:
        advice = "no record names it; " + advice
    aside = (*record_there, *files)
    return Step(
        problem.path,
        problem.what,
        "set aside" if aside else "given up",
        advice,
        aside,
        forget=location,
    )


def _there(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _apply(root: Path, steps: list[Step]) -> None:
    for step in steps:
        shard = shard_of(step.path)
        if shard is None:
            _do(root, step)
            continue
        claim = durable.Claim.take(root.joinpath(".work", "claims", *shard), wait=True)
        assert claim is not None, "waited for"
        with claim:
            committed_since = f"manifest/{shard[0]}/{shard[1]}.json"
            if committed_since in step.aside or not (root / committed_since).exists():
                _do(root, step)


def _do(root: Path, step: Step) -> None:
    for path in step.aside:
        if _there(root / path):
            durable.set_aside(root / path, _free(root / ASIDE / path))
    if step.does == "removed":
        durable.clear_dead((root / step.path).parent)
    if step.mark:
        durable.create_once(root / MARK, step.mark)
    if step.record is not None:
        durable.create_once(root / step.record.location, step.record.to_bytes())
    if step.forget:
        update_ledger(root, frozenset([step.forget]))


def _free(path: Path) -> Path:
    """Return a path that is not taken."""
    number, free = 0, path
    while _there(free):
        number += 1
        free = path.with_name(f"{path.name}.{number}")
    return free
