from dataclasses import replace

import numpy as np
import pytest
import torch

from collectors.collection import CollectSettings, collect
from collectors.rows.capture import capture
from featurestore.errors import (
    HookError,
    ModelError,
    PromptsError,
    RunError,
    TableError,
    UsageError,
)
from featurestore.format.canonical import sample_id
from featurestore.maintenance.relabel import relabel
from featurestore.maintenance.verify import verify
from featurestore.prompts import Prompt
from featurestore.store import shards
from sae.diffusion.modules import find_module
from sae.diffusion.pipelines import RunSettings, generate, load_model
from tests.builders.trees import same_tree

HOOK, MID = "unet.up_blocks.1.attentions.1", "unet.mid_block.attentions.0"
RUN = RunSettings(n_steps=3, guidance=3.0)
PROMPTS = [
    Prompt(f"picture {i}", i % 2, {"style": "ab"[i % 2], "object": None}, i + 1) for i in range(5)
]


def run(path, model, prompts=PROMPTS, settings=None, **changes):
    kept = {"hooks": [HOOK, MID], "shard_samples": 2, "batch_size": 2} | changes
    return collect(path, model, prompts, settings or RUN, CollectSettings(**kept), progress=False)


@pytest.fixture(scope="module")
def collected(model, tmp_path_factory):
    return run(tmp_path_factory.mktemp("collected") / "store", model, branch="both").store


def plain_hook(model, hook, prompt, io="output"):
    """What a plain forward hook sees: {timestep: [uncond, cond]} of one generation on its own."""
    seen = []

    def keep(module, args, kwargs, output):
        entering, leaving = (args[0] if args else kwargs["hidden_states"]), output[0]
        seen.append(
            {"output": leaving, "input": entering, "difference": leaving - entering}[io].clone()
        )

    handle = find_module(model.pipe, hook).register_forward_hook(keep, with_kwargs=True)
    try:
        generate(model, RUN, [prompt.prompt], [prompt.seed], output_type="latent")
    finally:
        handle.remove()
    return dict(zip([float(t) for t in model.pipe.scheduler.timesteps], seen, strict=True))


def rows_of(store, hook):
    for shard in store.activations(hook):
        for i in range(shard.n_rows):
            yield (
                int(shard.sample_id[i]),
                int(shard.step[i]),
                float(shard.timestep[i]),
                str(shard.branch[i]),
                shard.row(i),
            )


def test_captured_activations_equal_a_plain_forward_hook(collected, model):
    ids = dict(
        zip(
            collected.arrow("samples")["prompt"].to_pylist(),
            collected.arrow("samples")["sample_id"].to_pylist(),
            strict=True,
        )
    )
    for hook in (HOOK, MID):
        rows = {(i, t, branch): row for i, _, t, branch, row in rows_of(collected, hook)}
        for prompt in PROMPTS[:2]:
            for t, tensor in plain_hook(model, hook, prompt).items():
                for half, branch in enumerate(("uncond", "cond")):
                    expected = (
                        tensor[half].permute(1, 2, 0).reshape(-1, tensor.shape[1]).half().numpy()
                    )
                    np.testing.assert_allclose(
                        rows[ids[prompt.prompt], t, branch], expected, atol=2e-3, rtol=2e-3
                    )


def test_captured_tensors_are_the_hooks_bit_for_bit(model):
    seen, plain = [], []
    handle = find_module(model.pipe, HOOK).register_forward_hook(
        lambda m, a, out: plain.append(out[0].clone())
    )
    with capture(model.pipe, [HOOK], lambda captured: seen.append(captured)):
        generate(model, RUN, ["a", "b"], [0, 1], output_type="latent")
    handle.remove()
    assert [c.call.timestep for c in seen] == [float(t) for t in model.pipe.scheduler.timesteps]
    for captured, tensor in zip(seen, plain, strict=True):
        assert torch.equal(captured.values, tensor.permute(0, 2, 3, 1).flatten(1, 2))
        assert captured.layout == (16, 16, True, 1)
        assert captured.call.branches == ("uncond", "cond")


@pytest.mark.parametrize("io", ["input", "difference"])
def test_input_and_difference_are_captured(model, tmp_path, io):
    store = run(tmp_path / "store", model, PROMPTS[:1], hooks=[HOOK], io=io).store
    expected = plain_hook(model, HOOK, PROMPTS[0], io)
    for _, _, t, _, row in rows_of(store, HOOK):
        np.testing.assert_allclose(
            row,
            expected[t][1].permute(1, 2, 0).reshape(-1, 16).half().numpy(),
            atol=2e-3,
            rtol=2e-3,
        )


