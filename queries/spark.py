"""The questions of the library on Spark: the same .sql files, transpiled by sqlglot, over the same Parquet files.

Needs the optional packages pyspark and sqlglot, and Java 17.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import sqlglot
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession

from featurestore.errors import QueryError, UsageError
from featurestore.saes import load_config
from featurestore.store import Store
from queries.answers import complete, resamples, schema, shuffled, used
from queries.questions import Question, Value, find_question
from queries.scope import check_concept, check_encoded
from queries.session import quote_text, verify_files

_HALVES = "it reads the float16 values of codes, and Spark has no such type"
CANNOT = dict.fromkeys(("top_positions", "feature_map", "position_features"), _HALVES)
"""questions that do not run on Spark, and why"""
_COLUMNS = {
    "codes": "sample_id long, step int, timestep float, branch string",
    "stats": (
        "sample_id long, step int, timestep float, branch string, feature int, `sum` float, `max` float, n_positions int"
    ),
}
_GLOB = re.compile(r"[\[\]{}*?\\]")


def ask_spark(
    spark: SparkSession,
    store: Store,
    name: str,
    parameters: Mapping[str, Value] | None = None,
    *,
    other: Store | None = None,
    verify: bool = True,
    location: str | None = None,
) -> pa.Table:
    """Return the answer to the question ``name`` as :func:`queries.ask` does, computed by a Spark session.

    ``location`` is the address of the same store for Spark's executors, such as ``s3a://bucket/store`` (default: its path); the
    records are read here. ``verify`` reads every file here once to compare its SHA-256. Only the answer comes back.

    Raises:
        QueryError: the question cannot run on Spark, or as :func:`queries.ask`.
    """
    asked = find_question(name)
    if name in CANNOT:
        raise QueryError(f"question {name!r} cannot run on Spark: {CANNOT[name]}. Ask it without --engine spark.")
    values = complete(store, asked, asked.bind(parameters or {}), other)
    session = spark.newSession()
    _relations(session, store, values, "", location, verify)
    if other is not None:
        _relations(session, other, values, "other_", None, verify)
    with _derived(session, store, asked, values):
        answer = _run(session, asked.sql, values).toArrow()
    return answer.select(list(asked.columns)).cast(schema(asked))


@contextmanager
def spark_session() -> Iterator[SparkSession]:
    """Yield a session with the settings of the environment (``spark-defaults.conf``, ``spark-submit``; else this machine).

    Raises:
        UsageError: Spark cannot start, as without Java.
    """
    try:
        session = SparkSession.builder.appName("featurestore").getOrCreate()
    except PySparkException as error:
        raise UsageError(
            f"Spark does not start ({error}): it needs Java 17 (JAVA_HOME) and a valid configuration."
        ) from error
    try:
        yield session
    finally:
        session.stop()


def translate(sql: str) -> str:
    """Return a question's statement in Spark's dialect, its parameters as ``:name``."""
    code = "\n".join(line for line in sql.splitlines() if not line.lstrip().startswith("--"))
    (statement,) = sqlglot.transpile(code, read="duckdb", write="spark")
    return statement


def _run(session: SparkSession, sql: str, values: Mapping[str, Value]) -> DataFrame:
    return session.sql(translate(sql), args=used(sql, values))


def _relations(
    session: SparkSession, store: Store, values: Mapping[str, Value], prefix: str, location: str | None, verify: bool
) -> None:
    """Create the views ``codes`` and ``stats`` of a store, and ``samples``, ``labels`` and ``saes`` of the first."""
    saes = [str(values[name]) for name in ("sae", "other_sae") if values.get(name) is not None]
    for sae in saes[: 1 if prefix else None]:
        load_config(store, sae)
        check_encoded(store, sae)
    tables = [f"{kind}/{sae}" for kind in _COLUMNS for sae in saes[: 1 if prefix else None]]
    if verify:
        verify_files(store, [*tables, "samples"])
    for kind, columns in _COLUMNS.items():
        parts = [
            session.read.schema(columns)
            .parquet(*_paths(store, table, location))
            .selectExpr(f"{quote_text(table.partition('/')[2])} as sae", "*")
            for table in tables
            if table.startswith(f"{kind}/")
        ]
        (parts[0].union(parts[1]) if len(parts) == 2 else parts[0]).createOrReplaceTempView(f"{prefix}{kind}")
    if not prefix:
        _small_relations(session, store, saes)


def _small_relations(session: SparkSession, store: Store, saes: list[str]) -> None:
    """Create the views that fit on one machine: the samples without pictures, their labels, the SAEs."""
    families = store.families()
    samples = store.read("samples", ["sample_id", "prompt", "seed", *families])
    session.createDataFrame(samples).createOrReplaceTempView("samples")
    labels = [
        {"sample_id": i, "family": family, "concept": concept}
        for family in families
        for i, concept in zip(samples["sample_id"].to_pylist(), samples[family].to_pylist(), strict=True)
        if concept is not None
    ]
    kinds = pa.schema([("sample_id", pa.int64()), ("family", pa.string()), ("concept", pa.string())])
    session.createDataFrame(pa.Table.from_pylist(labels, kinds)).createOrReplaceTempView("labels")
    sizes = [(sae, load_config(store, sae)) for sae in saes]
    rows = [{"sae": sae, "map_positions": config["height"] * config["width"]} for sae, config in sizes]
    session.createDataFrame(pa.Table.from_pylist(rows)).createOrReplaceTempView("saes")


@contextmanager
def _derived(session: SparkSession, store: Store, asked: Question, values: Mapping[str, Value]) -> Iterator[None]:
    """Have the views ``labelled``, ``importance``, ``scored``, ``resamples`` and ``shuffled`` where a question needs them."""
    if "family" not in values:
        yield
        return
    family, wanted = str(values["family"]), [str(values[n]) for n in ("concept", "other_concept") if n in values]
    session.sql(
        "select sample_id, concept from labels where family = :family", args={"family": family}
    ).createOrReplaceTempView("labelled")
    encoded = session.sql(
        "select sample_id, concept from labelled left semi join "
        "(select sample_id from codes where sae = :sae and branch = :branch) using (sample_id) order by sample_id",
        args={"sae": values["sae"], "branch": values["branch"]},
    ).collect()
    concepts = sorted({row.concept for row in encoded})
    if len(concepts) < 2:
        raise QueryError(
            f"family {family!r} of {store.root} needs at least two concepts among the samples encoded for branch "
            f"{values['branch']}, found {len(concepts)}."
        )
    for concept in wanted:
        check_concept(concepts, store, family, concept)
    importance = _run(session, find_question("importance").sql, values).cache()
    importance.createOrReplaceTempView("importance")
    importance.createOrReplaceTempView("scored")
    if "resamples" in asked.relations:
        drawn = resamples([(row.sample_id, row.concept) for row in encoded], _int(values["replicates"]), values)
        session.createDataFrame(drawn).createOrReplaceTempView("resamples")
    order: Any = shuffled(_int(values["n_latents"]), _int(values.get("random_seed", 0)))
    session.createDataFrame(order).createOrReplaceTempView("shuffled")
    try:
        yield
    finally:
        importance.unpersist()


def _paths(store: Store, table: str, location: str | None) -> list[str]:
    """Return the addresses of a table's committed files, with what Hadoop would take for a pattern escaped."""
    root = (location or str(store.root.resolve())).rstrip("/")
    entries = [entry for record in store.require(table) for entry in record.files]
    return [_GLOB.sub(r"\\\g<0>", f"{root}/{entry.path}") for entry in entries]


def _int(value: Value) -> int:
    assert isinstance(value, int)
    return value
