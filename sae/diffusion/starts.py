"""What samples start from beside noise: a picture, a mask of it, a picture that guides
(docs/pipelines.md)."""

import dataclasses
import functools
import inspect
import io
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from featurestore.errors import UsageError
from featurestore.prompts import Prompt, StartPicture
from featurestore.vocabulary import STARTS
from sae.diffusion.reading.architectures import ARCHITECTURES, architecture
from sae.diffusion.settings import RunSettings

Starts = Mapping[str, StartPicture]
"""``image``, ``mask`` or ``control`` → the picture"""
OPTIONS = {"image": "--image", "mask": "--mask-image", "control": "--control-image"}
_WORDS = {"image": "a picture", "mask": "a mask", "control": "a control picture"}
_SIBLING = re.compile(r"(ControlNet)?(Img2Img|Inpaint)?Pipeline$")
_COLUMNS = {kind: f"--{kind}-column" for kind in STARTS}


def sibling(pipe: Any, starts: Collection[str], **parts: Any) -> Any:
    """Return the pipeline of the same parts, and ``parts`` beside them, whose samples start from
    such pictures: ``pipe`` itself if they do.

    Raises:
        UsageError: none is known of this class, or it needs parts that ``pipe`` lacks.
    """
    own = architecture(pipe).starts
    _check_mask(starts)
    if set(own) == set(starts) or not (starts or parts):
        return pipe
    kind = "Inpaint" if "mask" in starts else "Img2Img" if "image" in starts else ""
    control = "ControlNet" if "control" in starts else ""
    name = f"{_SIBLING.sub('', type(pipe).__name__)}{control}{kind}Pipeline"
    known = ARCHITECTURES.get(name)
    if set(own) <= set(starts) and known is not None and set(known.starts) == set(starts):
        import diffusers

        return _of_parts(pipe, getattr(diffusers, name), parts)
    words = " and ".join(_WORDS[kind] for kind in STARTS if kind in starts)
    raise UsageError(
        f"{type(pipe).__name__} cannot start from {words}, and no pipeline of the same parts is "
        f"known that can: docs/pipelines.md lists those that do."
    )


def _of_parts(pipe: Any, cls: type, parts: Mapping[str, Any]) -> Any:
    takes = inspect.signature(cls).parameters
    made = {name: value for name, value in pipe.components.items() if name in takes} | dict(parts)
    # Of a configuration, parts are (library, class); what is left are settings.
    made |= {
        name: value
        for name, value in pipe.config.items()
        if name in takes and name not in made and not isinstance(value, (tuple, list))
    }
    lacking = [
        name
        for name, one in takes.items()
        if one.default is inspect.Parameter.empty and name not in made
    ]
    if lacking:
        raise UsageError(
            f"{cls.__name__} needs {', '.join(lacking)}, which {type(pipe).__name__} has not"
            f"{': give --controlnet.' if lacking == ['controlnet'] else '.'}"
        )
    return cls(**made)


def with_starts(pipe: Any, run: RunSettings, prompts: Sequence[Prompt]) -> RunSettings:
    """Check what a run's samples start from; return the run's settings, with the size of the
    pictures where they said none.

    Raises:
        UsageError: a picture is missing, cannot be read, has another size than the run's, or is not
            for this pipeline; or the strength is not.
    """
    needs = architecture(pipe).starts
    check_starts(pipe, run)
    pictures: dict[StartPicture, str] = {}
    for prompt in prompts:
        given = {**run.starts, **prompt.starts}
        _check_kinds(pipe, given, prompt)
        pictures |= {given[kind]: kind for kind in needs if kind in given}
    height, width = run.height, run.width
    for picture, kind in pictures.items():
        found = opened(picture, kind).size[::-1]
        wanted = (height or found[0], width or found[1])
        if found != wanted:
            raise UsageError(
                f"{OPTIONS[kind]} {picture.path} is {found[0]} × {found[1]} pixels, this run's "
                f"pictures are {wanted[0]} × {wanted[1]} (height × width): scale it, or say "
                f"another --height and --width."
            )
        height, width = wanted
    return dataclasses.replace(run, height=height, width=width)


