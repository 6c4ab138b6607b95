"""The stages of training, each reading what the ones before it left in the working directory."""

import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
import torch.distributed as dist
from diffusers import AutoencoderKL

from minicanvas.classifier import Classifier, Name, load_classifier
from minicanvas.measure import confusions, grid, measure, table
from minicanvas.pipeline import load_pipeline
from minicanvas.train import classifiers, diffusion
from minicanvas.train.autoencoder import (
    decode_all,
    encode_all,
    new_autoencoder,
    normalise_latents,
    train_autoencoder,
)
from minicanvas.train.data import Pictures, pictures
from minicanvas.train.export import build_pipeline, export
from minicanvas.train.plans import Plan, device_name
from minicanvas.train.state import load_state, needed_state, save_state
from minicanvas.train.text import new_tokenizer, tokenize

PICTURE_SEED: Final = 7
HELD_OUT_SEED: Final = 999
SECONDS_TO_FINISH: Final = {"cuda": 45, "cpu": 900}
"""kept of what `--minutes` gives, for exporting and measuring"""


class Run(NamedTuple):
    """Where is trained, what, with how many processes, and until when."""

    out: Path
    plan: Plan
    n_processes: int = 1
    deadline: float | None = None
    """`time.monotonic()` at which all should be done; the denoiser takes the steps that fit"""

    def pictures(self, name: str) -> Pictures:
        """Return a set of pictures: those to train on, a classifier's own, or the held-out."""
        plan = self.plan
        seed, n = {
            "pictures": (PICTURE_SEED, plan.n_pictures),
            "held_out": (HELD_OUT_SEED, plan.n_held_out),
            **{
                name: (recipe.seed, plan.n_classifier_pictures)
                for name, recipe in classifiers.RECIPES[plan.name].items()
            },
        }[name]
        cache = self.out / f"{name}.npy"
        return pictures(seed, n, cache, self.n_processes, canvas=plan.canvas)

    def autoencoder(self, name: str, stage: str) -> AutoencoderKL:
        """Return a trained autoencoder.

        Raises:
            FileNotFoundError: the stage that writes it has not run.
        """
        model = new_autoencoder(self.plan)
        model.load_state_dict(needed_state(self.out / name, stage)["model"])
        return model.eval().to(device_name())


def pictures_stage(run: Run) -> None:
    """Render all pictures, once."""
    for name in ("pictures", "held_out", *classifiers.RECIPES[run.plan.name]):
        run.pictures(name)


def autoencoder_stage(run: Run) -> None:
    """Train the autoencoder."""
    images, out = run.pictures("pictures").images, run.out / "autoencoder.pt"
    train_autoencoder(images, out, run.plan, device=device_name())


def latents_stage(run: Run) -> None:
    """Normalise the latents and encode all pictures, unless that is done for this autoencoder.

    Kept are the means: a channel that the autoencoder leaves unused would be nothing but noise, of
    which a denoiser can learn nothing.
    """
    step = needed_state(run.out / "autoencoder.pt", "autoencoder")["step"]
    done = load_state(run.out / "normalised.pt")
    if done is not None and done["step"] == step:
        return
    model = run.autoencoder("autoencoder.pt", "autoencoder")
    images = run.pictures("pictures").images
    normalise_latents(model, images)
    means = encode_all(model, images)[:, : run.plan.latent_channels].contiguous()
    save_state(run.out / "latents.pt", {"latents": means})
    save_state(run.out / "normalised.pt", {"model": model.state_dict(), "step": step})


def classifiers_stage(run: Run) -> None:
    """Train both classifiers, each on pictures of its own."""
    held_out, canvas = run.pictures("held_out"), run.plan.canvas
    for name, recipe in classifiers.RECIPES[run.plan.name].items():
        network = classifiers.train_classifier(
            run.pictures(name), recipe, run.out / f"{name}.pt", run.plan, device=device_name()
        )
        classifiers.save_classifier(
            network,
            recipe,
            canvas,
            held_out=classifiers.accuracy(Classifier(network, {}, canvas=canvas), held_out),
            path=run.out / "classifiers" / name,
        )


def corpus(run: Run) -> diffusion.Corpus:
    """Return the latents with their prompts.

    Raises:
        FileNotFoundError: the stage that writes the latents has not run.
    """
    latents = needed_state(run.out / "latents.pt", "latents")["latents"]
    canvas = run.plan.canvas
    texts = [labelled["prompt"] for labelled in canvas.all_prompts(include_plain=True)]
    token_ids = tokenize(new_tokenizer(canvas), [*texts, ""])
    return diffusion.Corpus(latents, torch.arange(len(latents)) % len(texts), token_ids)


