"""What every command and question that reads costs, and how it grows with shards and with rows.

python benchmarks/scale.py DIRECTORY [--published STORE] [--former CHECKOUT] [--only WORD]

Stores of 1 and 10 times the published number of `samples` shards (5,200, of 16 rows) and the
records alone of 100 times, made in DIRECTORY; of statistics a tenth of the published rows
(benchmarks/large_store.py) and a store of published size. Each command runs in a process of its
own: seconds and processor seconds, memory, files of the store that were opened (inotify), bytes
read (the kernel's count for the process, its libraries among them). What is measured is kept in
DIRECTORY/scale.jsonl, and not measured again; at the end the table is printed. ``--former``: the
same by a checkout of another version, over the same files with records that it reads.
"""

import argparse
import ctypes
import hashlib
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from featurestore import Store
from featurestore.format import durable
from featurestore.format.canonical import sample_id, sealed, shard_name
from featurestore.format.parquet import layout
from featurestore.format.schemas import samples_schema
from featurestore.store import shards

SHARDS, SAMPLES = 5200, 16
RUN = {"model": "m", "model_hash": "f16:0", "scheduler": {"class": "D", "config": {}}, "n_steps": 50,
       "guidance": 9.0, "negative_prompt": "", "height": 512, "width": 512, "dtype": "float16"}  # fmt: skip
LIST = "import sys; from featurestore import Store; s = Store.open(sys.argv[1]); "
INSIDE = """
import atexit, re, runpy, sys
from pathlib import Path
# Not by the parent's account: there a child begins with the parent's size.
peak = lambda: re.search(r"VmHWM:\\s+([0-9]+)", Path("/proc/self/status").read_text())[1]
atexit.register(lambda to=sys.argv[1]: Path(to).write_text(peak()))
kind, what, *sys.argv[1:] = sys.argv[2:]
if kind == "-m":
    runpy.run_module(what, run_name="__main__", alter_sys=True)
else:
    exec(what, {"__name__": "__main__"})
"""
"""runs ``-m module …`` or ``-c code …`` and writes down how much memory it had at most"""
_OPEN, _Q_OVERFLOW, _EVENT = 0x20, 0x4000, struct.Struct("iIII")


class Task(NamedTuple):
    """A command or question, and what it answers."""

    name: str
    argv: list[str]
    former: bool = True
    """whether version 0.1 has it"""


def shard_tasks(root: Path) -> list[Task]:
    """Return what is asked of a store of many shards."""
    store = str(root)
    one = Store.open(root).record("samples", _name(root, 77))
    assert one is not None
    sql = ["-m", "featurestore", "sql", store]
    append = (
        "r = s.records('samples')[5] if len(sys.argv) > 9 else None; import pyarrow as pa; "
        "from featurestore.format.schemas import STATS; "
        "t = pa.table({n: pa.array(['cond'] if n == 'branch' else [1], STATS.field(n).type) for n in STATS.names}, "
        "schema=STATS); import os; s.append('stats/x', str(os.getpid()), t, [1], made_by={})"
    )
    return [
        Task("open", ["-c", LIST, store]),
        Task("tables", ["-c", LIST + "s.tables()", store]),
        Task("append one shard", ["-c", LIST + append, store], former=False),
        Task("records", ["-c", LIST + "assert len(s.records('samples'))", store]),
        Task("collect's resume: committed samples", ["-c", LIST + "s.committed_samples('samples')", store]),
        Task("info", ["-m", "featurestore", "info", store]),
        Task("sql: count(*)", [*sql, "select count(*) from samples"]),
        Task("sql: one sample", [*sql, f"select prompt from samples where sample_id = {one.sample_ids[3]}"]),
        Task("sql: one style", [*sql, "select count(prompt) from samples where style = 'style 7'"]),
        Task("sql: every row", [*sql, "select style, count(prompt) from samples group by style"]),
    ]  # fmt: skip


