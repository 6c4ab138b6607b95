"""A benchmark of random weights, as small as its classes allow, with classifiers that know its
pictures."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import minicanvas
from minicanvas import CANVASES, LARGE, PLAIN, Canvas
from minicanvas.classifier import Network, as_tensor
from minicanvas.train.autoencoder import new_autoencoder
from minicanvas.train.classifiers import Recipe, save_classifier
from minicanvas.train.diffusion import Denoiser
from minicanvas.train.export import build_pipeline, export
from minicanvas.train.plans import LARGE_PLAN
from sae.diffusion.pipelines import RunSettings, generate, load_model

PLAN = LARGE_PLAN._replace(autoencoder_channels=(8, 8, 8), denoiser_channels=(16, 16, 16))


def tiny_canvas(
    patch: pytest.MonkeyPatch,
    folder: Path,
    vocabulary: Canvas,
    *,
    runs: Sequence[RunSettings],
    seeds: Sequence[int],
) -> Canvas:
    """Put a benchmark of these styles and objects in the large one's place.

    Its classifiers find what was asked for in every picture that the untouched model draws in these
    runs of these seeds.
    """
    canvas = replace(vocabulary, name=LARGE.name, folder=folder)
    patch.setitem(CANVASES, LARGE.name, canvas)
    patch.setattr(minicanvas, "LARGE", canvas)
    torch.manual_seed(0)
    weights = Denoiser(PLAN).state_dict()
    export(build_pipeline(new_autoencoder(PLAN), weights, PLAN), folder / "pipeline")
    every = canvas.all_prompts(include_plain=True)
    prompts = [p for _ in runs for p in every for _ in seeds]
    model, images = load_model(str(folder / "pipeline"), "cpu"), []
    for run in runs:
        texts = [p["prompt"] for p in every for _ in seeds]
        images += generate(model, run, texts, [*seeds] * len(every))
    styles = [canvas.style_labels.index(p["style"] or PLAIN) for p in prompts]
    objects = [canvas.objects.index(p["object"]) for p in prompts]
    for seed, name in enumerate(("selection", "judge")):
        recipe = Recipe(seed, widths=(8, 8, 8, 8), n_features=128)
        network = _knowing(canvas, recipe, images, torch.tensor(styles), torch.tensor(objects))
        path = folder / "classifiers" / name
        save_classifier(network, recipe, canvas, held_out=(1.0, 1.0), path=path)
    return canvas


def _knowing(
    canvas: Canvas,
    recipe: Recipe,
    images: Sequence[Image.Image],
    styles: torch.Tensor,
    objects: torch.Tensor,
) -> Network:
    """A network of random features whose heads are solved for, not trained."""
    torch.manual_seed(recipe.seed)
    network = Network(recipe.widths, recipe.n_features, canvas=canvas).train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    pixels = as_tensor(images)
    with torch.no_grad():
        network(pixels)  # Its features are normalised by those of these pictures.
        features = network.eval().features(pixels)
        features = torch.cat([features, torch.ones(len(pixels), 1)], dim=1).double()
        for head, labels in ((network.style, styles), (network.object, objects)):
            wanted = 10 * F.one_hot(labels, head.out_features).double()
            solved = torch.linalg.lstsq(features, wanted, driver="gelsd").solution
            head.weight.copy_(solved[:-1].T)
            head.bias.copy_(solved[-1])
    return network
