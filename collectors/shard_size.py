"""How many pictures make a shard: as many as make files of a good size."""

import contextlib
import warnings
from collections.abc import Sequence

from collectors.job import Job
from collectors.keep import Kept
from collectors.planning.plan import CODE_BYTES, Sample, fitting
from collectors.rows.capture import Captured, capture
from collectors.rows.shape import Shape, shape_of
from featurestore.errors import DamageError
from featurestore.store.store import Store
from sae.diffusion.pipelines import generate, with_guidance
from sae.diffusion.reading.calls import DenoiserCall

FORMER_SAMPLES = 16
"""of a shard, in stores whose records do not tell it"""
_UNKNOWN_K = 64
"""active latents per position of an SAE that does not say how many"""


def find_shard_samples(job: Job, samples: Sequence[Sample]) -> int:
    """Return how many pictures make a shard: those that were asked for; or as the store was cut
    before; or as many whole batches as :func:`fitting` says.

    The first two are read, the last is computed from one call of the denoiser for the first sample,
    so every process, and every call that goes on, cuts alike. Samples that one batch takes are one
    shard: 0, they are not cut. A warning says that the store was cut otherwise before.
    """
    asked, before = job.settings.shard_samples, _told(job.store)
    if asked is None:
        # With --exact, bytes do not depend on the batch size.
        batch = 1 if job.settings.exact else job.settings.batch_size
        whole = len(samples) <= batch
        return before or (0 if whole else fitting(picture_bytes(job, samples[0]), batch))
    if before not in (None, asked):
        warnings.warn(
            f"{job.store.root} was collected with {before} pictures per shard, now they are "
            f"{asked}: what is missing is cut anew, and shards of both sizes stand side by side.",
            stacklevel=2,
        )
    return asked


def _told(store: Store) -> int | None:
    """Return how a store was cut first; None if it holds no samples, or was not cut yet."""
    for record in store.records("samples"):
        told = record.made_by.get("shard_samples", FORMER_SAMPLES)
        if type(told) is not int or told < 0:
            raise DamageError(
                f"{store.root / record.location}: shard_samples is {str(told)[:40]!r}, expected a "
                f"whole number."
            )
        if told:
            return told
    return None


class _SeenError(Exception):
    """Ends a generation once all hooks were seen."""


def picture_bytes(job: Job, sample: Sample) -> int:
    """Return the bytes that a picture adds to the largest file of a shard, from one call of the
    denoiser.

    Raises:
        HookError, UsageError: a hook or a choice does not fit the model.
    """
    shapes: dict[str, Shape] = {}

    def sink(captured: Captured) -> None:
        if captured.hook not in shapes:
            shapes[captured.hook] = shape_of(captured, job.kept[captured.hook])

    def before(call: DenoiserCall) -> None:
        if call.step or len(shapes) == len(job.kept):
            raise _SeenError

    run, prompt = with_guidance(job.run, sample.prompt.guidance), sample.prompt
    hooked = capture(job.model.pipe, list(job.kept), sink, io=job.settings.io, before=before)
    with contextlib.suppress(_SeenError), hooked:
        generate(
            job.model, run, [prompt.prompt], [prompt.seed],
            output_type="latent", starts=[prompt.starts],
        )  # fmt: skip
    return max((_bytes(shape, job.kept[hook]) for hook, shape in shapes.items()), default=0)


def _bytes(shape: Shape, kept: Kept) -> int:
    positions = len(shape.steps) * len(kept.branches) * shape.n_kept
    tensor = positions * shape.d_in * kept.torch_dtype.itemsize if kept.activations else 0
    codes = [positions * (c.sae.config.k or _UNKNOWN_K) * CODE_BYTES for c in kept.saes.values()]
    return max(tensor, *codes, 0)
