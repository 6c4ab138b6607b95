"""Shards are cut by bytes, alike for as long as a store is filled."""

import pytest

from collectors.collection import CollectSettings, collect, dry_run
from collectors.job import prepare
from collectors.planning import plan
from collectors.planning.plan import fitting
from collectors.planning.shares import Share, claim_item
from collectors.shard_size import find_shard_samples, picture_bytes
from featurestore.errors import DamageError
from featurestore.format.records import Record
from featurestore.maintenance.repair import repair
from featurestore.prompts import Prompt
from featurestore.store import shards
from sae.diffusion.pipelines import RunSettings
from tests.builders.trees import same_tree

HOOK, MID = "unet.up_blocks.1.attentions.1", "unet.mid_block.attentions.0"
RUN = RunSettings(n_steps=3, guidance=3.0)
PROMPTS = [Prompt(f"picture {i}", i, {"style": "ab"[i % 2]}, i + 1) for i in range(7)]


def run(path, model, prompts=PROMPTS, **changes):
    settings = CollectSettings(**({"hooks": [HOOK, MID], "batch_size": 2} | changes))
    return collect(path, model, prompts, RUN, settings, progress=False).store


def sizes(store):
    return [len(record.sample_ids) for record in store.records("samples")]


@pytest.mark.parametrize(
    "kept",
    [
        {},
        {"branch": "both", "dtype": "float32"},
        {"timesteps": "0,2", "positions": "random:5"},
        {"hooks": [MID], "positions": "mean"},
        {"hooks": ["text_encoder.encoder.layers.0"]},
    ],
    ids=str,
)
def test_the_bytes_of_a_picture_are_those_that_are_written(model, tmp_path, kept):
    settings = CollectSettings(**({"hooks": [HOOK, MID]} | kept))
    job, samples = prepare(tmp_path / "store", model, PROMPTS, RUN, settings=settings)
    told = picture_bytes(job, samples[0])
    assert not (tmp_path / "store").exists()
    store = run(tmp_path / "store", model, PROMPTS[:2], **kept)
    found = [sum(shard.rows().nbytes for shard in store.activations(h)) for h in job.kept]
    assert told == max(found) / 2


