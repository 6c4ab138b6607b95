"""A training step of a TopK SAE on a GPU, by kernels and in one CUDA graph: what
:func:`sae.training.state.take_step` does, with nothing left to decide on the host.

The gradients are written out; automatic differentiation of :mod:`sae.training.loss` is what they
are tested against. With ``g = ∂L/∂x̂``, codes ``z`` at latents ``i`` and ``c = x − b_dec``:
``∂L/∂W_dec[i] = Σ z g``, ``∂z = g · W_dec[i]`` where ``z > 0``, ``∂L/∂W_enc[i] = Σ ∂z c``,
``∂L/∂b_enc[i] = Σ ∂z``, and ``b_dec``, added after and subtracted before, gets
``Σ g − W_encᵀ ∂L/∂b_enc``. The auxiliary loss adds to all of these in the same way, but for
``Σ g``: its target is taken as a constant.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from sae.choosing import MOST_LATENTS, choose
from sae.model import SAE, Codes
from sae.training.loss import Loss
from sae.training.state import State
from sae.training.stepping import kernels

_WARM_UP = 3
"""steps before the graph is recorded: kernels are compiled, libraries make their workspaces"""


def fits(sae: SAE) -> bool:
    """Say whether the kernels can train an SAE."""
    config = sae.config
    plain = config.normalize_activations == "none" and config.apply_b_dec_to_input
    return config.architecture == "topk" and plain and config.n_latents <= MOST_LATENTS


class Gradients(NamedTuple):
    """Of the loss, by each of an SAE's parameters, in their shapes."""

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor


class FusedStep:
    """Takes the steps of one training; the batches must all have the same shape.

    ``bfloat16``: of the factors of the encoder's product, which is added up in float32.
    """

    def __init__(self, state: State, *, dead_after: int, aux_alpha: float, bfloat16: bool) -> None:
        self._state, self._dead_after, self._alpha = state, dead_after, aux_alpha
        self._product = functools.partial(product, bfloat16=bfloat16)
        self._rate = torch.zeros(2, device=state.sae.b_dec.device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._x = torch.empty(0)
        self._loss: Loss | None = None
        self._n_taken = 0

    @torch.no_grad()
    def __call__(self, x: Tensor, lr: float) -> Loss:
        """Take a step; what is returned is valid until the next."""
        state = self._state
        beta1, beta2 = state.optimizer.defaults["betas"]
        t = state.step + 1
        self._rate.copy_(torch.tensor([lr / (1 - beta1**t), (1 - beta2**t) ** 0.5]))
        recorded = x.is_cuda and self._n_taken >= _WARM_UP
        loss = self._replay(x) if recorded else self._take(x)
        self._n_taken += 1
        state.step += 1
        return loss

    def _replay(self, x: Tensor) -> Loss:
        if self._graph is None:
            self._graph, self._x = torch.cuda.CUDAGraph(), x.clone()
            # Of this thread alone: another gathers batches in page-locked memory meanwhile.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._loss = self._take(self._x)
        self._x.copy_(x)
        self._graph.replay()
        assert self._loss is not None, "recorded"
        return self._loss

    def _take(self, x: Tensor) -> Loss:
        state = self._state
        sae, since = state.sae, state.positions_since_fired
        loss, gradients, fired = loss_and_gradients(
            sae, x, since > self._dead_after, self._alpha, product=self._product
        )
        betas = state.optimizer.defaults["betas"]
        for name, gradient in gradients._asdict().items():
            parameter = getattr(sae, name)
            kept = state.optimizer.state[parameter]
            kernels.adam_(
                parameter, gradient, kept["exp_avg"], kept["exp_avg_sq"],
                rate=self._rate, betas=betas, unit_rows=name == "W_dec",
            )  # fmt: skip
            kept["step"] += 1
        since.add_(len(x)).masked_fill_(fired, 0)
        return loss


def product(x: Tensor, weight: Tensor, *, bfloat16: bool) -> Tensor:
    """Return ``x weightᵀ`` in float32, also of factors that are rounded to bfloat16."""
    if not bfloat16:
        return x @ weight.T
    x, weight = x.bfloat16(), weight.bfloat16()
    if x.is_cuda:
        return torch.mm(x, weight.T, out_dtype=torch.float32)
    return x.float() @ weight.float().T


@torch.no_grad()
def loss_and_gradients(
    sae: SAE, x: Tensor, dead: Tensor, alpha: float, *, product: "functools.partial[Tensor]"
) -> tuple[Loss, Gradients, Tensor]:
    """Return what :func:`sae.training.loss.training_loss` does of a TopK SAE, its gradients, and
    which latents fired, boolean ``[n_latents]``.

    The dead latents' pre-activations are those of the same product. They choose ``d_in / 2`` places
    whatever their number, of which all are empty but ``n_dead``.
    """
    n = sae.config.n_latents
    centred = x - sae.b_dec
    pre = product(centred, sae.W_enc)
    values, indices = choose(pre, sae.config.k, sae.b_enc)
    residual = centred - kernels.decode(values, indices, sae.W_dec)
    variance = (x - x.mean(dim=0)).square().sum()
    fvu = residual.square().sum() / variance
    grads = Gradients(*(torch.zeros_like(getattr(sae, name)) for name in Gradients._fields))
    fired = _backward(sae, grads, centred, grad=(-2 / variance) * residual, codes=(values, indices))
    grads.b_dec.add_((-2 / variance) * residual.sum(0))
    half = max(1, sae.config.d_in // 2)
    aux_values, aux_indices = choose(pre, min(half, n), sae.b_enc, dead)
    error = kernels.decode(aux_values, aux_indices, sae.W_dec) - residual
    share = (dead.sum() / half).clamp(max=1.0)
    aux = torch.where(dead.any(), share * error.square().sum() / variance, 0.0)
    grad = (2 * alpha * share / variance) * error
    _backward(sae, grads, centred, grad=grad, codes=(aux_values, aux_indices))
    grads.b_dec.sub_(grads.b_enc @ sae.W_enc)
    codes = Codes(values, indices.clamp(max=n - 1).long())
    return Loss(fvu + alpha * aux, fvu, aux, codes), grads, fired


def _backward(
    sae: SAE, grads: Gradients, centred: Tensor, *, grad: Tensor, codes: tuple[Tensor, Tensor]
) -> Tensor:
    """Add what codes contribute to the gradients of ``W_enc``, ``b_enc`` and ``W_dec``; return
    which latents fired. ``grad`` ``[batch, d_in]``: by what the codes decode to."""
    values, indices = codes
    grad_codes = kernels.dots(grad, values, indices, sae.W_dec)
    by_latent = kernels.sort_by_latent(indices, sae.config.n_latents)
    kernels.encode_backward(values, by_latent, grad, grads.W_dec)
    kernels.encode_backward(grad_codes, by_latent, centred, grads.W_enc)
    kernels.encode_backward(
        grad_codes, by_latent, centred.new_ones(len(centred), 1), grads.b_enc[:, None]
    )
    return by_latent.begin.diff() > 0
