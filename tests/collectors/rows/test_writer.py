"""Tensors on their way to the disk: how many there may be, and what becomes of failures."""

import threading
import time

import numpy as np
import pytest
import torch

from collectors.collection import CollectSettings, collect
from collectors.rows.writer import BackgroundWriter, Staging, Timing
from featurestore.errors import DiskError
from featurestore.format.parquet.in_place import TensorFile
from featurestore.prompts import Prompt
from sae.diffusion.pipelines import RunSettings

HOOK = "unet.up_blocks.1.attentions.1"
PROMPTS = [Prompt(f"a picture {i}", i, {}, i + 1) for i in range(4)]


@pytest.mark.parametrize(
    "source",
    [
        torch.arange(24.0).view(2, 3, 4),
        torch.arange(24.0).view(2, 3, 4).transpose(1, 2),
        torch.arange(48.0).view(4, 3, 4)[::2],
        torch.arange(24.0).view(2, 3, 4)[1:],
    ],
)
def test_a_copy_equals_its_source_and_stays_when_that_changes(source):
    staging = Staging(torch.device("cpu"), Timing())
    expected = source.clone()
    staged = staging.copy(source)
    source += 1
    assert torch.equal(staged.ready(), expected)
    staging.give_back(staged)
    assert staging.held == 0


def test_memory_is_used_again_and_bounded():
    timing, x = Timing(), torch.zeros(25)  # 100 bytes
    staging = Staging(torch.device("cpu"), timing, limit=250)
    held = [staging.copy(x), staging.copy(x)]
    begun = threading.Event()

    def third():
        begun.set()
        held.append(staging.copy(x))

    thread = threading.Thread(target=third)
    thread.start()
    begun.wait()
    time.sleep(0.05)
    assert len(held) == 2
    first = held[0].block.data_ptr()
    staging.give_back(held[0])
    thread.join()
    assert held[2].block.data_ptr() == first
    assert (staging.held, staging.peak) == (200, 200)
    assert timing.waiting > 0


def test_a_tensor_above_the_limit_goes_alone():
    staging = Staging(torch.device("cpu"), Timing(), limit=10)
    staging.give_back(staging.copy(torch.zeros(25)))
    assert staging.peak == 100


def test_what_is_held_does_not_grow_with_the_steps(model, tmp_path, monkeypatch):
    stagings, put = [], TensorFile.put

    def make(device, timing):
        stagings.append(Staging(device, timing, limit=1))
        return stagings[-1]

    monkeypatch.setattr("collectors.job.Staging", make)
    monkeypatch.setattr(
        TensorFile, "put", lambda self, row, values: (time.sleep(0.002), put(self, row, values))[1]
    )
    for n_steps in (2, 12):
        run, kept = (
            RunSettings(n_steps, 3.0),
            CollectSettings(hooks=[HOOK], batch_size=4, shard_samples=4),
        )
        collect(tmp_path / f"{n_steps}", model, PROMPTS, run, kept, progress=False)
    assert stagings[0].peak == stagings[1].peak > 0
    assert stagings[0].held == stagings[1].held == 0


def test_a_write_that_fails_ends_the_collection_and_leaves_nothing(model, tmp_path, monkeypatch):
    def refuse(self, row, values):
        raise DiskError("cannot write there")

    monkeypatch.setattr(TensorFile, "put", refuse)
    with pytest.raises(DiskError, match="cannot write there"):
        collect(
            tmp_path / "s",
            model,
            PROMPTS,
            RunSettings(3, 3.0),
            CollectSettings(hooks=[HOOK]),
            progress=False,
        )
    assert list(tmp_path.iterdir()) == []


def test_rows_are_written_before_the_last_step(model, tmp_path, monkeypatch):
    """The writer does not wait for a shard to be generated."""
    written, seen, put = [], [], TensorFile.put
    monkeypatch.setattr(
        TensorFile,
        "put",
        lambda self, row, values: (written.append(row), put(self, row, values))[1],
    )

    def slow(module, args):
        for _ in range(1000):  # The writer has ten seconds for what it could have at once.
            if len(written) >= 4 * len(seen):
                break
            time.sleep(0.01)
        seen.append(len(written))

    handle = model.pipe.unet.register_forward_pre_hook(slow)
    try:
        report = collect(
            tmp_path / "s", model, PROMPTS, RunSettings(5, 3.0),
            CollectSettings(hooks=[HOOK], batch_size=4, shard_samples=4), progress=False,
        )  # fmt: skip
    finally:
        handle.remove()
    assert seen == [0, 4, 8, 12, 16]
    assert sorted(written) == list(range(20))
    assert 0 < report.timing.tail < report.timing.total
    assert np.isclose(report.timing.waiting, 0, atol=report.timing.total)


def test_finishing_takes_turns_and_failures_come_out():
    writer, order = BackgroundWriter(Timing()), []
    writer.submit(lambda: (time.sleep(0.02), order.append(1)))
    writer.submit(lambda: order.append(2))
    writer.wait()
    assert order == [1, 2]

    def fail():
        raise ValueError("no")

    writer.submit(fail)
    with pytest.raises(ValueError, match="no"):
        writer.submit(lambda: order.append(3))
    writer.close()
    assert order == [1, 2]
