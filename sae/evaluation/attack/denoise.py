"""The denoiser as a differentiable function of its conditions and its input, whatever the pipeline,
its defence included."""

import inspect
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from featurestore.errors import ModelError
from sae.diffusion.hooks import direct_calls
from sae.diffusion.modules import denoiser
from sae.diffusion.pipelines import Model, RunSettings, call_arguments
from sae.diffusion.reading.architectures import architecture
from sae.diffusion.reading.calls import HALVES, Branches, batch_size, running
from sae.diffusion.reading.guidance import halves, with_perturbed, with_skipped_layers
from sae.diffusion.reading.steps import scalar
from sae.diffusion.starts import Starts


class Conditions(NamedTuple):
    """What a pipeline gives its denoiser for a batch of prompts, at its first step."""

    arguments: dict[str, Any]
    """of the denoiser's call, by name; the text's states among them, differentiable"""
    timesteps: tuple[float, ...]
    """of the scheduler, in their order"""
    unit: float
    """what the pipeline multiplies a timestep by for its denoiser: FLUX tells it a thousandth"""
    branches: Branches
    guidance: float
    """of both halves, where there are two"""


_BOTH_HALVES = (HALVES, halves, with_perturbed, with_skipped_layers)


class _ReachedError(Exception):
    """Carries a denoiser's arguments out of the pipeline."""


def conditions(
    model: Model,
    run: RunSettings,
    prompts: Sequence[str],
    *,
    guided: bool = False,
    starts: Sequence[Starts] = (),
) -> Conditions:
    """Return what the pipeline gives its denoiser for ``prompts``, with gradients to whatever made
    the text's states.

    The pipeline runs until its first denoiser call. Without ``guided`` it runs without
    classifier-free guidance, so that a picture is one row.

    Raises:
        ModelError: guidance is not both halves in one call of the denoiser, the unconditional
            first; something third is in the call; or the denoiser is not given one tensor of all
            pictures, and their timestep in a known unit.
    """
    pipe, kind = model.pipe, architecture(model.pipe)
    if guided and (kind.two_pass or kind.branches not in _BOTH_HALVES):
        raise ModelError(
            f"{type(pipe).__name__} does not call its denoiser with both halves of guidance at "
            f"once, the unconditional first: attack it without guidance."
        )
    given = call_arguments(model, run, list(prompts), starts)
    given.pop("true_cfg_scale", None)
    if not guided:
        given.pop("negative_prompt", None)
        if not kind.two_pass:  # Else the scale is told to the denoiser, and part of the run.
            given["guidance_scale"] = 1.0

    def stop(module: Any, args: Any, kwargs: Any) -> None:
        called = running(module, args, kwargs, lambda owner: owner is pipe)
        assert called is not None, "the pipeline below calls it"
        raise _ReachedError(called.arguments, kind.timestep_of(called))

    call = inspect.unwrap(type(pipe).__call__)  # Without the decorator that turns gradients off.
    handle = denoiser(pipe).register_forward_pre_hook(stop, with_kwargs=True, prepend=True)
    try:
        with torch.enable_grad():
            call(
                pipe, **given, generator=torch.Generator("cpu").manual_seed(0), output_type="latent"
            )
    except _ReachedError as stopped:
        arguments, timestep = stopped.args
    else:
        raise ModelError(f"{type(pipe).__name__} did not call its denoiser.")
    finally:
        handle.remove()
    branches = HALVES if guided else ("cond",)
    if (rows := batch_size(arguments)) != len(branches) * len(prompts):
        raise ModelError(
            f"{type(pipe).__name__} calls its denoiser with {rows} rows for {len(prompts)} "
            f"prompts, expected {' and '.join(branches)} of each: switch a third part of its "
            f"guidance off (--argument pag_scale=0)."
        )
    timesteps = tuple(float(t) for t in pipe.scheduler.timesteps)
    unit = _unit(pipe, arguments, scalar(timestep))
    return Conditions(arguments, timesteps, unit, branches, run.guidance)


def _unit(pipe: Any, arguments: dict[str, Any], timestep: float) -> float:
    """Return what a pipeline multiplies the scheduler's timestep by for its denoiser.

    Raises:
        ModelError: the denoiser is told something else, or pictures one by one.
    """
    name, given = type(pipe).__name__, next(iter(arguments.values()))
    if not isinstance(given, Tensor) or "timestep" not in arguments:
        raise ModelError(
            f"{name} cannot be attacked: its denoiser is not given one tensor of all pictures and "
            f"their timestep, but {', '.join(arguments)}."
        )
    told, n = scalar(arguments["timestep"]), pipe.scheduler.config.num_train_timesteps
    for unit in (1.0, 1 / n):
        if math.isclose(told, unit * timestep, rel_tol=0.01):
            return unit
    raise ModelError(
        f"{name} cannot be attacked: at timestep {timestep:g} it tells its denoiser {told:g}, "
        f"expected the timestep, or that divided by {n}."
    )


