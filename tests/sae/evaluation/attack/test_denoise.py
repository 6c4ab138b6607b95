"""The differentiable denoiser is the pipeline's own, of every architecture; its steps are its
scheduler's."""

from dataclasses import replace

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)
from PIL import Image

from featurestore.errors import ModelError
from featurestore.prompts import start_picture
from sae.diffusion.modules import denoiser
from sae.diffusion.pipelines import Model, RunSettings, generate
from sae.evaluation.attack.denoise import (
    _unit,
    conditions,
    denoised,
    goal,
    last_levels,
    levels,
    parts,
    predicted,
    training_loss,
)
from tests.builders.architectures import CASES
from tests.builders.families import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")


def first_call(model, run, prompts):
    """The first denoiser call of the pipeline: its input and what the denoiser makes of it."""
    seen = []

    def keep(module, args, kwargs, output):
        inputs = [*args, *kwargs.values()]
        seen.append((inputs[0], output[0] if isinstance(output, tuple) else output.sample))

    handle = denoiser(model.pipe).register_forward_hook(keep, with_kwargs=True)
    generate(model, run, prompts, [5] * len(prompts), output_type="latent")
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("name", list(CASES))
def test_it_predicts_what_the_pipeline_predicts(architectures, name):
    model, prompts = architectures(name), ["a cat", "a red tree"]
    run = RunSettings(n_steps=2, guidance=1.0)
    x, expected = first_call(model, run, prompts)
    given = conditions(model, run, prompts)
    found = predicted(model, given, x, given.timesteps[0])
    torch.testing.assert_close(found, expected[:, : found.shape[1]].float(), atol=1e-5, rtol=1e-4)
    assert torch.isfinite(
        training_loss(model, given, x, noise=torch.ones_like(x), timestep=given.timesteps[1] + 3)
    ).all()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_loss_is_the_one_that_the_model_is_trained_with(model, kind):
    """Of a velocity it is as large where there is nothing but noise as elsewhere; in noise it would
    be ᾱ times that."""
    pipe = StableDiffusionPipeline(
        **{
            **model.pipe.components,
            "scheduler": type(model.pipe.scheduler).from_config(
                model.pipe.scheduler.config, prediction_type=kind
            ),
        },
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    told = replace(model, pipe=pipe)
    given = conditions(told, RunSettings(n_steps=2, guidance=1.0), ["a cat"])
    x0, noise = torch.randn(2, *given.arguments["sample"].shape)
    a, b = levels(pipe.scheduler, 900)
    with torch.no_grad():
        loss = training_loss(told, given, x0, noise=noise, timestep=900)
        found = predicted(told, given, a * x0 + b * noise, 900)
    expected = {"epsilon": noise, "v_prediction": a * noise - b * x0}[kind]
    torch.testing.assert_close(loss, (expected - found).square().flatten(1).mean(1))


def test_with_guidance_both_halves_are_taken_together(model):
    run = RunSettings(n_steps=2, guidance=3.0, negative_prompt="dog")
    x, both = first_call(model, run, ["a cat"])
    given = conditions(model, run, ["a cat"], guided=True)
    without, wanted = both.chunk(2)
    found = predicted(model, given, x[:1], given.timesteps[0])
    torch.testing.assert_close(found, without + 3 * (wanted - without), atol=1e-5, rtol=1e-4)


def test_a_run_that_begins_at_a_picture_tells_the_same_timesteps(model, tmp_path):
    """Its pipeline leaves the first steps out, and its scheduler lists them."""
    pipe = StableDiffusionImg2ImgPipeline(**model.pipe.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    Image.new("RGB", (64, 64), (90, 60, 30)).save(tmp_path / "image.png")
    starts = [{"image": start_picture(tmp_path / "image.png", "test")}]
    run = RunSettings(n_steps=4, guidance=1.0, height=64, width=64, strength=0.5)
    given = conditions(replace(model, pipe=pipe), run, ["a cat"], starts=starts)
    told = []
    handle = denoiser(pipe).register_forward_pre_hook(
        lambda module, args, kwargs: told.append(float(kwargs["timestep"])), with_kwargs=True
    )
    x = torch.zeros_like(given.arguments["sample"])
    for timestep in given.timesteps:
        predicted(replace(model, pipe=pipe), given, x, timestep)
    handle.remove()
    assert tuple(told) == given.timesteps


def test_a_denoiser_that_is_told_something_else_is_refused(model):
    pipe, x = model.pipe, torch.zeros(1, 4, 8, 8)
    assert _unit(pipe, {"sample": x, "timestep": torch.tensor(0.0)}, 0.0) == 1
    assert _unit(pipe, {"x": x, "timestep": torch.tensor([0.9, 0.9])}, 900.0) == 0.001
    with pytest.raises(ModelError, match=r"at timestep 900 it tells its denoiser 0\.1, expected"):
        _unit(pipe, {"x": x, "timestep": torch.tensor(0.1)}, 900.0)
    for arguments in ({"x": [x], "timestep": torch.tensor(900)}, {"x": x, "t": torch.tensor(9)}):
        with pytest.raises(
            ModelError, match=rf"is not given one tensor .* but {', '.join(arguments)}\.$"
        ):
            _unit(pipe, arguments, 900.0)


@pytest.mark.parametrize("name", ["CogView4Pipeline", "Kandinsky5T2IPipeline", "ZImagePipeline"])
def test_halves_that_are_not_in_one_call_in_this_order_are_refused(name, tmp_path):
    model = Model("m", FAMILIES[name].build(tmp_path), 2, 3.0)
    with pytest.raises(ModelError, match=rf"^{name} does not call its denoiser with both halves"):
        conditions(model, RunSettings(2, 3.0), ["a cat"], guided=True)


@pytest.mark.parametrize(("guided", "rows"), [(False, 4), (True, 6)])
def test_a_third_part_beside_the_prompts_is_refused_until_it_is_off(guided, rows, tmp_path):
    """Perturbed attention is on at its pipeline's own scale, with and without guidance."""
    pipe = FAMILIES["StableDiffusionPAGPipeline"].build(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    model = Model("m", pipe, 2, 3.0)
    run, prompts = RunSettings(2, 3.0, height=32, width=48), ["a cat", "dogs"]
    with pytest.raises(ModelError, match=rf"with {rows} rows for 2 prompts, expected .*: switch a"):
        conditions(model, run, prompts, guided=guided)
    off = replace(run, arguments={"pag_scale": 0.0})
    assert conditions(model, off, prompts, guided=guided).timesteps


@pytest.mark.parametrize("name", ["SD-2", "SD3"])
def test_its_steps_are_the_schedulers(architectures, name):
    """DDIM with predicted velocities, and Euler's of flow matching."""
    model, run = architectures(name), RunSettings(n_steps=3, guidance=1.0)
    given = conditions(model, run, ["a cat"])
    scheduler = model.pipe.scheduler
    x = torch.randn(
        given.arguments[next(iter(given.arguments))].shape,
        generator=torch.Generator().manual_seed(1),
    )
    with torch.no_grad():
        for step, timestep in enumerate(given.timesteps):
            prediction = predicted(model, given, x, timestep)
            expected = scheduler.step(prediction, scheduler.timesteps[step], x, return_dict=False)[
                0
            ]
            torch.testing.assert_close(
                denoised(model, given, x, step), expected, atol=1e-4, rtol=1e-4
            )
            x = expected


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_prediction_takes_its_input_apart(model, kind):
    scheduler = type(model.pipe.scheduler).from_config(
        model.pipe.scheduler.config, prediction_type=kind
    )
    picture, noise = torch.randn(2, 1, 4, 8, 8)
    a, b = levels(scheduler, 400)
    assert a * a + b * b == pytest.approx(1)
    told = {"epsilon": noise, "v_prediction": a * noise - b * picture, "sample": picture}[kind]
    found = parts(scheduler, a * picture + b * noise, told, 400)
    torch.testing.assert_close(found, (picture, noise), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(goal(scheduler, picture, noise, 400), told)
    flow = FlowMatchEulerDiscreteScheduler()
    torch.testing.assert_close(goal(flow, picture, noise, 400), noise - picture)
    assert last_levels(scheduler)[0] == pytest.approx(float(scheduler.final_alpha_cumprod) ** 0.5)
