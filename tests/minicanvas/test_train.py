import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from minicanvas import CANVASES, LARGE, SMALL, Canvas, render
from minicanvas.classifier import as_tensor, load_classifier
from minicanvas.measure import generate
from minicanvas.measure import main as measure_command
from minicanvas.pipeline import load_pipeline
from minicanvas.train import diffusion, plans
from minicanvas.train.__main__ import main as train_command
from minicanvas.train.autoencoder import new_autoencoder, normalise_latents
from minicanvas.train.classifiers import RECIPES, cover, damage
from minicanvas.train.data import pictures
from minicanvas.train.plans import LARGE_PLAN, SMALL_PLAN, kept_plan
from minicanvas.train.stages import STAGES, Run, ship
from minicanvas.train.state import load_state, resumed_steps, save_state

TINY = SMALL_PLAN._replace(
    n_pictures=16,
    n_classifier_pictures=8,
    n_held_out=8,
    autoencoder_steps=1,
    classifier_steps=1,
    denoiser_steps=1,
    denoiser_batch=4,
    n_measured=1,
)
FOUR = Canvas("four", ("neon", "ink"), ("cat", "fox"), Path("nowhere"), (("cat", "fox"),))
TINY_LARGE = TINY._replace(
    name=FOUR.name,
    latent_channels=LARGE_PLAN.latent_channels,
    autoencoder_channels=(8, 8, 8),
    denoiser_channels=(16, 16, 16),
)
"""every stage of the large benchmark's training, with four of its combinations"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CANVASES, FOUR.name, FOUR)
        for table in (RECIPES, render._SHAPES, render._PAINTERS):
            patch.setitem(table, FOUR.name, table[LARGE.name])
        run = Run(tmp_path_factory.mktemp("training"), TINY_LARGE)
        for stage in STAGES.values():
            stage(run)
        yield run


def leaves_what_ships(run):
    canvas = run.plan.canvas
    pipeline = load_pipeline(directory=run.out / "pipeline")
    assert generate(pipeline, ["An image of cat."], [0], steps=1).shape == (1, 64, 64, 3)
    for name in ("selection", "judge"):
        classifier = load_classifier(name, canvas=canvas, directory=run.out / "classifiers")
        styles, objects = classifier.probabilities(np.zeros((1, 64, 64, 3), np.uint8))
        assert styles.shape == (1, len(canvas.style_labels))
        assert objects.shape == (1, len(canvas.objects))


def test_every_stage_leaves_what_ships(tmp_path):
    run = Run(tmp_path, TINY)
    for name, stage in STAGES.items():
        if name != "measure":  # a hundred pictures take too long here
            stage(run)
    leaves_what_ships(run)


def test_every_stage_leaves_what_ships_of_another_benchmark_and_size(trained):
    leaves_what_ships(trained)


def test_what_was_trained_is_measured(trained):
    said = (trained.out / "accuracy.txt").read_text()
    assert "judge, held-out: style " in said and "judge, through the autoencoder: style " in said
    assert "all styled" in said and "asked for" in said
    with Image.open(trained.out / "grid.png") as picture:
        assert picture.size == (2 * 64, 3 * 64)


def test_an_interrupted_run_goes_on_where_it_stopped(trained, tmp_path):
    for name in ("latents.pt", "denoiser.pt"):
        (tmp_path / name).write_bytes((trained.out / name).read_bytes())
    before = load_state(tmp_path / "denoiser.pt")
    STAGES["denoiser"](Run(tmp_path, trained.plan))
    unchanged = load_state(tmp_path / "denoiser.pt")
    assert all(
        torch.equal(unchanged["average"][key], value) for key, value in before["average"].items()
    )
    STAGES["denoiser"](Run(tmp_path, trained.plan._replace(denoiser_steps=2)))
    after = load_state(tmp_path / "denoiser.pt")
    assert (before["step"], after["step"]) == (1, 2)


def test_latents_are_made_anew_for_another_autoencoder_only(trained, tmp_path):
    for name in ("pictures.npy", "autoencoder.pt", "normalised.pt"):
        (tmp_path / name).write_bytes((trained.out / name).read_bytes())
    run, latents = Run(tmp_path, trained.plan), tmp_path / "latents.pt"
    STAGES["latents"](run)
    assert not latents.exists()
    later = load_state(tmp_path / "autoencoder.pt") | {"step": 2}
    save_state(tmp_path / "autoencoder.pt", later)
    STAGES["latents"](run)
    assert latents.exists() and load_state(tmp_path / "normalised.pt")["step"] == 2


def test_a_killed_loop_is_the_same_in_the_end(tmp_path):
    def trained(path, stop=None):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)
        optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
        parts = {"model": model, "optimiser": optimiser}
        for step in resumed_steps(path, stop or 6, parts, title="loop"):
            generator = torch.Generator().manual_seed(step)
            optimiser.zero_grad()
            model(torch.randn(4, 3, generator=generator)).square().mean().backward()
            optimiser.step()
        return model.weight

    trained(tmp_path / "killed.pt", stop=3)
    assert torch.equal(trained(tmp_path / "killed.pt"), trained(tmp_path / "whole.pt"))


def test_the_denoiser_takes_the_steps_that_fit(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(diffusion, "TRIAL_STEPS", 1)
    for name in ("latents.pt", "denoiser.pt"):
        (tmp_path / name).write_bytes((trained.out / name).read_bytes())
    STAGES["denoiser"](Run(tmp_path, trained.plan._replace(denoiser_steps=1000), deadline=0.0))
    assert load_state(tmp_path / "denoiser.pt")["step"] == 2  # no time is left: one more


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells a process that its parent is gone"
)
def test_a_killed_training_in_the_background_leaves_no_process_behind(tmp_path):
    plan = TINY._replace(denoiser_steps=10**6)
    (tmp_path / "plan.json").write_text(json.dumps(plan._asdict()))
    save_state(tmp_path / "latents.pt", {"latents": torch.randn(16, 4, 16, 16)})
    command = [sys.executable, "-m", "minicanvas.train", "--out", tmp_path, "--stage", "denoiser"]
    said = tmp_path / "said.txt"
    with said.open("w") as file:
        training = subprocess.Popen(command, stderr=file, preexec_fn=_ignore_interrupts)
    try:
        while training.poll() is None and "denoiser:" not in said.read_text():
            time.sleep(0.1)
        workers = _workers_of(training.pid)
    finally:
        training.kill()
        training.wait()
    assert len(workers) == 2
    until = time.monotonic() + 30
    while (left := [one for one in workers if one.exists()]) and time.monotonic() < until:
        time.sleep(0.1)
    assert not left


def _ignore_interrupts():
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _workers_of(pid):
    """Return the folders in /proc of the workers that a process started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    found = [Path(f"/proc/{child}") for child in children]
    return [one for one in found if b"spawn_main" in (one / "cmdline").read_bytes()]