def denoiser_stage(run: Run) -> None:
    """Train the text encoder and the UNet, on the CPU in several processes of one thread each."""
    n_steps = run.plan.denoiser_steps
    if run.deadline is not None:
        n_steps = min(n_steps, _steps_that_fit(run, run.deadline))
    if device_name() == "cuda" or run.n_processes == 1:
        _denoiser_process(0, run._replace(n_processes=1), n_steps, "")
        return
    with tempfile.TemporaryDirectory() as directory:
        arguments = (run, n_steps, f"file://{directory}/meeting")
        torch.multiprocessing.spawn(_denoiser_process, arguments, nprocs=run.n_processes)


def _steps_that_fit(run: Run, deadline: float) -> int:
    """Return how many steps there will be by the deadline, with those done before."""
    n = 1 if device_name() == "cuda" else run.n_processes
    batch = run.plan.denoiser_batch // n
    seconds = diffusion.seconds_per_step(corpus(run), run.plan, batch=batch, device=device_name())
    path = run.out / "denoiser.pt"
    done = int(needed_state(path, "denoiser")["step"]) if path.exists() else 0
    left = deadline - SECONDS_TO_FINISH[device_name()] - time.monotonic()
    return done + max(int(left / seconds), 1)


def _denoiser_process(rank: int, run: Run, n_steps: int, meeting: str) -> None:
    n = run.n_processes
    if n > 1:
        # Torch sends a worker this signal when the process that started it is killed. Shells have
        # jobs in the background ignore it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=n)
    diffusion.train_denoiser(
        corpus(run),
        run.out / "denoiser.pt",
        run.plan,
        batch=run.plan.denoiser_batch // n,
        n_steps=n_steps,
        device=device_name() if n == 1 else "cpu",
    )
    if n > 1:
        dist.destroy_process_group()


def export_stage(run: Run) -> None:
    """Write the pipeline directory from the average of the weights, finished or not.

    Raises:
        FileNotFoundError: the UNet has no checkpoint yet.
    """
    average: dict[str, Any] = needed_state(run.out / "denoiser.pt", "denoiser")["average"]
    autoencoder = run.autoencoder("normalised.pt", "latents").cpu()
    export(build_pipeline(autoencoder, average, run.plan), run.out / "pipeline")


def measure_stage(run: Run) -> None:
    """Write how good it is: what both classifiers make of held-out pictures and of the same through
    the autoencoder, and the judge of generated ones."""
    out, canvas, held_out = run.out, run.plan.canvas, run.pictures("held_out")
    pipeline = load_pipeline(device=device_name(), directory=out / "pipeline")
    through = held_out._replace(images=decode_all(pipeline.vae, held_out.images))
    prompts = canvas.all_prompts(include_plain=True)
    lines: list[str] = []
    names: tuple[Name, ...] = ("selection", "judge")
    for name in names:
        judge = load_classifier(
            name, canvas=canvas, directory=out / "classifiers", device=device_name()
        )
        for what, shown in (("held-out", held_out), ("through the autoencoder", through)):
            style, object_ = classifiers.accuracy(judge, shown)
            lines.append(f"{name}, {what}: style {style:.3f} object {object_:.3f}")
    batch = 250 if device_name() == "cuda" else 20
    result = measure(pipeline, judge, prompts, range(run.plan.n_measured), batch=batch)
    lines += ["", table(result, canvas), "", confusions(result, canvas)]
    (out / "accuracy.txt").write_text("\n".join(lines).rstrip() + "\n")
    grid(result.images[: len(prompts)], len(canvas.objects)).save(out / "grid.png", optimize=True)


STAGES: Final[dict[str, Callable[[Run], None]]] = {
    "pictures": pictures_stage,
    "autoencoder": autoencoder_stage,
    "latents": latents_stage,
    "classifiers": classifiers_stage,
    "denoiser": denoiser_stage,
    "export": export_stage,
    "measure": measure_stage,
}


def ship(run: Run) -> None:
    """Put the trained weights where the package looks for its benchmark's."""
    for part in ("pipeline", "classifiers"):
        shutil.copytree(run.out / part, run.plan.canvas.folder / part, dirs_exist_ok=True)
