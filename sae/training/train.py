"""Train SAEs on activations, resumable to the last bit on a CPU."""

import contextlib
from collections.abc import Callable, Sequence

from featurestore.errors import SAEError
from featurestore.format import schemas
from featurestore.format.records import Record
from featurestore.store import Store
from sae.checkpoint import pick_device
from sae.feed.batches import PositionBatches, Source
from sae.training.commit import existing, finish
from sae.training.interrupt import interruption
from sae.training.loop import Progress, Training
from sae.training.processes import Ranks, join_ranks, local_device
from sae.training.settings import TrainSettings, make_plan
from sae.training.state import discard

__all__ = ["Progress", "TrainSettings", "train", "train_many"]

Report = Callable[[Progress], object]


def train(
    store: Store,
    hook: str,
    name: str,
    settings: TrainSettings,
    progress: bool = True,
    device: str = "auto",
    on_report: Report = lambda progress: None,
) -> Record:
    """Train an SAE on the activations of ``hook`` and commit it to the store as ``saes/<name>``.

    A checkpoint under ``.work/`` is written every ``CHECKPOINT_SECONDS`` and when SIGINT arrives (KeyboardInterrupt
    follows); the same call goes on from it and ends, on a CPU, with the same bits as one that was never interrupted.
    An SAE that was trained already with the same settings on the same data is returned as it is. ``on_report`` is
    called every few steps. Started by torchrun or accelerate, each process learns from its part of every batch.

    Raises:
        SAEError: the hook has no activations, the name is taken by another SAE or by an interrupted training with
            other settings, or the loss is not finite.
        UsageError: settings that do not fit each other or the data.
    """
    schemas.check_name(name, "an SAE's name")
    batches = PositionBatches(store, hook, settings.branch, settings.batch_size, settings.seed, settings.holdout)
    return train_many(store, {name: batches}, settings, progress, device, on_report)[0]


def train_many(
    store: Store,
    sources: dict[str, Source],
    settings: TrainSettings,
    progress: bool = True,
    device: str = "auto",
    on_report: Report = lambda progress: None,
) -> list[Record]:
    """Train one SAE a name, each on its source, side by side; otherwise as :func:`train`."""
    for name in sources:
        schemas.check_name(name, "an SAE's name")
    plans = {name: make_plan(store, source.hook, settings, source) for name, source in sources.items()}
    records = {name: existing(store, name, plan) for name, plan in plans.items()}
    missing = [name for name, record in records.items() if record is None]
    with join_ranks(settings.batch_size) if missing else contextlib.nullcontext(Ranks()) as ranks:
        there = pick_device(local_device(device))
        trainings = [Training(store, name, plans[name], sources[name], there, ranks) for name in missing]
        _run(trainings, progress and ranks.rank == 0, on_report)
        for training in trainings:
            _commit(store, training, sources[training.name], ranks)
    found = [store.record("saes", name) for name in sources]
    if None in found:
        raise SAEError(f"{store.root}: process 0 committed no SAE: it says why.")
    return [record for record in found if record is not None]


def _run(trainings: Sequence[Training], progress: bool, on_report: Report) -> None:
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(interruption())
        walks = [(training, training.walk(stack, progress, on_report, stop)) for training in trainings]
        while walks:  # All get as far in the same time: what they learn from may be generated for all at once.
            training, walk = min(walks, key=lambda pair: (pair[0].state.step + 1) / pair[0].plan.steps)
            if next(walk, None) is None:
                walks.remove((training, walk))


def _commit(store: Store, training: Training, source: Source, ranks: Ranks) -> None:
    if ranks.rank == 0:
        training.state.sae.rescale_(training.scale)
        finish(store, training.name, training.plan, training.state, source)
        discard(store, training.name)
    ranks.wait()
