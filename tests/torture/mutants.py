"""A store that somebody changed on purpose, its checksums made right again: through every reader
and writer.

Each mutant must be refused with one line, or read as what it says; nothing outside the store may be
opened, whatever it names (seen by the kernel), nothing may hang, and no small file may take much
memory.
"""

import contextlib
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

from featurestore.errors import FeatureStoreError
from featurestore.format import checksums, verified
from featurestore.format.durable import claims
from featurestore.format.records import listing
from tests.builders.watch import Touched, Writes
from tests.torture.chamber import Chamber
from tests.torture.changes import change
from tests.torture.mutate import (
    mutate_bytes,
)

FORK = multiprocessing.get_context("fork")
MAX_GROWTH_MB = 600
MAX_SECONDS = 120
_CHUNK = 250


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
            (work / "last").write_text(f"{seed} nothing yet: change")
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
