"""What to train, and what follows from it and the data."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch

import featurestore
from featurestore.errors import UsageError, nearest
from featurestore.format.canonical import canonical_json, sha256_text
from featurestore.store import Store
from featurestore.vocabulary import PRECISIONS
from sae.feed.batches import Source
from sae.model import SAEConfig
from sae.training.loss import AUX_ALPHA
from sae.variants import VARIANTS
from sae.variants.matryoshka import default_groups

INITIALISATION = "unit_tied"
"""what :func:`sae.training.start.start_training` does, by the name that docs/format.md gives it"""
_LR_AT = (16e-4, 20480)
_BETAS = (0.5, 0.99)
_WARMUP, _MAX_WARMUP_STEPS = 0.2, 1000
_DEAD_AFTER, _MAX_DEAD_AFTER = 0.05, 10_000_000
_SHORT, _MAX_HASTE = 256, 2.0
"""positions per latent of a training that need not hurry, and how much one may"""


@dataclass(frozen=True)
class TrainSettings:
    """What decides an SAE beside the data."""

    k: int = 32
    """latents that may be active at a position"""
    expansion: float = 16.0
    """n_latents = expansion · d_in, rounded"""
    n_latents: int | None = None
    """overrides ``expansion``"""
    steps: int | None = None
    """None: five times all training positions, and 1000 steps at least; once all of live
    activations"""
    batch_size: int = 4096
    """positions per step; a small map's data does with 1024"""
    lr: float | None = None
    """peak of Adam's learning rate; None: 16e-4 · √(20480 / n_latents) (scaled as in Gao et al.
    2024), times :func:`haste`"""
    seed: int = 0
    """of the weights and of the order of the data"""
    branch: str = "cond"
    """``cond``, ``uncond`` or ``both``: the rows to train on"""
    holdout: float = 0.1
    """share of the samples kept for the metrics"""
    dead_after: int | None = None
    """positions without firing after which a latent is dead; None: a twentieth of all to be seen,
    at most 10 million"""
    aux_alpha: float = AUX_ALPHA
    """weight of the auxiliary loss"""
    precision: str = "float32"
    """``bfloat16``: of the encoder's matrix product in training; everything else stays float32"""
    architecture: str = "topk"
    """a name in :data:`sae.variants.VARIANTS`"""
    group_sizes: tuple[int, ...] = ()
    """of a Matryoshka SAE; (): 1/32, 1/16, 1/8 and 1/4 of the latents and the rest"""
    scale_inputs: bool | None = None
    """train on inputs divided by their root mean squared distance from ``b_dec``, and scale the
    trained SAE back; None: only where the variant has units, as JumpReLU"""

    def __post_init__(self) -> None:
        if self.architecture not in VARIANTS:
            raise UsageError(
                f"architecture {self.architecture!r} is not "
                f"known.{nearest(self.architecture, VARIANTS)}"
            )
        if self.group_sizes and self.architecture != "matryoshka_batchtopk":
            raise UsageError(
                f"group sizes are for matryoshka_batchtopk, the architecture is "
                f"{self.architecture}."
            )
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision {self.precision!r} is not one of {', '.join(PRECISIONS)}.")
        for name, low in (
            ("k", 1),
            ("n_latents", 1),
            ("steps", 1),
            ("batch_size", 2),
            ("seed", 0),
            ("dead_after", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < low:
                raise UsageError(f"{name} is {value}, it must be at least {low}.")
        for name in ("expansion", "lr"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"{name} is {value}, it must be positive.")
        if not 0 <= self.holdout < 1 or not 0 <= self.aux_alpha < math.inf:
            found = f"holdout is {self.holdout} and aux_alpha {self.aux_alpha}"
            raise UsageError(f"{found}: expected 0 ≤ holdout < 1 and 0 ≤ aux_alpha.")


@dataclass(frozen=True)
class Plan:
    """Settings with everything worked out."""

    settings: TrainSettings
    config: SAEConfig
    steps: int
    lr: float
    dead_after: int
    data: str
    """names the contents of the shards that are trained on"""
    betas: tuple[float, float] = _BETAS
    """Adam's: how much of the mean gradient, and of its mean square, each step keeps"""
    warmup: float = _WARMUP
    """share of the steps in which the learning rate rises; 1000 steps at most"""

    @property
    def haste(self) -> float:
        """What the learning rate is multiplied by where none is given, and the encoder divided by
        at the start."""
        return haste(self.steps * self.settings.batch_size, self.config.n_latents)

    @property
    def scale_inputs(self) -> bool:
        """Whether inputs are scaled in training."""
        chosen = self.settings.scale_inputs
        return VARIANTS[self.config.architecture].learns_threshold if chosen is None else chosen

    def lr_at(self, step: int) -> float:
        """Return the learning rate of a step: a linear warm-up, then linear decay to 0 after the
        last step."""
        warmup = min(_MAX_WARMUP_STEPS, int(self.steps * self.warmup))
        return self.lr * min((step + 1) / (warmup + 1), (self.steps - step) / (self.steps - warmup))

    def made_by(self) -> dict[str, Any]:
        """Return what the commit record says under ``made_by``."""
        versions = {
            "featurestore": featurestore.__version__,
            "torch": torch.__version__.split("+")[0],
        }
        return {**versions, "data": self.data, "settings": self.described()}

    def described(self) -> dict[str, Any]:
        """Return the settings that decide the result, defaults worked out, as JSON values."""
        fields = dataclasses.asdict(self.settings)
        fields |= {"steps": self.steps, "lr": self.lr, "dead_after": self.dead_after}
        fields |= {"n_latents": self.config.n_latents, "hook": self.config.hook}
        fields |= {"betas": list(self.betas), "warmup": self.warmup}
        if self.haste != 1:  # Others are what they were before there was any.
            fields["haste"] = self.haste
        fields |= {"group_sizes": list(self.config.group_sizes), "scale_inputs": self.scale_inputs}
        return {key: fields[key] for key in sorted(fields) if key != "expansion"}

    def identity(self) -> str:
        """Return the digits that name the settings and the data."""
        return sha256_text(canonical_json({"data": self.data, "settings": self.described()}))


def haste(n_positions: int, n_latents: int) -> float:
    """Return by how much a training hurries that sees few positions: the cube root of 256 n_latents
    / n_positions, at least 1 and at most 2 (measured: docs/saes.md)."""
    return min(_MAX_HASTE, max(1.0, math.cbrt(_SHORT * n_latents / n_positions)))


def default_lr(n_latents: int, n_positions: int) -> float:
    """Return the peak of the learning rate where nothing is said."""
    return haste(n_positions, n_latents) * _LR_AT[0] * math.sqrt(_LR_AT[1] / n_latents)


def default_dead_after(n_positions: int) -> int:
    """Return after how many positions without firing a latent is dead, of all that a training
    sees."""
    return min(_MAX_DEAD_AFTER, max(1, int(n_positions * _DEAD_AFTER)))


def make_plan(store: Store, hook: str, settings: TrainSettings, source: Source) -> Plan:
    """Work out what ``settings`` mean for a hook's activations.

    Raises:
        UsageError: k or the groups do not fit the number of latents.
    """
    rows, run = source.rows, store.run or {}
    n_latents = settings.n_latents or max(1, round(settings.expansion * rows.d_in))
    if n_latents >= 2**31:
        raise UsageError(
            f"{n_latents:,} latents are more than an SAE can have (2^31 - 1): use a smaller "
            f"--expansion."
        )
    if settings.k > n_latents:
        raise UsageError(
            f"k = {settings.k} is more than the {n_latents} latents: use a smaller --k or a "
            f"larger --expansion."
        )
    groups = settings.group_sizes
    if settings.architecture == "matryoshka_batchtopk":
        groups = groups or default_groups(n_latents)
        if sum(groups) != n_latents or min(groups) < 1:
            raise UsageError(
                f"group sizes {list(groups)} must be positive and add up to the {n_latents} "
                f"latents."
            )
    config = SAEConfig(
        d_in=rows.d_in,
        n_latents=n_latents,
        k=settings.k,
        architecture=settings.architecture,
        group_sizes=groups,
        hook=hook,
        io=rows.metadata["io"] or "output",
        height=int(rows.metadata["height"] or 0),
        width=int(rows.metadata["width"] or 0),
        branch=settings.branch,
        model_hash=str(run.get("model_hash", "")),
        run_id=store.run_id,
        initialisation=INITIALISATION,
    )
    steps = settings.steps or source.default_steps
    n_positions = steps * settings.batch_size
    lr = settings.lr or default_lr(n_latents, n_positions)
    dead_after = settings.dead_after or default_dead_after(n_positions)
    return Plan(settings, config, steps, lr, dead_after, source.data)
