"""How pictures are generated."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurestore.cli.options.gathering import gathered, given
from featurestore.cli.options.kinds import Seeds

if TYPE_CHECKING:
    from featurestore.prompts import Prompt
    from sae.diffusion.pipelines import Model, RunSettings


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What the options of :func:`run_options` say."""

    steps: int | None
    guidance: float | None
    true_cfg: float
    negative_prompt: str
    height: int | None
    width: int | None
    frames: int | None
    image: Path | None
    mask_image: Path | None
    control_image: Path | None
    strength: float | None
    arguments: dict[str, Any]
    seeds: list[int]
    batch_size: int

    @property
    def _pictures(self) -> dict[str, Path]:
        return given(image=self.image, mask=self.mask_image, control=self.control_image)

    def starts(self, prompts: "Sequence[Prompt]") -> set[str]:
        """Return what samples start from: pictures for all, and those of the prompts' own."""
        return {*self._pictures, *(kind for prompt in prompts for kind in prompt.starts)}

    def settings(self, model: "Model") -> "RunSettings":
        """Return the run that they mean for a model; its own steps and guidance where they say
        nothing."""
        from featurestore.prompts import start_picture
        from sae.diffusion.pipelines import RunSettings
        from sae.diffusion.starts import OPTIONS

        starts = {k: start_picture(path, OPTIONS[k]) for k, path in self._pictures.items()}
        return RunSettings(
            n_steps=self.steps or model.steps,
            guidance=model.guidance if self.guidance is None else self.guidance,
            negative_prompt=self.negative_prompt,
            height=self.height,
            width=self.width,
            true_cfg=self.true_cfg,
            frames=self.frames,
            starts=starts,
            strength=self.strength,
            arguments=self.arguments,
        )


def _arguments(
    context: click.Context, parameter: click.Parameter, texts: Sequence[str]
) -> dict[str, Any]:
    """Return what texts such as ``pag_scale=3`` say: JSON, or else the text itself."""
    from featurestore.format.gate import MalformedError, parse_json

    said: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals or name in said:
            fault = "is given twice" if name in said else "is not NAME=VALUE"
            raise click.BadParameter(f"{text!r} {fault}.")
        try:
            said[name] = parse_json(value)
        except MalformedError:
            said[name] = value
    return said


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how pictures are generated; they arrive as ``run``."""
    options = [
        click.option(
            "--steps",
            type=click.IntRange(1),
            help="Denoising steps.  [default: the pipeline's own; minicanvas 20]",
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
            help="FLUX only, whose --guidance is distilled: scale of guidance by a second "
            "denoiser call.",
        ),
        click.option("--negative-prompt", default="", help="The same for every picture."),
        click.option(
            "--height", type=click.IntRange(8), help="In pixels.  [default: the model's own]"
        ),
        click.option(
            "--width", type=click.IntRange(8), help="In pixels.  [default: the model's own]"
        ),
        click.option(
            "--frames", type=click.IntRange(1), help="Of a video.  [default: the pipeline's own]"
        ),
        click.option(
            "--image",
            type=click.Path(path_type=Path),
            help="A picture that all samples start from; --image-column: one per prompt.",
        ),
        click.option(
            "--mask-image",
            type=click.Path(path_type=Path),
            help="With --image: white where it is drawn anew; --mask-column: one per prompt.",
        ),
        click.option(
            "--control-image",
            type=click.Path(path_type=Path),
            help="A picture that guides a ControlNet; --control-column: one per prompt.",
        ),
        click.option(
            "--strength",
            type=float,
            help="How much of --image is noised away, up to 1.  [default: the pipeline's own]",
        ),
        click.option(
            "--argument",
            "arguments",
            multiple=True,
            callback=_arguments,
            metavar="NAME=VALUE",
            help="Of the pipeline's call, as JSON or text: pag_scale=3, skip_guidance_layers=[7].",
        ),
        click.option(
            "--seeds",
            type=Seeds(),
            default="0",
            show_default=True,
            help="Each prompt once per seed: 0,1,5 or 0-4.",
        ),
        click.option(
            "--batch-size",
            type=click.IntRange(1),
            default=8,
            show_default=True,
            help="Pictures at once.",
        ),
    ]
    return gathered(command, "run", RunOptions, options)
