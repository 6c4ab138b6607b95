"""What a corpus takes: arithmetic from the measured constants, and constants that are those of the
models' classes."""

import math
import re
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from collectors.planning.budget import BEST_ROWS, KNOWN, Corpus, budget, model_sizes
from featurestore.cli.terminal.text import human_bytes
from featurestore.errors import UsageError
from queries.derived.candidates import TOP
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
    assert "63 shards per table, of 16 pictures, 8 for each of 8 tasks of a job array" in out
    assert re.search(r"^by feature +135\.0 MB$", out, re.MULTILINE)
    assert "on two cores within 2 GB of memory" in out
    assert "per month" not in out
    out = run(capsys, "plan", "--prompts", "1000", "--disk-price", "20")[1]
    assert re.search(r"^everything +35\.\d GB +0\.7\d$", out, re.MULTILINE)
    status, out, err = run(capsys, "plan", "--model", "mine", "--prompts", "10")
    assert (status, out) == (1, "")
    assert "give --positions" in err
    status, out, _ = run(
        capsys, "plan", "--model", "mine", "--prompts", "10", "--positions", "64", "--d-in", "16", "--tflop", "0.1",
        "--steps", "4",
    )  # fmt: skip
    assert status == 0
    assert "scaled by the arithmetic" in " ".join(out.split())


def test_shards_files_and_what_is_derived_follow_from_the_corpus():
    corpus = Corpus(model=KNOWN["sd15"], n_prompts=83_200, n_hooks=2)
    made = budget(corpus)
    assert (corpus.shard_samples, corpus.shards) == (16, 5_200)
    assert made.n_files == 2 * 5_200 * 7  # samples; activations, codes and stats of two hooks
    assert made.kept_bytes() == sum(made.table_bytes.values())
    left = made.kept_bytes(("activations", "codes"))
    assert made.kept_bytes() - left == made.table_bytes["activations"] + made.table_bytes["codes"]
    # Every latent for every concept at every step, of both hooks, and once for each family.
    cells = 50 * 2 * 20480
    assert made.table_bytes["sums, totals"] == 3 * 70 * cells + 11 * 2 * cells
    # The best 32 features of a concept at each step, and the best 10 of the step.
    assert sum(TOP.values()) == BEST_ROWS
    assert made.table_bytes["candidates"] == 3 * 70 * 50 * 2 * 42
    small = Corpus(model=KNOWN["sd15"], n_prompts=1)
    rows = budget(small).stats_rows
    assert budget(small).table_bytes["sums, totals"] == 2 * rows * 3 + 2 * rows * 11


def test_what_sql_takes_is_what_was_measured_at_the_published_size():
    """188 million rows of two families: sums in 68 s by the clock, 99 s of two cores; the tables by
    feature in 63 s of them, 186 MB; candidates, whatever the rows, in 13.9 s, 1 MB."""
    sd15 = model_sizes("sd15", n_steps=100)
    one = budget(Corpus(model=sd15, n_prompts=1_000))
    rows = 188_204_953 / one.stats_rows
    all_rows = budget(Corpus(model=sd15, n_prompts=math.ceil(1_000 * rows)))
    core_s = all_rows.derive_hours * 3600 * (99.4 / 67.9)
    assert core_s == pytest.approx(99.4 + 63 + 13.9, rel=0.01)
    assert round(one.table_bytes["candidates"] / 1e6) == 1
    assert one.table_bytes["by feature"] * rows == pytest.approx(186.4e6, rel=0.02)


def table_rows(model, n_prompts):
    """The two rows that the page has of a corpus."""
    corpus = Corpus(model=model, n_prompts=n_prompts)
    made = budget(corpus)
    sizes = made.table_bytes
    derived = sum(sizes[name] for name in ("sums, totals", "candidates", "by feature"))
    bare = made.kept_bytes(("activations",))
    disk = [sizes["activations"], sizes["codes"], sizes["stats"], derived, made.kept_bytes(), bare]
    hours = [made.generate_hours, made.encode_hours]
    work = [f"{corpus.shards:,}", *(f"{h:,.1f}" for h in hours), f"{sum(hours) * 2.5:,.0f}"]
    work += [f"{n / 1e12 * 20:,.0f}" for n in (made.kept_bytes(), bare)]
    work += [f"{made.derive_hours:,.1f}", f"{made.spark_executors:,}"]
    about = [model.name, f"{n_prompts:,}"]
    cells = [about + [human_bytes(n) for n in disk], about + work]
    return [f"| {' | '.join(row)} |" for row in cells]


def test_the_page_has_the_numbers_of_the_calculator():
    page = (Path(__file__).parents[3] / "docs" / "scale.md").read_text(encoding="utf-8")
    for model in KNOWN.values():
        for n_prompts in (1_000, 83_200, 1_000_000, 10_000_000):
            for row in table_rows(model, n_prompts):
                assert row in page
