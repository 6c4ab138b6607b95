"""Faults C1 and C7: a model is loaded whole or not at all, in every form in which people have
one."""

import json
import shutil
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPImageProcessorPil

from featurestore.errors import ModelError, UsageError
from minicanvas import CANVASES, GUIDANCE, LARGE, SMALL, STEPS
from sae.diffusion.loading.model import LoadSettings, load_model
from sae.diffusion.loading.weights import model_hash, same_model
from sae.diffusion.pipelines import RunSettings, describe_run
from tests.builders.originals import original_pipeline, original_unet
from tests.builders.pipelines import save, tiny_pixart, tiny_stable_diffusion

RUN = RunSettings(2, 1.0)


@pytest.fixture
def directory(model_dir, tmp_path):
    shutil.copytree(model_dir, tmp_path / "model")
    return tmp_path / "model"


def change(path, edit):
    tensors = safetensors.torch.load_file(path)
    edit(tensors)
    safetensors.torch.save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("part", "file", "name"),
    [
        ("unet", "diffusion_pytorch_model.safetensors", "mid_block.resnets.0.conv1.bias"),
        ("vae", "diffusion_pytorch_model.safetensors", "decoder.conv_in.bias"),
        ("text_encoder", "model.safetensors", "embeddings.position_embedding.weight"),
    ],
)
def test_an_incomplete_checkpoint_is_refused_by_the_name_of_its_tensor(part, file, name, directory):
    """Fault C1: the part ran with random weights, exit 0."""
    change(directory / part / file, lambda tensors: tensors.pop(name))
    with pytest.raises(
        ModelError, match=rf"/{part} lacks {name}: the checkpoint is incomplete"
    ) as caught:
        load_model(str(directory), "cpu")
    assert "\n" not in str(caught.value)


def test_tensors_that_the_model_has_not_are_refused(directory):
    """Fault C1."""
    weights = directory / "unet" / "diffusion_pytorch_model.safetensors"
    change(weights, lambda tensors: tensors.update({"mid_block.extra.weight": torch.zeros(2)}))
    with pytest.raises(ModelError, match=r"has, which the model has not, mid_block\.extra\.weight"):
        load_model(str(directory), "cpu")


def test_the_state_of_a_compiled_model_says_what_it_is(directory):
    """Fault C1: every name begins with _orig_mod, so nothing was loaded."""
    weights = directory / "unet" / "diffusion_pytorch_model.safetensors"

    def wrap(tensors):
        for name in list(tensors):
            tensors[f"_orig_mod.{name}"] = tensors.pop(name)

    change(weights, wrap)
    with pytest.raises(ModelError, match=r"named _orig_mod\.…: it was saved from a compiled model"):
        load_model(str(directory), "cpu")


def test_a_directory_with_a_variant_only(directory, tmp_path):
    """Fault C7."""
    pipe = load_model(str(directory), "cpu").pipe
    pipe.save_pretrained(tmp_path / "half", variant="fp16")
    with pytest.raises(
        ModelError, match="has the weights as variant fp16 only: give --variant fp16"
    ):
        load_model(str(tmp_path / "half"), "cpu")
    loaded = load_model(str(tmp_path / "half"), "cpu", settings=LoadSettings(variant="fp16"))
    assert model_hash(loaded.pipe.unet) == model_hash(pipe.unet)


@pytest.fixture
def other(tmp_path):
    """The same architecture, other weights in every part."""
    pipe = tiny_stable_diffusion(tmp_path / "words")
    generator = torch.Generator().manual_seed(5)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        for parameter in part.parameters():
            parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return pipe


@pytest.mark.parametrize("with_text", [True, False])
def test_a_single_file_with_the_configuration_of_a_base(directory, other, tmp_path, with_text):
    """Fault C7."""
    tensors = original_pipeline(other)
    if not with_text:
        tensors = {
            name: tensor
            for name, tensor in tensors.items()
            if not name.startswith("cond_stage_model")
        }
    path = tmp_path / "one.safetensors"
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(
        ModelError, match="is one file and does not say its configuration: give --base"
    ):
        load_model(str(path), "cpu")
    loaded = load_model(str(path), "cpu", settings=LoadSettings(base=str(directory)))
    text = other.text_encoder if with_text else load_model(str(directory), "cpu").pipe.text_encoder
    for found, wanted in (
        (loaded.pipe.unet, other.unet),
        (loaded.pipe.vae, other.vae),
        (loaded.pipe.text_encoder, text),
    ):
        wanted = wanted.state_dict()
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.state_dict().items())


