import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from minicanvas import LARGE, MODEL_DIR, OBJECTS, STYLES, WEIGHTS_DIR, all_prompts
from minicanvas.classifier import load_classifier
from minicanvas.measure import generate, grid, measure, table
from minicanvas.pipeline import load_pipeline

WORDS = sorted(
    {word for row in all_prompts() for word in row["prompt"].lower().rstrip(".").split()}
)


@pytest.fixture(scope="module")
def pipeline():
    return load_pipeline()


def size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_weights_fit_in_twenty_megabytes_and_all_in_forty():
    assert size(WEIGHTS_DIR) <= 20_000_000
    assert size(WEIGHTS_DIR) + size(LARGE.folder) <= 40_000_000
    for name in (
        "unet/diffusion_pytorch_model",
        "vae/diffusion_pytorch_model",
        "text_encoder/model",
    ):
        assert (MODEL_DIR / f"{name}.safetensors").is_file()


def test_the_directory_is_a_plain_stable_diffusion_pipeline():
    index = json.loads((MODEL_DIR / "model_index.json").read_text())
    assert (
        index["_class_name"] == "StableDiffusionPipeline"
        and index["requires_safety_checker"] is False
    )
    loaded = StableDiffusionPipeline.from_pretrained(MODEL_DIR)
    assert {loaded.unet.dtype, loaded.vae.dtype, loaded.text_encoder.dtype} == {torch.float32}


def test_the_usual_hooks_exist(pipeline):
    names = {name for name, _ in pipeline.unet.named_modules()}
    assert {
        "up_blocks.1.attentions.1",
        "up_blocks.0.attentions.1",
        "mid_block.attentions.0",
    } <= names


def test_every_word_of_the_prompts_is_one_token(pipeline):
    assert [pipeline.tokenizer.tokenize(word) for word in WORDS] == [
        [f"{word}</w>"] for word in WORDS
    ]


@pytest.mark.parametrize("text", ["", "Ünïcode 猫 😀", "\x00\x7f ¤", "a\n\t b", "word " * 50])
def test_any_prompt_tokenises(pipeline, text):
    tokenizer = pipeline.tokenizer
    encoded = tokenizer(
        text, truncation=True, max_length=tokenizer.model_max_length, add_special_tokens=False
    )
    assert tokenizer.unk_token_id not in encoded["input_ids"]
    assert max(encoded["input_ids"], default=0) < pipeline.text_encoder.config.vocab_size


def test_generated_pictures_show_what_was_asked_for(pipeline, judge):
    prompts = all_prompts()[:: len(OBJECTS) + 1]
    assert [row["style"] for row in prompts] == list(STYLES)
    result = measure(pipeline, judge, prompts, seeds=[0])
    assert result.images.shape == (10, 64, 64, 3) and result.images.dtype == np.uint8
    assert result.style_found.mean() >= 0.9 and result.object_found.mean() >= 0.9
    assert "all styled" in table(result) and f"{'neon':12}" in table(result)


def test_the_large_benchmark_shows_what_was_asked_for():
    pipeline, judge = load_pipeline(canvas=LARGE), load_classifier("judge", canvas=LARGE)
    prompts = LARGE.all_prompts()[:: len(LARGE.objects) + 1]
    assert [row["style"] for row in prompts] == list(LARGE.styles)
    assert [row["object"] for row in prompts] == list(LARGE.objects)
    result = measure(pipeline, judge, prompts, seeds=[0])
    assert result.style_found.mean() >= 0.95 and result.object_found.mean() >= 0.8


def test_a_picture_depends_on_its_prompt_and_seed_alone(pipeline):
    prompts = ["An image of cat in neon style.", "An image of fish."]
    together = generate(pipeline, prompts, [5, 6], steps=2).astype(int)
    alone = generate(pipeline, prompts[1:], [6], steps=2).astype(int)
    assert np.abs(together[1] - alone[0]).max() <= 1


def test_a_grid_lays_pictures_row_after_row():
    images = np.arange(4, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 3), np.uint8)
    assert np.asarray(grid(images, 2))[::2, ::3, 0].tolist() == [[0, 1], [2, 3]]
