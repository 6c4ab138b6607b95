"""sdxl-unbox (``SAE/sae.py``), and steerers, which has a copy: ``config.json``, ``state_dict.pth``.

``ReLU(TopK(encoder(x − pre_bias) + latent_bias))`` is TopK: a ReLU after the choice drops what one
before it would. It was trained on output − input of a block; steerers (``auxk_coef`` in its
configuration) on the output of a text encoder's layer. ``mean.pt`` and ``std.pt`` beside the
published weights are activations of the latents, ``[n_latents]``, for a demonstration: they are no
normalisation of inputs and not read.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from sae.formats.libraries.config import D_IN, LATENTS, parse, read_fields
from sae.formats.libraries.foreign import Choice, Foreign, state_dict

CONFIG = "config.json"
WEIGHTS = "state_dict.pth"
FILES = (CONFIG, WEIGHTS)

_TRAINING_ONLY = {"auxk", "auxk_coef", "dead_steps_threshold"}


@dataclass(frozen=True, kw_only=True)
class _Config:
    """What of a configuration makes the function."""

    d_model: Annotated[int, D_IN]
    n_dirs_local: Annotated[int, LATENTS]
    k: Annotated[int, LATENTS]


def read(directory: Path, choice: Choice) -> Foreign:
    """Read a checkpoint.

    Raises:
        SAEError: it is malformed, or says what cannot be honoured.
    """
    path = directory / CONFIG
    fields = read_fields(path)
    said = parse(path, fields, _Config, _TRAINING_ONLY)
    n_latents, d_in = said.n_dirs_local, said.d_model
    taken = state_dict(directory / WEIGHTS, within="state_dict")
    taken.ignore("stats_last_nonzero")
    found = {
        "W_enc": taken.take("encoder.weight", (n_latents, d_in)),
        "b_enc": taken.take("latent_bias", (n_latents,)),
        "W_dec": taken.take("decoder.weight", (d_in, n_latents)).T,
        "b_dec": taken.take("pre_bias", (d_in,)),
    }
    taken.finish()
    config = {"d_in": d_in, "n_latents": n_latents, "k": said.k}
    return Foreign(config, found, io="" if "auxk_coef" in fields else "difference")