def test_a_single_file_that_is_incomplete(directory, other, tmp_path):
    """Fault C1, in the form of C7."""
    tensors = original_pipeline(other)
    del tensors["model.diffusion_model.middle_block.0.in_layers.2.weight"]
    safetensors.torch.save_file(tensors, tmp_path / "one.safetensors")
    with pytest.raises(
        ModelError, match=r"one\.safetensors/unet lacks mid_block\.resnets\.0\.conv1\.weight: "
    ):
        load_model(
            str(tmp_path / "one.safetensors"), "cpu", settings=LoadSettings(base=str(directory))
        )


@pytest.mark.parametrize("form", ["diffusers", "original", "some of them", "pickle", "wrapped"])
def test_an_unlearned_unet_on_top_of_a_base(directory, other, tmp_path, form, in_process):
    """Fault C7: ESD, SalUn and UnlearnCanvas publish such files."""
    path = tmp_path / ("unet.pt" if form == "pickle" else "unet.safetensors")
    state = {name: tensor.clone() for name, tensor in other.unet.state_dict().items()}
    given = {
        "diffusers": state,
        "original": original_unet(other.unet),
        "some of them": {name: tensor for name, tensor in state.items() if "attn2" in name},
        "pickle": {"state_dict": state},
        "wrapped": {f"module.{name}": tensor for name, tensor in state.items()},
    }[form]
    torch.save(given, path) if form == "pickle" else safetensors.torch.save_file(given, path)
    loaded = load_model(str(directory), "cpu", settings=LoadSettings(unet=str(path)))
    base = load_model(str(directory), "cpu")
    for name, tensor in loaded.pipe.unet.state_dict().items():
        wanted = state if form != "some of them" or "attn2" in name else base.pipe.unet.state_dict()
        assert torch.equal(tensor, wanted[name]), name
    said, plain = describe_run(loaded, RUN), describe_run(base, RUN)
    assert not same_model(said["model_hash"], plain["model_hash"])
    of = len(state)
    n = sum("attn2" in name for name in state) if form == "some of them" else of
    assert {key: said["unet_file"][key] for key in ("file", "tensors", "of")} == {
        "file": path.name,
        "tensors": n,
        "of": of,
    }
    assert "unet_file" not in plain


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"conv_inn.bias": torch.zeros(16)},
            r"holds conv_inn\.bias, which UNet2DConditionModel has not",
        ),
        (
            {"conv_in.bias": torch.zeros(17)},
            r"has other shapes than the model: conv_in\.bias \[17\]",
        ),
        (
            {"conv_in.bias": torch.full((16,), torch.nan)},
            r"conv_in\.bias hold values that are not finite",
        ),
    ],
)
def test_a_unet_file_that_does_not_fit(directory, tmp_path, tensors, message):
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match=message):
        load_model(
            str(directory), "cpu", settings=LoadSettings(unet=str(tmp_path / "x.safetensors"))
        )
    with pytest.raises(ModelError, match="there is no such file"):
        load_model(
            str(directory), "cpu", settings=LoadSettings(unet=str(tmp_path / "y.safetensors"))
        )


@pytest.fixture
def lora(other, tmp_path):
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    torch.manual_seed(2)
    other.unet.add_adapter(
        LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    )
    layers = get_peft_model_state_dict(other.unet)
    StableDiffusionPipeline.save_lora_weights(tmp_path / "lora", unet_lora_layers=layers)
    return tmp_path / "lora" / "pytorch_lora_weights.safetensors"


def test_lora_is_part_of_the_models_identity(directory, lora):
    """Faults C5 and C7."""
    base = load_model(str(directory), "cpu")
    whole = load_model(str(directory), "cpu", settings=LoadSettings(loras=(str(lora),)))
    half = load_model(str(directory), "cpu", settings=LoadSettings(loras=(f"{lora}:0.5",)))
    found = [describe_run(model, RUN) for model in (base, whole, half)]
    assert [[one["scale"] for one in run.get("lora", [])] for run in found] == [[], [1.0], [0.5]]
    hashes = [run["model_hash"] for run in found]
    assert not any(same_model(a, b) for i, a in enumerate(hashes) for b in hashes[:i])
    assert [part.partition("+")[0] for part in hashes[1].split(",")] == hashes[0].split(",")


