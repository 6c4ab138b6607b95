"""The labels of what is collected: columns of ``samples``, and what else goes into ``labels``."""

from collections.abc import Sequence

from collectors.planning.plan import Sample
from featurestore import __version__
from featurestore.errors import PromptsError
from featurestore.format.records.labels import labels_table
from featurestore.maintenance.relabel import sample_labels
from featurestore.prompts import Prompt
from featurestore.store import Store


def label_columns(store: Store, prompts: Sequence[Prompt]) -> list[str]:
    """Return the families that are columns of ``samples``: those of the store's samples, or of the
    first prompts."""
    return store.label_columns() if store.records("samples") else list(prompts[0].labels)


def append_labels(
    store: Store, shard: str, samples: Sequence[Sample], families: Sequence[str]
) -> None:
    """Commit to ``labels`` what the samples of a shard are labelled with if ``families`` lack a
    family of theirs."""
    if set(samples[0].prompt.labels) <= set(families):
        return
    rows = labels_table({sample.id: sample.prompt.labels for sample in samples}, version=0)
    made_by = {
        "featurestore": __version__,
        "version": 0,
        "families": sorted(samples[0].prompt.labels),
    }
    store.append(
        "labels", f"{0:08d}-{shard}", rows, [sample.id for sample in samples], made_by=made_by
    )


def check_labels(store: Store, samples: Sequence[Sample]) -> None:
    """Refuse prompts whose labels are not those of their samples in the store; families that no
    prompt has are let be.

    Raises:
        PromptsError: naming the first line, both labels, and the command that gives the store the
            new ones.
    """
    if not store.exists or not store.records("samples"):
        return
    known = sample_labels(store)
    differ = []
    for sample in samples:
        if (former := known.get(sample.id)) is None:
            continue
        for family in sorted(sample.prompt.labels):
            if former.get(family) != sample.prompt.labels.get(family):
                differ.append((sample, family, former.get(family)))
                break
    if differ:
        sample, family, before = differ[0]
        raise PromptsError(
            f"{len(differ):,} samples of {store.root} have other labels than these prompts: line "
            f"{sample.prompt.line} has {family} = {_shown(sample.prompt.labels.get(family))}, the "
            f"store {_shown(before)}. Nothing was changed. 'featurestore relabel {store.root} "
            f"--prompts FILE' gives the store the new labels."
        )


def _shown(concept: str | None) -> str:
    return "none" if concept is None else repr(concept)
