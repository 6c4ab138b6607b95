"""What an SAE's architecture decides; one module per variant, all of them in
:data:`sae.variants.VARIANTS`."""

from typing import NamedTuple, Protocol

from torch import Tensor


class Shape(Protocol):
    """What an SAE's configuration says that a variant needs."""

    @property
    def n_latents(self) -> int:
        """Rows of the encoder and of the decoder."""

    @property
    def k(self) -> int:
        """Latents that may be active at a position."""

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Latents of each group of a Matryoshka SAE."""


class Weights(Protocol):
    """An SAE, as far as a variant knows it: see :class:`sae.model.SAE`."""

    @property
    def config(self) -> Shape:
        """Its sizes."""

    @property
    def W_enc(self) -> Tensor:  # noqa: N802
        """``[n_latents, d_in]``."""

    @property
    def b_enc(self) -> Tensor:
        """``[n_latents]``."""

    @property
    def W_dec(self) -> Tensor:  # noqa: N802
        """``[n_latents, d_in]``."""

    @property
    def threshold(self) -> Tensor:
        """``[n_latents]``; only variants with a threshold have it."""


class TrainingCodes(NamedTuple):
    """The codes of a batch while training, differentiable."""

    values: Tensor
    """``[batch, width]``, none negative; 0 where a place is empty"""
    indices: Tensor
    """``[batch, width]``, int64"""
    penalty: Tensor | None = None
    """a scalar to add to the loss"""


class Variant:
    """An architecture: which latents are active, and how that is learnt. It has no state of its
    own.

    ``x`` is always ``[rows, d_in]`` as the encoder's matrix takes it: normalised and centred. Codes
    are pairs ``values`` and ``indices``, both ``[rows, width]``; a place of value 0 is empty,
    whatever its index.
    """

    has_threshold = False
    """whether the SAE has a tensor ``threshold [n_latents]``: then its latents do not depend on
    each other"""
    learns_threshold = False
    """whether the optimiser moves it"""

    def encode(self, sae: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes of each row, whatever the rows beside it."""
        raise NotImplementedError

    def active(self, sae: Weights, x: Tensor, features: Tensor, pre: Tensor) -> Tensor:
        """Return some latents' activations, given their pre-activations ``[rows, n]``: those, or 0
        where one is not active."""
        raise NotImplementedError

    def training_codes(self, sae: Weights, x: Tensor) -> TrainingCodes:
        """Return the codes of a batch that the loss is made of."""
        return TrainingCodes(*self.encode(sae, x))

    def misfit(self, sae: Weights, residual: Tensor, codes: TrainingCodes) -> Tensor:
        """Return the sum of squares to minimise; ``residual`` is what the whole SAE leaves of the
        batch."""
        return residual.square().sum()

    def start(self, sae: Weights, x: Tensor) -> None:
        """Prepare a new SAE for training on data like the batch ``x``."""

    def after_step(self, sae: Weights, values: Tensor) -> None:
        """Keep up with a step of the optimiser; ``values`` are those of the batch's codes."""