def test_a_lora_for_another_model_is_refused(directory, lora, tmp_path):
    """Fault C1: diffusers warns, and draws without it."""
    tensors = safetensors.torch.load_file(lora)
    renamed = {name.replace("mid_block", "middle"): tensor for name, tensor in tensors.items()}
    safetensors.torch.save_file(renamed, tmp_path / "other.safetensors")
    with pytest.raises(
        ModelError,
        match=r"--lora .*: (\d+ of its \d+ matrices fit StableDiffusion|cannot be loaded)",
    ):
        load_model(
            str(directory),
            "cpu",
            settings=LoadSettings(loras=(str(tmp_path / "other.safetensors"),)),
        )
    pixart = save(tiny_pixart(tmp_path / "p"), tmp_path / "pixart")
    with pytest.raises(UsageError, match="--lora: PixArtSigmaPipeline takes none"):
        load_model(str(pixart), "cpu", settings=LoadSettings(loras=(str(lora),)))


def test_another_scheduler_is_part_of_the_run(directory):
    """Fault C7."""
    loaded = load_model(
        str(directory), "cpu", settings=LoadSettings(scheduler="EulerDiscreteScheduler")
    )
    said = describe_run(loaded, RUN)["scheduler"]
    assert said["class"] == "EulerDiscreteScheduler"
    assert said["config"]["beta_schedule"] == "scaled_linear"
    with pytest.raises(
        UsageError, match=r"diffusers has no such class\. Did you mean 'EulerDiscreteScheduler'"
    ):
        load_model(str(directory), "cpu", settings=LoadSettings(scheduler="EulerDiscretScheduler"))


def test_a_safety_checker_is_loaded_only_if_it_is_asked_for(directory):
    """Fault C2."""
    config = CLIPConfig(
        text_config={"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1},
        vision_config={
            "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 8,
            "patch_size": 4,
        },
        projection_dim=8,
    )  # fmt: skip
    StableDiffusionSafetyChecker(config).save_pretrained(directory / "safety_checker")
    CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size=8).save_pretrained(
        directory / "feature_extractor"
    )
    index = json.loads((directory / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessorPil"]
    (directory / "model_index.json").write_text(json.dumps(index))
    assert load_model(str(directory), "cpu").pipe.safety_checker is None
    checked = load_model(str(directory), "cpu", settings=LoadSettings(safety_checker=True))
    assert type(checked.pipe.safety_checker).__name__ == "StableDiffusionSafetyChecker"


def test_the_safety_checker_of_a_single_file_is_that_of_its_base(directory, other, tmp_path):
    """A checkpoint of the original code has none."""
    test_a_safety_checker_is_loaded_only_if_it_is_asked_for(directory)
    path = tmp_path / "one.safetensors"
    safetensors.torch.save_file(original_pipeline(other), path)
    base = load_model(str(directory), "cpu", settings=LoadSettings(safety_checker=True)).pipe
    settings = LoadSettings(base=str(directory), safety_checker=True)
    checked = load_model(str(path), "cpu", settings=settings).pipe
    wanted, found = base.safety_checker.state_dict(), checked.safety_checker.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in wanted.items())
    assert not checked.safety_checker.training
    assert checked.feature_extractor is not None
    plain = load_model(str(path), "cpu", settings=LoadSettings(base=str(directory))).pipe
    assert plain.safety_checker is None


def test_a_benchmark_whose_weights_do_not_ship_says_how_to_get_them(monkeypatch, tmp_path):
    absent = replace(LARGE, folder=tmp_path / "absent")
    monkeypatch.setitem(CANVASES, LARGE.name, absent)
    with pytest.raises(ModelError) as refused:
        load_model("minicanvas:large")
    (line,) = str(refused.value).splitlines()
    assert "not in this package" in line and "--canvas minicanvas:large --out DIR --ship" in line


def test_a_benchmark_is_loaded_by_name_with_its_steps_and_guidance(monkeypatch):
    monkeypatch.setitem(CANVASES, LARGE.name, replace(LARGE, folder=SMALL.folder))
    model = load_model("minicanvas:large", "cpu")
    assert (model.name, model.steps, model.guidance) == ("minicanvas:large", STEPS, GUIDANCE)


def test_a_device_or_a_precision_that_is_not_there_is_one_line(model_dir):
    for given, message in (
        ({"device": "gpu"}, r"^device 'gpu' cannot be used here: "),
        (
            {"device": "cpu", "dtype": "float64"},
            r"^dtype 'float64': expected one of auto, float32,",
        ),
    ):
        with pytest.raises(UsageError, match=message) as raised:
            load_model(str(model_dir), **given)
        assert "\n" not in str(raised.value)
