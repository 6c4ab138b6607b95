"""A small store of several shards."""

from pathlib import Path

from featurestore import Store
from featurestore.format.canonical import shard_name
from tests.builders.codes import random_codes
from tests.builders.stores import _codes, _samples, _stats, make_store


def many_shards(root: Path, styles: list[str | None]) -> Store:
    """A store of a shard of one sample, and one of two samples for each style; from the fourth
    style on they are of step 0 and branch uncond."""
    made = make_store(root, random_codes(0, samples=1), {"style": ["first"]})
    ids = [record.sample_ids[0] for record in made.records("samples")]
    metadata = made.arrow("stats/s").schema.metadata
    for n, style in enumerate(styles):
        new = [ids[0] + 100 + 2 * n, ids[0] + 101 + 2 * n]
        z = random_codes(n + 1, samples=2)[:, : 1 if n >= 3 else None]
        shard, branch = shard_name(2 * n + 1, new), "uncond" if n >= 3 else "cond"
        rows = _samples(new, [f"p{n}"] * 2, {"style": [style] * 2}, None)
        made.append("samples", shard, rows, new, made_by={})
        for kind, make in (("codes", _codes), ("stats", _stats)):
            rows = make(z, new, branch).replace_schema_metadata(metadata)
            made.append(f"{kind}/s", shard, rows, new, made_by={})
    return made
