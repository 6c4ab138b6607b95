"""What a corpus will take before anything is loaded: bytes for each table, and GPU hours.

Every constant was measured, and says where; what follows from them is arithmetic. For a run that
can be started, ``collect --dry-run`` measures one batch instead.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from collectors.planning.plan import CODE_BYTES as WAITING_BYTES
from collectors.planning.plan import fitting
from featurestore.errors import UsageError, nearest


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A model's published sizes, at its usual resolution."""

    name: str
    hook: str
    """where others trained SAEs"""
    positions: int
    """of the hook's map"""
    d_in: int
    n_steps: int
    calls: int
    """samples of a denoiser call for each picture and step: 2 under classifier-free guidance"""
    tflop: float
    """of one sample's denoiser call, counted by torch over diffusers' classes on the meta device"""


KNOWN = {
    model.name: model
    for model in (
        KnownModel(
            name="sd15",
            hook="unet.up_blocks.1.attentions.1",
            positions=256,
            d_in=1280,
            n_steps=50,
            calls=2,
            tflop=0.80,
        ),
        KnownModel(
            name="sdxl",
            hook="unet.up_blocks.0.attentions.1",
            positions=1024,
            d_in=1280,
            n_steps=50,
            calls=2,
            tflop=6.76,
        ),
        KnownModel(
            name="flux",
            hook="transformer.transformer_blocks.18",
            positions=4096,
            d_in=3072,
            n_steps=28,
            calls=1,
            tflop=74.4,
        ),
    )
}
H100_TFLOPS = 228.0
"""reached by SD-1.5's shape in float16, batch 8, guidance 2 ×, decoding included
(benchmarks/results/collect.jsonl)"""
COLLECTING = 1.30
"""collecting two hooks ÷ generating alone on that card"""
TRAINED_POSITIONS = 351_200 * 1280 * 20480
"""positions × d_in × n_latents that training takes in a second there
(benchmarks/results/train.jsonl); encoding is less work"""
SAMPLE_BYTES = 300
"""of a row of ``samples`` without its picture: prompt, labels, ids (the demo's store)"""
ACTIVATION_OVERHEAD = 1.002
"""file ÷ tensor at SD-1.5's shape (benchmarks/results/collect.jsonl)"""
CODE_BYTES = 4.0
"""for each of the k codes of a position: 2.7 on the demo's store, 3.9 at SD-1.5's shape"""
STATS_BYTES = 6.0
"""of a row of ``stats``: 5.4 at the published size, 6.9 on the demo's store"""
SUMS_BYTES, TOTALS_BYTES = 3.0, 11.0
"""of a row of ``sums`` and of ``totals`` at the published size"""
BEST_ROWS = 32 + 10
"""of ``candidates`` and ``step_candidates`` together, for each concept and step, at most; their
rows are those of ``sums``"""
BY_FEATURE_BYTES = 1.0
"""of the three tables by feature, for each row of ``stats``, at the published size"""
SUMS_CORE_S, BY_FEATURE_CORE_S = 2.64e-7, 3.35e-7
"""seconds of a core for each row of ``stats``, there: making the sums of a family (99 s for two,
188 million rows), and the tables by feature (63 s)"""
CANDIDATES_CORE_S = 9.7e-8
"""for each row of ``sums`` that there can be: making both tables of candidates (13.9 s for two
families of 70 concepts there)"""
CORES_USED = 1.46
"""of two, by DuckDB while it makes the sums there (99 s of processors in 68 s)"""
SPARK_CORE_S = 1.05e-5
"""the same sums by Spark on local[2], and a selection from them: what 18.8 million rows took more
than 9.4 million (305 and 206 s)"""
EXECUTOR_CORES = 4
BATCH = 8
"""pictures generated at once, unless told otherwise"""
DISTINCT = 0.4
"""latents that fire in a row ÷ those that would if every code were drawn at random (0.28 and 0.39
there)"""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """What is to be collected."""

    model: KnownModel
    n_prompts: int
    n_seeds: int = 1
    n_hooks: int = 1
    n_branches: int = 1
    k: int = 32
    n_latents: int = 20480
    n_families: int = 2
    n_concepts: int = 70
    """of all families together"""

    @property
    def samples(self) -> int:
        """Pictures."""
        return self.n_prompts * self.n_seeds

    @property
    def rows(self) -> int:
        """Rows of ``activations`` and of ``codes``, over all hooks."""
        return self.samples * self.model.n_steps * self.n_hooks * self.n_branches

    @property
    def shard_samples(self) -> int:
        """Pictures per shard, where activations are kept."""
        per_picture = self.model.n_steps * self.n_branches * self.model.positions
        return fitting(per_picture * max(self.model.d_in * 2, self.k * WAITING_BYTES), BATCH)

    @property
    def shards(self) -> int:
        """Of each table that a collection fills."""
        return -(-self.samples // self.shard_samples)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What it takes."""

    table_bytes: Mapping[str, int]
    """table kind → bytes of all its shards"""
    stats_rows: int
    generate_hours: float
    """on one H100, generating and collecting"""
    encode_hours: float
    """on one H100, encoding all hooks, at most: as long as training on every position once"""
    derive_hours: float
    """on two cores, making sums, candidates and tables by feature"""
    spark_executors: int
    """of four cores, that make the sums in an hour"""
    n_files: int
    """data files of a collection that is not compacted, and as many commit records"""

    def kept_bytes(self, without: Collection[str] = ()) -> int:
        """Return the bytes of all tables but some."""
        return sum(size for table, size in self.table_bytes.items() if table not in without)


def model_sizes(
    name: str,
    *,
    positions: int | None = None,
    d_in: int | None = None,
    tflop: float | None = None,
    n_steps: int | None = None,
) -> KnownModel:
    """Return a model's sizes: those that are kept, but for those given.

    Raises:
        UsageError: no sizes are kept of it, and not all are given.
    """
    known = KNOWN.get(name, KNOWN["sd15"])
    if name not in KNOWN and None in (positions, d_in, tflop, n_steps):
        raise UsageError(
            f"no sizes are kept of model {name!r}.{nearest(name, KNOWN)} Another model: give "
            f"--positions and --d-in of its hook, --tflop and --steps."
        )
    return KnownModel(
        name=name,
        hook=known.hook if name in KNOWN else "",
        positions=positions or known.positions,
        d_in=d_in or known.d_in,
        n_steps=n_steps or known.n_steps,
        calls=known.calls,
        tflop=tflop or known.tflop,
    )


def budget(corpus: Corpus) -> Budget:
    """Return the bytes and hours of a corpus (docs/scale.md has the constants and where they are
    from)."""
    model = corpus.model
    codes = model.positions * corpus.k
    uniform = corpus.n_latents * (1 - math.exp(-codes / corpus.n_latents))
    stats_rows = round(corpus.rows * min(uniform, codes) * DISTINCT)
    steps = model.n_steps * corpus.n_hooks * corpus.n_branches
    # At most: as if every latent fired for every concept at every step.
    sums_rows = min(stats_rows * corpus.n_families, steps * corpus.n_latents * corpus.n_concepts)
    totals_rows = min(stats_rows, steps * corpus.n_latents) * corpus.n_families
    table_bytes = {
        "samples": corpus.samples * SAMPLE_BYTES,
        "activations": round(corpus.rows * model.positions * model.d_in * 2 * ACTIVATION_OVERHEAD),
        "codes": round(corpus.rows * codes * CODE_BYTES),
        "stats": round(stats_rows * STATS_BYTES),
        "sums, totals": round(sums_rows * SUMS_BYTES + totals_rows * TOTALS_BYTES),
        "candidates": round(steps * corpus.n_concepts * BEST_ROWS * SUMS_BYTES),
        "by feature": round(stats_rows * BY_FEATURE_BYTES),
    }
    sums = stats_rows * corpus.n_families
    derive = (
        sums * SUMS_CORE_S + sums_rows * CANDIDATES_CORE_S + stats_rows * BY_FEATURE_CORE_S
    ) / CORES_USED
    generate = corpus.samples * model.n_steps * model.calls * model.tflop / H100_TFLOPS * COLLECTING
    encode = corpus.rows * model.positions * model.d_in * corpus.n_latents / TRAINED_POSITIONS
    return Budget(
        table_bytes=table_bytes,
        stats_rows=stats_rows,
        generate_hours=generate / 3600,
        encode_hours=encode / 3600,
        derive_hours=derive / 3600,
        n_files=2 * corpus.shards * (1 + 3 * corpus.n_hooks),
        spark_executors=math.ceil(sums * SPARK_CORE_S / 3600 / EXECUTOR_CORES),
    )
