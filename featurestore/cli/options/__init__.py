"""Options that several commands share, by what they are about."""

from featurestore.cli.options.attacks import AttackOptions, attack_options
from featurestore.cli.options.drawing import DrawingOptions, drawing_options
from featurestore.cli.options.edits import InterventionOptions, intervention_options
from featurestore.cli.options.gathering import gathered
from featurestore.cli.options.kinds import Numbers, Seeds
from featurestore.cli.options.model import ModelOptions, model_options
from featurestore.cli.options.pictures import RunOptions, run_options
from featurestore.cli.options.prompts import PromptOptions, column_options, prompt_options
from featurestore.cli.options.single import (
    branch_option,
    io_option,
    judge_option,
    mode_option,
    quiet_option,
    sae_directories_option,
)
from featurestore.cli.options.targets import (
    SearchOptions,
    TargetOptions,
    search_options,
    target_options,
)

__all__ = [
    "AttackOptions",
    "DrawingOptions",
    "InterventionOptions",
    "ModelOptions",
    "Numbers",
    "PromptOptions",
    "RunOptions",
    "SearchOptions",
    "Seeds",
    "TargetOptions",
    "attack_options",
    "branch_option",
    "column_options",
    "drawing_options",
    "gathered",
    "intervention_options",
    "io_option",
    "judge_option",
    "mode_option",
    "model_options",
    "prompt_options",
    "quiet_option",
    "run_options",
    "sae_directories_option",
    "search_options",
    "target_options",
]
