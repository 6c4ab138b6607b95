"""Learn from prompts that bring a removed concept back: collect them, encode, select anew."""

from collections.abc import Sequence
from typing import Any, Protocol

from collectors.collection import collect
from collectors.keep import CollectSettings
from featurestore.prompts import Prompt
from featurestore.selection import Selection
from featurestore.store import Store
from sae.diffusion.pipelines import Model, RunSettings
from sae.encoding import encode
from sae.evaluation.attack.hardening import Learn
from sae.intervention.ablate import ablate
from sae.intervention.settings import Intervention


class Select(Protocol):
    """Selects a concept's features, as :func:`queries.select` does."""

    def __call__(
        self, store: Store, sae: str, family: str, concept: str, *, branch: str
    ) -> Selection:
        """Return the selection."""


def learner(
    store: Store,
    model: Model,
    run: RunSettings,
    *,
    select: Select,
    batch_size: int = 8,
    progress: bool = True,
) -> Learn:
    """Return what :func:`sae.evaluation.attack.hardening.harden` learns by.

    It draws the prompts while the edits act, adds them to ``store`` as samples that are labelled
    ``<concept> (attacked)``, and returns what ``select``, such as
    ``functools.partial(queries.select, top=8)``, selects for that label. What was collected before
    is not drawn again.
    """

    def learn(
        family: str, concept: str, prompts: Sequence[Prompt], edits: Sequence[Intervention]
    ) -> Selection:
        own = next(
            e for e in edits if (e.selection.family, e.selection.concept) == (family, concept)
        ).selection
        label = f"{concept} (attacked)"
        labels: dict[str, str | None] = dict.fromkeys(store.families())
        samples = [
            Prompt(p.prompt, p.seed, {**labels, family: label}, i, starts=p.starts)
            for i, p in enumerate(prompts, 1)
        ]
        kept: dict[str, Any] = {"hooks": [own.hook], "io": own.io, "branch": own.branch}
        if f"activations/{own.hook}" not in store.tables():
            kept = {"saes": [own.sae], "activations": False, "io": own.io, "branch": own.branch}
        settings = CollectSettings(**kept, batch_size=batch_size)
        with ablate(model.pipe, list(edits)):
            collect(store.root, model, samples, run, settings, progress=progress)
        if "hooks" in kept:
            encode(store, own.sae, progress=progress)
        return select(store, own.sae, family, label, branch=own.branch)

    return learn