def test_the_order_of_rows_and_the_steps(collected):
    (first, *_) = collected.activations(HOOK)
    assert first.mapped
    assert first.step.tolist() == [0, 0, 1, 1, 2, 2] * 2
    assert first.branch.tolist() == ["cond", "uncond"] * 6
    assert first.timestep.tolist()[:6:2] == sorted(first.timestep.tolist()[:6:2], reverse=True)
    assert verify(collected, deep=True) == []


def test_ids_and_noise_do_not_depend_on_batch_and_order(model, tmp_path):
    one = run(tmp_path / "one", model, batch_size=1, shard_samples=5).store
    other = run(tmp_path / "other", model, PROMPTS[::-1], batch_size=3).store
    for hook in (HOOK, MID):
        a, b = ({(i, s): row for i, s, _, _, row in rows_of(store, hook)} for store in (one, other))
        assert set(a) == set(b)
        assert max(np.abs(a[key].astype(np.float32) - b[key]).max() for key in a) < 5e-3


@pytest.mark.parametrize("stop_after", range(1, 9))
def test_an_interrupted_run_resumes_to_the_same_bytes(
    model, tmp_path, monkeypatch, collected, stop_after
):
    commit, commits = shards.commit, []

    def interrupt(root, record):
        if len(commits) == stop_after:
            raise KeyboardInterrupt
        commits.append(record)
        return commit(root, record)

    monkeypatch.setattr(shards, "commit", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "store", model, branch="both")
    monkeypatch.undo()
    report = run(tmp_path / "store", model, branch="both")
    assert report.n_samples + report.n_skipped == 5
    same_tree(tmp_path / "store", collected.root)


def test_a_store_grows_by_prompts_and_hooks(model, tmp_path):
    path = tmp_path / "store"
    run(path, model, PROMPTS[:3], hooks=[HOOK])
    assert run(path, model, hooks=[HOOK]).n_skipped == 3
    store = run(path, model, hooks=[HOOK, MID]).store
    assert store.arrow("samples").num_rows == 5
    for hook in (HOOK, MID):
        ids = store.arrow(f"activations/{hook}", ["sample_id"])["sample_id"].to_pylist()
        assert len(ids) == 15
        assert len(set(ids)) == 5
    assert verify(store, deep=True) == []


def test_pictures_are_kept_when_asked_for(model, tmp_path):
    import io

    from PIL import Image

    store = run(tmp_path / "store", model, PROMPTS[:2], hooks=[MID], images=True).store
    picture = store.arrow("samples")["image"][0].as_py()
    assert Image.open(io.BytesIO(picture["bytes"])).size == (64, 64)


def test_other_settings_are_refused_and_nothing_changes(model, tmp_path):
    path = tmp_path / "store"
    store = run(path, model, PROMPTS[:2], hooks=[HOOK]).store
    before = sorted(p.name for p in path.rglob("*"))
    with pytest.raises(RunError, match=r"n_steps = 3, this one has 4"):
        run(path, model, settings=RunSettings(4, 3.0))
    with pytest.raises(RunError, match=r"was collected with --branch cond, now it is both"):
        run(path, model, hooks=[HOOK], branch="both")
    with pytest.raises(TableError, match=r"other columns \(image: absent there"):
        run(path, model, hooks=[HOOK], images=True)
    with pytest.raises(UsageError, match="no unconditional half"):
        run(path, model, settings=RunSettings(3, 1.0), branch="uncond")
    assert sorted(p.name for p in path.rglob("*")) == before
    assert verify(store) == []


def test_hooks_that_cannot_be_captured(model, tmp_path):
    with pytest.raises(
        HookError,
        match=r"no module 'unet\.up_block\.1\.attentions\.1'\. Did you mean 'unet\.up_blocks\.1",
    ):
        run(tmp_path / "store", model, hooks=["unet.up_block.1.attentions.1"])
    with pytest.raises(HookError, match=r"returns a tensor of shape \[4, 64\]: only a map"):
        run(tmp_path / "other", model, hooks=["unet.time_embedding"])
    assert list(tmp_path.iterdir()) == []


def test_a_value_that_does_not_fit_is_named_and_nothing_is_written(model, tmp_path):
    module = find_module(model.pipe, HOOK)
    handle = module.register_forward_hook(lambda m, a, out: (out[0] * 1e6,))
    try:
        with pytest.raises(
            HookError,
            match=r"at timestep \d+: the value .*e\+\d+ does not fit float16; use --dtype float32",
        ):
            run(tmp_path / "store", model, hooks=[HOOK])
        assert list(tmp_path.iterdir()) == []
    finally:
        handle.remove()


