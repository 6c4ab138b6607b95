"""What is asked of a store: every command that reads one without a model, every question."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from featurestore import Store
from queries.questions import MADE, SCOPE, Question, questions
from scaling.many_shards import shard_of


@dataclass(frozen=True)
class Task:
    """A command or question."""

    name: str
    argv: list[str]
    former: bool = False
    """whether version 0.1 has it"""
    once: bool = False
    """whether it is measured the first time; others the second time, when what may be remembered
    is"""
    copied: bool = False
    """whether it changes the store, and is given a copy"""
    files: bool = True
    """whether it opens few files: with 520,000 others are left out"""
    fresh: bool = False
    """whether it is measured with nothing remembered from before"""
    limit: float = 240.0
    """seconds of the processors after which it is stopped"""


WHOLE_TABLES = (
    "sums", "totals", "feature_masks", "feature_samples", "feature_steps", "importance",
    "importance_one_vs_max", "importance_log_ratio", "importance_auroc", "feature_names",
    "random_control", "concepts", "pairs", "feature_sums", "best_sums", "best_step_sums",
    "sample_totals", *SCOPE, *MADE,
)  # fmt: skip
"""questions that answer with a row for every feature, concept and step, or are parts of others:
what they cost is their answer (17 GB of memory for ``pairs`` at the published size); the tables
that are kept are measured where they are made"""
FORMER = (
    "selection", "best_features", "bootstrap", "overlap", "timestep_profile", "feature_card",
    "top_samples", "dead_features", "dense_features", "coactivation", "drift", "compare_stores",
)  # fmt: skip
"""questions that version 0.1 has too, whole tables left out"""
LEFT_OUT = ("top_positions", "feature_map", "position_features", "compare_saes")
"""questions that read features of ``codes``, which the large store leaves out; and the one that
compares every two features that fire together, for which 20,480 latents twice are too many"""
_OPEN = "import sys; from featurestore import Store; s = Store.open(sys.argv[1]); "
_APPEND = (
    "import os, pyarrow as pa; from featurestore.format.schemas import STATS; "
    "one = {n: pa.array(['cond'] if n == 'branch' else [1], STATS.field(n).type) for n in STATS.names}; "
    "s.append('stats/x', str(os.getpid()), pa.table(one, schema=STATS), [os.getpid()], made_by={})"
)
_SUMS = (
    "from queries.derived.sums import find_sums; "
    "[s.remove(r) for k in ('totals', 'sums') for r in s.records(k + '/s') "
    "if r.shard.startswith('{0}-')]; find_sums(s, 's', '{0}', 'cond')"
)
_BY_FEATURE = (
    "from queries.derived.by_feature import BY_FEATURE, keep_by_feature; "
    "[s.remove(r) for k in BY_FEATURE for r in s.records(k + '/s')]; keep_by_feature(s, 's')"
)
_DUCKDB = (
    "import sys, duckdb; f = sys.argv[1]; "
    "print(duckdb.sql(sys.argv[2].replace('from t', f\"from '{f}'\")).fetchall())"
)
_DATASETS = (
    "import sys, datasets; print(datasets.load_dataset('parquet', data_files=sys.argv[1], "
    "split='train', cache_dir=sys.argv[2]).num_rows)"
)
_SPARK = """
import sys
from pyspark.sql import SparkSession
s = SparkSession.builder.master("local[2]").config("spark.driver.memory", "4g").config("spark.ui.enabled", "false")
s = s.getOrCreate()
s.sparkContext.setLogLevel("ERROR")
schema = "sample_id long, n_positions int, step int, feature int" if len(sys.argv) > 3 else None
t = s.read.schema(schema).parquet(sys.argv[1]) if schema else s.read.parquet(sys.argv[1])
t.createOrReplaceTempView("t")
print([tuple(row) for row in s.sql(sys.argv[2]).collect()])
s.stop()
"""
_SELECT = """
import sys
from featurestore import Store
from queries import select
engine = {}
if sys.argv[2] == "spark":
    from pyspark.sql import SparkSession
    from queries.spark import Spark
    builder = SparkSession.builder.master("local[2]").config("spark.driver.memory", "4g")
    session = builder.config("spark.ui.enabled", "false").getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    engine = {"engine": Spark(session)}
chosen = select(Store.open(sys.argv[1]), "s", "style", "style 7", **engine)
print(chosen.rows.select(["step", "feature"]).to_pylist())
if engine:
    session.stop()
