"""The stages of training, each reading what the ones before it left in the working directory."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from diffusers import AutoencoderKL

from minicanvas.prompts import OBJECTS, STYLE_LABELS, prompt
from minicanvas.train import classifiers, diffusion
from minicanvas.train.autoencoder import (
    encode_all,
    new_autoencoder,
    normalise_latents,
    train_autoencoder,
)
from minicanvas.train.data import pictures
from minicanvas.train.export import build_pipeline, export
from minicanvas.train.state import load_state, save_state
from minicanvas.train.text import new_tokenizer, tokenize

PICTURE_SEED: Final = 7
HELD_OUT_SEED: Final = 999


class Plan(NamedTuple):
    """How much to train; the defaults made the shipped weights."""

    n_pictures: int = 33_000
    n_classifier_pictures: int = 11_000
    n_held_out: int = 2_200
    autoencoder_steps: int = 3_000
    classifier_steps: int = 1_200
    denoiser_steps: int = 3_600
    denoiser_batch: int = 64
    n_processes: int = 2


def train_pictures(out: Path, plan: Plan) -> np.ndarray:
    """Return the pictures that the autoencoder and the UNet learn from."""
    return pictures(PICTURE_SEED, plan.n_pictures, out / "pictures.npy", plan.n_processes).images


def device_name() -> str:
    """Return the device the autoencoder and the UNet train on: a GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def autoencoder_stage(out: Path, plan: Plan) -> None:
    """Train the autoencoder."""
    images = train_pictures(out, plan)
    train_autoencoder(
        images, out / "autoencoder.pt", n_steps=plan.autoencoder_steps, device=device_name()
    )


def latents_stage(out: Path, plan: Plan) -> None:
    """Normalise the latents and encode all pictures."""
    images = train_pictures(out, plan)
    model = load_autoencoder(out / "autoencoder.pt").to(device_name())
    normalise_latents(model, images)
    save_state(out / "normalised.pt", {"model": model.cpu().state_dict()})
    save_state(out / "latents.pt", {"latents": encode_all(model.to(device_name()), images)})


def load_autoencoder(path: Path) -> AutoencoderKL:
    """Return a trained autoencoder.

    Raises:
        FileNotFoundError: the stage that writes it has not run.
    """
    state = load_state(path)
    if state is None:
        raise FileNotFoundError(f"{path} is missing; run the stage that writes it first")
    model = new_autoencoder()
    model.load_state_dict(state["model"])
    return model.eval()


def classifiers_stage(out: Path, plan: Plan) -> None:
    """Train both classifiers, each on pictures of its own."""
    held_out = pictures(HELD_OUT_SEED, plan.n_held_out, out / "held_out.npy", plan.n_processes)
    for name, recipe in classifiers.RECIPES.items():
        own = pictures(
            recipe.seed, plan.n_classifier_pictures, out / f"{name}.npy", plan.n_processes
        )
        network = classifiers.train_classifier(own, recipe, n_steps=plan.classifier_steps)
        accuracy = classifiers.held_out_accuracy(network, held_out.images)
        classifiers.save_classifier(network, recipe, accuracy, out / "classifiers" / name)


def corpus(out: Path) -> diffusion.Corpus:
    """Return the latents with their prompts.

    Raises:
        FileNotFoundError: the stage that writes the latents has not run.
    """
    state = load_state(out / "latents.pt")
    if state is None:
        raise FileNotFoundError(f"{out / 'latents.pt'} is missing; run `--stage latents` first")
    texts = [prompt(object_, style) for style in STYLE_LABELS for object_ in OBJECTS]
    token_ids = tokenize(new_tokenizer(), [*texts, ""])
    return diffusion.Corpus(
        state["latents"], torch.arange(len(state["latents"])) % len(texts), token_ids
    )


def denoiser_stage(out: Path, plan: Plan) -> None:
    """Train the text encoder and the UNet, on the CPU in several processes of one thread each."""
    if device_name() == "cuda" or plan.n_processes == 1:
        _denoiser_process(0, 1, out, plan, "")
        return
    with tempfile.TemporaryDirectory() as directory:
        meeting = f"file://{directory}/meeting"
        arguments = (plan.n_processes, out, plan, meeting)
        torch.multiprocessing.spawn(_denoiser_process, arguments, nprocs=plan.n_processes)


def _denoiser_process(  # noqa: PLR0917 torch hands them over by position
    rank: int, n_processes: int, out: Path, plan: Plan, meeting: str
) -> None:
    batch = plan.denoiser_batch // n_processes
    if n_processes > 1:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=n_processes)
    device = device_name() if n_processes == 1 else "cpu"
    diffusion.train_denoiser(
        corpus(out), out / "denoiser.pt", n_steps=plan.denoiser_steps, batch=batch, device=device
    )
    if n_processes > 1:
        dist.destroy_process_group()


def export_stage(out: Path, plan: Plan) -> None:
    """Write the pipeline directory from the average of the weights, finished or not.

    Raises:
        FileNotFoundError: the UNet has no checkpoint yet.
    """
    state = load_state(out / "denoiser.pt")
    if state is None:
        raise FileNotFoundError(f"{out / 'denoiser.pt'} is missing; run `--stage denoiser` first")
    export(
        build_pipeline(load_autoencoder(out / "normalised.pt"), state["average"]), out / "pipeline"
    )


STAGES: Final[dict[str, Callable[[Path, Plan], None]]] = {
    "autoencoder": autoencoder_stage,
    "latents": latents_stage,
    "classifiers": classifiers_stage,
    "denoiser": denoiser_stage,
    "export": export_stage,
}
