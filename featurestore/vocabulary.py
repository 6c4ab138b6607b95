"""The closed lists: every word that a store, an option or a setting may hold where few are allowed.

One definition of each, without torch, which the command line and the libraries read.
"""

from typing import Literal

Branch = Literal["cond", "uncond", "perturbed", "skip", "image"]

FORMAT = "featurestore"
"""what marks a file as this project's"""
FORMAT_VERSION = 2
"""of a store and its records (docs/format.md)"""
READ_VERSIONS = (1, FORMAT_VERSION)
"""of stores and records that can be read"""
BY_FEATURE = ("feature_masks", "feature_samples", "feature_steps")
"""the derived tables that are ordered by feature, in the order in which they are made"""
CANDIDATES = ("candidates", "step_candidates")
"""the derived tables of what scores best: mean scores, and the scores of a step"""
TABLE_KINDS = (
    *("activations", "attention", "codes", "stats", "sums", "totals", "scores", "selections"),
    *BY_FEATURE,
    *CANDIDATES,
)
"""the first part of a table's name; the tables ``samples`` and ``labels`` have no second part"""

PLAIN_TABLES = ("samples", "labels")
"""the tables whose name has one part"""

HALVES: tuple[Branch, ...] = ("cond", "uncond")
"""of classifier-free guidance"""
BRANCHES: tuple[Branch, ...] = (*HALVES, "perturbed", "skip", "image")
"""the halves, and what a guidance of three parts has beside them (docs/pipelines.md, "Guidance")"""
BRANCH_CHOICES: dict[str, tuple[Branch, ...]] = {
    **{branch: (branch,) for branch in HALVES},
    "both": HALVES,
    **{branch: (branch,) for branch in BRANCHES[2:]},
}
"""what a user may ask for → the branches that it means"""
IO = ("output", "input", "difference")
"""which tensor of a module; ``difference`` is output − input"""
STARTS = ("image", "mask", "control")
"""pictures that a sample may start from beside noise: one that is drawn over, white where it is,
and one that guides (ControlNet)"""
PADDING = ("keep", "drop")
"""what becomes of tokens that only fill a text up"""
ACTIVATION_DTYPES = ("float16", "float32")
"""of stored activations"""

ARCHITECTURES = ("topk", "batchtopk", "jumprelu", "matryoshka_batchtopk")
"""of SAEs: how the active latents are chosen (docs/saes.md)"""
CHECKPOINT_FORMATS = ("sparsify", "saelens", "dictionary_learning", "sdxl-unbox", "overcomplete")
"""of other libraries' SAEs that can be read"""
WRITTEN_FORMATS = ("sparsify", "saelens")
"""of these, the ones that can be written"""
PRECISIONS = ("float32", "bfloat16")
"""of the encoder's matrix product in training"""
MODEL_DTYPES = ("float32", "float16", "bfloat16")
"""that a pipeline can be loaded in"""
LOGS = ("tensorboard", "wandb")
"""where the course of a training can be watched"""

PLOTS = {
    "lines": "concept",
    "heatmap": "concept",
    "interval": "concept",
    "overlap": "family",
    "profile": "feature",
    "map": "feature",
    "fvu": "sae",
}
"""kind of plot → what it is drawn for"""

INTERVENTIONS = {
    "paper": "f ← γ · μ(i,t,D_c) · f where f > μ(i,t,D)",
    "zero": "f ← 0",
    "clamp": "f ← c where f > 0",
    "add": "x + α · W_dec[i] at every position",
    "replace": "positions where a feature has f > μ(i,t,D) become the nearest position where none "
    "has",
}
"""kind → its rule; the intervention's strength is γ, c or α (docs/ablation.md)"""
DEFAULT_STRENGTH = -5.0
"""γ where nobody says another"""
DEFAULT_PULL = 0.5
"""β of what is edited towards a kept concept, where nobody says another"""
TOWARD_KINDS = ("paper", "zero", "clamp")
"""the interventions that can go towards a kept concept: those that change activations"""
MODES = {"paper": 0, "beyond-k": 0, "no-error": 1, "saeuron": 2}
"""mode → how many times ``x̂ − x`` is added to the edited tensor (docs/ablation.md, "Modes")"""

ATTACKS = {
    "tokens": "tokens before the prompt (UnlearnDiffAtk)",
    "words": "words before the prompt: of the tokens those that a text is read as",
    "embedding": "embeddings before the prompt (concept inversion)",
    "latents": "starting latents, with an empty prompt",
    "random": "tokens drawn at random before the prompt (a control)",
}
"""method → what is searched that brings a removed concept back (docs/evaluation.md)"""
PROTOCOLS = ("each", "sequential", "joint")
"""one concept at a time, one after another without putting any back, or all at once"""
ENGINES = ("duckdb", "spark")
"""what runs the SQL"""
VERIFICATION = ("cached", "always", "never")
"""when files are compared with their records before they are read (docs/reliability.md)"""

TEXT_ENCODERS = "text_encoders"
"""of a run's settings: text encoder → the hash of its weights; no part of the run id"""
