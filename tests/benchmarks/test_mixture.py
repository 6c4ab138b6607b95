"""The synthetic activations of the benchmarks."""

import pytest
import torch

from benchmarks.mixture import Mixture
from sae.model import SAE, SAEConfig


@pytest.mark.parametrize("seed", range(4))
def test_no_training_begins_with_the_directions_to_be_found(seed):
    """Drawn from equal seeds, initial weights were the very directions that had to be learnt."""
    directions = Mixture(32, 64, 16)._directions
    sae = SAE(SAEConfig(32, 64, 4), torch.Generator().manual_seed(seed))
    cosines = directions @ sae.W_dec.detach().T
    assert float(cosines.max()) < 0.9
