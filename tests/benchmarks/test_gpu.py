"""What `make gpu` says about its bars; the stages' command lines exist."""

import json
import shutil

import pytest

from benchmarks import gpu


@pytest.fixture
def results(tmp_path, monkeypatch):
    shutil.copytree(gpu.RESULTS, tmp_path / "results")
    monkeypatch.setattr(gpu, "RESULTS", tmp_path / "results")

    def add(benchmark, **figures):
        with (tmp_path / "results" / f"{benchmark}.jsonl").open("a") as file:
            file.write(json.dumps({"figures": figures}) + "\n")

    return add


def test_an_old_row_is_not_this_run(results):
    lines = gpu.below(gpu.counted())
    assert len(lines) == len(gpu.BARS)
    assert all(line.startswith("not measured: ") for line in lines)


def test_a_figure_below_its_bar_is_named_with_both_numbers(results):
    before = gpu.counted()
    results("collect", collecting_over_plain=1.3)
    row = {"device": "cuda", "d_in": 1280, "batch": 4096, "peer": "sparsify"}
    results("train", **row, ours_bfloat16_positions_per_s=2e6, speed_over_peer=1.2)
    lines = gpu.below(before)
    assert "below its bar: collecting two hooks ÷ generating alone is 1.3, bar 1.05" in lines
    about = "(d_in 1280, batch 4096, device cuda, peer sparsify)"
    slow = f"below its bar: training ÷ sparsify, positions/s {about} is 1.2, bar 1.5"
    assert slow in lines and f"not measured: FVU ÷ sparsify's after equal steps {about}" in str(
        lines
    )
    assert not [line for line in lines if "training, positions/s" in line]


def test_without_a_gpu_every_bar_waits():
    assert len(gpu.waiting()) == len(gpu.BARS)
    assert "waits for a GPU: collecting two hooks ÷ generating alone, bar 1.05" in gpu.waiting()


def test_every_stage_names_a_benchmark_whose_options_are_known():
    for stage in {gpu.rehearsed(s).command: gpu.rehearsed(s) for s in gpu.STAGES[1:]}.values():
        assert gpu.run(stage._replace(seconds=600))[0] == "passed", stage.name
