"""A pipeline of Stable Diffusion 1.5's sizes, with random weights."""

from typing import Any

import torch

from sae.diffusion.pipelines import Model, load_model


def sd15_shape(device: str, dtype: torch.dtype, *, small: bool = False) -> Model:
    """Return it; pictures are 512 × 512, the text encoder's vocabulary is the included model's.

    ``small``: of the same modules, but few and narrow, for pictures of 128 × 128: a rehearsal.
    """
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel

    pipe = load_model("minicanvas", "cpu").pipe
    width, latents, channels = (32, 16, (32,) * 4) if small else (768, 64, (320, 640, 1280, 1280))
    words = CLIPTextConfig(
        vocab_size=len(pipe.tokenizer),
        hidden_size=width,
        max_position_embeddings=77,
        **({"num_attention_heads": 2, "num_hidden_layers": 1} if small else {}),
    )
    unet = UNet2DConditionModel(
        sample_size=latents,
        block_out_channels=channels,
        cross_attention_dim=width,
        attention_head_dim=8,
    )
    vae = AutoencoderKL(
        latent_channels=4,
        block_out_channels=(32,) * 4 if small else (128, 256, 512, 512),
        layers_per_block=2,
        sample_size=8 * latents,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        steps_offset=1,
        clip_sample=False,
    )
    parts: dict[str, Any] = {
        "vae": vae,
        "text_encoder": CLIPTextModel(words),
        "unet": unet,
        "scheduler": scheduler,
    }
    made = StableDiffusionPipeline(
        **parts,
        tokenizer=pipe.tokenizer,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(device, dtype)
    made.set_progress_bar_config(disable=True)
    return Model("sd15-shape", made, 50, 7.5)
