"""Which prompts, and which of their columns mean what."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from featurestore.cli.options.gathering import gathered, given

if TYPE_CHECKING:
    from featurestore.prompts import Prompt, PromptFile


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """What ``--prompts`` and the options of :func:`column_options` say."""

    source: str | None
    prompt_column: str
    seed_column: str | None
    guidance_column: str | None
    image_column: str | None
    mask_column: str | None
    control_column: str | None
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
            starts=given(
                image=self.image_column, mask=self.mask_column, control=self.control_column
            ),
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
            "--image-column",
            metavar="NAME",
            help="A picture per row to start from (img2img, inpainting): its path, from the file's "
            "directory.",
        ),
        click.option(
            "--mask-column", metavar="NAME", help="A mask per row, white where it is drawn anew."
        ),
        click.option(
            "--control-column", metavar="NAME", help="A picture per row that guides a ControlNet."
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
