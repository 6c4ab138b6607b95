"""What the demo studies, and with how much of everything."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Study:
    """A concept, and how it is taken out."""

    family: str
    concept: str
    hook: str
    sae: str
    top: int
    """features per step"""
    strength: float


@dataclass(frozen=True)
class Amounts:
    """How many pictures, and how much training."""

    collect_seeds: tuple[int, ...]
    test_seeds: tuple[int, ...]
    """never collected: the pictures that are judged"""
    n_concepts: int
    """of each family"""
    train_steps: int


K = 16
EXPANSION = 8.0
BATCH_SIZE = 1024
STUDIES = (
    Study("style", "neon", "unet.up_blocks.1.attentions.1", "styles", 4, -1.0),
    Study("object", "cat", "unet.up_blocks.0.attentions.1", "objects", 8, -20.0),
)
FULL = Amounts((0, 1), (100,), 10, 1500)
QUICK = Amounts((0,), (100,), 3, 100)
