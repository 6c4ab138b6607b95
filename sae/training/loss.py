"""The training loss: ``FVU + α · AuxK``, and what the variant changes of it (Gao et al. 2024,
sections 2.1 and A.2)."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from sae.model import SAE, Codes
from sae.sparse import encode_top_k, weighted_rows

AUX_ALPHA = 1 / 32


class Loss(NamedTuple):
    """A batch's loss and what it is made of."""

    total: Tensor
    """``misfit + alpha · aux + penalty``, a scalar to differentiate; the variant says what misfit
    (TopK: fvu) and penalty are"""
    fvu: Tensor
    """``Σ‖x − x̂‖² / Σ‖x − mean(x)‖²`` over the batch"""
    aux: Tensor
    """the auxiliary loss, 0 without dead latents"""
    codes: Codes
    """the batch's codes, detached"""


def training_loss(
    sae: SAE, x: Tensor, dead: Tensor | None = None, alpha: float = AUX_ALPHA
) -> Loss:
    """Return the loss of a batch ``x`` ``[batch, d_in]``; ``dead`` ``[n_latents]`` marks the dead
    latents.

    The batch must not be constant: its variance is the unit of the loss.
    """
    codes = sae.variant.training_codes(sae, sae.centred(x)[0])
    residual = x - sae.decode(Codes(codes.values, codes.indices))
    variance = (x - x.mean(dim=0)).square().sum()
    fvu = residual.detach().square().sum() / variance
    aux = x.new_zeros(()) if dead is None else _aux_k(sae, x, residual.detach(), dead) / variance
    total = sae.variant.misfit(sae, residual, codes) / variance + alpha * aux
    if codes.penalty is not None:
        total = total + codes.penalty
    return Loss(total, fvu, aux.detach(), Codes(codes.values.detach(), codes.indices))


def _aux_k(sae: SAE, x: Tensor, residual: Tensor, dead: Tensor) -> Tensor:
    """Return ``s · Σ‖e − ê‖²``: how badly the dead latents predict the residual ``e = x − x̂``,
    taken as a constant.

    ``ê`` is made of each position's ``k_aux = min(d_in / 2, n_dead)`` largest dead latents, without
    ``b_dec``: the residual is what is left after it. ``s = min(n_dead / (d_in / 2), 1)``. Only the
    dead rows of the encoder are computed.
    """
    rows = dead.nonzero().squeeze(1)
    n_dead, half = len(rows), max(1, sae.config.d_in // 2)
    if n_dead == 0:
        return x.new_zeros(())
    W_enc, b_enc, W_dec = sae.W_enc[rows], sae.b_enc[rows], sae.W_dec[rows]
    values, indices = encode_top_k(x - sae.b_dec, W_enc, b_enc, min(half, n_dead))
    error = F.mse_loss(weighted_rows(values, indices, W_dec), residual, reduction="sum")
    return min(n_dead / half, 1.0) * error
