"""The page of the Python API runs as it stands, and shows every public name."""

import importlib
import re
from pathlib import Path

import datasets
import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs/api.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_the_examples_run_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    names = {"__name__": "api"}
    for block in re.finditer(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL):
        line = TEXT.count("\n", 0, block.start(1))
        exec(compile("\n" * line + block[1], str(PAGE), "exec"), names)
    said = capsys.readouterr().out
    assert "has no table 'activations/unet.up_blocks.1.attention.1'. Did you mean" in said
    assert {path.name for path in tmp_path.iterdir()} >= {
        "store",
        "live",
        "neon.json",
        "evaluation",
        "pictures",
    }


@pytest.mark.parametrize("package", ["featurestore", "sae", "collectors", "queries"])
def test_every_public_name_is_shown(package):
    shown = set(re.findall(r"\w+", TEXT))
    assert not set(importlib.import_module(package).__all__) - shown
