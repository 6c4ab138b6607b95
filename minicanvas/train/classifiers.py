"""Train the two classifiers on rendered pictures, damaged at random as a generator would damage
them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from minicanvas.canvases import LARGE, SMALL, Canvas
from minicanvas.classifier import Classifier, Network, as_tensor
from minicanvas.train.data import Pictures
from minicanvas.train.plans import Plan
from minicanvas.train.state import Stateful, learning_rate, resumed_steps, set_rate

Damage = Callable[[Tensor, torch.Generator], Tensor]


def damage(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return pictures [n, 3, 64, 64], a quarter blurred, a quarter reduced; all change in light and
    noise."""
    quarter = max(len(images) // 4, 1)
    blurred = F.avg_pool2d(F.pad(images[:quarter], (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    small = F.interpolate(images[quarter : 2 * quarter], scale_factor=0.5, mode="area")
    reduced = F.interpolate(small, size=images.shape[-2:], mode="bilinear")
    result = torch.cat([blurred, reduced, images[2 * quarter :]])
    result = result * _uniform(result, generator, 0.85, 1.15, 1, 1, 1)
    result = result + _uniform(result, generator, -0.1, 0.1, 3, 1, 1)
    return result + _uniform(result, generator, 0, 0.25, 1, 1, 1) * _normal(result, generator)


def cover(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return pictures [n, 3, 64, 64], moved by up to 4 pixels, softened or sharpened, changed in
    contrast, a part covered by grey, with coarse noise."""
    shift = _uniform(images, generator, -0.125, 0.125, 2, 1)
    theta = torch.cat([torch.eye(2, device=images.device).expand(len(images), 2, 2), shift], dim=2)
    where = F.affine_grid(theta, list(images.shape), align_corners=False)
    result = F.grid_sample(images, where, padding_mode="border", align_corners=False)
    soft = F.avg_pool2d(F.pad(result, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    result = soft + (result - soft) * _uniform(result, generator, 0.2, 1.5, 1, 1, 1)
    result = result * _uniform(result, generator, 0.8, 1.2, 3, 1, 1)
    side = images.shape[-1]
    at = torch.arange(side, device=images.device)
    centre, half = (
        _uniform(images, generator, low, high, 2, 1) for low, high in ((0, side), (2, 8))
    )
    inside = (at - centre).abs() < half
    covered = (inside[:, 0, :, None] & inside[:, 1, None, :])[:, None]
    result = torch.where(covered, torch.zeros_like(result), result)
    coarse = F.interpolate(_normal(result[..., ::2, ::2], generator), scale_factor=2)
    return result + _uniform(result, generator, 0, 0.15, 1, 1, 1) * coarse


def _uniform(
    like: Tensor, generator: torch.Generator, low: float, high: float, *shape: int
) -> Tensor:
    """Return numbers between `low` and `high`, [n, *shape] for n pictures."""
    size = (len(like), *shape)
    return low + (high - low) * torch.rand(size, generator=generator, device=like.device)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device)


class Recipe(NamedTuple):
    """What makes one classifier differ from the other; the seed also chooses its training
    pictures."""

    seed: int
    widths: tuple[int, ...]
    n_features: int
    residual: bool = False
    damage: Damage = damage


RECIPES: Final = {
    SMALL.name: {
        "selection": Recipe(seed=101, widths=(24, 48, 80, 96), n_features=96),
        "judge": Recipe(seed=202, widths=(20, 56, 72, 112), n_features=128),
    },
    LARGE.name: {
        "selection": Recipe(seed=303, widths=(32, 64, 96, 128), n_features=128),
        "judge": Recipe(
            seed=404, widths=(24, 48, 80, 112), n_features=128, residual=True, damage=cover
        ),
    },
}


def train_classifier(
    pictures: Pictures,
    recipe: Recipe,
    out: Path,
    plan: Plan,
    *,
    lr: float = 2e-3,
    device: str = "cpu",
) -> Network:
    """Train a classifier for as many steps as the plan has, resuming from `out`."""
    torch.manual_seed(recipe.seed)
    n_steps = plan.classifier_steps
    network = Network(
        recipe.widths, recipe.n_features, canvas=plan.canvas, residual=recipe.residual
    )
    network = network.to(device).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.02)
    parts: dict[str, Stateful] = {"model": network, "optimiser": optimiser}
    for step in resumed_steps(out, n_steps, parts, title=out.stem):
        set_rate(optimiser, learning_rate(step, n_steps, lr))
        rng = np.random.default_rng((recipe.seed, step))
        generator = torch.Generator(device).manual_seed(recipe.seed * 1_000_000 + step)
        rows = np.sort(rng.integers(0, len(pictures.images), plan.classifier_batch))
        shown = as_tensor(pictures.images[rows]).to(device)
        order = torch.randperm(len(rows), generator=generator, device=device)
        style, object_ = network(recipe.damage(shown[order], generator))
        losses = [
            F.cross_entropy(
                logits, torch.from_numpy(labels[rows]).to(device)[order], label_smoothing=0.05
            )
            for logits, labels in ((style, pictures.styles), (object_, pictures.objects))
        ]
        loss = losses[0] + losses[1]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 100 == 0:
            tqdm.write(f"classifier step {step} loss {loss.item():.4f}")
    return network.eval()


def accuracy(classifier: Classifier, pictures: Pictures) -> tuple[float, float]:
    """Return how often the style and the object of pictures are found."""
    styles, objects = classifier.probabilities(pictures.images)
    style = (styles.argmax(1) == pictures.styles).mean()
    return float(style), float((objects.argmax(1) == pictures.objects).mean())


def save_classifier(
    network: Network,
    recipe: Recipe,
    canvas: Canvas,
    *,
    held_out: tuple[float, float],
    path: Path,
) -> None:
    """Write weights as float16 `.safetensors` and what describes them as `.json` beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        key: v.half() if v.is_floating_point() else v
        for key, v in network.cpu().state_dict().items()
    }
    save_file(tensors, path.with_suffix(".safetensors"))
    path.with_suffix(".safetensors").chmod(0o644)
    config: dict[str, Any] = {
        "styles": list(canvas.style_labels),
        "objects": list(canvas.objects),
        "widths": list(recipe.widths),
        "n_features": recipe.n_features,
        "residual": recipe.residual,
        "seed": recipe.seed,
        "held_out_style_accuracy": round(held_out[0], 4),
        "held_out_object_accuracy": round(held_out[1], 4),
    }
    path.with_suffix(".json").write_text(json.dumps(config, indent=2) + "\n")
