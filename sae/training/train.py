"""Train SAEs on activations, resumable to the last bit on a CPU."""

import contextlib
from collections.abc import Callable, Mapping

from featurestore.errors import SAEError
from featurestore.format import schemas
from featurestore.format.records import Record
from featurestore.saes import training_of
from featurestore.store import Store
from sae.devices import pick_device
from sae.feed.batches import PositionBatches, Source
from sae.training.loop import Progress, Training, run
from sae.training.outcome.commit import existing, finish
from sae.training.processes import Processes, join_processes, local_device
from sae.training.settings import TrainSettings, make_plan
from sae.training.state import discard

__all__ = ["Progress", "TrainSettings", "train", "train_many"]

Report = Callable[[Progress], object]


def train(
    store: Store,
    hook: str,
    name: str,
    settings: TrainSettings,
    *,
    progress: bool = True,
    device: str = "auto",
    on_report: Report = lambda progress: None,
) -> Record:
    """Train an SAE on the activations of ``hook`` and commit it to the store as ``saes/<name>``.

    A checkpoint under ``.work/`` is written every ``CHECKPOINT_SECONDS`` and when SIGINT arrives
    (KeyboardInterrupt follows); the same call goes on from it and ends, on a CPU, with the same
    bits as one that was never interrupted. An SAE that was trained already with the same settings
    on the same data is returned as it is. ``on_report`` is called every few steps. Started by
    torchrun or accelerate, each process learns from its part of every batch.

    Raises:
        SAEError: the hook has no activations, the name is taken by another SAE or by an interrupted
            training with other settings, or the loss is not finite.
        TakenError: another process is training an SAE of that name.
        UsageError: settings that do not fit each other or the data.
        TableError: the name cannot be one.
        DamageError: a file of the activations is not what its record says.
        DiskError: the operating system refused a write.
    """
    schemas.check_name(name, "an SAE's name")
    pinned = pick_device(local_device(device)).type == "cuda"
    batches = PositionBatches(
        store,
        hook,
        settings.branch,
        settings.batch_size,
        seed=settings.seed,
        holdout=settings.holdout,
        pinned=pinned,
    )
    return train_many(
        store, {name: batches}, settings, progress=progress, device=device, on_report=on_report
    )[0]


def train_many(
    store: Store,
    sources: Mapping[str, Source],
    settings: TrainSettings,
    *,
    progress: bool = True,
    device: str = "auto",
    on_report: Report = lambda progress: None,
) -> list[Record]:
    """Train an SAE for each name, each on its source, side by side; otherwise as :func:`train`.

    Raises:
        SAEError: a name is taken, or a loss is not finite; in a process that does not commit: the
            first did not.
        UsageError: settings that do not fit each other, the data or the number of processes.
        TableError: a name cannot be one.
        DiskError: the operating system refused a write.
    """
    for name in sources:
        schemas.check_name(name, "an SAE's name")
    plans = {
        name: make_plan(store, source.hook, settings, source) for name, source in sources.items()
    }
    missing = [name for name, plan in plans.items() if existing(store, name, plan) is None]
    with (
        join_processes(settings.batch_size)
        if missing
        else contextlib.nullcontext(Processes()) as processes,
        contextlib.ExitStack() as names,
    ):
        # Before anything is learned: two trainings would share one checkpoint.
        if processes.rank == 0:
            for name in missing:
                names.enter_context(training_of(store, name))
            missing = [name for name in missing if existing(store, name, plans[name]) is None]
        there = pick_device(local_device(device))
        trainings = [
            Training(store, name, plans[name], sources[name], device=there, processes=processes)
            for name in missing
        ]
        run(trainings, processes, progress=progress and processes.rank == 0, on_report=on_report)
        if processes.rank == 0:
            for training in trainings:
                _commit(training)
        processes.wait()
    found = [store.record("saes", name) for name in sources]
    if None in found:
        raise SAEError(f"{store.root}: process 0 committed no SAE: it says why.")
    return [record for record in found if record is not None]


def _commit(training: Training) -> None:
    training.state.sae.rescale_(training.scale)
    finish(
        training.store,
        training.name,
        training.plan,
        state=training.state,
        source=training.source,
    )
    discard(training.store, training.name)
