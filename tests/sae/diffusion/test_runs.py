"""Issue 19: models without prompts, models of classes, and videos, as runs."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import ConsistencyModelPipeline, MochiPipeline

from collectors import CollectSettings, collect
from featurestore import Store
from featurestore.errors import ModelError, UsageError
from featurestore.prompts import Prompt, start_picture
from featurestore.saes import commit_sae
from sae.checkpoint import config_bytes, weights_bytes
from sae.diffusion.hooks import as_positions
from sae.diffusion.pipelines import (
    LoadSettings,
    Model,
    RunSettings,
    check_branch,
    generate,
    load_model,
    picture_size,
)
from sae.intervention.settings import Intervention
from tests.builders.cli import run as shell
from tests.builders.codes import dense as dense_scores
from tests.builders.codes import importance
from tests.builders.families import BLOCK, FAMILIES, HEIGHT, WIDTH, picture
from tests.builders.pipelines import _t5, save, t5_tokenizer, tiny_flux
from tests.builders.plain import plain_hooks, rows
from tests.builders.saes import random_sae
from tests.builders.selections import make_selection
from tests.queries.oracles import oracle


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
    for run, message in ((RunSettings(2, 1.0, height=32), "--height 32: DDPMPipeline makes pictures of its own size"),
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


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(
    ("scheduler", "n_calls"), [("HeunDiscreteScheduler", 7), ("PNDMScheduler", 13)]
)
def test_steps_are_those_that_the_scheduler_draws(scheduler, n_calls, model_dir, tmp_path):
    """`--steps 4` of Heun's method is seven denoiser calls: all of them can be named."""
    model = load_model(str(model_dir), "cpu", settings=LoadSettings(scheduler=scheduler))
    run, last = RunSettings(4, 1.0), n_calls - 1
    settings = CollectSettings(hooks=["unet.mid_block"], timesteps=f"0,{last}")
    prompts = [Prompt("a", 0, {}, 1)]
    store = collect(tmp_path / "s", model, prompts, run, settings, progress=False).store
    (shard,) = store.activations("unet.mid_block")
    assert shard.step.tolist() == [0, last]
    too_many = CollectSettings(hooks=["unet.mid_block"], timesteps=f"{n_calls}")
    with pytest.raises(UsageError, match=f"--timesteps {n_calls}: the run has steps 0 to {last}"):
        collect(tmp_path / "t", model, prompts, run, too_many, progress=False)
    assert not (tmp_path / "t").exists()


