"""Small random-weight pipelines of the real diffusers classes."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.models.clip.tokenization_clip import CLIPTokenizer as _Tokenizer

HOOKS = ("unet.up_blocks.1.attentions.1", "unet.mid_block.attentions.0")


def tokenizer(directory: Path) -> CLIPTokenizer:
    """A tokenizer of single letters."""
    letters = [chr(c) for c in range(33, 127)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    return _Tokenizer(str(directory / "vocab.json"), str(directory / "merges.txt"), model_max_length=16)


def tiny_stable_diffusion(directory: Path, seed: int = 0, prediction_type: str = "epsilon") -> StableDiffusionPipeline:
    """A StableDiffusionPipeline of SD-1.5's classes: 64 px, d_in 32 at `unet.up_blocks.1.attentions.1`."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(block_out_channels=(8, 8, 8), latent_channels=4, norm_num_groups=4, sample_size=64,
                        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3)  # fmt: skip
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=190, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=16, bos_token_id=188, eos_token_id=189, pad_token_id=189,
        )
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type=prediction_type,
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer(directory / "words"), unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def save(pipe: StableDiffusionPipeline, directory: Path) -> Path:
    """Save a pipeline as a directory that `--model` takes."""
    pipe.save_pretrained(directory)
    return directory
