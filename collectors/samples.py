"""The rows of ``samples``."""

import io
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from collectors.plan import Sample
from featurestore.format.schemas import samples_schema
from featurestore.store import Store


def samples_table(store: Store, samples: Sequence[Sample], images: Sequence[Any] | None) -> pa.Table:
    """Return a row a sample, with its picture as PNG if there are ``images``."""
    run = store.run or {}
    families = list(samples[0].prompt.labels)
    schema = samples_schema(families, images is not None)
    columns: dict[str, list[Any]] = {
        "sample_id": [s.id for s in samples],
        "prompt": [s.prompt.prompt for s in samples],
        "seed": [s.prompt.seed for s in samples],
        **{family: [s.prompt.labels[family] for s in samples] for family in families},
    }
    shared = {key: run[key] for key in ("guidance", "n_steps", "model", "model_hash", "height", "width")}
    shared["scheduler"] = run["scheduler"]["class"]
    columns |= {key: [value] * len(samples) for key, value in shared.items()}
    own = [s.prompt.guidance for s in samples]
    columns["guidance"] = [run["guidance"] if scale is None else scale for scale in own]
    if images is not None:
        columns["image"] = [
            {"bytes": _png(image), "path": f"{s.id}.png"} for image, s in zip(images, samples, strict=True)
        ]
    return pa.Table.from_pydict(columns, schema=schema)


def _png(image: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format="PNG")
    return sink.getvalue()
