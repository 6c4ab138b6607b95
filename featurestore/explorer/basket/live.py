"""Draw a prompt before and after: one model, loaded when it is first needed; one picture at a time;
what was drawn is kept."""

import io
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from featurestore.errors import FeatureStoreError, QueryError, UsageError
from featurestore.explorer.basket.entries import Entry
from featurestore.explorer.basket.ladders import Ladders, as_json
from featurestore.format.canonical import canonical_json, sha256_text
from featurestore.selection import Selection

KEPT_PICTURES = 512
_KEPT_JOBS = 20


class _StoppedError(Exception):
    """Raised from a hook between two denoising steps."""


@dataclass(frozen=True)
class Wanted:
    """One picture of a ladder."""

    key: str
    factor: float | None
    """of every multiplier; None: as the model draws it, with nothing taken out"""


@dataclass
class Job:
    """A prompt, a seed and a basket at the rungs of a ladder; its events, in order."""

    id: str
    prompt: str
    seed: int
    steps: int | None
    guidance: float | None
    chosen: Sequence[tuple[Entry, Selection]]
    factors: Sequence[float]
    events: list[dict[str, Any]] = field(default_factory=list)
    stopped: bool = False

    @property
    def is_over(self) -> bool:
        """Whether no more events will come."""
        return bool(self.events) and self.events[-1]["event"] in ("done", "failed", "stopped")


class Studio:
    """Draws on one thread; a new job stops the one before it between two steps."""

    def __init__(
        self,
        model: str | None,
        device: str = "auto",
        dtype: str = "auto",
        ladders: Ladders | None = None,
    ) -> None:
        self.name, self._device, self._dtype, self._ladders = model, device, dtype, ladders
        self._model: Any = None
        self._saes: dict[str, Any] = {}
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._pictures: OrderedDict[str, bytes] = OrderedDict()
        self._waiting: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self, job: Job) -> None:
        """Draw a job in the background, in place of whatever is being drawn."""
        if self.name is None:
            raise UsageError("no model to draw with: the store names none; start with --model.")
        for other in self._jobs.values():
            other.stopped = True
        self._jobs[job.id] = job
        while len(self._jobs) > _KEPT_JOBS:
            self._jobs.popitem(last=False)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="studio", daemon=True)
            self._thread.start()
        self._waiting.put(job)

    def job(self, name: str) -> Job:
        """Return a job; raises QueryError if no job has this id."""
        if name not in self._jobs:
            raise QueryError(
                f"no drawing {name!r}: it was made by an earlier start of the explorer, or long "
                f"ago."
            )
        return self._jobs[name]

    def picture(self, key: str) -> bytes:
        """Return a drawn picture as PNG; raises QueryError if it was not drawn."""
        if key not in self._pictures:
            raise QueryError("no such drawn picture: draw it again.")
        return self._pictures[key]

    def close(self) -> None:
        """Stop drawing between two steps."""
        for job in self._jobs.values():
            job.stopped = True
        self._waiting.put(None)

    def _work(self) -> None:
        while (job := self._waiting.get()) is not None:
            try:
                self._draw(job)
            except _StoppedError:
                job.events.append({"event": "stopped"})
            except FeatureStoreError as error:
                job.events.append({"event": "failed", "error": " ".join(str(error).split())})

    def _draw(self, job: Job) -> None:
        from sae.diffusion.pipelines import RunSettings, describe_run

        self._check(job)
        model = self._loaded(job)
        run = RunSettings(
            job.steps or model.steps, model.guidance if job.guidance is None else job.guidance
        )
        described = describe_run(model, run)
        rungs = [None, *job.factors] if job.chosen else [None]
        wanted = [Wanted(_key(job, described, factor), factor) for factor in rungs]
        settings = {"model": self.name, "steps": run.n_steps, "guidance": run.guidance}
        listed = [{"key": one.key, "factor": one.factor} for one in wanted]
        job.events.append({"event": "planned", "pictures": listed, **settings})
        for number, one in enumerate(wanted):
            if one.key not in self._pictures:
                self._check(job)

                def tell(step: int, number: int = number) -> None:
                    self._check(job)
                    job.events.append(
                        {
                            "event": "step",
                            "picture": number,
                            "of": len(wanted),
                            "step": step,
                            "steps": run.n_steps,
                        }
                    )

                self._keep(one.key, self._one(model, run, job, factor=one.factor, tell=tell))
            job.events.append({"event": "picture", "key": one.key, "factor": one.factor})
        if self._ladders is not None and job.chosen:
            about = {"prompt": job.prompt, "seed": job.seed, **settings, "pictures": listed}
            about["entries"] = as_json([entry for entry, _ in job.chosen])
            self._ladders.keep(about, {one.key: self._pictures[one.key] for one in wanted})
        job.events.append({"event": "done"})

    def _check(self, job: Job) -> None:
        if job.stopped:
            raise _StoppedError

    def _loaded(self, job: Job) -> Any:
        from sae.diffusion.pipelines import load_model

        if self._model is None:
            job.events.append({"event": "loading", "model": self.name})
            self._model = load_model(str(self.name), self._device, self._dtype)
        return self._model

    def _one(
        self, model: Any, run: Any, job: Job, *, factor: float | None, tell: Callable[[int], None]
    ) -> bytes:
        """Return one picture as PNG: made as ``featurestore generate`` makes it, with the same
        calls."""
        from sae.diffusion.modules import denoiser
        from sae.diffusion.pipelines import generate
        from sae.intervention.ablate import ablate

        calls = 0

        def count(*_: Any) -> None:
            nonlocal calls
            calls += 1
            tell(calls)

        hook = denoiser(model.pipe).register_forward_hook(count)
        try:
            if factor is None:
                [image] = generate(model, run, [job.prompt], [job.seed])
            else:
                with ablate(model.pipe, interventions(job.chosen, factor), saes=self._needed(job)):
                    [image] = generate(model, run, [job.prompt], [job.seed])
        finally:
            hook.remove()
        sink = io.BytesIO()
        image.save(sink, format="PNG")
        return sink.getvalue()

    def _needed(self, job: Job) -> dict[str, Any]:
        from sae.checkpoint import load_selection_sae

        for _, selection in job.chosen:
            if selection.sae_hash not in self._saes:
                self._saes[selection.sae_hash] = load_selection_sae(selection)
        return self._saes

    def _keep(self, key: str, png: bytes) -> None:
        self._pictures[key] = png
        while len(self._pictures) > KEPT_PICTURES:
            self._pictures.popitem(last=False)


def interventions(chosen: Sequence[tuple[Entry, Selection]], factor: float = 1.0) -> list[Any]:
    """Return what is done with a basket's selections, each multiplier times ``factor``."""
    from sae.intervention.settings import ALWAYS, Intervention, Window

    return [
        Intervention(
            selection,
            strength=entry.multiplier * factor,
            window=ALWAYS if entry.window is None else Window(*entry.window),
        )
        for entry, selection in chosen
    ]


def _key(job: Job, described: dict[str, Any], factor: float | None) -> str:
    """Return what a picture is kept under: everything that decides it."""
    picked: list[Any] = []
    for entry, selection in job.chosen if factor is not None else ():
        strong = replace(entry, multiplier=entry.multiplier * (1.0 if factor is None else factor))
        rows = sha256_text(canonical_json(selection.rows.to_pylist()))
        picked.append([rows, selection.sae_hash, strong.multiplier, strong.window, strong.branch])
    return sha256_text(canonical_json([job.prompt, job.seed, described, picked]))[:32]
