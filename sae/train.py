"""Train an SAE on a hook's activations, resumable to the last bit on a CPU."""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from featurestore import schemas
from featurestore.errors import SAEError
from featurestore.records import Record
from featurestore.store import Store
from sae.batches import PositionBatches
from sae.checkpoint import pick_device
from sae.finish import existing, finish
from sae.interrupt import interruption
from sae.loss import geometric_median
from sae.model import SAE
from sae.settings import Plan, TrainSettings, make_plan
from sae.state import State, discard, restore, save
from sae.step import take_step

__all__ = ["Progress", "TrainSettings", "train"]

CHECKPOINT_SECONDS = 60.0
_REPORT_EVERY = 10


class Progress(NamedTuple):
    """How training stands."""

    step: int
    """steps done"""
    steps: int
    fvu: float
    """of the batches since the last report"""
    l0: float
    n_dead: int
    """latents that count as dead in the loss"""


def train(
    store: Store,
    hook: str,
    name: str,
    settings: TrainSettings,
    progress: bool = True,
    device: str = "auto",
    on_report: Callable[[Progress], object] = lambda progress: None,
) -> Record:
    """Train an SAE on the activations of ``hook`` and commit it to the store as ``saes/<name>``.

    A checkpoint under ``.work/`` is written every ``CHECKPOINT_SECONDS`` and when SIGINT arrives (KeyboardInterrupt
    follows); the same call goes on from it and ends, on a CPU, with the same bits as one that was never interrupted.
    An SAE that was trained already with the same settings on the same data is returned as it is. ``on_report`` is
    called every few steps.

    Raises:
        SAEError: the hook has no activations, the name is taken by another SAE or by an interrupted training with
            other settings, or the loss is not finite.
        UsageError: settings that do not fit each other or the data.
    """
    schemas.check_name(name, "an SAE's name")
    batches = PositionBatches(store, hook, settings.branch, settings.batch_size, settings.seed, settings.holdout)
    plan = make_plan(store, hook, settings, batches)
    record = existing(store, name, plan)
    if record is not None:
        return record
    run = _Run(store, name, plan, batches, pick_device(device))
    run.loop(progress, on_report)
    run.state.sae.rescale_(run.scale)
    record = finish(store, name, plan, run.state.sae, batches)
    discard(store, name)
    return record


class _Run:
    """A training in progress: its weights, optimiser and counters."""

    def __init__(self, store: Store, name: str, plan: Plan, batches: PositionBatches, device: torch.device) -> None:
        self.store, self.name, self.plan, self.batches, self.device = store, name, plan, batches, device
        self.state = self._start()
        restore(store, name, plan, self.state)

    def _start(self) -> State:
        generator = torch.Generator().manual_seed(self.plan.settings.seed)
        sae = SAE(self.plan.config, generator)
        with torch.no_grad():
            first = next(self.batches.epoch(0))
            if not bool((first != first[0]).any()):
                raise SAEError(
                    f"all activations of hook {self.plan.config.hook!r} are equal: there is nothing to learn."
                )
            median = geometric_median(first)
            self.scale = float((first - median).square().sum(dim=1).mean().sqrt()) if self.plan.scale_inputs else 1.0
            sae.b_dec.copy_(median / self.scale)
            sae.variant.start(sae, sae.centred(first / self.scale)[0])
        return State(sae.to(self.device))

    def loop(self, progress: bool, on_report: Callable[[Progress], object]) -> None:
        """Take the steps that are left."""
        state, steps, size = self.state, self.plan.steps, self.plan.settings.batch_size
        done, total = state.step * size, steps * size
        title, quiet = f"train {self.name}", None if progress else True
        saved, since, sums = time.monotonic(), state.step, torch.zeros(2, dtype=torch.float64)
        bar = tqdm(desc=title, total=total, initial=done, unit=" positions", unit_scale=True, disable=quiet)
        with bar, interruption() as stop:
            for x in itertools.islice(self._stream(), steps - state.step):
                sums += self._step(x.to(self.device) / self.scale)
                last = state.step == steps
                if state.step % _REPORT_EVERY == 0 or last:
                    report = self._report(sums / (state.step - since))
                    bar.set_postfix_str(
                        f"fvu {report.fvu:.4f}, l0 {report.l0:.1f}, dead {report.n_dead}", refresh=False
                    )
                    bar.update(state.step * size - bar.n)
                    since = state.step
                    sums.zero_()
                    on_report(report)
                if stop.wanted or last or time.monotonic() - saved > CHECKPOINT_SECONDS:
                    save(self.store, self.name, self.plan, state)
                    saved = time.monotonic()
                stop.check()

    def _stream(self) -> Iterator[Tensor]:
        epoch, start = divmod(self.state.step, self.batches.n_batches)
        while True:
            yield from self.batches.epoch(epoch, start)
            epoch, start = epoch + 1, 0

    def _step(self, x: Tensor) -> Tensor:
        """Take one step; return its FVU and L0, float64 on the CPU."""
        lr, alpha = self.plan.lr_at(self.state.step), self.plan.settings.aux_alpha
        loss = take_step(self.state, x, lr, self.plan.dead_after, alpha)
        active = (loss.codes.values > 0).sum() / len(x)
        return torch.stack([loss.fvu.double(), active.double()]).cpu()

    def _report(self, means: Tensor) -> Progress:
        fvu, l0 = means.tolist()
        if not math.isfinite(fvu):
            discard(self.store, self.name)
            raise SAEError(
                f"the loss is not finite at step {self.state.step} of {self.plan.steps}: use a smaller learning rate "
                f"than {self.plan.lr:.2g}. Nothing was committed."
            )
        dead = int((self.state.positions_since_fired > self.plan.dead_after).sum())
        return Progress(self.state.step, self.plan.steps, fvu, l0, dead)
