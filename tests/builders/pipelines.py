"""Small random-weight pipelines of the real diffusers classes."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)
from transformers.models.clip.tokenization_clip import CLIPTokenizer as _Tokenizer

HOOKS = ("unet.up_blocks.1.attentions.1", "unet.mid_block.attentions.0")


def tokenizer(directory: Path) -> CLIPTokenizer:
    """A tokenizer of single letters."""
    letters = [chr(c) for c in range(33, 127)]
    tokens = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    return _Tokenizer(
        str(directory / "vocab.json"), str(directory / "merges.txt"), model_max_length=16
    )


def t5_tokenizer() -> T5Tokenizer:
    """A T5 tokenizer of single letters."""
    letters = [chr(c) for c in range(33, 127)]
    vocabulary = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        *((piece, -1.0) for piece in ["\u2581", *letters]),
    ]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0)


def _clip(cls=CLIPTextModel):
    return cls(
        CLIPTextConfig(
            vocab_size=190, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=16, bos_token_id=188, eos_token_id=189, pad_token_id=189, projection_dim=16,
        )
    )  # fmt: skip


def _t5():
    config = T5Config(
        vocab_size=98,
        d_model=32,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        is_encoder_decoder=False,
    )
    return T5EncoderModel(config)


def _vae(**changes):
    return AutoencoderKL(block_out_channels=(8, 8, 8), latent_channels=4, norm_num_groups=4, sample_size=64,
                         down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
                         **changes)  # fmt: skip


def _unet(**changes):
    settings = {
        "sample_size": 16, "in_channels": 4, "out_channels": 4, "block_out_channels": (16, 32), "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 16, "attention_head_dim": 4, "norm_num_groups": 8,
    }  # fmt: skip
    return UNet2DConditionModel(**(settings | changes))


def tiny_stable_diffusion(
    directory: Path, seed: int = 0, prediction_type: str = "epsilon", **unet: Any
) -> StableDiffusionPipeline:
    """A StableDiffusionPipeline of SD-1.5's classes: 64 px, d_in 32 at
    `unet.up_blocks.1.attentions.1`."""
    torch.manual_seed(seed)
    denoiser = _unet(**unet)
    vae, text = _vae(), _clip()
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type=prediction_type,
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer(directory / "words"), unet=denoiser, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def tiny_sd2(directory: Path) -> StableDiffusionPipeline:
    """As SD-2: v-prediction, and linear layers about the attention."""
    return tiny_stable_diffusion(
        directory, prediction_type="v_prediction", use_linear_projection=True
    )


def tiny_sdxl(directory: Path) -> StableDiffusionXLPipeline:
    """As SDXL-Turbo: two text encoders, size conditions, a scheduler that adds noise at every
    step."""
    torch.manual_seed(0)
    unet = _unet(
        cross_attention_dim=32, use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
    )  # fmt: skip
    words = tokenizer(directory / "words")
    return StableDiffusionXLPipeline(
        vae=_vae(), text_encoder=_clip(), text_encoder_2=_clip(CLIPTextModelWithProjection), tokenizer=words,
        tokenizer_2=words, unet=unet, scheduler=EulerAncestralDiscreteScheduler(timestep_spacing="trailing"),
        add_watermarker=False,
    )  # fmt: skip


def tiny_sd3(directory: Path) -> StableDiffusion3Pipeline:
    """As SD3: three text encoders, two blocks over two streams, the last without the text's
    output."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=32, out_channels=4, pos_embed_max_size=24,
    )  # fmt: skip
    words = tokenizer(directory / "words")
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=_vae(shift_factor=0.1),
        text_encoder=_clip(CLIPTextModelWithProjection), tokenizer=words,
        text_encoder_2=_clip(CLIPTextModelWithProjection), tokenizer_2=words, text_encoder_3=_t5(), tokenizer_3=t5_tokenizer(),
    )  # fmt: skip


def flux_transformer(**changes):
    """FLUX.1's, small."""
    settings = {
        "patch_size": 1, "in_channels": 16, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 8,
        "num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 16, "guidance_embeds": True,
        "axes_dims_rope": (2, 2, 4),
    }  # fmt: skip
    return FluxTransformer2DModel(**(settings | changes))


def tiny_flux(directory: Path) -> FluxPipeline:
    """As FLUX.1-dev: guidance embedded, blocks over two streams and single blocks over both
    joined."""
    torch.manual_seed(0)
    transformer = flux_transformer()
    return FluxPipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=_vae(shift_factor=0.1), text_encoder=_clip(), tokenizer=tokenizer(directory / "words"), text_encoder_2=_t5(),
        tokenizer_2=t5_tokenizer(),
    )  # fmt: skip


def tiny_pixart(directory: Path) -> PixArtSigmaPipeline:
    """As PixArt-Sigma: one stream of tokens, variances learned beside the noise."""
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, cross_attention_dim=16,
        sample_size=16, patch_size=2, caption_channels=32, use_additional_conditions=False, norm_num_groups=1,
    )  # fmt: skip
    return PixArtSigmaPipeline(
        transformer=transformer, scheduler=DPMSolverMultistepScheduler(), vae=_vae(), text_encoder=_t5(),
        tokenizer=t5_tokenizer(),
    )  # fmt: skip


def save(pipe: DiffusionPipeline, directory: Path) -> Path:
    """Save a pipeline as a directory that `--model` takes."""
    pipe.save_pretrained(directory)
    return directory


def edited_text_encoder(model: Any) -> Any:
    """A copy of a model with one number of its CLIP text encoder changed."""
    edited = copy.deepcopy(model)
    with torch.no_grad():
        edited.pipe.text_encoder.encoder.layers[0].mlp.fc1.bias[0] += 1
    return edited
