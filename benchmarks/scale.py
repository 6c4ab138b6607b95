"""What every command and question that reads costs, and how it grows with shards and with rows.

python benchmarks/scale.py DIRECTORY                    all of it, hours on a quiet machine
python benchmarks/scale.py DIRECTORY --scales 1 10 --rows 0.1 1 --only sql --seconds 300
python benchmarks/scale.py DIRECTORY --record NOTE      write what was measured into the results
python benchmarks/scale.py DIRECTORY --page             put the last results into docs/scale.md

Stores of 1, 10 and 100 times the published number of shards of ``samples`` (5,200, of 16 rows; at
100 × the files of a style are one file of many names), and of statistics a tenth, 1, 3 and 10 times
the published rows (benchmarks/large_store.py; 188 million), made in DIRECTORY. Each
command runs in a process of its own and is watched from outside (scaling/watch.py). What is
measured is kept in DIRECTORY/scale.jsonl and not measured again, so this can be called in pieces;
at the end the tables are printed. ``--former``: the same by a checkout of another version, over the
same files with records that it reads. A time is told where other processes had less than a tenth of
it; the processors' time, memory, files and bytes do not depend on them.
"""

import argparse
import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import large_store
from scaling.many_shards import SHARDS, as_former, make_shards
from scaling.page import write_page
from scaling.tasks import Task, row_peers, row_tasks, shard_peers, shard_tasks
from scaling.watch import run

LINKED = 100
"""times the published number of shards from which on files are links"""
GROW = ("cpu", "mb", "files", "read_mb")
TOLD = ("kind", "scale", "version", "name")
"""what tells a measurement apart"""
Row = dict[str, Any]


class Place(NamedTuple):
    """A store, and what is asked of it."""

    kind: str
    scale: float
    root: Path
    tasks: Callable[[Path], Iterator[Task]]
    peers: Callable[[Path], Iterator[Task]]


def places(directory: Path, options: argparse.Namespace) -> Iterator[Place]:
    """Make the stores that are not there, and yield them."""
    for scale in options.scales:
        root = directory / f"shards-{scale:g}"
        make_shards(root, round(SHARDS * scale), linked=scale >= LINKED)
        yield Place("shards", scale, root, shard_tasks, shard_peers)
    for scale in options.rows:
        root = directory / f"rows-{scale:g}"
        large_store.make(root, scale)
        yield Place("rows", scale, root, row_tasks, row_peers)


def jobs(place: Place, former: Path | None) -> Iterator[tuple[str, Path, Path, Task]]:
    """Yield version, checkout, store and task of all that is measured over a store."""
    here = Path(__file__).resolve().parents[1]
    for task in chain(place.tasks(place.root), place.peers(place.root)):
        yield "now", here, place.root, task
    if former is not None and place.scale < LINKED:
        old = as_former(place.root)
        for task in place.tasks(old):
            if task.former:
                yield "0.1", former, old, task


