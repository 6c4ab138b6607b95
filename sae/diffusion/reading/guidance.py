"""How guidance is read: functions of the running call that say how its batch is divided, each with
the pipelines that it fits."""

from featurestore.errors import ModelError
from sae.diffusion.reading.calls import HALVES, HOW_TO_DECLARE, Branches, Running


def halves(call: Running) -> Branches:
    """Both halves in one call, the unconditional first, where guidance is on (Stable Diffusion and
    most others)."""
    return HALVES if guided(call) else ("cond",)


def halves_cond_first(call: Running) -> Branches:
    """Both halves in one call, the conditional first, where the scale is above 1 (DiT)."""
    return ("cond", "uncond") if call.variable("guidance_scale") > 1 else ("cond",)


def alone(call: Running) -> Branches:
    """One call per step, without guidance, or with its scale told to the denoiser (FLUX Fill,
    DDPM)."""
    return ("cond",)


def guided(call: Running) -> bool:
    """Say whether guidance is on: a variable ``do_classifier_free_guidance`` of the running call,
    or the pipeline's property.

    Raises:
        ModelError: there is neither.
    """
    name = "do_classifier_free_guidance"
    told = call.variables.get(name, getattr(call.pipe, name, None))
    if told is None:
        raise ModelError(
            f"{type(call.pipe).__name__} does not say whether guidance is on (no {name}): "
            f"{HOW_TO_DECLARE}"
        )
    return bool(told)


def passes(call: Running) -> Branches:
    """A call for each branch, told by whose embeddings the denoiser is given (FLUX, Qwen-Image,
    Wan, CogView4 …; Kandinsky 5 has them under the name of their encoder)."""
    given = call.arguments.get("encoder_hidden_states")
    for branch, name in (("cond", "prompt_embeds"), ("uncond", "negative_prompt_embeds")):
        known = (call.variables.get(name), call.variables.get(f"{name}_qwen"))
        if given is not None and any(given is one for one in known):
            return (branch,)
    raise ModelError(
        f"{type(call.pipe).__name__} called its denoiser with embeddings that are neither its "
        f"prompt_embeds nor its negative_prompt_embeds: {HOW_TO_DECLARE}"
    )


def with_skipped_layers(call: Running) -> Branches:
    """Both halves in one call, then the conditional once more with layers left out (SD3)."""
    return ("skip",) if call.arguments.get("skip_layers") is not None else halves(call)


def with_perturbed(call: Running) -> Branches:
    """Both halves, then the conditional once more with perturbed attention, all in one call
    (PAG)."""
    return (*halves(call), *(("perturbed",) if call.pipe.do_perturbed_attention_guidance else ()))


def with_image(call: Running) -> Branches:
    """Text and picture, the picture alone, neither: three parts of one call (InstructPix2Pix)."""
    return ("cond", "image", "uncond") if guided(call) else ("cond",)


def applied(call: Running) -> Branches:
    """Both halves in one call, the conditional first, at the steps where guidance is applied
    (Z-Image)."""
    return ("cond", "uncond") if call.variable("apply_cfg") else ("cond",)
