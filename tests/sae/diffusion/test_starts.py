"""Issue 19, item 3: samples that start from a picture, a mask, a picture that guides, as runs."""

import hashlib
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from collectors import CollectSettings, collect
from featurestore import Store
from featurestore.errors import PromptsError, RunError, UsageError
from featurestore.maintenance.verify import verify
from featurestore.prompts import Prompt, start_picture
from sae.diffusion.pipelines import LoadSettings, Model, RunSettings, describe_run, load_model
from sae.diffusion.reading.architectures import ARCHITECTURES
from sae.diffusion.starts import with_starts
from sae.evaluation.attack import AttackSettings, attack
from sae.evaluation.outcomes import untouched
from sae.intervention.generate import generate_files, generate_images
from sae.intervention.settings import Intervention
from tests.builders import pipelines as tiny
from tests.builders.cli import run as shell
from tests.builders.families import FAMILIES, HEIGHT, WIDTH, _controlnet, mask, picture
from tests.builders.judges import Scripted
from tests.builders.plain import plain_hooks, rows
from tests.builders.selections import D_IN, HOOK, N_LATENTS, make_sae, make_selection
from tests.builders.trees import same_tree

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
]
STARTING = [name for name in FAMILIES if ARCHITECTURES[name].starts]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two pictures, a mask, two control pictures, and one of another size, as files."""
    root = tmp_path_factory.mktemp("pictures")
    made = {"cat": picture(0), "dog": picture(1), "mask": mask(), "edges": picture(9)}
    made |= {"lines": picture(10), "small": picture(0).resize((16, 16))}
    for name, image in made.items():
        image.save(root / f"{name}.png")
    return root


@pytest.fixture(scope="module")
def controlnet_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("controlnet") / "net"
    _controlnet().save_pretrained(path)
    return path


def given(files, kinds, number):
    names = {"image": ("cat", "dog"), "mask": ("mask", "mask"), "control": ("edges", "lines")}
    return {kind: start_picture(files / f"{names[kind][number]}.png", "test") for kind in kinds}


@pytest.mark.parametrize("name", STARTING)
def test_two_prompts_with_pictures_of_their_own_are_collected_bit_for_bit(name, files, tmp_path):
    """The oracle: a plain hook in a call of the pipeline that is written out here."""
    family, kinds = FAMILIES[name], ARCHITECTURES[name].starts
    pipe = family.build(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    strength = {"strength": 0.5} if "strength" in family.inputs(2) else {}
    run = RunSettings(4, 1.0, **strength)
    prompts = [
        Prompt(text, i, {}, i + 1, starts=given(files, kinds, i))
        for i, text in enumerate(("a cat", "dogs"))
    ]
    settings = CollectSettings(hooks=family.hooks, dtype="float32")
    store = collect(tmp_path / "store", Model("m", pipe, 4, 1.0), prompts, run, settings, progress=False).store  # fmt: skip
    call = {
        "prompt": ["a cat", "dogs"],
        "guidance_scale": 1.0,
        "generator": [torch.Generator().manual_seed(seed) for seed in (0, 1)],
        "output_type": "latent",
        **family.inputs(2),
        **strength,
    }
    call["num_inference_steps"] = 4  # fmt: skip
    if "control" in kinds:
        call[kinds["control"]] = [picture(9), picture(10)]
    if name == "FluxKontextPipeline":
        call["image"] = [picture(0), picture(1)]
    if family.size:
        call |= {"height": HEIGHT, "width": WIDTH}
    with plain_hooks(pipe, family.hooks) as plain:
        pipe(**call)
    for hook in family.hooks:
        (shard,) = store.activations(hook)
        expected = [rows(one) for one in plain[hook]]
        assert len(shard.step) == 2 * len(expected)
        for i, step in enumerate(shard.step.tolist()):
            sample = i // len(expected)
            assert np.array_equal(shard.row(i), expected[step][sample].numpy())
    table = store.arrow("samples")
    for kind in kinds:
        hashes = [given(files, kinds, i)[kind].sha256 for i in (0, 1)]
        assert table[f"start_{kind}"].to_pylist() == hashes


def cli_collect(capsys, model_dir, store, *more, prompts):
    options = ["--steps", "4", "--guidance", "3", "--hook", HOOK, "--quiet", *more]
    return shell(capsys, "collect", "--model", model_dir, "--prompts", prompts, "--store", store, *options)  # fmt: skip


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a cat"}\n{"prompt": "a dog"}\n')
    return path


def test_a_text_to_image_model_starts_from_a_picture_for_all(
    capsys, model_dir, files, tmp_path, prompts
):
    """`--image` and `--strength` are part of the run; the samples have the picture's hash, and with
    `--images` the very file."""
    store = tmp_path / "store"
    cat = files / "cat.png"
    options = ["--image", cat, "--strength", "0.5", "--images"]
    status, out, err = cli_collect(capsys, model_dir, store, *options, prompts=prompts)
    assert (status, err) == (0, "") and "2 samples collected" in out
    opened = Store.open(store)
    digest = hashlib.sha256(cat.read_bytes()).hexdigest()
    start = {"pipeline": "StableDiffusionImg2ImgPipeline", "strength": 0.5, "image": digest}
    assert opened.run["start"] == start
    assert (opened.run["height"], opened.run["width"]) == (HEIGHT, WIDTH)
    (shard,) = opened.activations(HOOK)
    assert shard.step.tolist() == [0, 1] * 2  # half of four steps
    table = opened.arrow("samples")
    assert table["start_image"].to_pylist() == [digest] * 2
    for one in table["start_image_file"].to_pylist():
        assert one["bytes"] == cat.read_bytes() and one["path"] == "cat.png"
    assert Image.open(io.BytesIO(table["image"].to_pylist()[0]["bytes"])).size == (WIDTH, HEIGHT)
    assert verify(opened) == []
    before = {path: path.read_bytes() for path in store.rglob("*.parquet")}
    status, out, err = cli_collect(capsys, model_dir, store, *options, prompts=prompts)
    assert status == 0 and "0 samples collected, 2 were there already" in out
    assert {path: path.read_bytes() for path in store.rglob("*.parquet")} == before


def test_a_run_goes_on_with_the_same_picture_and_strength_only(
    capsys, model_dir, files, tmp_path, prompts
):
    store, copy = tmp_path / "store", tmp_path / "renamed.png"
    copy.write_bytes((files / "cat.png").read_bytes())
    base = ["--image", files / "cat.png", "--strength", "0.5"]
    assert cli_collect(capsys, model_dir, store, *base, prompts=prompts)[0] == 0
    same = ["--image", copy, "--strength", "0.5", "--seeds", "0-1"]
    status, out, _ = cli_collect(capsys, model_dir, store, *same, prompts=prompts)
    assert status == 0 and "2 samples collected, 2 were there already" in out
    for other in (["--image", files / "dog.png", "--strength", "0.5"],
                  ["--image", files / "cat.png", "--strength", "0.75"], ["--height", "32", "--width", "48"]):  # fmt: skip
        status, out, err = cli_collect(capsys, model_dir, store, *other, prompts=prompts)
        assert status == 1 and err.count("\n") == 1 and "start" in err, err


def test_columns_name_pictures_per_prompt_beside_their_file(capsys, model_dir, files, tmp_path):
    for name in ("cat", "dog", "mask"):
        (tmp_path / f"{name}.png").write_bytes((files / f"{name}.png").read_bytes())
    path = tmp_path / "prompts.csv"
    path.write_text("prompt,picture,part,style\na,cat.png,mask.png,neon\na,dog.png,mask.png,neon\n")
    store = tmp_path / "store"
    columns = ["--image-column", "picture", "--mask-column", "part"]
    status, _, err = cli_collect(capsys, model_dir, store, *columns, prompts=path)
    assert (status, err) == (0, "")
    table = Store.open(store).arrow("samples")
    digests = [start_picture(files / f"{name}.png", "").sha256 for name in ("cat", "dog")]
    assert table["start_image"].to_pylist() == digests
    assert len(set(table["sample_id"].to_pylist())) == 2  # same prompt, same seed
    assert table["style"].to_pylist() == ["neon"] * 2 and "picture" not in table.column_names
    assert Store.open(store).run["start"]["pipeline"] == "StableDiffusionInpaintPipeline"
    status, out, _ = shell(capsys, "relabel", store, "--prompts", path, *columns, "--dry-run")
    assert status == 0, out


def test_a_controlnet_beside_a_model_that_has_none(
    capsys, model_dir, controlnet_dir, files, tmp_path, prompts
):
    store = tmp_path / "store"
    options = ["--controlnet", controlnet_dir, "--control-image", files / "edges.png"]
    assert cli_collect(capsys, model_dir, store, *options, prompts=prompts)[0] == 0
    run = Store.open(store).run
    assert run["start"]["pipeline"] == "StableDiffusionControlNetPipeline"
    other = _controlnet()
    with torch.no_grad():
        next(other.parameters()).add_(1.0)
    other.save_pretrained(tmp_path / "other")
    changed = ["--controlnet", tmp_path / "other", "--control-image", files / "edges.png"]
    status, _, err = cli_collect(capsys, model_dir, store, *changed, prompts=prompts)
    assert status == 1 and "controlnet_hash" in err
    model = load_model(
        str(model_dir), "cpu",
        settings=LoadSettings(starts=("image", "mask", "control"), controlnet=str(controlnet_dir)),
    )  # fmt: skip
    assert type(model.pipe).__name__ == "StableDiffusionControlNetInpaintPipeline"


def test_generate_draws_what_the_pipeline_draws_and_says_the_pictures(
    capsys, model_dir, files, tmp_path
):
    out = tmp_path / "out"
    status, _, err = shell(
        capsys, "generate", "--model", model_dir, "--prompt", "a cat", "--out", out, "--steps", 4, "--quiet",
        "--image", files / "cat.png", "--mask-image", files / "mask.png", "--strength", "0.5", "--guidance", "3",
    )  # fmt: skip
    assert (status, err) == (0, "")
    pipe = load_model(str(model_dir), "cpu", settings=LoadSettings(starts=("image", "mask"))).pipe
    expected = pipe(
        "a cat", image=picture(0), mask_image=mask(), strength=0.5, num_inference_steps=4, guidance_scale=3.0,
        height=HEIGHT, width=WIDTH, generator=torch.Generator().manual_seed(0),
    ).images[0]  # fmt: skip
    assert np.array_equal(np.array(Image.open(next(out.glob("*.png")))), np.array(expected))
    line = json.loads((out / "generated.jsonl").read_text())
    assert set(line["run"]["start"]) == {"pipeline", "strength", "image", "mask"}


def test_ablation_while_a_picture_is_drawn_over_edits_its_own_steps(model_dir, files):
    model = load_model(str(model_dir), "cpu", settings=LoadSettings(starts=("image",)))
    run = RunSettings(4, 1.0, strength=0.5, starts=given(files, ("image",), 0))
    asked = [Prompt("a cat", 0, {}, 1)]
    model.pipe.scheduler.set_timesteps(4)
    timesteps = [float(t) for t in model.pipe.scheduler.timesteps]
    late = [(step, f, 0.3, 0.0) for step in (2, 3) for f in range(0, N_LATENTS, 2)]
    early = [(step, f, 0.3, 0.0) for step in (0, 1) for f in range(0, N_LATENTS, 2)]
    plain, edited, same = (
        np.array(next(iter(generate_images(model, asked, run, edits, saes=make_sae(), progress=None))))
        for edits in (
            [], *([Intervention(make_selection(model, chosen, timesteps, d_in=D_IN))] for chosen in (late, early)),
        )
    )  # fmt: skip
    assert not np.array_equal(plain, edited)
    assert np.array_equal(plain, same)


def bad(files, tmp_path):
    """Options, and how the one line begins."""
    words = tmp_path / "words.png"
    words.write_text("no picture")
    cat, small, wanted = files / "cat.png", files / "small.png", tmp_path / "nowhere.png"
    return [
        (["--image", wanted], f"Error: --image: the picture {wanted} cannot be read (No such file"),
        (["--image", words], f"Error: --image {words} cannot be read as a picture: cannot identify"),
        (["--image", cat, "--mask-image", small], f"Error: --mask-image {small} is 16 × 16 pixels, this run's pictures are 32 × 48"),
        (["--image", cat, "--height", "64"], f"Error: --image {cat} is 32 × 48 pixels, this run's pictures are 64 × 48"),
        (["--image", cat, "--strength", "1.5"], "Error: --strength 1.5: expected a number above 0"),
        (["--image", cat, "--strength", "0.1"], "Error: --strength 0.1 of --steps 4 is no step: expected at least 0.25"),
        (["--strength", "0.5"], "Error: --strength 0.5: StableDiffusionPipeline has none"),
        (["--mask-image", cat], "Error: a mask without a picture: a mask says which part of a picture is drawn anew"),
        (["--control-image", cat], "Error: StableDiffusionControlNetPipeline needs controlnet, which StableDiffusionPipeline has not: give --controlnet"),
        (["--controlnet", files], "Error: --controlnet"),
        (["--controlnet", files, "--control-image", cat], f"Error: --controlnet {files} is no ControlNet of diffusers: its config.json is missing"),
        (["--image-column", "picture"], "Error: prompts file"),
    ]  # fmt: skip


def test_what_can_be_wrong_with_pictures_is_one_line(capsys, model_dir, files, tmp_path, prompts):
    for options, begins in bad(files, tmp_path):
        if "--image-column" in options:
            begins = f"Error: {prompts} has no column 'picture' (--image-column)"
        status, _, err = cli_collect(capsys, model_dir, tmp_path / "s", *options, prompts=prompts)
        assert status == 1 and err.count("\n") == 1, (options, err)
        assert err.startswith(begins), (options, err)
        assert not (tmp_path / "s").exists()


def test_pipelines_that_take_no_picture_and_pictures_that_are_missing(files, tmp_path):
    pixart = Model("p", tiny.tiny_pixart(tmp_path), 2, 1.0)
    own = [Prompt("a", 0, {}, 3, starts=given(files, ("image",), 0))]
    with pytest.raises(UsageError, match=r"^--image .*cat.png: PixArtSigmaPipeline takes no such"):
        with_starts(pixart.pipe, RunSettings(2, 1.0), own)
    with pytest.raises(UsageError, match=r"--image .*: PixArtSigmaPipeline takes no such picture"):
        describe_run(pixart, RunSettings(2, 1.0, starts=given(files, ("image",), 0)))
    path = tiny.save(pixart.pipe, tmp_path / "pixart")
    with pytest.raises(
        UsageError, match=r"^PixArtSigmaPipeline cannot start from a picture and a mask, and no"
    ):
        load_model(str(path), "cpu", settings=LoadSettings(starts=("image", "mask")))
    inpaint = Model("i", FAMILIES["StableDiffusionInpaintPipeline"].build(tmp_path / "i"), 2, 1.0)
    with pytest.raises(
        UsageError,
        match=r"^StableDiffusionInpaintPipeline starts from a picture, and prompt 'a' of line 7 "
        r"has none: give --image, or --image-column for one per prompt.$",
    ):
        collect(tmp_path / "s", inpaint, [Prompt("a", 0, {}, 7)], RunSettings(2, 1.0), CollectSettings(hooks=[HOOK]))  # fmt: skip
    with pytest.raises(UsageError, match=r"^a mask without a picture: a mask says"):
        with_starts(
            inpaint.pipe,
            RunSettings(2, 1.0),
            [Prompt("a", 0, {}, 7, starts=given(files, ("mask",), 0))],
        )


def test_a_picture_that_changes_while_it_is_used_is_refused(files, tmp_path):
    path = tmp_path / "cat.png"
    path.write_bytes((files / "cat.png").read_bytes())
    before = start_picture(path, "test")
    path.write_bytes((files / "dog.png").read_bytes())
    with pytest.raises(PromptsError, match=r"cat.png was changed while it was used: begin the run"):
        before.read()


def test_an_interrupted_run_ends_with_the_same_bytes(model_dir, files, tmp_path):
    model = load_model(str(model_dir), "cpu", settings=LoadSettings(starts=("image",)))
    asked = [Prompt("a", i, {}, 1, starts=given(files, ("image",), i % 2)) for i in range(4)]
    run, settings = (
        RunSettings(4, 3.0, strength=0.5),
        CollectSettings(hooks=[HOOK], shard_samples=2),
    )
    for name, parts in (("whole", (4,)), ("parts", (2, 4))):
        for n in parts:
            collect(tmp_path / name, model, asked[:n], run, settings, progress=False)
    same_tree(tmp_path / "whole", tmp_path / "parts")
    with pytest.raises(RunError, match="start"):
        other = RunSettings(4, 3.0, strength=0.75)
        collect(tmp_path / "whole", model, asked, other, settings, progress=False)


@pytest.mark.parametrize("kind", ["class", "seeds", "latents"])
def test_what_cannot_be_attacked_says_why(kind, files, tmp_path):
    names = {"class": "DiTPipeline", "seeds": "DDPMPipeline", "latents": "StableDiffusionImg2ImgPipeline"}  # fmt: skip
    pipe = FAMILIES[names[kind]].build(tmp_path)
    model = Model("m", pipe, 2, 1.0)
    selection = make_selection(model, [], [1.0], hook=FAMILIES[names[kind]].hooks[0], d_in=D_IN)
    starts = given(files, ("image",), 0) if kind == "latents" else {}
    asked = [Prompt("1", 0, {"style": "neon"}, 1, starts=starts)]
    says = {
        "class": "DiTPipeline takes no prompt: there are no words that could be attacked.",
        "seeds": "DDPMPipeline takes no prompt: there are no words that could be attacked.",
        "latents": "StableDiffusionImg2ImgPipeline starts from a picture: attacked are",
    }
    with pytest.raises(Exception, match=says[kind]):
        attack(
            model, [Intervention(selection)], prompts=asked, judge=Scripted([1])(), out=tmp_path / "out",
            settings=AttackSettings(method="latents"), run=RunSettings(2, 1.0), saes=make_sae(),
        )  # fmt: skip


@pytest.mark.parametrize("name", ["StableDiffusionImg2ImgPipeline", "DiTPipeline", "DDPMPipeline"])
def test_pictures_of_every_kind_of_run_are_judged_and_kept(name, files, tmp_path):
    """Of pictures, of classes, and of seeds alone: what `evaluate` and `generate` draw."""
    family = FAMILIES[name]
    pipe = family.build(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    image = name == "StableDiffusionImg2ImgPipeline"
    starts = given(files, ("image",), 0) if image else {}
    run = RunSettings(4, 1.0, starts=starts)
    text = {"DiTPipeline": "207", "DDPMPipeline": ""}.get(name, "a cat")
    prompts = [Prompt(text, seed, {"style": "neon"}, 1) for seed in (0, 1)]
    model, judge = Model("m", pipe, 4, 1.0), Scripted([1, 0])()
    run = with_starts(pipe, run, prompts)
    outcome, reference = untouched(
        tmp_path / "o", model, run, prompts=prompts, judge=judge, batch_size=2
    )
    assert [answer.seen["style"] for answer in outcome.answers] == ["neon", "none"]
    assert reference.keys == [(text, 0), (text, 1)]
    generate_files(tmp_path / "g", model, prompts, run, progress=False)
    drawn = [np.array(Image.open(path)) for path in sorted((tmp_path / "g").glob("*.png"))]
    assert len(drawn) == 2 and not np.array_equal(*drawn)