def _check_kinds(pipe: Any, given: Starts, prompt: Prompt) -> None:
    needs, name = architecture(pipe).starts, type(pipe).__name__
    place = f" of line {prompt.line}" if prompt.line else ""
    _check_mask(given)
    for kind in needs:
        if kind not in given:
            raise UsageError(
                f"{name} starts from {_WORDS[kind]}, and prompt {prompt.prompt!r}{place} has "
                f"none: give {OPTIONS[kind]}, or {_COLUMNS[kind]} for one per prompt."
            )
    _check_taken(pipe, given)


def default_strength(pipe: Any) -> float | None:
    """Return the strength of a pipeline's call where nobody says another; None if it takes
    none."""
    parameter = inspect.signature(type(pipe).__call__).parameters.get("strength")
    return None if parameter is None else float(parameter.default)


def check_starts(pipe: Any, run: RunSettings) -> None:
    """Refuse pictures for all samples that a pipeline does not take, and a strength that it has
    not.

    Raises:
        UsageError: naming the option.
    """
    _check_taken(pipe, run.starts)
    if run.strength is None:
        return
    if not architecture(pipe).starts or default_strength(pipe) is None:
        raise UsageError(f"--strength {run.strength:g}: {type(pipe).__name__} has none.")
    if not 0 < run.strength <= 1:
        raise UsageError(
            f"--strength {run.strength:g}: expected a number above 0, where the picture stays as "
            f"it is, and up to 1, where only noise is left of it."
        )
    if int(run.n_steps * run.strength) < 1:
        raise UsageError(
            f"--strength {run.strength:g} of --steps {run.n_steps} is no step: expected at least "
            f"{1 / run.n_steps:g}."
        )


def _check_mask(starts: Collection[str]) -> None:
    if "mask" in starts and "image" not in starts:
        raise UsageError(
            "a mask without a picture: a mask says which part of a picture is drawn anew: give "
            "--image, or --image-column for one per prompt."
        )


def _check_taken(pipe: Any, given: Starts) -> None:
    for kind in given:
        if kind not in architecture(pipe).starts:
            raise UsageError(
                f"{OPTIONS[kind]} {given[kind].path}: {type(pipe).__name__} takes no such picture"
                f"{' without a ControlNet (--controlnet)' * (kind == 'control')}."
            )


@functools.lru_cache(maxsize=64)
def opened(picture: StartPicture, kind: str) -> Any:
    """Return a picture as PIL's, upright: RGB, of a mask its lightness.

    Raises:
        UsageError: it cannot be read as a picture.
        PromptsError: the file has changed since its hash was taken.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(picture.read())) as image:
            upright: Any = ImageOps.exif_transpose(image)
            return upright.convert("L" if kind == "mask" else "RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"{OPTIONS[kind]} {picture.path} cannot be read as a picture: {reason}."
        ) from error


def start_arguments(pipe: Any, starts: Sequence[Starts], size: tuple[int, int]) -> dict[str, Any]:
    """Return the arguments of a pipeline's call that hold a batch's pictures.

    Raises:
        UsageError: one is missing, or is not of the run's ``size`` (height, width).
    """
    needs, found = architecture(pipe).starts, dict[str, Any]()
    for kind, argument in needs.items():
        if not all(kind in one for one in starts):
            raise UsageError(
                f"{type(pipe).__name__} starts from {_WORDS[kind]}: give {OPTIONS[kind]}."
            )
        found[argument] = [opened(one[kind], kind) for one in starts]
        for one, image in zip(starts, found[argument], strict=True):
            if image.size[::-1] != size:
                raise UsageError(
                    f"{OPTIONS[kind]} {one[kind].path} is {image.height} × {image.width} pixels, "
                    f"this run's pictures are {size[0]} × {size[1]} (height × width)."
                )
    return found


def described(pipe: Any, run: RunSettings) -> dict[str, Any]:
    """Return what a run's settings say of where its samples start: the pipeline, its strength, the
    hashes of the pictures that all samples share; empty where they start from noise alone."""
    if not architecture(pipe).starts:
        return {}
    strength = run.strength if run.strength is not None else default_strength(pipe)
    return {
        "start": {
            "pipeline": type(pipe).__name__,
            **({} if strength is None else {"strength": strength}),
            **{kind: picture.sha256 for kind, picture in sorted(run.starts.items())},
        }
    }
