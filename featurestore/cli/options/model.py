"""Which model is loaded, and where."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from featurestore.cli.options.gathering import gathered
from featurestore.vocabulary import MODEL_DTYPES

if TYPE_CHECKING:
    from sae.diffusion.pipelines import Model


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What the options of :func:`model_options` say."""

    model: str
    device: str
    model_dtype: str
    variant: str | None
    base: str | None
    unet: str | None
    loras: tuple[str, ...]
    scheduler: str | None
    controlnet: str | None
    safety_checker: bool

    def load(self, starts: Collection[str] = ()) -> "Model":
        """Load the model whose samples start from ``starts``; under torchrun and the like, where
        this process's device is."""
        from sae.devices import pick_device
        from sae.diffusion.pipelines import LoadSettings, load_model
        from sae.training.processes import local_device

        settings = LoadSettings(
            variant=self.variant,
            base=self.base,
            unet=self.unet,
            loras=self.loras,
            scheduler=self.scheduler,
            starts=starts,
            controlnet=self.controlnet,
            safety_checker=self.safety_checker,
        )
        device = str(pick_device(local_device(self.device)))
        return load_model(self.model, device, self.model_dtype, settings)


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which model is loaded, and where; they arrive as ``model``."""
    options = [
        click.option(
            "--model",
            required=True,
            help="A hub id, a local pipeline directory, a single-file checkpoint (with --base), "
            "'minicanvas' or 'minicanvas:large'.",
        ),
        click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, …"),
        click.option(
            "--model-dtype",
            type=click.Choice(["auto", *MODEL_DTYPES]),
            default="auto",
            show_default="float16 on CUDA, else float32",
            help="Precision the model is loaded in.",
        ),
        click.option("--variant", metavar="NAME", help="Of the weight files, such as fp16."),
        click.option(
            "--base",
            metavar="MODEL",
            help="Pipeline directory or hub id with the configuration of a single-file --model.",
        ),
        click.option(
            "--unet",
            metavar="FILE",
            help="Denoiser weights in the place of the model's, all or some: .safetensors, .pt, "
            ".pth or .ckpt.",
        ),
        click.option(
            "--lora",
            "loras",
            multiple=True,
            metavar="FILE[:SCALE]",
            help="LoRA weights, a file, directory or hub id; repeated for several.",
        ),
        click.option(
            "--scheduler",
            metavar="CLASS",
            help="Of diffusers, such as DDIMScheduler.  [default: the model's own]",
        ),
        click.option(
            "--controlnet",
            metavar="MODEL",
            help="Directory or hub id of a ControlNet, guided by --control-image.",
        ),
        click.option(
            "--safety-checker",
            is_flag=True,
            help="Load the model's safety checker; what it flags is no result.",
        ),
    ]
    return gathered(command, "model", ModelOptions, options)
