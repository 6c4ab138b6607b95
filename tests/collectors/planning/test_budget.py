"""What a corpus takes: arithmetic from the measured constants, and constants that are those of the
models' classes."""

import re
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from collectors.planning.budget import KNOWN, Corpus, budget, model_sizes
from featurestore.cli.store import human_bytes
from featurestore.errors import UsageError
from tests.builders.cli import run


def test_the_published_recipe_takes_what_method_md_says():
    made = budget(Corpus(model=KNOWN["sd15"], n_prompts=83_200))
    assert made.table_bytes["activations"] == pytest.approx(2.73e12, rel=0.005)


def test_everything_but_the_samples_grows_with_steps_hooks_and_branches():
    one = budget(Corpus(model=model_sizes("sd15", n_steps=10), n_prompts=10))
    more = budget(
        Corpus(model=model_sizes("sd15", n_steps=20), n_prompts=10, n_hooks=3, n_branches=2)
    )
    assert more.table_bytes["samples"] == one.table_bytes["samples"]
    for table in ("activations", "codes", "stats"):
        assert more.table_bytes[table] == pytest.approx(12 * one.table_bytes[table], rel=1e-6)
    assert more.generate_hours == pytest.approx(2 * one.generate_hours)
    assert more.encode_hours == pytest.approx(12 * one.encode_hours)


def test_no_row_has_more_statistics_than_codes_or_latents():
    few = budget(Corpus(model=KNOWN["sd15"], n_prompts=1, k=1, n_latents=100))
    assert few.stats_rows <= 50 * 100
    assert budget(Corpus(model=KNOWN["sd15"], n_prompts=1, k=1)).stats_rows <= 50 * 256


def test_the_arithmetic_of_a_call_is_that_of_diffusers_class():
    from diffusers import UNet2DConditionModel

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        unet(torch.empty(1, 4, 64, 64), torch.empty(1), torch.empty(1, 77, 768))
    assert counter.get_total_flops() / 1e12 == pytest.approx(KNOWN["sd15"].tflop, rel=0.01)


def test_an_unknown_model_is_one_line_that_says_what_to_give():
    with pytest.raises(
        UsageError,
        match=r"no sizes are kept of model 'sd16'\. Did you mean 'sd15'.*give --positions",
    ):
        model_sizes("sd16")


def test_the_command_prints_disk_hours_and_cost(capsys):
    status, out, _ = run(capsys, "plan", "--prompts", "1000", "--gpus", "8", "--gpu-price", "2")
    assert status == 0
    assert "50,000 rows" in out
    assert re.search(r"^activations +32\.8 GB$", out, re.MULTILINE)
    assert "with 8 side by side" in out
    assert "cost" in out
    status, out, err = run(capsys, "plan", "--model", "mine", "--prompts", "10")
    assert (status, out) == (1, "")
    assert "give --positions" in err
    status, out, _ = run(
        capsys, "plan", "--model", "mine", "--prompts", "10", "--positions", "64", "--d-in", "16", "--tflop", "0.1",
        "--steps", "4",
    )  # fmt: skip
    assert status == 0
    assert "scaled by the arithmetic" in out


def test_the_page_has_the_numbers_of_the_calculator():
    page = (Path(__file__).parents[3] / "docs" / "scale.md").read_text(encoding="utf-8")
    for model in KNOWN.values():
        for n_prompts in (1_000, 83_200, 1_000_000, 10_000_000):
            made = budget(Corpus(model=model, n_prompts=n_prompts))
            sizes = [human_bytes(made.table_bytes[t]) for t in ("activations", "codes", "stats")]
            hours = [f"{made.generate_hours:,.1f}", f"{made.encode_hours:,.1f}"]
            assert f"| {model.name} | {n_prompts:,} | {' | '.join(sizes + hours)} |" in page
