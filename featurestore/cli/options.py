"""Options and arguments that several commands share."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from sae.diffusion.pipelines import Model, RunSettings

_SEEDS = re.compile(r"(\d+)(?:-(\d+))?")


class Seeds(click.ParamType):
    """``0``, ``0,1,5`` or ``0-4``."""

    name = "seeds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        """Return the seeds in the order given."""
        if isinstance(value, list):
            return value
        seeds: list[int] = []
        for part in str(value).split(","):
            match = _SEEDS.fullmatch(part.strip())
            if not match:
                self.fail(f"{value!r} is no list of seeds: expected something like 0, 0,1,5 or 0-4.", param, ctx)
            first, last = int(match[1]), int(match[2] or match[1])
            seeds += range(first, last + 1)
        if len(set(seeds)) < len(seeds) or not seeds or max(seeds) >= 2**63:
            self.fail(f"{value!r}: seeds must be distinct, and below 2^63.", param, ctx)
        return seeds


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which model is loaded, and where."""
    options = [
        click.option("--model", required=True, help="A hub id, a local pipeline directory, or 'minicanvas'."),
        click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, …"),
        click.option(
            "--model-dtype",
            type=click.Choice(["auto", "float32", "float16", "bfloat16"]),
            default="auto",
            show_default="float16 on CUDA, else float32",
            help="Precision the model is loaded in.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how pictures are generated."""
    options = [
        click.option(
            "--steps", type=click.IntRange(1), help="Denoising steps.  [default: the pipeline's own; minicanvas 20]"
        ),
        click.option(
            "--guidance",
            type=float,
            help="Guidance scale; 1 or less: none.  [default: the pipeline's own; minicanvas 3]",
        ),
        click.option(
            "--true-cfg",
            type=float,
            default=1.0,
            help="FLUX only, whose --guidance is distilled: scale of guidance by a second denoiser call.",
        ),
        click.option("--negative-prompt", default="", help="The same for every picture."),
        click.option("--height", type=click.IntRange(8), help="In pixels.  [default: the model's own]"),
        click.option("--width", type=click.IntRange(8), help="In pixels.  [default: the model's own]"),
        click.option(
            "--seeds", type=Seeds(), default="0", show_default=True, help="Each prompt once a seed: 0,1,5 or 0-4."
        ),
        click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Pictures at once."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def run_settings(
    model: "Model",
    steps: int | None,
    guidance: float | None,
    negative_prompt: str,
    height: int | None,
    width: int | None,
    true_cfg: float,
) -> "RunSettings":
    """Return what :func:`run_options` say of a model; its own steps and guidance where they say nothing."""
    from sae.diffusion.pipelines import RunSettings

    scale = model.guidance if guidance is None else guidance
    return RunSettings(steps or model.steps, scale, negative_prompt, height, width, true_cfg)


io_option = click.option(
    "--io",
    type=click.Choice(["output", "input", "difference"]),
    default="output",
    show_default=True,
    help="Which tensor of the module; difference is output - input.",
)
judge_option = click.option(
    "--judge",
    "judges",
    multiple=True,
    required=True,
    help="minicanvas, minicanvas:selection, or the directory of a timm classifier; several for several families.",
)