def row_tasks(root: Path) -> list[Task]:
    """Return what is asked of a store of many rows of statistics."""
    store = str(root)
    stats = Store.open(root).records("stats/s")
    sql, ask = ["-m", "featurestore", "sql", store], ["-m", "featurestore", "query", store]
    p = lambda *pairs: [word for pair in pairs for word in ("-p", pair)]  # noqa: E731
    return [
        Task("sql: one sample of stats", [*sql, f"select sum(sum) from stats where sample_id = {stats[9].sample_ids[2]}"]),
        Task("sql: all of stats", [*sql, "select sum(n_positions) from stats"]),
        Task("query: top_samples", [*ask, "top_samples", *p("sae=s", "feature=77")]),
        Task("query: feature_card", [*ask, "feature_card", *p("sae=s", "feature=77")]),
        Task("query: timestep_profile", [*ask, "timestep_profile", *p("sae=s", "feature=77")]),
    ]  # fmt: skip


def peers(root: Path, kind: str) -> Iterator[Task]:
    """Yield the same by other tools, which verify nothing."""
    files = f"{root}/{'samples' if kind == 'shards' else 'stats/s'}/*.parquet"
    what = (
        "style, count(prompt) from t group by style"
        if kind == "shards"
        else "sum(n_positions) from t"
    )
    duck = "import sys, duckdb; print(duckdb.sql(f\"select {sys.argv[2]}\".replace('from t', f\"from '{sys.argv[1]}'\")).fetchall())"
    name = "every row" if kind == "shards" else "all of stats"
    yield Task(f"DuckDB, plain: {name}", ["-c", duck, files, what], former=False)
    if kind == "shards":
        yield Task("DuckDB, plain: count(*)", ["-c", duck, files, "count(*) from t"], former=False)
        load = "import sys, datasets; print(datasets.load_dataset('parquet', data_files=sys.argv[1], split='train', cache_dir=sys.argv[2]).num_rows)"
        yield Task(
            "datasets: load (writes a copy)", ["-c", load, files, f"{root}.cache"], former=False
        )
        return
    spark = (
        "import sys; from pyspark.sql import SparkSession; s = SparkSession.builder.master('local[2]')"
        ".config('spark.driver.memory', '4g').config('spark.ui.enabled', 'false').getOrCreate(); "
        "print(s.read.schema('n_positions int, step int, feature int').parquet(sys.argv[1]).createOrReplaceTempView('t') or s.sql(sys.argv[2]).collect())"
    )
    groups = "step, count(*) n, sum(n_positions) p from t group by step order by step limit 3"
    folder = f"{root}/stats/s"
    yield Task(
        "DuckDB, plain: rows and positions per step", ["-c", duck, files, groups], former=False
    )
    yield Task(
        "Spark local[2]: rows and positions per step",
        ["-c", spark, folder, f"select {groups}"],
        former=False,
    )
    yield Task(
        "Spark local[2]: all of stats", ["-c", spark, folder, f"select {what}"], former=False
    )


def _name(root: Path, number: int) -> str:
    ids = _ids(number)
    return shard_name(number * SAMPLES, ids)


def _ids(number: int) -> list[int]:
    return [sample_id("benchmark", f"p{number}", seed) for seed in range(SAMPLES)]


def make_shards(root: Path, n: int, files: bool = True) -> None:
    """Make a store of ``n`` shards of samples, or of their records alone, if it is not whole."""
    if (root / "whole").exists():
        return
    shutil.rmtree(root, ignore_errors=True)
    store = Store.create(root, RUN)
    contents: dict[int, Any] = {}
    for number in range(n):
        style, ids = number * 50 // n, _ids(number)
        shard = _name(root, number)
        path = root / f"samples/{shard}.parquet"
        if style not in contents:
            contents[style] = _first_file(root, path, style, ids)
        record, data = contents[style]
        if files:
            path.write_bytes(data)  # the rows of its style's first shard
        elif number and path.exists():
            path.unlink()
        entry = record.files[0].__class__(
            f"samples/{shard}.parquet", len(data), record.files[0].sha256
        )
        again = record.__class__("samples", shard, record.schema, record.rows, tuple(ids), (entry,), {"v": "1"},
                                 record.contents)  # fmt: skip
        (root / again.location).write_bytes(again.to_bytes())
    old = time.time() - 60
    del store
    os.utime(root / "manifest/store.json", (old, old))
    (root / "whole").touch()


