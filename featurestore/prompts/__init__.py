"""Prompts and their labels, from the files that people keep them in (docs/collecting.md)."""

from featurestore.prompts.columns import PromptColumns
from featurestore.prompts.labels import label_counts, label_warnings
from featurestore.prompts.prompts import (
    Prompt,
    PromptFile,
    prompt_batches,
    read_prompt_file,
    read_prompts,
)
from featurestore.prompts.starts import StartPicture, start_picture

__all__ = [
    "Prompt",
    "PromptColumns",
    "PromptFile",
    "StartPicture",
    "label_counts",
    "label_warnings",
    "prompt_batches",
    "read_prompt_file",
    "read_prompts",
    "start_picture",
]
