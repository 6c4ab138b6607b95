"""Run a pipeline, and describe the run."""

import json
from collections.abc import Sequence
from typing import Any

import torch

from featurestore.errors import UsageError, nearest
from featurestore.vocabulary import BRANCHES, TEXT_ENCODERS
from sae.diffusion.faults import mark, watch_decoder
from sae.diffusion.loading.model import DTYPES, LoadSettings, Model, load_model
from sae.diffusion.loading.weights import model_hash
from sae.diffusion.modules import denoiser, text_encoders
from sae.diffusion.reading.architectures import architecture
from sae.diffusion.reading.guidance import alone
from sae.diffusion.settings import RunSettings, with_guidance
from sae.diffusion.sizes import arguments_of, drawn_size, picture_size, pixels_per_latent, takes
from sae.diffusion.starts import Starts, check_starts, described, start_arguments, with_starts

__all__ = [
    "DTYPES",
    "LoadSettings",
    "Model",
    "RunSettings",
    "check_branch",
    "check_run",
    "describe_run",
    "generate",
    "load_model",
    "picture_size",
    "with_guidance",
    "with_starts",
]


_SAID = {
    "self", "prompt", "num_inference_steps", "guidance_scale", "height", "width", "num_frames",
    "strength", "generator", "latents", "output_type", "return_dict", "negative_prompt",
    "true_cfg_scale", "image", "mask_image", "control_image", "class_labels", "batch_size",
    "num_images_per_prompt", "callback_on_step_end",
}  # fmt: skip
"""arguments that settings of a run, or a collection, have words for"""


def check_run(model: Model, settings: RunSettings) -> None:
    """Refuse settings that the pipeline would ignore or round.

    Raises:
        UsageError: naming the option.
    """
    pipe, kind = model.pipe, architecture(model.pipe)
    for name in settings.arguments:
        if name in _SAID or name not in arguments_of(pipe):
            why = "is said by other options" if name in _SAID else "is no argument"
            near = nearest(name, arguments_of(pipe))
            raise UsageError(f"--argument {name}: {why} of {type(pipe).__name__}.{near}")
    if settings.n_steps < 1:
        raise UsageError(f"--steps {settings.n_steps}: at least 1 is needed.")
    if settings.true_cfg > 1 and not kind.two_pass:
        raise UsageError(
            f"--true-cfg {settings.true_cfg:g}: {type(pipe).__name__} has none, use --guidance."
        )
    if settings.negative_prompt and kind.two_pass and settings.true_cfg <= 1:
        raise UsageError(
            f"--negative-prompt: {type(pipe).__name__} uses it with --true-cfg above 1 only."
        )
    for option, value in (
        ("--height", settings.height),
        ("--width", settings.width),
        ("--frames", settings.frames),
    ):
        name = {"--frames": "num_frames"}.get(option, option.removeprefix("--"))
        if (
            value is not None
            and not takes(pipe, name)
            and (option == "--frames" or not kind.starts)
        ):
            raise UsageError(
                f"{option} {value}: {type(pipe).__name__} makes pictures of its own size only."
            )
    if settings.negative_prompt and not takes(pipe, "negative_prompt"):
        raise UsageError(f"--negative-prompt: {type(pipe).__name__} takes none.")
    check_starts(pipe, settings)
    size = picture_size(pipe, settings)
    if kind.own_sizes and (drawn := drawn_size(pipe, *size)) != size:
        raise UsageError(
            f"--height {size[0]} --width {size[1]}: {type(pipe).__name__} draws pictures of sizes "
            f"of its own, here {drawn[0]} × {drawn[1]}: ask for these."
        )
    # Pipelines ask for 8 whatever their autoencoder.
    sized = takes(pipe, "height") or kind.starts
    multiple = max(8, pixels_per_latent(pipe) * kind.patch) if sized else 1
    for option, pixels in zip(("--height", "--width"), size, strict=True):
        if pixels % multiple:
            raise UsageError(
                f"{option} {pixels}: {type(pipe).__name__} needs a multiple of {multiple}."
            )


def check_branch(model: Model, settings: RunSettings, branch: str) -> None:
    """Refuse a branch (``cond``, ``uncond``, ``both``, or a third part of guidance) that a run does
    not have.

    Raises:
        UsageError: it has no unconditional half, or no such part.
    """
    third = architecture(model.pipe).third
    if branch in BRANCHES[2:]:
        if third is not None and branch != third:
            parts = " and ".join(["cond", "uncond", *([third] if third else [])])
            raise UsageError(
                f"branch {branch}: the guidance of {type(model.pipe).__name__} has the parts "
                f"{parts}."
            )
        return
    config: Any = denoiser(model.pipe).config
    option, scale = "--guidance", settings.guidance
    if architecture(model.pipe).two_pass:
        option, scale = "--true-cfg", settings.true_cfg
    distilled = (
        config.get("time_cond_proj_dim") is not None or architecture(model.pipe).branches is alone
    )
    if branch != "cond" and (scale <= 1 or distilled):
        why = (
            f"{model.name} has guidance distilled"
            if distilled
            else f"branch {branch} with {option} {scale:g}"
        )
        raise UsageError(f"{why}: without guidance there is no unconditional half.")