def _first_file(root: Path, path: Path, style: int, ids: list[int]) -> tuple[Any, bytes]:
    n = len(ids)
    columns = {"sample_id": ids, "prompt": ["p"] * n, "seed": list(range(n)), "style": [f"style {style}"] * n,
               "object": [f"thing {i}" for i in range(n)], "guidance": [9.0] * n, "n_steps": [50] * n,
               "scheduler": ["D"] * n, "model": ["m"] * n, "model_hash": ["f16:0"] * n, "height": [512] * n,
               "width": [512] * n}  # fmt: skip
    rows = pa.Table.from_pydict(columns, schema=samples_schema(["style", "object"]))
    for folder in (path.parent, root / "manifest/samples"):
        folder.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        layout.write_table(file, rows)
    data = path.read_bytes()
    written = durable.Written(len(data), hashlib.sha256(data).hexdigest())
    new = shards.NewShard("samples", path.stem, tuple(ids), {"v": "1"})
    return shards._record(root, new, rows.schema, written), data


def as_former(root: Path) -> Path:
    """Return a store of the same files whose records version 0.1 reads."""
    former = root.with_name(f"{root.name}-former")
    if not (former / "whole").exists():
        shutil.rmtree(former, ignore_errors=True)
        shutil.copytree(root, former, copy_function=os.link)
        for path in (former / "manifest").rglob("*.json"):
            body = json.loads(path.read_bytes())
            for key in ("contents", "sha256"):
                body.pop(key, None)
            path.unlink()
            path.write_bytes(sealed(body | {"format_version": 1}))
    return former


class Opened(threading.Thread):
    """Counts the files below some directories that anything opens, by what the kernel says."""

    def __init__(self, root: Path) -> None:
        super().__init__(daemon=True)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        folders = [p for p in (root, *root.rglob("*")) if p.is_dir() and ".work" not in p.parts]
        for folder in folders:
            self._libc.inotify_add_watch(self._fd, os.fsencode(folder), _OPEN)
        self.found: set[tuple[int, bytes]] = set()
        self.overflow, self._stop_it = False, threading.Event()

    def run(self) -> None:
        """Take events until :meth:`count` is called."""
        while not self._stop_it.is_set():
            self._drain()
            time.sleep(0.005)

    def _drain(self) -> None:
        try:
            data = os.read(self._fd, 2**20)
        except BlockingIOError:
            return
        while data:
            number, mask, _, size = _EVENT.unpack_from(data)
            name = data[_EVENT.size : _EVENT.size + size].rstrip(b"\0")
            self.overflow |= bool(mask & _Q_OVERFLOW)
            if name and not mask & 0x40000000:  # not a directory
                self.found.add((number, name))
            data = data[_EVENT.size + size :]

    def count(self) -> int | None:
        """Return how many files were opened; None if they were too many to tell."""
        self._stop_it.set()
        self.join()
        self._drain()
        os.close(self._fd)
        return None if self.overflow else len(self.found)


