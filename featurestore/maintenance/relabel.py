"""Give a store's samples other labels: a new version of them, the former ones kept."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from featurestore import __version__
from featurestore.card import write_card
from featurestore.errors import PromptsError, RunError
from featurestore.format.canonical import sample_id
from featurestore.format.records.labels import Labels, contents_hash, label_version, labels_table
from featurestore.prompts import Prompt
from featurestore.store import Store


@dataclass(frozen=True)
class Change:
    """Samples whose label in a family becomes another."""

    family: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class Relabelled:
    """What a relabelling did, or would do."""

    version: int | None
    """of the labels that stand now; None: nothing was written"""
    n_samples: int
    """samples whose labels changed"""
    n_matched: int
    """samples of the store that the prompts have"""
    n_unmatched: int
    """samples of the store that they do not have: their labels stay"""
    changes: Counter[Change] = field(default_factory=Counter)
    """change → number of samples"""
    outdated: tuple[tuple[str, str], ...] = ()
    """SAE and family of each kept table of scores that was computed from the former labels"""


def relabel(store: Store, prompts: Sequence[Prompt], *, dry_run: bool = False) -> Relabelled:
    """Give the samples of ``prompts`` the labels that those have; a family that they lack becomes
    null.

    The samples, and what was collected of them, stay as they are. The new labels are one shard of
    ``labels``, committed at once or not at all; earlier ones stay in it (docs/format.md, section
    1.1). ``dry_run`` writes nothing.

    Raises:
        PromptsError: no prompt is a sample of the store.
        RunError: another process relabelled the store at the same time.
    """
    asked = asked_labels(store, prompts)
    former = sample_labels(store)
    known = {i: labels for i, labels in asked.items() if i in former}
    if not known:
        raise PromptsError(
            f"none of the {len(prompts):,} prompts is a sample of {store.root}: prompt, seed and "
            f"guidance scale must be those it was collected with."
        )
    families = sorted({*store.families(), *(prompts[0].labels if prompts else ())})
    changed = {}
    for i, labels in known.items():
        new = {family: labels.get(family) for family in families}
        if new != {family: former[i].get(family) for family in families}:
            changed[i] = new
    changes = Counter(
        Change(family, former[i].get(family), concept)
        for i, labels in changed.items()
        for family, concept in labels.items()
        if former[i].get(family) != concept
    )
    version = None if dry_run or not changed else _commit(store, changed, families)
    return Relabelled(
        version,
        n_samples=len(changed),
        n_matched=len(known),
        n_unmatched=len(former) - len(known),
        changes=changes,
        outdated=_kept_scores(store) if changed else (),
    )


def sample_labels(store: Store) -> dict[int, Labels]:
    """Return sample id → the labels that stand; raises TableError without samples."""
    families = store.families()
    rows = store.arrow("samples", ["sample_id", *families]).to_pylist()
    return {row.pop("sample_id"): row for row in rows}


def asked_labels(store: Store, prompts: Sequence[Prompt]) -> dict[int, Labels]:
    """Return sample id → the labels that prompts have."""
    guidance = (store.run or {}).get("guidance")
    return {
        sample_id(
            store.run_id,
            p.prompt,
            p.seed,
            None if p.guidance == guidance else p.guidance,
            starts=p.own_starts(store.run or {}),
        ): p.labels
        for p in prompts
    }


def stored_seeds(store: Store) -> list[int]:
    """Return the seeds that a store's samples have."""
    return sorted(set(store.arrow("samples", ["seed"])["seed"].to_pylist()))


def _kept_scores(store: Store) -> tuple[tuple[str, str], ...]:
    return tuple(
        (sae, family)
        for sae in store.names("scores")
        for family in sorted({r.shard.rsplit("-", 2)[0] for r in store.records(f"scores/{sae}")})
    )


def _commit(store: Store, changed: Mapping[int, Labels], families: Sequence[str]) -> int:
    version = 1 + max((label_version(record)[0] for record in store.records("labels")), default=0)
    made_by = {
        "featurestore": __version__,
        "version": version,
        "families": list(families),
        "contents": contents_hash(changed),
    }
    record = store.append(
        "labels", f"{version:08d}", labels_table(changed, version), sorted(changed), made_by=made_by
    )
    if record.made_by.get("contents") != made_by["contents"]:
        raise RunError(
            f"{store.root}: another process relabelled it at the same time: look, and run the "
            f"command again."
        )
    write_card(store)
    return version