def predicted(model: Model, given: Conditions, x: Tensor, timestep: float) -> Tensor:
    """Return what the defended denoiser predicts of ``x`` (a row per picture) at a timestep,
    guidance applied."""
    arguments = dict(given.arguments)
    name = next(iter(arguments))
    n = len(given.branches)
    arguments[name] = torch.cat([x] * n).to(arguments[name].dtype)
    told = torch.as_tensor(arguments["timestep"])
    arguments["timestep"] = torch.full_like(told, timestep * given.unit)
    with direct_calls(model.pipe, given.branches, timestep):
        output = denoiser(model.pipe)(**arguments)
    prediction = (output[0] if isinstance(output, tuple) else output.sample).float()
    if prediction.dim() == x.dim() == 4 and prediction.shape[1] == 2 * x.shape[1]:
        prediction = prediction.chunk(2, dim=1)[0]  # PixArt predicts variances, too.
    if n == 1:
        return prediction
    without, wanted = prediction.chunk(2)
    return without + given.guidance * (wanted - without)


def levels(scheduler: Any, timestep: float) -> tuple[float, float]:
    """Return how much of the picture and how much of the noise a denoiser's input has at a
    timestep: √ᾱ and √(1−ᾱ).

    Of flow matching: 1 − σ and σ.

    Raises:
        ModelError: the scheduler has neither.
    """
    if hasattr(scheduler, "alphas_cumprod"):
        kept = float(scheduler.alphas_cumprod[round(timestep)])
        return kept**0.5, (1 - kept) ** 0.5
    if _is_flow(scheduler):
        sigma = timestep / scheduler.config.num_train_timesteps
        return 1 - sigma, sigma
    raise ModelError(
        f"{type(scheduler).__name__} says nothing of its noise: attacks know alphas_cumprod and "
        f"flow matching."
    )


def last_levels(scheduler: Any) -> tuple[float, float]:
    """Return the levels after the last step."""
    kept = float(getattr(scheduler, "final_alpha_cumprod", 1.0))
    return kept**0.5, (1 - kept) ** 0.5


def parts(scheduler: Any, x: Tensor, prediction: Tensor, timestep: float) -> tuple[Tensor, Tensor]:
    """Return the picture and the noise that a prediction takes ``x`` apart into:
    ``x = a · picture + b · noise``.

    A velocity is ``a · noise − b · picture`` (Salimans & Ho 2022, arXiv 2202.00512), of flow
    matching ``noise − picture``.
    """
    a, b = levels(scheduler, timestep)
    kind = "flow" if _is_flow(scheduler) else scheduler.config.prediction_type
    if kind == "flow":
        return x - b * prediction, x + a * prediction
    if kind == "v_prediction":
        return a * x - b * prediction, b * x + a * prediction
    if kind == "epsilon":
        return (x - b * prediction) / a, prediction
    if kind == "sample":
        return prediction, (x - a * prediction) / b
    raise _unknown(kind)


def _unknown(kind: str) -> ModelError:
    return ModelError(
        f"prediction_type {kind!r}: expected epsilon, v_prediction, sample or flow matching."
    )


def goal(scheduler: Any, picture: Tensor, noise: Tensor, timestep: float) -> Tensor:
    """Return what a model is trained to predict of ``a · picture + b · noise``: what :func:`parts`
    takes apart."""
    a, b = levels(scheduler, timestep)
    kind = "flow" if _is_flow(scheduler) else scheduler.config.prediction_type
    goals = {
        "flow": noise - picture,
        "v_prediction": a * noise - b * picture,
        "epsilon": noise,
        "sample": picture,
    }
    if kind not in goals:
        raise _unknown(kind)
    return goals[kind]


def training_loss(
    model: Model, given: Conditions, target: Tensor, *, noise: Tensor, timestep: float
) -> Tensor:
    """Return the loss that the model is trained with, per picture, averaged over its elements,
    ``[pictures]``: of one that predicts noise ``‖ε − ε_θ(√ᾱ x + √(1−ᾱ) ε | c)‖²``.

    The same in noise is ᾱ times that of a velocity: nothing at the steps at which a picture begins.
    """
    scheduler = model.pipe.scheduler
    a, b = levels(scheduler, timestep)
    found = predicted(model, given, a * target + b * noise, timestep)
    return (goal(scheduler, target, noise, timestep) - found).square().flatten(1).mean(1)


def denoised(model: Model, given: Conditions, x: Tensor, step: int) -> Tensor:
    """Return what one deterministic step (DDIM's; Euler's of flow matching) of the run makes of
    ``x``."""
    scheduler, timestep = model.pipe.scheduler, given.timesteps[step]
    picture, noise = parts(scheduler, x, predicted(model, given, x, timestep), timestep)
    last = step + 1 == len(given.timesteps)
    a, b = last_levels(scheduler) if last else levels(scheduler, given.timesteps[step + 1])
    return a * picture + b * noise


def _is_flow(scheduler: Any) -> bool:
    return "FlowMatch" in type(scheduler).__name__
