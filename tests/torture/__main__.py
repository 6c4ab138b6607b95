"""The long form: python -m tests.torture [disk] [strangers]. Writes the figures into
docs/reliability.md.

``disk``: power cuts, refusals, damage, processes. ``strangers``: files that were changed and sealed
again, and races of writers; interrupted, it goes on where it was, with the same code. On a disk in
memory (TMPDIR=/dev/shm) each takes about ten minutes alone; the power cuts are simulated either way.
"""

import datetime
import errno
import hashlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from sae.diffusion.pipelines import load_model
from tests.builders.pipelines import save, tiny_stable_diffusion
from tests.torture import crashes, decoders, flips, mutants, processes, races

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
END = "<!-- end of figures -->"
N_MUTANTS, N_DECODED = 10_000, 10_000
Row = tuple[str, int, int, list[str]]


def rows(work: Path) -> Iterator[Row]:
    """Yield what was done, how often, how many things broke, and which."""
    scenarios = {"appending": crashes.append_shards, "filling in place": crashes.fill_shards,
                 "superseding scores": crashes.supersede_scores, "compacting": crashes.compact_shards,
                 "unpacking": crashes.unpack_bundle(crashes.make_bundle(work))}  # fmt: skip
    for name, scenario in scenarios.items():
        (work / name).mkdir()
        outcome = crashes.cut_power(scenario, work / name, states_per_moment=45)
        yield f"power cuts while {name}: states", outcome.tried, len(outcome.broken), outcome.broken
        needless = []
        sites = crashes.sync_sites(scenario, work / name)
        for number, site in enumerate(sites):
            (work / name / str(number)).mkdir()
            if not crashes.cut_power(
                scenario, work / name / str(number), 12, site, stop_at_first=True
            ).broken:
                needless.append(site)
        yield (
            f"{name} without one of its `fsync`s: not noticed",
            len(sites),
            len(needless),
            needless,
        )
        for error, word in ((errno.ENOSPC, "ENOSPC"), (errno.EIO, "EIO"), (0, "short writes")):
            (work / name / word).mkdir()
            outcome = crashes.refuse_each(scenario, work / name / word, error)
            yield (
                f"{word} at each operation of {name}",
                outcome.tried,
                len(outcome.broken),
                outcome.broken,
            )
    flips.make(work / "flips")
    outcome = flips.damage(work / "flips", 10_000)
    yield (
        "flipped bits and cut files, each through every reader: reads",
        outcome.tried,
        len(outcome.broken),
        outcome.broken,
    )
    for own in (True, False):
        outcome = processes.write_at_once(work / f"writers-{own}", 8, 1000, own)
        what = "of their own" if own else "of the same shards"
        yield (
            f"commits {what} by 8 processes at once, and a reader",
            outcome.tried,
            len(outcome.broken),
            outcome.broken,
        )
    torch.set_num_threads(1)
    model = load_model(
        str(save(tiny_stable_diffusion(work / "tiny"), work / "tiny" / "model")), "cpu"
    )
    (work / "kills").mkdir()
    kills = processes.kill(model, work / "kills", 1000)
    yield (
        f"`kill -9` while collecting ({kills.runs} runs came to their end)",
        kills.tried,
        len(kills.broken),
        kills.broken,
    )
    yield "samples lost by them", kills.tried, kills.lost, []


def stranger_rows(work: Path) -> Iterator[Row]:
    """Yield what became of stores that were changed and sealed again, and of files that two write
    at once."""
    found = mutants.mutate(
        work,
        N_MUTANTS,
        kept=_kept(),
        progress=lambda r: print(f"  {r.mutants:,}, {len(r.wrong)} wrong", flush=True),
    )
    yield from mutant_rows(found)
    (work / "decoders").mkdir()
    decoded = decoders.decode(work / "decoders", N_DECODED)
    yield (
        f"Parquet files that contradict themselves ({decoded.passed:,} pass the gate, and are then "
        f"decoded by pyarrow, DuckDB and Polars): the process ended, hung or took more than "
        f"{decoders.MAX_GROWTH_MB} MB",
        decoded.tried,
        len(decoded.broken),
        decoded.broken,
    )
    (work / "races").mkdir()
    outcome = races.race(work / "races", 10)
    yield (
        "races of two writers, other bytes under one name",
        outcome.tried,
        len(outcome.broken),
        outcome.broken,
    )


def _kept() -> Path:
    """Return the directory of what was tried of this code already; any other's is removed."""
    digest = hashlib.sha256()
    for room in ("featurestore", "queries", "sae", "tests/torture", "tests/builders"):
        for path in sorted((ROOT / room).rglob("*")):
            if path.suffix in (".py", ".sql"):
                digest.update(path.read_bytes())
    place = ROOT / "build" / "torture" / digest.hexdigest()[:16]
    for other in place.parent.glob("*"):
        if other != place:
            shutil.rmtree(other)
    place.mkdir(parents=True, exist_ok=True)
    return place


def mutant_rows(found: mutants.Report) -> Iterator[Row]:
    """Yield the rows of a report."""
    yield (
        f"files changed and sealed again: mutants ({found.refused:,} refusals)",
        found.mutants,
        len(found.wrong),
        found.wrong,
    )
    yield (
        "… through a reader or writer: tracebacks, or more than one line",
        found.ways,
        len(found.broken),
        found.broken,
    )
    yield "… the process ended", found.ways, len(found.died), found.died
    yield (
        "… something outside of the store read or written",
        found.ways,
        len(found.outside),
        found.outside,
    )
    yield f"… hangs, above {mutants.MAX_SECONDS} s", found.ways, len(found.hangs), found.hangs
    yield (
        f"… memory, above {mutants.MAX_GROWTH_MB} MB (at most {found.peak_mb})",
        found.ways,
        len(found.large),
        found.large,
    )


PARTS: dict[str, Callable[[Path], Iterator[Row]]] = {"disk": rows, "strangers": stranger_rows}


def main() -> None:
    """Run what the command line names, or everything; print it, and write a table for each part."""
    for part in sys.argv[1:] or PARTS:
        with tempfile.TemporaryDirectory() as directory:
            # No progress bar: a process that is killed while it holds tqdm's lock would keep it for
            # ever.
            write_table(part, PARTS[part](Path(directory)))


def write_table(part: str, found: Iterator[Row]) -> None:
    """Print rows as they come, and put them into the page; where anything broke, it stays as it
    was."""
    lines, broken = ["| what | times | broken |", "|---|---:|---:|"], 0
    for what, tried, wrong, which in found:
        lines.append(f"| {what} | {tried:,} | {wrong} |")
        print(f"{what}: {tried:,}, broken {wrong} {which[:3] or ''}", flush=True)
        broken += wrong
    lines.append(f"\nMeasured on {datetime.date.today().isoformat()}.\n")
    if broken:
        raise SystemExit(f"{broken} broken: {PAGE.name} stays as it was.")
    begin, page = f"<!-- figures: {part} -->\n", PAGE.read_text(encoding="utf-8")
    head, _, rest = page.partition(begin)
    PAGE.write_text(
        head + begin + "\n".join(lines) + END + rest.partition(END)[2], encoding="utf-8"
    )


if __name__ == "__main__":
    main()
