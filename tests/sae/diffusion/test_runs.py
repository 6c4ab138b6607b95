"""Issue 19: models without prompts, models of classes, and videos, as runs."""

import numpy as np
import pytest
from diffusers import ConsistencyModelPipeline

from collectors import CollectSettings, collect
from featurestore.errors import ModelError, UsageError
from featurestore.prompts import Prompt
from sae.diffusion.pipelines import Model, RunSettings, generate, load_model, picture_size
from tests.builders.families import BLOCK, FAMILIES
from tests.builders.pipelines import save


def saved(name, tmp_path):
    return str(save(FAMILIES[name].build(tmp_path), tmp_path / name))


def rows_of(store, hook):
    (shard,) = store.activations(hook)
    return {
        (str(b), int(s)): shard.row(i)
        for i, (b, s) in enumerate(zip(shard.branch, shard.step, strict=True))
    }


def test_a_model_without_prompts_is_collected_by_seeds(tmp_path):
    model = load_model(saved("DDPMPipeline", tmp_path), "cpu")
    prompts, run = [Prompt("", seed, {}, 1) for seed in (3, 4)], RunSettings(2, 1.0)
    store = collect(
        tmp_path / "s",
        model,
        prompts,
        run,
        CollectSettings(hooks=["unet.mid_block"], images=True),
        progress=False,
    )
    samples = store.store.arrow("samples")
    assert samples["seed"].to_pylist() == [3, 4] and samples["height"].to_pylist() == [16, 16]
    (shard,) = store.store.activations("unet.mid_block")
    assert shard.step.tolist() == [0, 1, 0, 1]
    assert not np.array_equal(shard.row(0), shard.row(2))
    for run, message in ((RunSettings(2, 1.0, height=32), "--height 32: DDPMPipeline makes " "pictures of its own " "" "size"),
                         (RunSettings(2, 1.0, "ugly"), "--negative-prompt: DDPMPipeline takes none")):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            generate(model, run, [""], [0])
    with pytest.raises(
        UsageError, match="guidance distilled: without guidance there is no unconditional half"
    ):
        collect(
            tmp_path / "t",
            model,
            prompts,
            RunSettings(2, 3.0),
            CollectSettings(hooks=["unet"], branch="both"),
        )


def test_a_model_of_classes_takes_them_as_prompts(tmp_path):
    model = load_model(saved("DiTPipeline", tmp_path), "cpu")
    run = RunSettings(2, 3.0)
    settings = CollectSettings(hooks=[BLOCK], branch="both", dtype="float32")
    found = [
        rows_of(
            collect(
                tmp_path / f"s{i}", model, [Prompt(text, 0, {}, 1)], run, settings, progress=False
            ).store,
            BLOCK,
        )
        for i, text in enumerate(("207", "360", "207"))
    ]
    assert set(found[0]) == {(branch, step) for branch in ("cond", "uncond") for step in (0, 1)}
    assert np.array_equal(found[0]["cond", 0], found[2]["cond", 0])
    assert not np.array_equal(found[0]["cond", 0], found[1]["cond", 0])
    assert np.array_equal(found[0]["uncond", 0], found[1]["uncond", 0])  # of no class
    for text in ("cat", "1000"):
        with pytest.raises(
            UsageError,
            match=f"prompt '{text}': DiTPipeline draws classes: expected a number below 1000",
        ):
            generate(model, run, [text], [0])


def test_a_video_is_not_kept_as_a_picture(tmp_path):
    pipe = FAMILIES["WanPipeline"].build(tmp_path)
    with pytest.raises(
        UsageError, match="WanPipeline makes videos, which are not kept as pictures"
    ):
        generate(
            Model("wan", pipe, 2, 3.0),
            RunSettings(2, 3.0, height=32, width=48, frames=5),
            ["a"],
            [0],
        )
    assert picture_size(pipe, RunSettings(2, 3.0)) == (480, 832)


def test_a_pipeline_that_starts_from_a_picture_is_no_run(tmp_path):
    with pytest.raises(ModelError, match="StableDiffusionInpaintPipeline starts from a picture"):
        load_model(saved("StableDiffusionInpaintPipeline", tmp_path), "cpu")


def test_a_class_that_is_not_known_says_how_it_becomes_so(tmp_path):
    from diffusers import CMStochasticIterativeScheduler

    unet = FAMILIES["DDPMPipeline"].build(tmp_path).unet
    path = save(ConsistencyModelPipeline(unet, CMStochasticIterativeScheduler()), tmp_path / "x")
    with pytest.raises(
        ModelError,
        match=r"ConsistencyModelPipeline is not known: say how .*sae\.diffusion\.declare, or use "
        r"one",
    ):
        load_model(str(path), "cpu")
