"""A training in progress."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from featurestore.errors import SAEError
from featurestore.store import Store
from sae.feed.batches import Source
from sae.model import SAE
from sae.training.interrupt import Interruption
from sae.training.loss import geometric_median
from sae.training.processes import Ranks
from sae.training.settings import Plan
from sae.training.state import State, discard, restore, save
from sae.training.step import take_step

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
    name: str = ""
    """of the SAE"""


class Training:
    """Weights, optimiser and counters of an SAE, and the way through its data."""

    def __init__(self, store: Store, name: str, plan: Plan, source: Source, device: torch.device, ranks: Ranks) -> None:
        self.store, self.name, self.plan, self.source, self.device, self.ranks = (
            store,
            name,
            plan,
            source,
            device,
            ranks,
        )
        self.state = self._start()
        restore(store, name, plan, self.state)

    def _start(self) -> State:
        generator = torch.Generator().manual_seed(self.plan.settings.seed)
        sae = SAE(self.plan.config, generator)
        with torch.no_grad():
            first = next(self.source.epoch(0))
            if not bool((first != first[0]).any()):
                raise SAEError(
                    f"all activations of hook {self.plan.config.hook!r} are equal: there is nothing to learn."
                )
            median = geometric_median(first)
            self.scale = float((first - median).square().sum(dim=1).mean().sqrt()) if self.plan.scale_inputs else 1.0
            sae.b_dec.copy_(median / self.scale)
            sae.variant.start(sae, sae.centred(first / self.scale)[0])
        return State(sae.to(self.device))

    def walk(
        self,
        stack: contextlib.ExitStack,
        progress: bool,
        on_report: Callable[[Progress], object],
        stop: Interruption,
    ) -> Iterator[int]:
        """Take the steps that are left, one an iteration; a checkpoint is kept up, and written before KeyboardInterrupt."""
        state, steps, size = self.state, self.plan.steps, self.plan.settings.batch_size
        bar = stack.enter_context(
            tqdm(desc=f"train {self.name}", total=steps * size, initial=state.step * size, unit=" positions",
                 unit_scale=True, disable=None if progress else True)
        )  # fmt: skip
        saved, since, sums = time.monotonic(), state.step, torch.zeros(2, dtype=torch.float64)
        stream = self._stream()
        while state.step < steps:
            seen = self._step(next(stream).to(self.device) / self.scale)
            sums += seen
            last = state.step == steps
            if state.step % _REPORT_EVERY == 0 or last:
                report = self._report(sums / (state.step - since))
                state.remember(seen.tolist(), report.n_dead)
                bar.set_postfix_str(f"fvu {report.fvu:.4f}, l0 {report.l0:.1f}, dead {report.n_dead}", refresh=False)
                bar.update(state.step * size - bar.n)
                since = state.step
                sums.zero_()
                on_report(report)
            wanted = self.ranks.any(stop.wanted)
            if wanted or last or time.monotonic() - saved > CHECKPOINT_SECONDS:
                if self.ranks.rank == 0:
                    save(self.store, self.name, self.plan, state)
                saved = time.monotonic()
            if wanted:
                raise KeyboardInterrupt
            yield state.step

    def _stream(self) -> Iterator[Tensor]:
        epoch, start = divmod(self.state.step, self.source.n_batches)
        while True:
            for x in self.source.epoch(epoch, start):
                yield self.ranks.part(x)
            epoch, start = epoch + 1, 0

    def _step(self, x: Tensor) -> Tensor:
        """Take one step; return its FVU and L0, float64 on the CPU."""
        lr, settings = self.plan.lr_at(self.state.step), self.plan.settings
        bfloat16 = settings.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
            loss = take_step(self.state, x, lr, self.plan.dead_after, settings.aux_alpha, self.ranks)
        active = (loss.codes.values > 0).sum() / len(x)
        return self.ranks.mean(torch.stack([loss.fvu.double(), active.double()])).cpu()

    def _report(self, means: Tensor) -> Progress:
        fvu, l0 = means.tolist()
        if not math.isfinite(fvu):
            discard(self.store, self.name)
            raise SAEError(
                f"the loss is not finite at step {self.state.step} of {self.plan.steps}: use a smaller learning rate "
                f"than {self.plan.lr:.2g}. Nothing was committed."
            )
        dead = int((self.state.positions_since_fired > self.plan.dead_after).sum())
        return Progress(self.state.step, self.plan.steps, fvu, l0, dead, self.name)