def describe_run(model: Model, settings: RunSettings) -> dict[str, Any]:
    """Return what identifies a run: its settings, and the weights of the denoiser and of the text
    encoders (docs/format.md, section 1.8)."""
    pipe = model.pipe
    check_run(model, settings)
    encoders = {name: model_hash(one) for name, one in text_encoders(pipe).items()}
    height, width = picture_size(pipe, settings)
    config = {key: value for key, value in pipe.scheduler.config.items() if not key.startswith("_")}
    return {
        "model": model.name,
        "model_hash": model_hash(denoiser(pipe)),
        "scheduler": {"class": type(pipe.scheduler).__name__, "config": _plain(config)},
        "n_steps": settings.n_steps,
        "guidance": float(settings.guidance),
        "negative_prompt": settings.negative_prompt,
        "height": height,
        "width": width,
        "dtype": str(denoiser(pipe).dtype).removeprefix("torch."),
        **({"true_cfg": float(settings.true_cfg)} if architecture(pipe).two_pass else {}),
        **({"frames": settings.frames} if settings.frames is not None else {}),
        **described(pipe, settings),
        **({"arguments": _plain(dict(settings.arguments))} if settings.arguments else {}),
        **_controlnet(pipe),
        **({"autocast": str(model.autocast).removeprefix("torch.")} if model.autocast else {}),
        **model.additions,
        **({TEXT_ENCODERS: encoders} if encoders else {}),
    }


def _controlnet(pipe: Any) -> dict[str, Any]:
    part = getattr(pipe, "controlnet", None)
    return {} if part is None else {"controlnet_hash": model_hash(part)}


def _plain(config: dict[str, Any]) -> Any:
    """Return what JSON can say of a configuration; infinite numbers, as DPM-Solver has one, become
    text."""
    return json.loads(json.dumps(config, default=str), parse_constant=str)


def generate(
    model: Model,
    settings: RunSettings,
    prompts: list[str],
    seeds: list[int],
    *,
    output_type: str = "pil",
    latents: torch.Tensor | None = None,
    starts: Sequence[Starts] = (),
) -> list:
    """Generate one picture per (prompt, seed): PIL images, or whatever ``output_type`` of the
    pipeline names.

    The initial noise is a function of the seed alone, whatever the batch, the order and the device;
    or it is ``latents``. ``starts`` are the pictures that each starts from, beside those of the
    run. Of PIL images :func:`sae.diffusion.faults.picture_fault` says which are no results.
    """
    check_run(model, settings)
    given = call_arguments(model, settings, prompts, starts)
    if output_type == "pil" and "num_frames" in arguments_of(model.pipe):
        raise UsageError(
            f"{type(model.pipe).__name__} makes videos, which are not kept as pictures: collect "
            f"without --images."
        )
    if latents is not None:
        given["latents"] = latents
    device = model.pipe._execution_device.type  # Offloaded weights are elsewhere between calls.
    with (
        torch.no_grad(),
        torch.autocast(device, model.autocast, model.autocast is not None),
        watch_decoder(model.pipe) as decoded,
    ):
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        if output_type == "latent" and not takes(model.pipe, "latents"):
            output_type = "pt"  # A model of pixels has no latents.
        result = model.pipe(**given, generator=generators, output_type=output_type)
    found = next((key for key in ("frames", "image") if hasattr(result, key)), "images")
    images = list(getattr(result, found))
    if output_type == "pil":
        mark(images, getattr(result, "nsfw_content_detected", None), decoded.of(len(images)))
    return images


def call_arguments(
    model: Model, settings: RunSettings, prompts: list[str], starts: Sequence[Starts] = ()
) -> dict[str, Any]:
    """Return what the pipeline is called with for a run of prompts, beside noise and the kind of
    output."""
    height, width = picture_size(model.pipe, settings)
    offered = {
        "prompt": list(prompts),  # Z-Image puts its chat about them into the list that it is given.
        "num_inference_steps": settings.n_steps,
        "guidance_scale": settings.guidance,
        "height": height,
        "width": width,
        **({"num_frames": settings.frames} if settings.frames is not None else {}),
        # Kontext scales to an area of its own unless it is told one.
        **({"max_area": height * width} if "max_area" in arguments_of(model.pipe) else {}),
        **({"strength": settings.strength} if settings.strength is not None else {}),
        **architecture(model.pipe).options,
        **settings.arguments,
    }
    given = {name: value for name, value in offered.items() if takes(model.pipe, name)}
    if "class_labels" in arguments_of(model.pipe):
        given["class_labels"] = [class_label(model.pipe, prompt) for prompt in prompts]
    elif not takes(model.pipe, "prompt"):
        given["batch_size"] = len(prompts)
    own = starts or [{}] * len(prompts)
    given |= start_arguments(
        model.pipe, [{**settings.starts, **one} for one in own], (height, width)
    )
    if settings.true_cfg > 1:
        given["true_cfg_scale"] = settings.true_cfg
    # Without a negative prompt, even an empty one, true CFG would stay off.
    if settings.negative_prompt or settings.true_cfg > 1:
        given["negative_prompt"] = [settings.negative_prompt] * len(prompts)
    return given


def class_label(pipe: Any, prompt: str) -> int:
    """Return the class that a prompt of a class-conditional model names: its number, or one of the
    model's words for it.

    Raises:
        UsageError: it names none.
    """
    config: Any = denoiser(pipe).config
    n_classes = int(config.get("num_embeds_ada_norm") or 1000)
    words = getattr(pipe, "labels", None) or {}
    label = int(prompt) if prompt.strip().isdecimal() else words.get(prompt.strip())
    if label is None or label >= n_classes:
        raise UsageError(
            f"prompt {prompt!r}: {type(pipe).__name__} draws classes: expected a number below "
            f"{n_classes}{', or a name.' + nearest(prompt, words) if words else '.'}"
        )
    return int(label)
