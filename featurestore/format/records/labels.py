"""Labels that were corrected after their samples were collected (docs/format.md, section 1.1)."""

from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa

from featurestore.errors import DamageError
from featurestore.format.canonical import canonical_json, sha256_text
from featurestore.format.records.record import Record
from featurestore.format.schemas import FAMILY, LABELS, RESERVED, family_names

Labels = Mapping[str, str | None]
"""concept family → concept"""


def labels_table(labels: Mapping[int, Labels], version: int) -> pa.Table:
    """Return sample → labels as rows of the table ``labels``, by ascending sample and family."""
    rows = [
        {"sample_id": i, "version": version, "family": family, "concept": labels[i][family]}
        for i in sorted(labels)
        for family in sorted(labels[i])
    ]
    return pa.Table.from_pylist(rows, schema=LABELS)


def label_version(record: Record) -> tuple[int, list[str]]:
    """Return the version and the families that a record of ``labels`` says.

    Raises:
        DamageError: it does not say them.
    """
    version, families = record.made_by.get("version"), record.made_by.get("families")
    if not isinstance(version, int) or not isinstance(families, list):
        raise DamageError(
            f"{record.location}: 'made_by' has no 'version' and 'families', as records of labels "
            f"have"
        )
    for family in families:
        if not isinstance(family, str) or not FAMILY.fullmatch(family) or family in RESERVED:
            raise DamageError(f"{record.location}: {family!r} in 'made_by' is no concept family")
    return version, families


def contents_hash(labels: Mapping[int, Labels]) -> str:
    """Return the first 16 hexadecimal digits of SHA-256 over the labels: what makes two versions
    the same."""
    return sha256_text(canonical_json({str(i): dict(one) for i, one in labels.items()}))[:16]


def corrected(shards: Iterable[tuple[Record, pa.Table]], families: Sequence[str]) -> pa.Table:
    """Return the labels that stand: a row per sample that any shard of ``labels`` has, a column per
    family.

    ``shards`` in the order of their names: of several that have a sample, the last counts, and only
    it.
    """
    found: dict[int, dict[str, str | None]] = {}
    for record, rows in shards:
        found |= {i: {} for i in record.sample_ids}
        for i, family, concept in zip(*(rows[name].to_pylist() for name in _LONG), strict=True):
            found[i][family] = concept
    columns = {
        family: pa.array([one.get(family) for one in found.values()], pa.string())
        for family in families
    }
    return pa.table({"sample_id": pa.array(list(found), pa.int64()), **columns})


_LONG = ("sample_id", "family", "concept")


def apply_labels(samples: pa.Table, labels: pa.Table) -> pa.Table:
    """Return rows of ``samples`` with the labels that stand; families that ``samples`` has no
    column for come last."""
    place = {i: n for n, i in enumerate(labels["sample_id"].to_pylist())}
    ids = samples["sample_id"].to_pylist()
    for family in family_names(labels.column_names):
        stands = labels[family].to_pylist()
        there = family in samples.column_names
        own = samples[family].to_pylist() if there else [None] * len(ids)
        new = pa.array(
            [stands[place[i]] if i in place else mine for i, mine in zip(ids, own, strict=True)],
            pa.string(),
        )
        column = pa.field(family, pa.string())
        samples = (
            samples.set_column(samples.column_names.index(family), column, new)
            if there
            else samples.append_column(column, new)
        )
    return samples
