"""What every command says that draws pictures: a model, prompts, how, and where the outcome
goes."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featurestore.cli.options.model import ModelOptions, model_options
from featurestore.cli.options.pictures import RunOptions, run_options
from featurestore.cli.options.prompts import PromptOptions, prompt_options

if TYPE_CHECKING:
    from featurestore.prompts import Prompt
    from sae.diffusion.pipelines import Model, RunSettings
    from sae.evaluation.judge import Judge


@dataclass(frozen=True, kw_only=True)
class DrawingOptions:
    """What the options of :func:`drawing_options` say."""

    model: ModelOptions
    prompts: PromptOptions
    run: RunOptions
    out: Path

    def asked(self) -> "list[Prompt]":
        """Return the prompts once per seed."""
        return self.prompts.read(self.run.seeds)

    def load(self, prompts: "Sequence[Prompt]" = ()) -> "tuple[Model, RunSettings]":
        """Load the model that starts from what the options and ``prompts`` name; return it with the
        run that the options mean for it. Makes the directory ``out``: what is drawn for hours must
        have a place.

        Raises:
            UsageError: ``out`` is a file.
            DiskError: the operating system refuses it.
        """
        from featurestore.errors import UsageError
        from featurestore.format import durable

        if self.out.exists() and not self.out.is_dir():
            raise UsageError(f"--out {self.out} is a file: name a directory.")
        loaded = self.model.load(self.run.starts(prompts))
        run = self.run.settings(loaded)
        durable.make_directory(self.out)
        return loaded, run

    def judge(self, names: Sequence[str]) -> "Judge":
        """Load what judges pictures."""
        from sae.evaluation.judge import load_judge

        return load_judge(names, self.judge_device)

    def words(self, names: Sequence[str] = ()) -> list[str]:
        """Return the options that say the same model, prompts and judges to another command."""
        judges = [word for name in names for word in ("--judge", name)]
        return ["--model", self.model.model, "--prompts", self.prompts.source or "FILE", *judges]

    @property
    def judge_device(self) -> str:
        """Where judges run: on the device that is named, or on the CPU if none is."""
        return "cpu" if self.model.device == "auto" else self.model.device


def drawing_options(
    out: str, *, prompts_required: bool = True
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return what adds the options of a command that draws; they arrive as ``drawing``.

    ``out`` is what ``--out`` is for.
    """

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_object(**values: Any) -> Any:
            parts = {name: values.pop(name) for name in ("model", "prompts", "run", "out")}
            return command(**values, drawing=DrawingOptions(**parts))

        added: Callable[..., Any] = with_object
        place = click.option("--out", required=True, type=click.Path(path_type=Path), help=out)
        for one in (place, run_options, prompt_options(prompts_required), model_options):
            added = one(added)
        return added

    return add