"""
PER_STEP = "select step, count(*), sum(n_positions) from t group by step order by step"


def shard_tasks(root: Path) -> Iterator[Task]:
    """Yield what is asked of a store of many shards."""
    store, command = str(root), ["-m", "featurestore"]
    one = Store.open(root).record("samples", shard_of(7))
    assert one is not None
    sql = [*command, "sql", store]
    where = f"select prompt from samples where sample_id = {one.sample_ids[3]}"
    yield Task("start of Python and the library", ["-c", "import featurestore.store.store"], True)
    yield Task("open", ["-c", _OPEN, store], True)
    yield Task("tables", ["-c", _OPEN + "s.tables()", store], True)
    yield Task("append one shard", ["-c", _OPEN + _APPEND, store])
    counted = [*sql, "select count(*) from samples"]
    yield Task("sql: count(*), the first time", counted, fresh=True, limit=7200)
    yield Task("records", ["-c", _OPEN + "assert len(s.records('samples'))", store], True)
    resumed = _OPEN + "assert len(s.committed_samples('samples'))"
    yield Task("collect's resume: committed samples", ["-c", resumed, store], True)
    yield Task("info", [*command, "info", store], True)
    yield Task("sql: count(*)", counted, True)
    yield Task("sql: one sample", [*sql, where], True)
    style = "select count(prompt) from samples where style = 'style 7'"
    yield Task("sql: one style", [*sql, style], True)
    rows = "select style, count(prompt) from samples group by style order by style"
    yield Task("sql: every row", [*sql, rows], True, files=False)
    yield Task("verify", [*command, "verify", store], True, files=False)
    yield Task("repair --dry-run", [*command, "repair", store, "--dry-run"], files=False)
    packed = str(root.parent / "packed.tar.zst")
    yield Task("pack", [*command, "pack", store, packed], once=True, files=False)
    yield Task("compact", [*command, "compact", store], once=True, copied=True, files=False)


def row_tasks(root: Path) -> Iterator[Task]:
    """Yield what is asked of a store of many rows of statistics."""
    store, command = str(root), ["-m", "featurestore"]
    sample = Store.open(root).records("stats/s")[0].sample_ids[2]
    made = {f"sums of {family}": _SUMS.format(family) for family in ("style", "object")}
    for what, code in {**made, "tables by feature": _BY_FEATURE}.items():
        yield Task(f"make {what}", ["-c", _OPEN + code, store], once=True, limit=7200)
    yield Task("open", ["-c", _OPEN, store], True)
    yield Task("info", [*command, "info", store], True)
    yield Task("verify", [*command, "verify", store], True)
    sql = [*command, "sql", store]
    yield Task("sql: one sample of stats", [*sql, f"select sum(sum) from stats where sample_id = {sample}"], True)  # fmt: skip
    yield Task("sql: all of stats", [*sql, "select sum(n_positions) from stats"], True)
    about = ["--sae", "s", "--concept", "style=style 7"]
    out = str(root.parent / "selection.json")
    yield Task("export: one concept", [*command, "export", store, *about, "-o", out], True)
    picture = str(root.parent / "plot.png")
    yield Task("plot: lines", [*command, "plot", store, *about, "-o", picture], True)
    for question in questions().values():
        if question.name not in (*WHOLE_TABLES, *LEFT_OUT):
            asked, former = _ask(question, store, sample), question.name in FORMER
            yield Task(f"query: {question.name}", asked, former)


def _ask(question: Question, store: str, sample: int) -> list[str]:
    values: dict[str, object] = {
        "sae": "s", "other_sae": "s", "family": "style", "concept": "style 7", "sample": sample,
        "other_concept": "style 8", "feature": 77, "features": "77,78", "step": 50,
    }  # fmt: skip
    given = [f"{name}={values[name]}" for name in question.parameters if name in values]
    other = ["--other", store] if "other_stats" in question.relations else []
    pairs = [word for pair in given for word in ("-p", pair)]
    return ["-m", "featurestore", "query", store, question.name, *pairs, *other]


def shard_peers(root: Path) -> Iterator[Task]:
    """Yield the same by other tools, which verify nothing."""
    files = f"{root}/samples/*.parquet"
    rows = "select style, count(prompt) from t group by style order by style"
    yield Task("DuckDB, plain: count(*)", ["-c", _DUCKDB, files, "select count(*) from t"])
    yield Task("DuckDB, plain: every row", ["-c", _DUCKDB, files, rows], files=False)
    cache = f"{root}.cache"
    yield Task("datasets: load (writes a copy)", ["-c", _DATASETS, files, cache], files=False)
    yield Task("Spark local[2]: every row", ["-c", _SPARK, f"{root}/samples", rows], files=False)


def row_peers(root: Path) -> Iterator[Task]:
    """Yield the same by other tools; the selection is this project's SQL on both engines."""
    folder = f"{root}/stats/s"
    yield Task("DuckDB, plain: all of stats", ["-c", _DUCKDB, f"{folder}/*.parquet", "select sum(n_positions) from t"])  # fmt: skip
    yield Task("DuckDB, plain: per step", ["-c", _DUCKDB, f"{folder}/*.parquet", PER_STEP])
    yield Task("Spark local[2]: per step", ["-c", _SPARK, folder, PER_STEP, "stats"], once=True)
    yield Task("selection of one style: DuckDB", ["-c", _SELECT, str(root), "duckdb"])
    yield Task("selection of one style: Spark local[2]", ["-c", _SELECT, str(root), "spark"], once=True)  # fmt: skip