@pytest.mark.parametrize(
    ("n_bytes", "batch", "n"),
    [
        (256 * 1280 * 50 * 2, 8, 16),  # SD-1.5, one branch of 50 steps
        (4096 * 3072 * 28 * 2, 8, 8),  # FLUX: one batch, whatever its bytes
        (4096 * 3072 * 28 * 2, 1, 1),
        (1, 8, 64),
        (0, 48, 48),
        (0, 100, 100),
        (2**29 // 15, 8, 8),
        (2**29 // 15, 1, 15),
    ],
)
def test_a_shard_has_whole_batches_that_make_half_a_gigabyte(n_bytes, batch, n):
    assert fitting(n_bytes, batch) == n


def test_shards_are_cut_by_bytes_and_told(model, tmp_path, monkeypatch):
    job, samples = prepare(
        tmp_path / "x", model, PROMPTS, RUN, settings=CollectSettings(hooks=[HOOK, MID])
    )
    monkeypatch.setattr(plan, "SHARD_BYTES", 3 * picture_bytes(job, samples[0]))
    store = run(tmp_path / "whole batches", model)
    assert sizes(store) == [2, 2, 2, 1]
    assert {record.made_by["shard_samples"] for record in store.records("samples")} == {2}
    assert sizes(run(tmp_path / "exact", model, exact=True)) == [3, 3, 1]
    assert sizes(run(tmp_path / "asked", model, shard_samples=5)) == [5, 2]
    settings = CollectSettings(hooks=[HOOK, MID], batch_size=2)
    assert dry_run(tmp_path / "dry", model, PROMPTS, RUN, settings=settings).n_shards == 4


def test_a_run_that_goes_on_is_cut_as_it_was_begun(model, tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", model, exact=True, shard_samples=2)
    commit, seen = shards.commit, []

    def stop(root, record: Record):
        if record.table == "samples" and seen:
            raise KeyboardInterrupt
        seen.extend([record] * (record.table == "samples"))
        return commit(root, record)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shards, "commit", stop)
        run(tmp_path / "store", model, exact=True, shard_samples=2)
    store = run(tmp_path / "store", model, exact=True, batch_size=3)
    same_tree(store.root, whole.root)


def test_another_size_is_told(model, tmp_path):
    run(tmp_path / "store", model, PROMPTS[:2], shard_samples=2)
    told = "was collected with 2 pictures per shard, now they are 3: what is missing is cut anew"
    with pytest.warns(UserWarning, match=told):
        store = run(tmp_path / "store", model, shard_samples=3)
    assert sizes(store) == [2, 3, 2]
    assert sizes(run(tmp_path / "store", model, [*PROMPTS, *PROMPTS[:2]][:7])) == [2, 3, 2]


def test_a_run_is_whole_when_no_process_is_at_a_part_of_it(model, tmp_path):
    settings = CollectSettings(hooks=[HOOK], shard_samples=4)
    (tmp_path / "store").mkdir()
    shares = [Share(0, 2), Share(1, 2)]
    job, samples = prepare(tmp_path / "store", model, PROMPTS, RUN, settings=settings)
    first, _ = plan.plan(job.store, samples, job.tables, 4)
    with claim_item(tmp_path / "store", first.shard):
        report = collect(
            tmp_path / "store", model, PROMPTS, RUN, settings, progress=False, share=shares[1]
        )
        assert not report.whole
    report = collect(
        tmp_path / "store", model, PROMPTS, RUN, settings, progress=False, share=shares[0]
    )
    assert report.whole


@pytest.mark.parametrize(("told", "n"), [({}, 16), ({"shard_samples": 5}, 5)])
def test_a_store_that_does_not_tell_goes_on_with_sixteen(model, tmp_path, monkeypatch, told, n):
    settings = CollectSettings(hooks=[HOOK])
    job, samples = prepare(tmp_path / "store", model, PROMPTS, RUN, settings=settings)
    one = Record("samples", "x", "0", 1, (1,), (), told)
    monkeypatch.setattr(job.store, "records", lambda table: [one])
    assert find_shard_samples(job, samples) == n


def test_one_batch_is_one_shard_and_decides_nothing(model, tmp_path):
    calls = []
    handle = model.pipe.unet.register_forward_pre_hook(lambda *args: calls.append(1))
    try:
        store = run(tmp_path / "store", model, PROMPTS[:2])
    finally:
        handle.remove()
    assert len(calls) == RUN.n_steps  # no call is made to find a size
    assert [record.made_by["shard_samples"] for record in store.records("samples")] == [0]
    more = run(tmp_path / "store", model)
    assert sizes(more) == [2, 5]
    assert [record.made_by["shard_samples"] for record in more.records("samples")] == [0, 64]
    assert sizes(run(tmp_path / "store", model, batch_size=1)) == [2, 5]


@pytest.mark.parametrize("told", ["16", -1, True, 1.5, None])
def test_what_is_no_number_is_refused(model, tmp_path, monkeypatch, told):
    job, samples = prepare(
        tmp_path / "s", model, PROMPTS, RUN, settings=CollectSettings(hooks=[HOOK])
    )
    one = Record("samples", "x", "0", 1, (1,), (), {"shard_samples": told})
    monkeypatch.setattr(job.store, "records", lambda table: [one])
    with pytest.raises(DamageError, match=r"shard_samples is .*, expected a whole number"):
        find_shard_samples(job, samples)


def test_the_only_record_of_samples_is_made_anew(model, tmp_path):
    store = run(tmp_path / "store", model, PROMPTS[:3], shard_samples=4)
    location = store.root / store.records("samples")[0].location
    data = location.read_bytes()
    location.unlink()
    repair(store.root)
    assert location.read_bytes() == data
