"""The threshold of a BatchTopK SAE whose file has none, from a store's activations."""

import itertools
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from featurestore.store import Store
from sae.feed.rows import activation_rows, data_hash
from sae.feed.shuffle import ShuffledPositions
from sae.model import SAE

_BATCH_SIZE, _N_BATCHES = 4096, 200


@torch.no_grad()
def calibrate_(sae: SAE, batches: Iterable[Tensor]) -> None:
    """Set the threshold as training does (:mod:`sae.variants.batchtopk`), from batches
    ``[n, d_in]`` of raw activations.

    It starts at the smallest of the k · n activations that the first batch keeps, and moves towards
    that of each further one.
    """
    for number, x in enumerate(batches):
        inner = sae.centred(x)[0]
        if number == 0:
            sae.variant.start(sae, inner)
        else:
            sae.variant.after_step(sae, sae.variant.training_codes(sae, inner).values)


def calibrate_on_(store: Store, sae: SAE) -> dict[str, object]:
    """Calibrate on the conditional activations that a store has of the SAE's hook; return what they
    were.

    At most 200 batches of 4096 positions, in a shuffled order that is always the same.

    Raises:
        SAEError: the store has none.
    """
    hook = sae.config.hook
    rows = activation_rows(store, hook, "cond")
    size = min(_BATCH_SIZE, len(rows) * rows.n_positions)
    batches = ShuffledPositions(rows, np.arange(len(rows)), size, seed=0)
    calibrate_(sae, (x.float() for x in itertools.islice(batches.epoch(0), _N_BATCHES)))
    n_positions = min(batches.n_batches, _N_BATCHES) * size
    return {"data": data_hash(rows.records), "n_positions": n_positions}