def test_what_was_trained_is_put_where_the_package_looks(trained, tmp_path, monkeypatch):
    folder = tmp_path / "weights"
    monkeypatch.setitem(CANVASES, trained.plan.name, replace(trained.plan.canvas, folder=folder))
    ship(trained)
    assert (folder / "pipeline" / "model_index.json").is_file()
    assert (folder / "classifiers" / "judge.json").is_file()


@pytest.mark.parametrize("stage", ["latents", "denoiser", "export"])
def test_a_stage_says_what_it_lacks(stage, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is missing; run "):
        STAGES[stage](Run(tmp_path, TINY))


def test_a_training_goes_on_as_it_began(tmp_path, monkeypatch):
    begun = kept_plan(tmp_path, LARGE.name)
    assert begun == LARGE_PLAN
    monkeypatch.setattr(plans, "device_name", lambda: "cuda")
    assert kept_plan(tmp_path, LARGE.name) == LARGE_PLAN
    assert kept_plan(tmp_path / "new", LARGE.name) == plans.LARGE_GPU_PLAN
    with pytest.raises(ValueError, match="holds a training of minicanvas:large, expected minican"):
        kept_plan(tmp_path, SMALL.name)


def test_the_commands_say_what_is_wrong_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(CANVASES, LARGE.name, replace(LARGE, folder=tmp_path / "absent"))
    kept_plan(tmp_path, LARGE.name)
    for command, arguments, expected in (
        (train_command, ["--out", tmp_path], "give another --out, or --canvas minicanvas:large"),
        (
            train_command,
            ["--out", tmp_path / "new", "--stage", "export"],
            "denoiser.pt is missing; run `--stage denoiser` first",
        ),
        (
            measure_command,
            ["--canvas", LARGE.name],
            "the weights of minicanvas:large are not in this package",
        ),
    ):
        result = CliRunner().invoke(command, [str(argument) for argument in arguments])
        assert result.exit_code == 1 and expected in result.output, result.output
        assert len(result.output.splitlines()) <= 2


def test_pictures_of_another_plan_are_refused(tmp_path):
    pictures(1, 3, tmp_path / "a.npy", 1)
    with pytest.raises(ValueError, match=r"a\.npy holds 3 pictures, expected 4: delete it"):
        pictures(1, 4, tmp_path / "a.npy", 1)


def test_a_plan_is_kept_as_it_is(tmp_path):
    plan = kept_plan(tmp_path, SMALL.name)
    assert plan == SMALL_PLAN and json.loads((tmp_path / "plan.json").read_text())["name"] == (
        "minicanvas"
    )


def test_the_two_classifiers_are_trained_apart():
    for recipes in RECIPES.values():
        seeds = {recipe.seed for recipe in recipes.values()}
        assert len(seeds) == 2 and len({recipe.widths for recipe in recipes.values()}) == 2
    large = RECIPES[LARGE.name].values()
    assert {recipe.residual for recipe in large} == {True, False}
    assert {recipe.damage for recipe in large} == {damage, cover}


@pytest.mark.parametrize("change", [damage, cover])
def test_damaged_pictures_are_a_function_of_the_generator(change):
    images = as_tensor(pictures(1, 4, n_processes=1).images)
    first, again, other = (
        change(images, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert first.shape == images.shape and torch.equal(first, again)
    assert not torch.equal(first, other) and (first - images).abs().mean() < 0.5


def test_normalising_latents_changes_no_picture():
    images = pictures(1, 8, n_processes=1).images
    torch.manual_seed(0)
    model = new_autoencoder().eval()
    with torch.no_grad():
        before = model(as_tensor(images)).sample
        normalise_latents(model, images)
        latents = model.encode(as_tensor(images)).latent_dist
        after = model(as_tensor(images)).sample
    assert torch.allclose(before, after, atol=1e-4)
    assert latents.mean.mean(dim=(0, 2, 3)).abs().max() < 0.05
    variance = latents.mean.var(dim=(0, 2, 3)) + latents.var.mean(dim=(0, 2, 3))
    assert (variance - 1).abs().max() < 0.1
    assert latents.var.mean() > 0.5  # An untrained autoencoder's channels are mostly noise.
