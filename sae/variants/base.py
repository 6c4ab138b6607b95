"""What an SAE's architecture decides; one module a variant, all of them in :data:`sae.variants.VARIANTS`."""

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from sae.model import SAE


class TrainingCodes(NamedTuple):
    """The codes of a batch while training, differentiable."""

    values: Tensor
    """``[batch, width]``, none negative; 0 where a place is empty"""
    indices: Tensor
    """``[batch, width]``, int64"""
    penalty: Tensor | None = None
    """a scalar to add to the loss"""


class Variant:
    """An architecture: which latents are active, and how that is learnt. It has no state of its own.

    ``x`` is always ``[rows, d_in]`` as the encoder's matrix takes it: normalised and centred. Codes are pairs ``values``
    and ``indices``, both ``[rows, width]``; a place of value 0 is empty, whatever its index.
    """

    has_threshold = False
    """whether the SAE has a tensor ``threshold [n_latents]``: then its latents do not depend on each other"""
    learns_threshold = False
    """whether the optimiser moves it"""

    def encode(self, sae: "SAE", x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes of each row, whatever the rows beside it."""
        raise NotImplementedError

    def active(self, sae: "SAE", x: Tensor, features: Tensor, pre: Tensor) -> Tensor:
        """Return some latents' activations, given their pre-activations ``[rows, n]``: those, or 0 where one is not active."""
        raise NotImplementedError

    def training_codes(self, sae: "SAE", x: Tensor) -> TrainingCodes:
        """Return the codes of a batch that the loss is made of."""
        return TrainingCodes(*self.encode(sae, x))

    def misfit(self, sae: "SAE", residual: Tensor, codes: TrainingCodes) -> Tensor:
        """Return the sum of squares to minimise; ``residual`` is what the whole SAE leaves of the batch."""
        return residual.square().sum()

    def start(self, sae: "SAE", x: Tensor) -> None:
        """Prepare a new SAE for training on data like the batch ``x``."""

    def after_step(self, sae: "SAE", values: Tensor) -> None:
        """Keep up with a step of the optimiser; ``values`` are those of the batch's codes."""
