"""Train the two classifiers on rendered pictures, damaged at random as a generator would damage
them."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from minicanvas.classifier import Classifier, Network, as_tensor
from minicanvas.prompts import OBJECTS, STYLE_LABELS
from minicanvas.train.data import Pictures, labels
from minicanvas.train.state import learning_rate


class Recipe(NamedTuple):
    """What makes one classifier differ from the other; the seed also chooses its training
    pictures."""

    seed: int
    widths: tuple[int, ...]
    n_features: int


RECIPES = {
    "selection": Recipe(seed=101, widths=(24, 48, 80, 96), n_features=96),
    "judge": Recipe(seed=202, widths=(20, 56, 72, 112), n_features=128),
}


def damage(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return pictures [n, 3, 64, 64], a quarter blurred, a quarter reduced; all change in light and
    noise."""
    quarter = max(len(images) // 4, 1)
    blurred = F.avg_pool2d(F.pad(images[:quarter], (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    small = F.interpolate(images[quarter : 2 * quarter], scale_factor=0.5, mode="area")
    reduced = F.interpolate(small, size=images.shape[-2:], mode="bilinear")
    result = torch.cat([blurred, reduced, images[2 * quarter :]])

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(len(images), *shape, generator=generator)

    result = result * uniform(0.85, 1.15, 1, 1, 1) + uniform(-0.1, 0.1, 3, 1, 1)
    noise = torch.randn(result.shape, generator=generator)
    return result + uniform(0, 0.25, 1, 1, 1) * noise


def train_classifier(
    pictures: Pictures, recipe: Recipe, *, n_steps: int, batch: int = 64, lr: float = 2e-3
) -> Network:
    """Train a classifier on the CPU (a few minutes on one core)."""
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    network = Network(recipe.widths, recipe.n_features).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.02)
    for step in tqdm(range(n_steps), desc="classifier", mininterval=10):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, n_steps, lr)
        rows = rng.choice(len(pictures.images), batch, replace=len(pictures.images) < batch)
        images = damage(as_tensor(np.asarray(pictures.images[rows])), generator)
        style, object_ = network(images)
        loss = F.cross_entropy(style, torch.from_numpy(pictures.styles[rows]), label_smoothing=0.05)
        loss = loss + F.cross_entropy(
            object_, torch.from_numpy(pictures.objects[rows]), label_smoothing=0.05
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 100 == 0:
            tqdm.write(f"classifier step {step} loss {loss.item():.4f}")
    return network.eval()


def held_out_accuracy(network: Network, images: np.ndarray) -> tuple[float, float]:
    """Return style and object accuracy on pictures in the order of `data.labels`."""
    expected_styles, expected_objects = labels(len(images))
    styles, objects = Classifier(network, {}).classify(images)
    style = np.mean(
        [found == STYLE_LABELS[i] for found, i in zip(styles, expected_styles, strict=True)]
    )
    object_ = np.mean(
        [found == OBJECTS[i] for found, i in zip(objects, expected_objects, strict=True)]
    )
    return float(style), float(object_)


def save_classifier(
    network: Network, recipe: Recipe, accuracy: tuple[float, float], path: Path
) -> None:
    """Write weights as float16 `.safetensors` and what describes them as `.json` beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        key: v.half() if v.is_floating_point() else v for key, v in network.state_dict().items()
    }
    save_file(tensors, path.with_suffix(".safetensors"))
    path.with_suffix(".safetensors").chmod(0o644)
    config: dict[str, Any] = {
        "styles": list(STYLE_LABELS),
        "objects": list(OBJECTS),
        "widths": list(recipe.widths),
        "n_features": recipe.n_features,
        "seed": recipe.seed,
        "held_out_style_accuracy": round(accuracy[0], 4),
        "held_out_object_accuracy": round(accuracy[1], 4),
    }
    path.with_suffix(".json").write_text(json.dumps(config, indent=2) + "\n")