def test_models_that_are_none(tmp_path):
    with pytest.raises(ModelError, match=r"no model 'minicanvs'.*Did you mean 'minicanvas'"):
        load_model("minicanvs")
    with pytest.raises(ModelError, match=r"has no model_index\.json"):
        load_model(str(tmp_path))
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(str(tmp_path))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_collecting_on_cuda(model_dir, tmp_path, dtype):
    store = run(tmp_path / "store", load_model(str(model_dir), "cuda", dtype)).store
    assert verify(store, deep=True) == []


def test_samples_with_a_guidance_scale_of_their_own_are_collected_with_it(model, tmp_path):
    """B3: a batch holds one scale; a sample's scale is part of its identity where it is not the
    run's."""
    scales = [None, 3.0, 1.5, 7.5, 7.5]
    prompts = [replace(p, guidance=scale) for p, scale in zip(PROMPTS, scales, strict=True)]
    store = run(tmp_path / "store", model, prompts).store
    samples = store.arrow("samples")
    assert samples["guidance"].to_pylist() == [3.0, 3.0, 1.5, 7.5, 7.5]
    ids = samples["sample_id"].to_pylist()
    assert ids[0] == sample_id(store.run_id, PROMPTS[0].prompt, 0)
    assert ids[1] == sample_id(store.run_id, PROMPTS[1].prompt, 1)
    assert (
        ids[2]
        == sample_id(store.run_id, PROMPTS[2].prompt, 0, 1.5)
        != sample_id(store.run_id, "picture 2", 0)
    )
    alone = run(tmp_path / "alone", model, PROMPTS[2:3], replace(RUN, guidance=1.5)).store
    mine = [row for i, *_, row in rows_of(store, HOOK) if i == ids[2]]
    assert len(mine) == 3
    for row, (*_, expected) in zip(mine, rows_of(alone, HOOK), strict=True):
        np.testing.assert_array_equal(row, expected)
    assert run(tmp_path / "store", model, prompts).n_samples == 0
    with pytest.raises(
        UsageError,
        match=r"prompt of line 3, whose own guidance scale is 1: .*no unconditional half",
    ):
        run(
            tmp_path / "both",
            model,
            [*PROMPTS[:2], replace(PROMPTS[2], guidance=1.0)],
            branch="both",
        )


def test_a_corrected_label_is_not_ignored(model, tmp_path):
    """B1: collecting again with other labels is refused and names the command; afterwards it goes
    on."""
    store = run(tmp_path / "store", model, PROMPTS[:2]).store
    right = [replace(p, labels={"style": "b", "object": None}) for p in PROMPTS[:3]]
    with pytest.raises(
        PromptsError,
        match=r"1 samples of .* have other labels .* line 1 has style = 'b', the store 'a'",
    ) as no:
        run(tmp_path / "store", model, right)
    assert f"featurestore relabel {tmp_path / 'store'} --prompts" in str(no.value)
    relabel(store, right)
    assert run(tmp_path / "store", model, right).n_samples == 1
    assert store.arrow("samples", ["style"])["style"].to_pylist() == ["b", "b", "b"]


def test_label_columns_may_come_and_go(model, tmp_path):
    """B1: missing means null, in the samples that lack it."""
    path = tmp_path / "store"
    run(path, model, PROMPTS[:2])
    run(path, model, [replace(PROMPTS[2], labels={"style": "a", "mood": "calm"})])
    store = run(path, model, [replace(PROMPTS[3], labels={})]).store
    rows = (
        store.arrow("samples", ["prompt", "style", "object", "mood"]).sort_by("prompt").to_pylist()
    )
    assert [tuple(row.values())[1:] for row in rows] == [
        ("a", None, None), ("b", None, None), ("a", None, "calm"), (None, None, None)
    ]  # fmt: skip
    assert store.families() == ["style", "object", "mood"] and verify(store, deep=True) == []
    with pytest.raises(PromptsError, match="line 3 has mood = none, the store 'calm'"):
        run(path, model, [replace(PROMPTS[2], labels={"style": "a", "mood": None})])
    assert (
        run(path, model, [replace(PROMPTS[2], labels={"style": "a"})]).n_skipped == 1
    )  # nothing is said of the mood
    assert (
        run(path, model, [replace(PROMPTS[2], labels={"style": "a", "mood": "calm"})]).n_skipped
        == 1
    )
