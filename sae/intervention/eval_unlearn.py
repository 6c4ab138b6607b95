"""A technique for eval-unlearn, the benchmark of unlearning: ``featurestore`` in its
configurations.

eval-unlearn finds it by the entry point ``eval_unlearn.techniques``; nothing of it is imported
here.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from featurestore import Selection
from featurestore.errors import UsageError, nearest
from featurestore.prompts import Prompt
from featurestore.vocabulary import DEFAULT_STRENGTH
from sae.diffusion.pipelines import RunSettings, load_model
from sae.intervention.generate import generate_images
from sae.intervention.settings import Intervention

_OPTIONS = (
    "selections",
    "model_id",
    "strength",
    "kind",
    "device",
    "num_inference_steps",
    "guidance_scale",
    "saes",
)


class FeatureStoreTechnique:
    """Draw with the features of selection files ablated.

    The options of ``technique_config``: ``selections`` (paths of selection files, or one path),
    ``model_id`` (default: the selection's model), ``strength``, ``kind``, ``device``,
    ``num_inference_steps``, ``guidance_scale``, ``saes`` (directories of the SAEs, where the
    selections' store is elsewhere). ``erase_concept`` and ``use_fp16``, which eval-unlearn gives
    every technique, are ignored: the selections say what is erased.

    Raises:
        UsageError: an option is not known, or there is no selection.
        SelectionError: a file is no selection, or is for another model.
        ModelError: the model cannot be loaded.
    """

    def __init__(self, **options: Any) -> None:
        for name in set(options) - {*_OPTIONS, "erase_concept", "use_fp16"}:
            raise UsageError(
                f"technique featurestore has no option {name!r}.{nearest(name, _OPTIONS)}"
            )
        paths = options.get("selections", ())
        paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
        if not paths:
            raise UsageError(
                "technique featurestore: give the paths of selection files in 'selections'."
            )
        found = [Selection.load(path) for path in paths]
        self.model = load_model(
            options.get("model_id", found[0].model), options.get("device") or "auto"
        )
        self.run = RunSettings(
            options.get("num_inference_steps") or self.model.steps,
            self.model.guidance
            if options.get("guidance_scale") is None
            else options["guidance_scale"],
        )
        kind, strength = (
            options.get("kind", "paper"),
            float(options.get("strength", DEFAULT_STRENGTH)),
        )
        self.interventions = [
            Intervention(selection, kind, strength=strength) for selection in found
        ]
        self.saes = (
            [Path(directory) for directory in options["saes"]] if options.get("saes") else None
        )

    def generate(
        self, prompts: Sequence[str], seed: int | None = None, **options: Any
    ) -> list[Any]:
        """Return a PIL image per prompt; the noise of prompt i is that of ``seed + i`` (None: of
        i).

        Raises:
            UsageError: an option is neither ``num_inference_steps`` nor ``guidance_scale``.
        """
        known = {"num_inference_steps": "n_steps", "guidance_scale": "guidance"}
        for name in set(options) - set(known):
            raise UsageError(
                f"technique featurestore cannot generate with {name!r}.{nearest(name, list(known))}"
            )
        run = replace(self.run, **{known[name]: value for name, value in options.items()})
        asked = [Prompt(prompt, (seed or 0) + i, {}, i + 1) for i, prompt in enumerate(prompts)]
        return list(
            generate_images(
                self.model, asked, run, self.interventions, saes=self.saes, progress=None
            )
        )
