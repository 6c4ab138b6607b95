"""The codes of single samples, position by position, as an exported page reads them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.explorer.export.files import write_parquet
from featurestore.format.footers import read_table
from featurestore.store import Store


def write_codes(store: Store, out: Path, sae: str, branch: str, *, samples: Sequence[int]) -> None:
    """Write one file a sample: ``step, timestep, position, feature, value``, in the order of
    ``codes``."""
    wanted = set(samples)
    for record in store.records(f"codes/{sae}"):
        if wanted.isdisjoint(record.sample_ids):
            continue
        store.check([record])
        rows = read_table(store.root / record.files[0].path)
        rows = rows.filter(pc.equal(rows["branch"], branch))
        for sample in wanted & set(record.sample_ids):
            write_parquet(
                out / f"{sample}.parquet",
                _flat(rows.filter(pc.equal(rows["sample_id"], sample)).sort_by("step")),
            )


def _flat(rows: pa.Table) -> pa.Table:
    columns: dict[str, list[np.ndarray]] = {
        name: [] for name in ("step", "timestep", "position", "feature", "value")
    }
    for step, timestep, features, values in zip(
        *(rows[n] for n in ("step", "timestep", "features", "values")), strict=True
    ):
        per_position = pc.list_value_length(features.values).to_numpy(zero_copy_only=False)
        n = int(per_position.sum())
        columns["step"].append(np.full(n, step.as_py(), np.int32))
        columns["timestep"].append(np.full(n, timestep.as_py(), np.float32))
        columns["position"].append(
            np.repeat(np.arange(len(per_position), dtype=np.int32), per_position)
        )
        columns["feature"].append(features.values.flatten().to_numpy(zero_copy_only=False))
        columns["value"].append(
            values.values.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        )
    return pa.table(
        {name: np.concatenate(parts) if parts else np.zeros(0) for name, parts in columns.items()}
    )
