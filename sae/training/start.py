"""Where training begins: the weights of a new SAE, from the first batch of its data."""

import torch
from torch import Tensor

from featurestore.errors import SAEError
from sae.feed.batches import Source
from sae.model import SAE
from sae.training.settings import Plan
from sae.training.state import State


def start_training(plan: Plan, source: Source, device: torch.device) -> tuple[State, float]:
    """Return a new SAE's state, and what its inputs are divided by in training.

    Unit rows with ``W_enc = W_dec`` reconstruct too much at first: what fires shrinks, and latents
    that did not fire get their turn. A smaller encoder fits sooner, and leaves latents dead: a
    training that sees few positions begins with one (:func:`sae.training.settings.haste`).

    Raises:
        SAEError: all activations are equal.
    """
    sae = SAE(plan.config, torch.Generator().manual_seed(plan.settings.seed))
    with torch.no_grad():
        first = next(source.epoch(0)).float()
        if not bool((first != first[0]).any()):
            raise SAEError(
                f"all activations of hook {plan.config.hook!r} are equal: there is nothing to "
                f"learn."
            )
        median = geometric_median(first)
        scale = (
            float((first - median).square().sum(dim=1).mean().sqrt()) if plan.scale_inputs else 1.0
        )
        sae.b_dec.copy_(median / scale)
        sae.W_enc.div_(plan.haste)
        sae.variant.start(sae, sae.centred(first / scale)[0])
    return State(sae.to(device), plan.betas), scale


def geometric_median(x: Tensor, iterations: int = 100, tolerance: float = 1e-6) -> Tensor:
    """Return the point ``[d_in]`` with the least sum of distances to the rows of ``x``
    ``[n, d_in]``.

    Weiszfeld's algorithm in float64, until a step is shorter than ``tolerance`` times the spread of
    the data.
    """
    x = x.double()
    median = x.mean(dim=0)
    spread = torch.linalg.vector_norm(x - median, dim=-1).mean()
    for _ in range(iterations if spread > 0 else 0):
        # Clamped: the median may fall on a point.
        weights = (
            torch.linalg.vector_norm(x - median, dim=-1)
            .clamp_min(1e-12 * float(spread))
            .reciprocal()
        )
        new = (weights @ x) / weights.sum()
        moved = torch.linalg.vector_norm(new - median)
        median = new
        if moved <= tolerance * spread:
            break
    return median.float()
