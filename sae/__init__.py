"""Sparse autoencoders on diffusion activations: what an SAE is, how it is kept, its codes."""

from typing import TYPE_CHECKING

from featurestore.lazy import lazy_names

if TYPE_CHECKING:
    from sae.checkpoint import load_sae, store_sae
    from sae.diffusion.pipelines import RunSettings, load_model
    from sae.encoding import encode
    from sae.evaluation.judge import load_judge
    from sae.evaluation.scoring import evaluate, score_folder
    from sae.feed.batches import ActivationBatches
    from sae.intervention.ablate import ablate, attach
    from sae.intervention.settings import Intervention, Window
    from sae.model import SAE, SAEConfig
    from sae.training.settings import TrainSettings
    from sae.training.train import train
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "SAE": "sae.model",
            "SAEConfig": "sae.model",
            "load_sae": "sae.checkpoint",
            "store_sae": "sae.checkpoint",
            "train": "sae.training.train",
            "TrainSettings": "sae.training.settings",
            "encode": "sae.encoding",
            "load_model": "sae.diffusion.pipelines",
            "RunSettings": "sae.diffusion.pipelines",
            "load_judge": "sae.evaluation.judge",
            "ActivationBatches": "sae.feed.batches",
            "ablate": "sae.intervention.ablate",
            "attach": "sae.intervention.ablate",
            "Intervention": "sae.intervention.settings",
            "Window": "sae.intervention.settings",
            "evaluate": "sae.evaluation.scoring",
            "score_folder": "sae.evaluation.scoring",
        },
    )

__all__ = [
    "SAE",
    "ActivationBatches",
    "Intervention",
    "RunSettings",
    "SAEConfig",
    "TrainSettings",
    "Window",
    "ablate",
    "attach",
    "encode",
    "evaluate",
    "load_judge",
    "load_model",
    "load_sae",
    "score_folder",
    "store_sae",
    "train",
]
