"""What is to be collected: samples, cut into work items that do not depend on what was
interrupted."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from featurestore.errors import PromptsError
from featurestore.format.canonical import sample_id, shard_name
from featurestore.format.schemas import START_COLUMNS, family_names
from featurestore.prompts import Prompt, StartPicture
from featurestore.store import Store

SHARD_BYTES = 512 * 2**20
"""of a shard's largest file of activations, about, or of the memory that its codes wait in"""
MOST_SAMPLES = 64
"""of a shard, however small its files: what a crash may cost, and what processes share"""
CODE_BYTES = 16
"""of a code while it waits for its shard to end, with what is made of it"""


class Sample(NamedTuple):
    """A picture with its identity."""

    id: int
    prompt: Prompt


class WorkItem(NamedTuple):
    """Samples that make one shard of each of some tables."""

    shard: str
    samples: list[Sample]
    tables: frozenset[str]
    """the tables that lack them"""


def identify(run_id: str, run: Mapping[str, Any], prompts: Sequence[Prompt]) -> list[Sample]:
    """Give each prompt its sample id; a guidance scale and pictures of its own count where they are
    not the run's.

    Raises:
        PromptsError: two have the same (one chance in 10^6 at three million samples).
    """
    samples = [
        Sample(
            sample_id(
                run_id,
                p.prompt,
                p.seed,
                own_guidance(p, run["guidance"]),
                starts=p.own_starts(run),
            ),
            p,
        )
        for p in prompts
    ]
    first: dict[int, Sample] = {}
    for sample in samples:
        other = first.setdefault(sample.id, sample)
        if other is not sample:
            lines = f"{other.prompt.line} and {sample.prompt.line}"
            raise PromptsError(
                f"the samples of lines {lines} have the same id: change the seed of one."
            )
    return samples


def own_guidance(prompt: Prompt, guidance: float) -> float | None:
    """Return a prompt's guidance scale if it is another than the run's."""
    return None if prompt.guidance == guidance else prompt.guidance


def fitting(n_bytes: int, batch: int) -> int:
    """Return how many pictures of ``n_bytes`` make a shard: as many whole batches as make about
    ``SHARD_BYTES``, one at least, and no more than ``MOST_SAMPLES`` pictures if they are
    several."""
    most = min(SHARD_BYTES // max(1, n_bytes), MOST_SAMPLES)
    return max(batch, most - most % batch)


def plan(
    store: Store, samples: Sequence[Sample], tables: Sequence[str], shard_samples: int
) -> list[WorkItem]:
    """Cut the samples that some table lacks into work items of ``shard_samples``, in their order.

    Samples that lack the same tables are cut together. What is committed was cut the same way, so
    an interrupted plan, made again, yields exactly the items that are missing.
    """
    done = {table: store.committed_samples(table) for table in tables}
    missing: dict[frozenset[str], list[tuple[int, Sample]]] = {}
    for index, sample in enumerate(samples):
        lacking = frozenset(table for table in tables if sample.id not in done[table])
        if lacking:
            missing.setdefault(lacking, []).append((index, sample))
    items = []
    for lacking, indexed in missing.items():
        for start in range(0, len(indexed), shard_samples):
            part = indexed[start : start + shard_samples]
            name = shard_name(part[0][0], [sample.id for _, sample in part])
            items.append(WorkItem(name, [sample for _, sample in part], lacking))
    return sorted(items)


def samples_table(
    schema: pa.Schema,
    run: Mapping[str, Any],
    samples: Sequence[Sample],
    *,
    starts: Mapping[str, StartPicture],
    images: Sequence[Any] | None,
) -> pa.Table:
    """Return a row per sample, with its picture as PNG if there are ``images``.

    ``starts``: pictures that samples start from which have none of their own; their files are kept
    where ``images`` are.
    """
    columns: dict[str, list[Any]] = {
        "sample_id": [s.id for s in samples],
        "prompt": [s.prompt.prompt for s in samples],
        "seed": [s.prompt.seed for s in samples],
        **{
            family: [s.prompt.labels.get(family) for s in samples]
            for family in family_names(schema.names)
        },
    }
    shared = {
        key: run[key] for key in ("guidance", "n_steps", "model", "model_hash", "height", "width")
    }
    shared["scheduler"] = run["scheduler"]["class"]
    columns |= {key: [value] * len(samples) for key, value in shared.items()}
    own = [s.prompt.guidance for s in samples]
    columns["guidance"] = [run["guidance"] if scale is None else scale for scale in own]
    for kind, (hashed, file) in START_COLUMNS.items():
        if hashed in schema.names:
            pictures = [s.prompt.starts.get(kind) or starts[kind] for s in samples]
            columns[hashed] = [picture.sha256 for picture in pictures]
            columns[file] = [_file(picture) for picture in pictures] if file in schema.names else []
    if images is not None:
        columns["image"] = [
            {"bytes": _png(image), "path": f"{s.id}.png"}
            for image, s in zip(images, samples, strict=True)
        ]
    wanted = {name: columns[name] for name in schema.names}
    return pa.Table.from_pydict(wanted, schema=schema)


def _file(picture: StartPicture) -> dict[str, Any]:
    return {"bytes": picture.read(), "path": picture.path.name}


def _png(image: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format="PNG")
    return sink.getvalue()
