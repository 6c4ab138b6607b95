"""A pipeline of Stable Diffusion 1.5's sizes, with random weights."""

from typing import Any

import torch

from sae.diffusion.pipelines import Model, load_model


def sd15_shape(device: str, dtype: torch.dtype) -> Model:
    """Return it; pictures are 512 × 512, the text encoder's vocabulary is the included model's."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel

    pipe = load_model("minicanvas", "cpu").pipe
    words = CLIPTextConfig(
        vocab_size=len(pipe.tokenizer), hidden_size=768, max_position_embeddings=77
    )
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    vae = AutoencoderKL(latent_channels=4, block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512,
                        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)  # fmt: skip
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1,
                              clip_sample=False)  # fmt: skip
    parts: dict[str, Any] = {
        "vae": vae,
        "text_encoder": CLIPTextModel(words),
        "unet": unet,
        "scheduler": scheduler,
    }
    made = StableDiffusionPipeline(**parts, tokenizer=pipe.tokenizer, safety_checker=None, feature_extractor=None,
                                   requires_safety_checker=False).to(device, dtype)  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return Model("sd15-shape", made, 50, 7.5)
