"""Training: what learns, and the loop around it that reports, keeps checkpoints and stops when
asked to."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from featurestore.errors import SAEError
from featurestore.store import Store
from sae.feed.batches import Source
from sae.training.processes import Processes
from sae.training.settings import Plan
from sae.training.start import start_training
from sae.training.state import discard, restore, save
from sae.training.stepping.stepper import stepper

CHECKPOINT_SECONDS = 60.0
_REPORT_STEPS = 10


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
    """An SAE that learns: its state, and where it stands in its data.

    Raises:
        SAEError: the data are constant, or the written state belongs to another training.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        plan: Plan,
        source: Source,
        *,
        device: torch.device,
        processes: Processes,
    ) -> None:
        self.store, self.name, self.plan, self.source = store, name, plan, source
        self._device, self._processes = device, processes
        self.state, self.scale = start_training(plan, source, device)
        restore(store, name, plan, self.state)
        self._take_step = stepper(self.state, plan, processes)
        self._batches = self._stream()
        self._seen: list[Tensor] = []

    @property
    def done(self) -> bool:
        """Whether all steps were taken."""
        return self.state.step >= self.plan.steps

    @property
    def lag(self) -> float:
        """The share of the steps that will be done after the next."""
        return (self.state.step + 1) / self.plan.steps

    def _stream(self) -> Iterator[Tensor]:
        epoch, start = divmod(self.state.step, self.source.n_batches)
        while True:
            for x in self.source.epoch(epoch, start):
                yield self._processes.part(x)
            epoch, start = epoch + 1, 0

    def step(self) -> None:
        """Learn from the next batch."""
        # Converted there: half as many bytes cross over.
        x = next(self._batches).to(self._device, non_blocking=True).float() / self.scale
        loss = self._take_step(x)
        active = (loss.codes.values > 0).sum() / len(x)
        self._seen.append(torch.stack([loss.fvu.double(), active.double()]))

    def report(self) -> Progress:
        """Say how the steps since the last report went; those of the last one go into the history.

        Raises:
            SAEError: the loss is not finite; the written state is deleted.
        """
        seen = self._processes.mean(torch.stack(self._seen)).cpu()
        self._seen.clear()
        (fvu, l0), (last_fvu, last_l0) = seen.mean(dim=0).tolist(), seen[-1].tolist()
        if not math.isfinite(fvu):
            discard(self.store, self.name)
            raise SAEError(
                f"the loss is not finite at step {self.state.step} of {self.plan.steps}: use a "
                f"smaller learning rate than {self.plan.lr:.2g}. Nothing was committed."
            )
        n_dead = int((self.state.positions_since_fired > self.plan.dead_after).sum())
        self.state.remember(last_fvu, last_l0, n_dead)
        return Progress(self.state.step, self.plan.steps, fvu, l0, n_dead, self.name)

    def save(self) -> None:
        """Write the state, in the first of the processes."""
        if self._processes.rank == 0:
            save(self.store, self.name, self.plan, self.state)


def run(
    trainings: Sequence[Training],
    processes: Processes,
    *,
    progress: bool = True,
    on_report: Callable[[Progress], object] = lambda progress: None,
) -> None:
    """Take all steps of some trainings; each gets as far as the others in the same time.

    So what they learn from may be generated for all at once. Their states are written every
    ``CHECKPOINT_SECONDS``, at the end of each, and when SIGINT arrives, which KeyboardInterrupt
    follows.

    Raises:
        SAEError: a loss is not finite.
    """
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(interruption())
        bars = {
            training.name: stack.enter_context(_bar(training, progress)) for training in trainings
        }
        saved = dict.fromkeys(bars, time.monotonic())
        while left := [training for training in trainings if not training.done]:
            training = min(left, key=lambda one: one.lag)
            training.step()
            if training.state.step % _REPORT_STEPS == 0 or training.done:
                report = training.report()
                _show(bars[training.name], training, report)
                on_report(report)
            if training.done or time.monotonic() - saved[training.name] > CHECKPOINT_SECONDS:
                training.save()
                saved[training.name] = time.monotonic()
            if processes.any(stop.is_set()):
                for one in trainings:
                    one.save()
                raise KeyboardInterrupt


def _bar(training: Training, progress: bool) -> "tqdm[None]":
    size = training.plan.settings.batch_size
    return tqdm(
        desc=f"train {training.name}",
        total=training.plan.steps * size,
        initial=training.state.step * size,
        unit=" positions",
        unit_scale=True,
        disable=None if progress else True,
    )


def _show(bar: "tqdm[None]", training: Training, report: Progress) -> None:
    text = f"fvu {report.fvu:.4f}, l0 {report.l0:.1f}, dead {report.n_dead}"
    bar.set_postfix_str(text, refresh=False)
    bar.update(report.step * training.plan.settings.batch_size - bar.n)


@contextlib.contextmanager
def interruption() -> Iterator[threading.Event]:
    """Yield what the first SIGINT inside the block sets; the second interrupts at once, as without
    this block.

    Python delivers signals to the main thread only: in another thread nothing is ever set.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