THIRD = {
    "perturbed": ("StableDiffusionPAGPipeline", {"pag_scale": 2.0}, 2),
    "image": ("StableDiffusionInstructPix2PixPipeline", {"image_guidance_scale": 1.5}, 1),
    "skip": (
        "StableDiffusion3Pipeline",
        {"skip_guidance_layers": [1], "skip_layer_guidance_start": -1.0, "skip_layer_guidance_stop": 2.0},
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("branch", THIRD)
def test_third_parts_of_guidance_are_collected_by_name(branch, tmp_path):
    """Against a plain hook: the part of each call, or each second call, that the pipeline's source
    makes of it."""
    name, arguments, part = THIRD[branch]
    pipe = FAMILIES[name].build(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    for one in pipe.components.values():
        if isinstance(one, torch.nn.Module):
            one.eval()
    hook = FAMILIES[name].hooks[0]
    run = RunSettings(2, 3.0, height=HEIGHT, width=WIDTH, arguments=arguments)
    if branch == "image":
        picture().save(tmp_path / "p.png")
        run = replace(run, starts={"image": start_picture(tmp_path / "p.png", "test")})
    settings = CollectSettings(hooks=[hook], branch=branch, dtype="float32")
    prompts = [Prompt(text, i, {}, 1) for i, text in enumerate(("a cat", "dogs"))]
    with plain_hooks(pipe, [hook]) as seen:
        store = collect(
            tmp_path / "s", Model("m", pipe, 2, 3.0), prompts, run, settings, progress=False
        ).store
    (shard,) = store.activations(hook)
    assert set(shard.branch.tolist()) == {branch} and shard.step.tolist() == [0, 1, 0, 1]
    whole = [rows(one) for one in seen[hook]]
    parts = whole[1::2] if part is None else [one.chunk(3)[part] for one in whole]
    for i in range(4):
        assert np.array_equal(shard.row(i), parts[i % 2][i // 2].numpy())
    assert store.run["arguments"] == arguments
    with pytest.raises(UsageError, match=f"^branch {branch}: the guidance of FluxPipeline has the"):
        check_branch(Model("m", tiny_flux(tmp_path / "f"), 2, 3.0), run, branch)


def test_a_third_part_is_scored_exported_and_edited_by_its_name(capsys, tmp_path):
    """Through the command line, for perturbed attention guidance; scores against NumPy."""
    family, hook = FAMILIES["StableDiffusionPAGPipeline"], "unet.up_blocks.1.attentions.1"
    model = save(family.build(tmp_path), tmp_path / "pag")
    prompts, store = tmp_path / "prompts.csv", tmp_path / "store"
    styles = ["neon", "plain"] * 2
    prompts.write_text("prompt,style\n" + "".join(f"{s} {i},{s}\n" for i, s in enumerate(styles)))
    run = ["--model", model, "--steps", 2, "--guidance", 3, "--height", HEIGHT, "--width", WIDTH,
           "--argument", "pag_scale=2", "--quiet"]  # fmt: skip

    def command(*words):
        status, _, err = shell(capsys, *words)
        assert status == 0, err

    command("collect", *run, "--prompts", prompts, "--store", store, "--hook", hook, "--branch", "perturbed")  # fmt: skip
    opened = Store.open(store)
    (shard,) = opened.activations(hook)
    sae = random_sae(shard.d_in, hook=hook, height=int(shard.metadata["height"]), width=int(shard.metadata["width"]))  # fmt: skip
    commit_sae(
        opened, "s", {"config.json": config_bytes(sae.config), "sae.safetensors": weights_bytes(sae)}, {}
    )  # fmt: skip
    command("encode", "--store", store, "--sae", "s", "--quiet")
    x = torch.from_numpy(np.array(shard.rows()).astype(np.float32))
    z = torch.stack([sae.encode_dense(row) for row in x]).detach().numpy().reshape(4, 2, -1, 40)
    expected = oracle(z, styles)[0]["neon"]
    found = dense_scores(importance(opened, "s", "style", "perturbed"), "neon", 2, 40)
    np.testing.assert_allclose(found, np.where(found == 0, 0, expected), atol=1e-6)
    assert (found != 0).sum() > 20
    selection = tmp_path / "neon.json"
    command("export", store, "--sae", "s", "--concept", "style=neon", "--branch", "perturbed", "--top", 5, "-o", selection)  # fmt: skip
    pictures = {}
    for name, edit in {"plain": [], "perturbed": ["--ablate", selection, "--threshold", 0, "--multiplier", -40],
                       "cond": ["--ablate", selection, "--threshold", 0, "--multiplier", -40, "--branch", "cond"]}.items():  # fmt: skip
        command("generate", *run, "--prompt", "neon 0", "--out", tmp_path / name, *edit)
        pictures[name] = next((tmp_path / name).glob("*.png")).read_bytes()
    assert len(set(pictures.values())) == 3
    line = json.loads((tmp_path / "perturbed" / "generated.jsonl").read_text())
    assert line["ablated"][0]["branches"] == ["perturbed"]


@pytest.mark.parametrize("name", ["guidance", "true_cfg", "strength"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_numbers_of_a_run_are_finite(name, value):
    with pytest.raises(UsageError, match=rf"^{name} {value}: expected a finite number\.$"):
        replace(RunSettings(2, 1.0), **{name: value})


def test_arguments_of_the_call_are_checked(model_dir):
    model = load_model(str(model_dir), "cpu")
    for name, message in (
        ("pag_scale", "^--argument pag_scale: is no argument of StableDiffusionPipeline"),
        ("prompt", "^--argument prompt: is said by other options of StableDiffusionPipeline"),
    ):
        with pytest.raises(UsageError, match=message):
            generate(model, RunSettings(2, 1.0, arguments={name: 1}), ["a"], [0])


@pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")
def test_maps_of_frames_stand_above_each_other(tmp_path):
    """A video's maps `[B, C, F, H, W]`: positions are frames × height × width, said in the
    metadata; what is written goes to its frame."""
    pipe = MochiPipeline(
        vae=None, text_encoder=_t5(), tokenizer=t5_tokenizer(),
        **{key: value for key, value in FAMILIES["MochiPipeline"].build(tmp_path).components.items()
           if key in ("transformer", "scheduler")},
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    pipe.text_encoder.eval()
    run = RunSettings(
        2, 3.0, height=HEIGHT, width=WIDTH, frames=7, arguments={"max_sequence_length": 6}
    )
    settings = CollectSettings(hooks=["transformer"], dtype="float32")
    with plain_hooks(pipe, ["transformer"]) as seen:
        store = collect(
            tmp_path / "s", Model("m", pipe, 2, 3.0), [Prompt("a", 0, {}, 1)], run, settings, progress=False,
        ).store  # fmt: skip
    (shard,) = store.activations("transformer")
    whole = seen["transformer"][0]
    assert whole.shape == (2, 12, 2, 4, 6)
    said = {key: shard.metadata[key] for key in ("frames", "height", "width")}
    assert said == {"frames": "2", "height": "8", "width": "6"}
    assert np.array_equal(shard.row(0), whole[1].permute(1, 2, 3, 0).reshape(-1, 12).numpy())
    view, layout = as_positions(whole)
    view[0, 4 * 6 + 6 + 2] = 7.0  # frame 1, row 1, column 2
    assert (whole[0, :, 1, 1, 2] == 7).all() and (whole == 7).sum() == 12
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[1, 2] = True
    where = Intervention(make_selection(Model("m", pipe, 2, 3.0), [], [1.0]), mask=mask).where(
        layout
    )
    assert where.nonzero().flatten().tolist() == [6 + 2, 4 * 6 + 6 + 2]
