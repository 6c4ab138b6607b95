import numpy as np
import pytest
import torch

from minicanvas.classifier import as_tensor, load_classifier
from minicanvas.measure import generate
from minicanvas.pipeline import load_pipeline
from minicanvas.train.autoencoder import new_autoencoder, normalise_latents
from minicanvas.train.data import pictures
from minicanvas.train.stages import STAGES, Plan
from minicanvas.train.state import load_state

TINY = Plan(
    n_pictures=16,
    n_classifier_pictures=8,
    n_held_out=8,
    autoencoder_steps=1,
    classifier_steps=1,
    denoiser_steps=1,
    denoiser_batch=4,
    n_processes=1,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("training")
    for stage in STAGES.values():
        stage(directory, TINY)
    return directory


def test_every_stage_leaves_what_ships(trained):
    pipeline = load_pipeline(directory=trained / "pipeline")
    assert generate(pipeline, ["An image of cat."], [0], steps=1).shape == (1, 64, 64, 3)
    for name in ("selection", "judge"):
        classifier = load_classifier(name, directory=trained / "classifiers")
        styles, objects = classifier.classify(np.zeros((1, 64, 64, 3), np.uint8))
        assert len(styles) == len(objects) == 1


def test_an_interrupted_run_goes_on_where_it_stopped(trained, tmp_path):
    for name in ("pictures.npy", "latents.pt", "denoiser.pt"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    before = load_state(tmp_path / "denoiser.pt")
    STAGES["denoiser"](tmp_path, TINY)
    unchanged = load_state(tmp_path / "denoiser.pt")
    assert all(
        torch.equal(unchanged["average"][key], value) for key, value in before["average"].items()
    )
    STAGES["denoiser"](tmp_path, TINY._replace(denoiser_steps=2))
    after = load_state(tmp_path / "denoiser.pt")
    assert (before["step"], after["step"]) == (1, 2)


@pytest.mark.parametrize("stage", ["latents", "denoiser", "export"])
def test_a_stage_says_what_it_lacks(stage, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is missing; run "):
        STAGES[stage](tmp_path, TINY)


def test_normalising_latents_changes_no_picture():
    images = pictures(1, 8, n_processes=1).images
    torch.manual_seed(0)
    model = new_autoencoder().eval()
    with torch.no_grad():
        before = model(as_tensor(images)).sample
        normalise_latents(model, images)
        latents = model.encode(as_tensor(images)).latent_dist.mean
        after = model(as_tensor(images)).sample
    assert torch.allclose(before, after, atol=1e-4)
    assert latents.mean(dim=(0, 2, 3)).abs().max() < 0.05
    assert (latents.std(dim=(0, 2, 3)) - 1).abs().max() < 0.05
