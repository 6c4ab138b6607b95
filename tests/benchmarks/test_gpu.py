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


def test_a_stage_is_rehearsed_with_its_own_options_and_its_rows_are_kept_elsewhere(tmp_path):
    """The cheapest; ``python -m benchmarks.gpu --dry-run`` rehearses all."""
    (stage,) = (stage for stage in gpu.STAGES if stage.name == "train")
    kept = (gpu.RESULTS / "train.jsonl").read_text()
    ended, _ = gpu.run(gpu.rehearsed(stage), BENCHMARK_RESULTS=str(tmp_path))
    assert ended == "passed" and (gpu.RESULTS / "train.jsonl").read_text() == kept
    rows = [json.loads(row)["figures"] for row in (tmp_path / "train.jsonl").read_text().split("\n") if row]  # fmt: skip
    assert [row["own"] for row in rows if row["peer"] == "version_0_1"] == ["ours_bfloat16"]
    assert not [line for line in gpu.unwritten(tmp_path, False) if " of train," in line]


def test_a_bar_whose_figure_no_stage_writes_is_named(tmp_path):
    lines = gpu.unwritten(tmp_path, saeuron=True)
    assert len(lines) == len(gpu.BARS)
    assert lines[0].startswith("no stage writes absent_added_ms of ablate, which has a bar: a conc")
    assert len(gpu.unwritten(tmp_path, saeuron=False)) == len(gpu.BARS) - 2


def test_options_of_a_stage_are_those_of_a_gpu_but_for_the_device():
    by_name = {stage.name: gpu.rehearsed(stage).command for stage in gpu.STAGES}
    assert by_name["ablate, eight pictures"] == (
        "benchmarks/ablate.py", "--device", "cpu", "--dtype", "float16", "--batch", "8", "--rehearse"
    )  # fmt: skip
    assert by_name["collect"] == ("benchmarks/collect.py", "--runs", "3", "--rehearse")
    ablate = gpu.with_saeuron(gpu.STAGES[1], gpu.ROOT).command
    assert ablate[-2:] == ("--saeuron", str(gpu.ROOT))
    assert gpu.with_saeuron(gpu.STAGES[-1], gpu.ROOT) == gpu.STAGES[-1]
