"""Fault C5: a model's identity does not depend on when it was asked, nor on how the weights are
kept."""

import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig

from collectors import CollectSettings, collect
from featurestore.errors import ModelError, RunError, SelectionError
from featurestore.prompts import Prompt
from sae.diffusion.loading.weights import in_common, model_hash, same_model
from sae.diffusion.pipelines import Model, RunSettings
from sae.intervention.ablate import ablate
from tests.builders.pipelines import tiny_stable_diffusion
from tests.builders.selections import make_sae, make_selection

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
]


@pytest.fixture
def pipe(tmp_path):
    return tiny_stable_diffusion(tmp_path)


def with_adapter(unet, name, seed):
    torch.manual_seed(seed)
    lora = LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    unet.add_adapter(lora, adapter_name=name)


def test_wrappers_fused_projections_and_offloading_change_nothing(pipe):
    unet, before = pipe.unet, model_hash(pipe.unet)
    unet.fuse_qkv_projections()
    assert model_hash(unet) == before
    unet.unfuse_qkv_projections()
    block = unet.mid_block.attentions[0]
    unet.mid_block.attentions[0] = torch.compile(block)
    assert model_hash(unet) == before
    unet.mid_block.attentions[0] = block
    cpu_offload(unet, torch.device("cpu"), offload_buffers=True)
    assert all(p.is_meta for p in unet.parameters())
    assert model_hash(unet) == before


def test_a_change_of_the_weights_is_seen_whenever_it_is_made(pipe):
    before = model_hash(pipe.unet)
    weight = pipe.unet.conv_in.weight
    with torch.no_grad():
        weight.data[0, 0, 0, 0] += 1
    assert not same_model(model_hash(pipe.unet), before)
    with torch.no_grad():
        weight.data[0, 0, 0, 0] -= 1
    assert model_hash(pipe.unet) == before


def test_adapters_count_by_tensors_and_scale_in_no_order(pipe, tmp_path):
    unet, bare = pipe.unet, model_hash(pipe.unet)
    with_adapter(unet, "a", 1)
    one = model_hash(unet)
    assert not same_model(one, bare)
    with_adapter(unet, "b", 2)
    unet.set_adapters(["a", "b"], [1.0, 0.5])
    both = model_hash(unet)
    other = tiny_stable_diffusion(tmp_path).unet
    with_adapter(other, "second", 2)
    with_adapter(other, "first", 1)
    other.set_adapters(["second", "first"], [0.5, 1.0])
    assert model_hash(other) == both
    other.set_adapters(["first"])
    assert model_hash(other) == one
    other.set_adapters(["first"], [0.3])
    assert not same_model(model_hash(other), one)
    other.disable_adapters()
    assert model_hash(other) == bare
    other.delete_adapters(["first", "second"])
    assert model_hash(other) == bare


def test_a_lora_that_is_loaded_between_two_collections_is_another_model(pipe, tmp_path):
    pipe.set_progress_bar_config(disable=True)
    model, run = Model("m", pipe, 2, 1.0), RunSettings(2, 1.0)
    settings = CollectSettings(hooks=["unet.mid_block"])
    collect(tmp_path / "s", model, [Prompt("a", 0, {}, 1)], run, settings, progress=False)
    with_adapter(pipe.unet, "a", 1)
    with pytest.raises(RunError, match=r"holds a run with model_hash = .* Nothing was changed"):
        collect(tmp_path / "s", model, [Prompt("b", 0, {}, 1)], run, settings, progress=False)


@pytest.mark.filterwarnings("ignore:There are modules")
def test_another_precision_of_the_same_model_is_named_as_that(pipe, tmp_path):
    full = model_hash(pipe.unet)
    half, brain = (
        tiny_stable_diffusion(tmp_path).unet.to(kind) for kind in (torch.float16, torch.bfloat16)
    )
    assert same_model(model_hash(half), full)
    assert same_model(model_hash(brain), full)
    assert not same_model(model_hash(half), model_hash(brain))
    said = in_common(model_hash(brain), model_hash(half))
    assert said == ": the same model in another precision (bfloat16 here, float16 there)"
    brain.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    assert not same_model(model_hash(brain), full)
    assert in_common(model_hash(brain), full).endswith("(float8 here, float16 or bfloat16 there)")
    torch.manual_seed(1)
    torch.nn.init.normal_(half.conv_in.weight)
    assert in_common(model_hash(half), model_hash(brain)) == ""


def test_a_selection_and_a_store_say_that_only_the_precision_differs(pipe, tmp_path):
    pipe.set_progress_bar_config(disable=True)
    model, run = Model("m", pipe.to(torch.bfloat16), 2, 1.0), RunSettings(2, 1.0)
    settings, prompts = CollectSettings(hooks=["unet.mid_block"]), [Prompt("a", 0, {}, 1)]
    collect(tmp_path / "s", model, prompts, run, settings, progress=False)
    selection = make_selection(model, [], [501.0])
    other = Model("m", tiny_stable_diffusion(tmp_path).to(torch.float16), 2, 1.0)
    with pytest.raises(
        RunError, match=r"dtype = 'bfloat16', this one has 'float16' \(the same model in another"
    ):
        collect(tmp_path / "s", other, prompts, run, settings, progress=False)
    words = (
        r"others \(f16:.*…\): the same model in another precision \(float16 here, bfloat16 "
        r"there\)\.$"
    )
    with pytest.raises(SelectionError, match=words), ablate(other.pipe, selection, saes=make_sae()):
        pass


def test_weights_that_cannot_be_compared_are_refused(pipe):
    pipe.unet.conv_in.double()
    with pytest.raises(
        ModelError, match="weights are float64: load it in float32, float16 or bfloat16"
    ):
        model_hash(pipe.unet)
    pipe.unet.to(torch.float16)
    pipe.unet.conv_in.bfloat16()
    with pytest.raises(ModelError, match="partly float16 and partly bfloat16"):
        model_hash(pipe.unet)
    pipe.unet.conv_in.to("meta")
    with pytest.raises(
        ModelError, match=r"weight 'conv_in\.weight' is kept where it cannot be read"
    ):
        model_hash(pipe.unet)
