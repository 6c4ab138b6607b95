"""One step of training."""

from torch import Tensor

from sae.training.loss import AUX_ALPHA, Loss, training_loss
from sae.training.processes import Ranks
from sae.training.state import State

_ALONE = Ranks()


def take_step(
    state: State, x: Tensor, lr: float, dead_after: int, aux_alpha: float = AUX_ALPHA, ranks: Ranks = _ALONE
) -> Loss:
    """Move the weights once along the gradient of a batch ``x`` ``[batch, d_in]``, scaled as the SAE wants it.

    The rows of ``W_dec`` stay unit vectors: the part of the gradient along them is taken out before, and the norm is restored
    after (Gao et al. 2024, section A). ``dead_after`` positions without firing make a latent dead. Several processes average
    their gradients, each taken in the unit of its own part's variance. Returns the loss of ``x`` before the step.
    """
    sae = state.sae
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    state.optimizer.zero_grad()
    loss = training_loss(sae, x, state.positions_since_fired > dead_after, aux_alpha)
    loss.total.backward()
    ranks.average_(parameter.grad for parameter in sae.parameters())
    sae.remove_parallel_gradient_()
    state.optimizer.step()
    sae.normalize_decoder_()
    sae.variant.after_step(sae, loss.codes.values)
    ranks.average_([sae.threshold.data] if sae.variant.has_threshold else [])
    state.count(loss.codes, ranks)
    return loss
