"""How pictures are generated."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from featurestore.cli.options.gathering import gathered
from featurestore.cli.options.kinds import Seeds

if TYPE_CHECKING:
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
    seeds: list[int]
    batch_size: int

    def settings(self, model: "Model") -> "RunSettings":
        """Return the run that they mean for a model; its own steps and guidance where they say
        nothing."""
        from sae.diffusion.pipelines import RunSettings

        return RunSettings(
            n_steps=self.steps or model.steps,
            guidance=model.guidance if self.guidance is None else self.guidance,
            negative_prompt=self.negative_prompt,
            height=self.height,
            width=self.width,
            true_cfg=self.true_cfg,
            frames=self.frames,
        )


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
