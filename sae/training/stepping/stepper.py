"""What takes the steps of a training: kernels in a CUDA graph where they fit, the same arithmetic
by automatic differentiation elsewhere."""

from collections.abc import Callable

import torch
from torch import Tensor

from sae.sparse import has_kernels
from sae.training.loss import Loss
from sae.training.processes import Processes
from sae.training.settings import Plan
from sae.training.state import State, take_step


def stepper(
    state: State,
    plan: Plan,
    processes: Processes = Processes(),  # noqa: B008
) -> Callable[[Tensor], Loss]:
    """Return what takes the next step of a training on a batch ``[batch, d_in]``, scaled as the SAE
    wants it; the loss that it returns is valid until the step after."""
    device, settings = state.sae.b_dec.device, plan.settings
    bfloat16 = settings.precision == "bfloat16"
    if processes.world_size == 1 and has_kernels(device):
        from sae.training.stepping.fused import FusedStep, fits

        if fits(state.sae):
            fused = FusedStep(
                state, dead_after=plan.dead_after, aux_alpha=settings.aux_alpha, bfloat16=bfloat16
            )
            return lambda x: fused(x, plan.lr_at(state.step))

    def step(x: Tensor) -> Loss:
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            return take_step(
                state,
                x,
                lr=plan.lr_at(state.step),
                dead_after=plan.dead_after,
                aux_alpha=settings.aux_alpha,
                processes=processes,
            )

    return step