def measure(task: Task, root: Path, *, code: Path, cache: Path) -> Row:
    """Return the figures of a task: of its second run, or of its only one."""
    if task.fresh:
        shutil.rmtree(cache, ignore_errors=True)
    if not task.copied:
        took = run(task.argv, root, code=code, cache=cache, limit=task.limit)
        if task.once or task.fresh or "failed" in took:
            return took
        return run(task.argv, root, code=code, cache=cache, limit=task.limit)
    copy = root.with_name(f"{root.name}-copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(root, copy)
    try:
        argv = [str(copy) if word == str(root) else word for word in task.argv]
        return run(argv, copy, code=code, cache=cache, limit=task.limit)
    finally:
        shutil.rmtree(copy)


def exponent(sizes: list[float], values: list[float]) -> float | None:
    """Return the fitted exponent b of value = a · size^b (least squares in logarithms)."""
    pairs = [(math.log(x), math.log(y)) for x, y in zip(sizes, values, strict=True) if y > 0]
    if len(pairs) < 2:
        return None
    mx, my = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
    return sum((x - mx) * (y - my) for x, y in pairs) / sum((x - mx) ** 2 for x, _ in pairs)


def laws(rows: Iterable[Row]) -> Iterator[tuple[tuple[str, str, str], dict[str, float | None]]]:
    """Yield kind, version and name of what was measured at several scales, and the exponents of its
    growth."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if "failed" not in row:
            groups.setdefault((row["kind"], row["version"], row["name"]), []).append(row)
    for about, of in groups.items():
        if len(of) > 1:
            sizes = [row["scale"] for row in of]
            yield about, {key: exponent(sizes, [row[key] or 0 for row in of]) for key in GROW}


def tables(rows: Iterable[Row]) -> str:
    """Return the figures as Markdown tables: what was measured, and the law of growth."""
    rows = sorted(rows, key=lambda r: (r["kind"], r["name"], r["version"], r["scale"]))
    lines = [
        "| | × | version | s | processor s | MB | files opened | MB read | MB of files hashed |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        start = f"| {row['name']} ({row['kind']}) | {row['scale']:g} | {row['version']} |"
        if "failed" in row:
            lines.append(f"{start} {row['failed']} | | | | | |")
            continue
        seconds = f"{row['s']:.2f}" if row.get("others", math.inf) < row["s"] / 10 else ""
        files = "too many to count" if row["files"] is None else f"{row['files']:,}"
        numbers = [f"{row['cpu']:.2f}", f"{row['mb']:,.0f}", files]
        numbers += [f"{row.get(key, math.nan):,.1f}" for key in ("read_mb", "files_hashed_mb")]
        lines.append(f"{start} {seconds} | {' | '.join(numbers)} |")
    lines += ["", "Grows with size to the power:", ""]
    lines += ["| | version | processor s | MB | files | MB read |", "|---|---|---:|---:|---:|---:|"]
    for (kind, version, name), grows in laws(rows):
        told = ["" if grows[key] is None else f"{grows[key]:.2f}" for key in GROW]
        lines.append(f"| {name} ({kind}) | {version} | {' | '.join(told)} |")
    return "\n".join(lines)


def figures(rows: Iterable[Row]) -> dict[str, Any]:
    """Return what is recorded: figures of each run, and the exponents of growth."""
    rows = list(rows)
    found: dict[str, Any] = {}
    for row in rows:
        numbers = {key: value for key, value in row.items() if key not in TOLD}
        rounded = {k: round(v, 3) if isinstance(v, float) else v for k, v in numbers.items()}
        found[f"{row['kind']} {row['scale']:g} x, {row['version']}: {row['name']}"] = rounded
    for (kind, version, name), grows in laws(rows):
        rounded = {key: None if b is None else round(b, 2) for key, b in grows.items()}
        found[f"grows with {kind}, {version}: {name}"] = rounded
    return found


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--scales", type=float, nargs="*", default=[1, 10, 100])
    parser.add_argument("--rows", type=float, nargs="*", default=[0.1, 1, 3, 10])
    parser.add_argument("--former", type=Path, help="a checkout of version 0.1 (16584f0)")
    parser.add_argument("--only", default="", help="tasks whose name contains this")
    parser.add_argument("--again", action="store_true", help="also what was measured")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin none after these")
    parser.add_argument("--record", metavar="NOTE", help="write the results, with this beside them")
    parser.add_argument("--page", action="store_true", help="only write docs/scale.md anew")
    return parser.parse_args()


def main() -> None:
    """Measure what was not yet, and print the tables."""
    options, began = parse(), time.monotonic()
    if options.page:
        return write_page()
    directory: Path = options.directory
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / "scale.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    done = {_key(row): row for row in map(json.loads, lines)}
    for place in places(directory, options):
        for version, code, root, task in jobs(place, options.former):
            told = dict(zip(TOLD, (place.kind, place.scale, version, task.name), strict=True))
            known = _key(told) in done and not options.again
            left_out = place.kind == "shards" and place.scale >= LINKED and not task.files
            if known or left_out or options.only not in task.name:
                continue
            if time.monotonic() - began > options.seconds:
                break
            cache = directory / f"cache-{version}-{place.kind}"
            row = {**told, **measure(task, root, code=code, cache=cache)}
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            done[_key(row)] = row
            print(row, flush=True)
    print(tables(list(done.values())))
    if options.record:
        from record import record

        record("scale", {"note": options.record, **figures(done.values())})


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[key] for key in TOLD)


if __name__ == "__main__":
    main()
