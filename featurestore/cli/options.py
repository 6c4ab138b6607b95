"""Options and arguments that several commands share."""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from featurestore.vocabulary import BRANCH_CHOICES, IO, MODEL_DTYPES, MODES

if TYPE_CHECKING:
    from featurestore.prompts import Prompt, PromptFile
    from sae.diffusion.pipelines import Model, RunSettings

_SEEDS = re.compile(r"(\d+)(?:-(\d+))?")


class Seeds(click.ParamType):
    """``0``, ``0,1,5`` or ``0-4``."""

    name = "seeds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[int]:
        """Return the seeds in the order given."""
        if isinstance(value, list):
            return value
        seeds: list[int] = []
        for part in str(value).split(","):
            match = _SEEDS.fullmatch(part.strip())
            if not match:
                self.fail(
                    f"{value!r} is no list of seeds: expected something like 0, 0,1,5 or 0-4.",
                    param,
                    ctx,
                )
            first, last = int(match[1]), int(match[2] or match[1])
            seeds += range(first, last + 1)
        if len(set(seeds)) < len(seeds) or not seeds or max(seeds) >= 2**63:
            self.fail(f"{value!r}: seeds must be distinct, and below 2^63.", param, ctx)
        return seeds


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """What ``--prompts`` and the options of :func:`column_options` say."""

    source: str | None
    prompt_column: str
    seed_column: str | None
    guidance_column: str | None
    labels: tuple[str, ...]
    split_labels: tuple[str, ...]
    separator: str
    no_labels: bool
    split: str | None
    skip_repeats: bool

    def read(self, seeds: list[int]) -> "list[Prompt]":
        """Return the prompts once per seed; what looks like a slip in their labels is said on
        stderr."""
        from featurestore.prompts import label_warnings

        prompts = self.file(seeds).prompts
        for warning in label_warnings(prompts):
            click.echo(f"Warning: {self.source}: {warning}", err=True)
        return prompts

    def file(self, seeds: list[int]) -> "PromptFile":
        """Return what the file is understood as, without warnings."""
        from featurestore.errors import UsageError
        from featurestore.prompts import PromptColumns, read_prompt_file

        if self.no_labels and (self.labels or self.split_labels):
            raise UsageError(
                "--no-labels takes no column as a label: leave out --label and --split-label."
            )
        columns = PromptColumns(
            prompt=self.prompt_column,
            seed=self.seed_column,
            guidance=self.guidance_column,
            labels={} if self.no_labels else _families(self.labels) or None,
            split_labels=_families(self.split_labels),
            separator=self.separator,
        )
        assert self.source is not None, "a command without --prompts reads none"
        return read_prompt_file(
            self.source, seeds, columns, split=self.split, skip_repeats=self.skip_repeats
        )


def _families(texts: Sequence[str]) -> dict[str, str]:
    """Return family → column of ``FAMILY=COLUMN`` and ``COLUMN``."""
    from featurestore.errors import UsageError

    families: dict[str, str] = {}
    for text in texts:
        family, equals, column = text.partition("=")
        if family in families:
            raise UsageError(f"--label: the family {family!r} is named twice.")
        families[family] = column if equals else family
    return families


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
    safety_checker: bool

    def load(self) -> "Model":
        """Load the model; under torchrun and the like, where this process's device is."""
        from sae.diffusion.pipelines import LoadSettings, load_model
        from sae.training.processes import local_device

        settings = LoadSettings(
            variant=self.variant,
            base=self.base,
            unet=self.unet,
            loras=self.loras,
            scheduler=self.scheduler,
            safety_checker=self.safety_checker,
        )
        return load_model(self.model, local_device(self.device), self.model_dtype, settings)


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


def prompt_options(required: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return what adds ``--prompts`` and the options about its columns; they arrive as
    ``prompts``."""
    option = click.option(
        "--prompts",
        "source",
        required=required,
        metavar="FILE",
        help="JSONL, CSV, TSV, JSON, text or Parquet file, or a data set: a directory or "
        "OWNER/NAME of the hub.",
    )
    return functools.partial(column_options, source=option)


def column_options(command: Callable[..., Any], source: Callable[..., Any]) -> Callable[..., Any]:
    """Add the parameter ``source`` and the options that say which of its columns mean what; they
    arrive as ``prompts``."""
    options = [
        source,
        click.option(
            "--prompt-column",
            default="prompt",
            show_default=True,
            metavar="NAME",
            help="The prompt.",
        ),
        click.option(
            "--seed-column",
            metavar="NAME",
            help="A seed per row.  [default: seed, if there is one]",
        ),
        click.option(
            "--guidance-column",
            metavar="NAME",
            help="A guidance scale per row.  [default: guidance, if there is one]",
        ),
        click.option(
            "--label",
            "labels",
            multiple=True,
            metavar="[FAMILY=]COLUMN",
            help="A column of labels, such as style=art_style; repeated.  [default: every other "
            "column]",
        ),
        click.option(
            "--split-label",
            "split_labels",
            multiple=True,
            metavar="[FAMILY=]COLUMN",
            help="Several labels per cell: each becomes a family FAMILY_LABEL of yes and no.",
        ),
        click.option(
            "--separator",
            default=",",
            show_default=True,
            help="Between the labels of --split-label.",
        ),
        click.option("--no-labels", is_flag=True, help="No column is a label."),
        click.option("--split", metavar="NAME", help="Of a data set.  [default: the only one]"),
        click.option(
            "--skip-repeats",
            is_flag=True,
            help="Leave out rows that say the same as an earlier one.",
        ),
    ]
    return gathered(command, "prompts", PromptOptions, options)


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which model is loaded, and where; they arrive as ``model``."""
    options = [
        click.option(
            "--model",
            required=True,
            help="A hub id, a local pipeline directory, a single-file checkpoint (with --base), "
            "or 'minicanvas'.",
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
            "--safety-checker",
            is_flag=True,
            help="Load the model's safety checker; what it flags is no result.",
        ),
    ]
    return gathered(command, "model", ModelOptions, options)


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


def gathered(
    command: Callable[..., Any],
    name: str,
    kind: Callable[..., Any],
    options: Sequence[Callable[..., Any]],
) -> Callable[..., Any]:
    """Add options to a command, which receives their values as one object: ``name=kind(…)``.

    ``kind`` is a dataclass with one field per option.
    """
    fields = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]

    @functools.wraps(command)
    def with_object(**values: Any) -> Any:
        taken = {field: values.pop(field) for field in fields}
        return command(**values, **{name: kind(**taken)})

    added: Callable[..., Any] = with_object
    for option in reversed(options):
        added = option(added)
    return added


io_option = click.option(
    "--io",
    type=click.Choice(IO),
    default="output",
    show_default=True,
    help="Which tensor of the module; difference is output - input.",
)
branch_option = click.option(
    "--branch",
    type=click.Choice(list(BRANCH_CHOICES)),
    default="cond",
    show_default=True,
    help="Which half of classifier-free guidance.",
)
mode_option = click.option(
    "--mode",
    type=click.Choice(list(MODES)),
    default="paper",
    show_default=True,
    help="Keep the SAE's error, drop it, or do as SAeUron's released code (for comparison only).",
)
judge_option = click.option(
    "--judge",
    "judges",
    multiple=True,
    required=True,
    help="minicanvas, minicanvas:selection, or the directory of a timm classifier; several for "
    "several families.",
)