def measure(task: Task, root: Path, code: Path, cache: Path) -> dict[str, Any]:
    """Run a task twice, so that what may be remembered is, and return the figures of the second."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(code),
        "FEATURESTORE_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1",
    }
    peak = root.parent / f"peak-{os.getpid()}.txt"
    for turn in range(2):
        opened = Opened(root) if turn else None
        if opened:
            opened.start()
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-c", INSIDE, str(peak), *task.argv],
            env=environment,
            cwd=code,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None and process.stderr is not None
        out, err = process.stdout.read(), process.stderr.read()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        seconds = time.perf_counter() - began
        io = Path(f"/proc/{process.pid}/io").read_text(encoding="ascii").split()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            return {"failed": err.decode(errors="replace").strip().splitlines()[-1:]}
    assert opened is not None
    return {"s": seconds, "cpu": usage.ru_utime + usage.ru_stime, "mb": int(peak.read_text(encoding="ascii")) / 1024, "files": opened.count(),
            "read_mb": int(io[1]) / 1e6, "answer": hashlib.sha256(out).hexdigest()[:12]}  # fmt: skip


def exponent(sizes: list[float], values: list[float]) -> float | None:
    """Return the fitted exponent b of value = a · size^b (least squares in logarithms)."""
    pairs = [(math.log(x), math.log(y)) for x, y in zip(sizes, values, strict=True) if y > 0]
    if len(pairs) < 2:
        return None
    mx, my = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
    return sum((x - mx) * (y - my) for x, y in pairs) / sum((x - mx) ** 2 for x, _ in pairs)


def main() -> None:
    """Measure what was not yet, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--published", type=Path)
    parser.add_argument("--tenth", type=Path, help="a store of a tenth of the published rows")
    parser.add_argument("--former", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--scales", default="1,10,100")
    options = parser.parse_args()
    log, here = options.directory / "scale.jsonl", Path(__file__).resolve().parents[1]
    options.directory.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    known = {(row["kind"], row["scale"], row["version"], row["name"]) for row in done}
    jobs: list[tuple[str, float, Path, Callable[[Path], list[Task]]]] = []
    for scale in map(int, options.scales.split(",")):
        root = options.directory / f"shards-{scale}"
        make_shards(root, SHARDS * scale, files=scale < 100)
        jobs.append(("shards", scale, root, shard_tasks))
    jobs += [
        ("rows", s, r, row_tasks) for s, r in ((0.1, options.tenth), (1, options.published)) if r
    ]
    for kind, scale, root, tasks in jobs:
        for version, code in (("now", here), ("0.1", options.former)):
            if code is None:
                continue
            at = as_former(root) if version == "0.1" and kind == "shards" else root
            asked = tasks(at) + (
                list(peers(at, kind))
                if version == "now" and (kind == "rows" or scale < 100)
                else []
            )
            for task in asked:
                told = (kind, scale, version, task.name)
                if (
                    told in known
                    or options.only not in task.name
                    or (version == "0.1" and not task.former)
                ):
                    continue
                if scale == 100 and task.name in (
                    "sql: one sample",
                    "sql: one style",
                    "sql: every row",
                ):
                    continue  # its files are not there
                row = dict(zip(("kind", "scale", "version", "name"), told, strict=True))
                row |= measure(task, at, code, options.directory / f"cache-{version}")
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                done.append(row)
                print(row, flush=True)
    print(table(done))


def table(rows: list[dict[str, Any]]) -> str:
    """Return the figures as a Markdown table, with the exponent of growth over the scales."""
    lines = [
        "| | × | version | s | processor s | MB | files opened | MB read |",
        "|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for row in sorted(rows, key=lambda r: (r["kind"], r["name"], r["version"], r["scale"])):
        if "s" in row:
            files = "more than 16,000" if row["files"] is None else f"{row['files']:,}"
            lines.append(f"| {row['name']} | {row['scale']:g} | {row['version']} | {row['s']:.2f} | {row['cpu']:.2f} | "
                         f"{row['mb']:,.0f} | {files} | {row['read_mb']:,.0f} |")  # fmt: skip
    lines += ["", "| | version | time grows with size to the power |", "|---|---|---:|"]
    for kind, name, version in sorted({(r["kind"], r["name"], r["version"]) for r in rows}):
        of = [
            r
            for r in rows
            if (r["kind"], r["name"], r["version"]) == (kind, name, version) and "s" in r
        ]
        found = exponent([r["scale"] for r in of], [r["cpu"] for r in of])
        if found is not None:
            lines.append(f"| {name} ({kind}) | {version} | {found:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
