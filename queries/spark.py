"""Spark as an engine: the same .sql files, transpiled by sqlglot, over the same Parquet files.

Needs the optional packages pyspark and sqlglot, and Java 17.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa
import sqlglot
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from sqlglot import exp
from sqlglot.dialects.spark import Spark as _SparkDialect

from featurestore.errors import UsageError
from featurestore.format.records import Record
from featurestore.saes import load_config
from featurestore.store import Store
from queries.connection.text import quote_text
from queries.derived.scope import check_encoded
from queries.engine import Relations, Run, used
from queries.questions import MADE, Value, code, without_order

_COLUMNS = {
    "codes": "sample_id long, step int, timestep float, branch string",
    "stats": (
        "sample_id long, step int, timestep float, branch string, feature int, `sum` float, `max` "
        "float, n_positions int"
    ),
}
_GLOB = re.compile(r"[\[\]{}*?\\]")
_HALVES = "it reads the float16 values of codes, and Spark has no such type"
CANNOT = dict.fromkeys(("top_positions", "feature_map", "position_features"), _HALVES)
"""questions that do not run on Spark, and why"""


@dataclass(frozen=True)
class Spark:
    """A Spark session as an engine of :func:`queries.ask`, ``score``, ``select`` and ``plot``.

    Sums that are not kept in the store are made by Spark, for the question alone. Records, samples
    and labels are read here; only answers come back.
    """

    session: SparkSession
    location: str | None = None
    """the address of the store for Spark's executors, such as ``s3a://bucket/store`` (default: its
    path)"""
    verify: bool = True
    """whether every file that is asked about is read here once, to compare its SHA-256"""
    keeps = False
    cannot = CANNOT

    @contextmanager
    def open(self, relations: Relations) -> Iterator[Run]:
        """Have the relations as views of a new Spark session for the time of the block.

        Raises:
            DamageError: a file is not what its record says.
        """
        session = self.session.newSession()
        store, names = relations.store, relations.names
        for kind in names & set(_COLUMNS):
            self._view(
                session,
                kind,
                store,
                [(sae, store.require(f"{kind}/{sae}")) for sae in relations.saes],
            )
        for name, records in relations.derived.items():
            self._view(session, name, store, [(relations.saes[0], records)])
        if relations.other is not None:
            load_config(relations.other, relations.saes[0])
            check_encoded(relations.other, relations.saes[0])
            elsewhere = Spark(self.session, None, self.verify)
            for kind in _COLUMNS:
                records = relations.other.require(f"{kind}/{relations.saes[0]}")
                elsewhere._view(
                    session, kind, relations.other, [(relations.saes[0], records)], prefix="other_"
                )
        _small_relations(session, store, relations.saes, names)
        for name, table in relations.tables.items():
            session.createDataFrame(table).createOrReplaceTempView(name)

        def frame(statement: str, values: Mapping[str, Value]) -> DataFrame:
            return session.sql(translate(statement), args=used(statement, values))

        def run(statement: str, values: Mapping[str, Value]) -> pa.Table:
            return frame(statement, values).toArrow()

        kept: list[DataFrame] = []
        try:
            for name, (statement, values) in relations.made.items():
                own = f"{quote_text(relations.saes[0])} as sae"
                rows = frame(without_order(statement), values).selectExpr(own, "*")
                # Spark repeats a view's plan wherever it is read: of the small ones that are read
                # most, only the rows are kept. (A checkpoint of a plan with a scalar subquery fails
                # where others are cached: Spark 4 compares it before it is resolved.)
                rows = session.createDataFrame(rows.toArrow()) if name in MADE else rows.cache()
                rows.createOrReplaceTempView(name)
                kept.append(rows)
            yield run
        finally:
            for rows in kept:
                rows.unpersist()

    def _view(
        self,
        session: SparkSession,
        kind: str,
        store: Store,
        shards: Sequence[tuple[str, Sequence[Record]]],
        *,
        prefix: str = "",
    ) -> None:
        """Create a view over the files of some SAEs' shards."""
        parts = []
        for sae, records in shards:
            if self.verify:
                store.check(records)
            reader = session.read.schema(_COLUMNS[kind]) if kind in _COLUMNS else session.read
            files = reader.parquet(*self._paths(store, records))
            parts.append(files.selectExpr(f"{quote_text(sae)} as sae", "*"))
        whole = parts[0]
        for part in parts[1:]:
            whole = whole.union(part)
        whole.createOrReplaceTempView(f"{prefix}{kind}")

    def _paths(self, store: Store, records: Sequence[Record]) -> list[str]:
        """Return the addresses of shards' files, with what Hadoop would take for a pattern
        escaped."""
        root = (self.location or str(store.root.resolve())).rstrip("/")
        return [
            _GLOB.sub(r"\\\g<0>", f"{root}/{entry.path}")
            for record in records
            for entry in record.files
        ]


@contextmanager
def spark_session() -> Iterator[SparkSession]:
    """Yield a session with the settings of the environment (``spark-defaults.conf``,
    ``spark-submit``; else this machine).

    Raises:
        UsageError: Spark cannot start, as without Java.
    """
    try:
        session = SparkSession.builder.appName("featurestore").getOrCreate()
    except PySparkException as error:
        raise UsageError(
            f"Spark does not start ({error}): it needs Java 17 (JAVA_HOME) and a valid "
            f"configuration."
        ) from error
    try:
        yield session
    finally:
        session.stop()


class _Generator(_SparkDialect.Generator):
    """Spark's dialect with what sqlglot leaves out: the third argument of max_by, and subqueries
    that have subqueries of their own, which it would lift to the top, where names meet."""

    EXPRESSIONS_WITHOUT_NESTED_CTES: ClassVar[set[type[exp.Expr]]] = set()
    TRANSFORMS = {  # noqa: RUF012
        **_SparkDialect.Generator.TRANSFORMS,
        exp.ArgMax: lambda self, e: self.func("MAX_BY", e.this, e.expression, e.args.get("count")),
    }


def translate(sql: str) -> str:
    """Return a question's statement in Spark's dialect, its parameters as ``:name``."""
    tree = sqlglot.parse_one(code(sql), read="duckdb")
    for part in tree.find_all(exp.CTE):
        part.set("materialized", None)
    return _Generator(dialect="spark").generate(tree)


def _small_relations(
    session: SparkSession, store: Store, saes: Sequence[str], names: frozenset[str]
) -> None:
    """Create the views that fit on one machine: the samples without pictures, their labels, the
    SAEs."""
    families = store.families() if names & {"samples", "labels"} else []
    if names & {"samples", "labels"}:
        samples = store.arrow("samples", ["sample_id", "prompt", "seed", *families])
        session.createDataFrame(samples).createOrReplaceTempView("samples")
        labels = [
            {"sample_id": i, "family": family, "concept": concept}
            for family in families
            for i, concept in zip(
                samples["sample_id"].to_pylist(), samples[family].to_pylist(), strict=True
            )
            if concept is not None
        ]
        kinds = pa.schema(
            [("sample_id", pa.int64()), ("family", pa.string()), ("concept", pa.string())]
        )
        session.createDataFrame(pa.Table.from_pylist(labels, kinds)).createOrReplaceTempView(
            "labels"
        )
    sizes = [(sae, load_config(store, sae)) for sae in saes]
    rows = [
        {"sae": sae, "map_positions": config["height"] * config["width"]} for sae, config in sizes
    ]
    session.createDataFrame(pa.Table.from_pylist(rows)).createOrReplaceTempView("saes")
