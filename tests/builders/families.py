"""Pipelines of diffusers, each with small random-weight components of its real classes, and how one
of each is called.

``order`` is what each denoiser call of a step is made of, written out from the pipelines' sources:
the tests compare what is read with it.
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import diffusers
import torch
from PIL import Image

from sae.diffusion.reading.architectures import ARCHITECTURES
from tests.builders import pipelines as tiny

HALVES = (("uncond", "cond"),)
COND = (("cond",),)
PASSES = (("cond",), ("uncond",))
HEIGHT, WIDTH = 32, 48
UNET = "unet.up_blocks.1.attentions.1"
BLOCK = "transformer.transformer_blocks.0"
STREAMS = (BLOCK, f"{BLOCK}-encoder")
PROMPTS = ["a cat", "dogs"]


class Family(NamedTuple):
    """A pipeline class and its ways of guidance."""

    build: Callable[[Any], Any]
    hooks: tuple[str, ...]
    guided: Mapping[str, Any] | None
    """what a call with guidance has beside :func:`common`; None: the pipeline has no guidance of
    several branches"""
    order: tuple[tuple[str, ...], ...] = HALVES
    """the denoiser calls of a step with guidance"""
    plain: Mapping[str, Any] = {"guidance_scale": 1.0}
    """what a call without guidance has"""
    inputs: Callable[[int], dict[str, Any]] = lambda n: {}
    """pictures and the like for n prompts"""
    prompts: Callable[[list[str]], dict[str, Any]] = lambda prompts: {"prompt": prompts}
    negative: Callable[[int], dict[str, Any]] = lambda n: {"negative_prompt": ["ugly"] * n}
    size: tuple[int, int] | None = (HEIGHT, WIDTH)
    """height and width; None: they cannot be asked for"""
    trailing: int = 0
    """timesteps at the end of the scheduler's list that the pipeline does not draw at"""
    oracle: bool = True
    """whether a call of the negative prompt alone, without guidance, has the same unconditional
    half"""


def common(family: Family, prompts: list[str], guided: bool) -> dict[str, Any]:
    """The arguments of a call of two steps."""
    n = len(prompts)
    size = dict(zip(("height", "width"), family.size, strict=True)) if family.size else {}
    found = {
        "num_inference_steps": 2,
        "generator": [torch.Generator().manual_seed(seed) for seed in range(n)],
        "output_type": "latent",
        **size,
        **family.prompts(prompts),
        **family.inputs(n),
    }
    if not guided:
        return found | dict(family.plain)
    return found | family.negative(n) | dict(family.guided or {})


def picture(seed: int = 0) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 255, (HEIGHT, WIDTH, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def mask() -> Image.Image:
    image = Image.new("L", (WIDTH, HEIGHT))
    image.paste(255, (8, 8, 24, 24))
    return image


def from_picture(n: int) -> dict[str, Any]:
    return {"image": [picture(i) for i in range(n)], "strength": 0.5, "num_inference_steps": 4}


def with_mask(n: int) -> dict[str, Any]:
    return from_picture(n) | {"mask_image": [mask()] * n}


def _of(name: str, base: Callable[[Any], Any], **changes: Any) -> Callable[[Any], Any]:
    """A pipeline of class ``name`` of another's components."""

    def build(directory: Any) -> Any:
        cls = getattr(diffusers, name)
        components = dict(base(directory).components) | {
            key: make() for key, make in changes.items()
        }
        takes = cls.__init__.__code__.co_varnames[: cls.__init__.__code__.co_argcount]
        known = {key: value for key, value in components.items() if key in takes}
        if "requires_safety_checker" in takes:
            known["requires_safety_checker"] = False
        if "add_watermarker" in takes:
            known["add_watermarker"] = False
        return cls(**known)

    return build


def _controlnet(**changes: Any) -> Any:
    settings = {
        "block_out_channels": (16, 32), "layers_per_block": 1, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "cross_attention_dim": 16, "attention_head_dim": 4, "norm_num_groups": 8,
        "conditioning_embedding_out_channels": (8, 16, 16),
    }  # fmt: skip
    torch.manual_seed(3)
    made = diffusers.ControlNetModel(**(settings | changes))
    for parameter in made.parameters():  # Its last layers begin as zeros: no picture would matter.
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return made


def _xl_controlnet() -> Any:
    return _controlnet(
        cross_attention_dim=32, use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
    )  # fmt: skip


def _lcm_unet() -> Any:
    torch.manual_seed(0)
    return tiny._unet(time_cond_proj_dim=8)


def _pix2pix_unet() -> Any:
    torch.manual_seed(0)
    return tiny._unet(in_channels=8)


def _control(n: int) -> dict[str, Any]:
    return {"image": [picture(i) for i in range(n)]}


def _both_controls(n: int) -> dict[str, Any]:
    return {"control_image": [picture(9 + i) for i in range(n)]}


def _sd3_of_16(directory: Any) -> Any:
    """SD3 with as many latent channels as the published one: inpainting asks for them."""
    pipe = tiny.tiny_sd3(directory)
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel.from_config(
        pipe.transformer.config, in_channels=16, out_channels=16
    )
    vae = diffusers.AutoencoderKL.from_config(pipe.vae.config, latent_channels=16)
    return type(pipe)(**pipe.components | {"transformer": transformer, "vae": vae})


def _flux_fill() -> Any:
    torch.manual_seed(0)
    return tiny.flux_transformer(in_channels=16 * 2 + 4 * 16, out_channels=16)


def _flux_control() -> Any:
    torch.manual_seed(0)
    return tiny.flux_transformer(in_channels=16 * 2, out_channels=16)


def bare(
    name: str, scheduler: Any, denoiser: str = "transformer", vae: Any = None, **parts: Any
) -> Callable[[Any], Any]:
    """A pipeline without text encoder and autoencoder, whose embeddings are given and whose latents
    are taken."""

    def build(directory: Any) -> Any:
        cls = getattr(diffusers, name)
        torch.manual_seed(0)
        names = cls.__init__.__code__.co_varnames[1 : cls.__init__.__code__.co_argcount]
        required = [one for one in names if one in cls._get_signature_keys(cls)[0]]
        made = {
            key: make() for key, make in {denoiser: parts[denoiser], "scheduler": scheduler}.items()
        }
        return cls(**dict.fromkeys(required) | made | ({"vae": vae()} if vae else {}))

    return build


def embedding(prompt: str, tokens: int, width: int) -> torch.Tensor:
    """What stands for a text encoder's output: a function of the prompt."""
    return torch.randn(
        tokens, width, generator=torch.Generator().manual_seed(zlib.crc32(prompt.encode()))
    )


def embedded(
    tokens: int, width: int, mask: str = "", kind: Any = torch.long, **more: Any
) -> tuple[Any, Any]:
    """How a pipeline is given embeddings of prompts and of negative prompts; ``mask``: the name's
    end of their mask."""

    def prompts(texts: list[str], negative: str = "") -> dict[str, Any]:
        stacked = torch.stack([embedding(text, tokens, width) for text in texts])
        found = {f"{negative}prompt_embeds": stacked}
        if mask:
            found[f"{negative}{mask}"] = torch.ones(len(texts), tokens, dtype=kind)
        for name, size in more.items():
            found[f"{negative}{name}"] = torch.stack(
                [embedding(text, 1, size)[0] for text in texts]
            )
        return found

    return prompts, lambda n: prompts(["ugly"] * n, "negative_")


def listed(width: int) -> tuple[Any, Any]:
    """As :func:`embedded`, a list of embeddings of their own lengths (Z-Image)."""

    def prompts(texts: list[str], negative: str = "") -> dict[str, Any]:
        return {f"{negative}prompt_embeds": [embedding(text, 5, width) for text in texts]}

    return prompts, lambda n: prompts(["ugly"] * n, "negative_")


def _flux2_vae() -> Any:
    return diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, block_out_channels=(8, 8, 8),
        latent_channels=4, norm_num_groups=4, sample_size=64, layers_per_block=1,
    )  # fmt: skip


def _flow(**changes: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**changes)


_SD, _XL, _SD3, _FLUX = tiny.tiny_stable_diffusion, tiny.tiny_sdxl, tiny.tiny_sd3, tiny.tiny_flux
_G = {"guidance_scale": 3.0}
_PAG = (("uncond", "cond", "perturbed"),)
FAMILIES = {
    # Stable Diffusion
    "StableDiffusionImg2ImgPipeline": Family(
        _of("StableDiffusionImg2ImgPipeline", _SD), (UNET,), _G, inputs=from_picture, size=None
    ),
    "StableDiffusionInpaintPipeline": Family(_of("StableDiffusionInpaintPipeline", _SD), (UNET,), _G, inputs=with_mask),
    "StableDiffusionControlNetPipeline": Family(
        _of("StableDiffusionControlNetPipeline", _SD, controlnet=_controlnet), (UNET,), _G, inputs=_control
    ),
    "StableDiffusionControlNetImg2ImgPipeline": Family(
        _of("StableDiffusionControlNetImg2ImgPipeline", _SD, controlnet=_controlnet), (UNET,), _G,
        inputs=lambda n: from_picture(n) | _both_controls(n),
    ),
    "StableDiffusionControlNetInpaintPipeline": Family(
        _of("StableDiffusionControlNetInpaintPipeline", _SD, controlnet=_controlnet), (UNET,), _G,
        inputs=lambda n: with_mask(n) | _both_controls(n),
    ),
    "LatentConsistencyModelPipeline": Family(
        _of("LatentConsistencyModelPipeline", _SD, unet=_lcm_unet, scheduler=diffusers.LCMScheduler), (UNET,), None,
    ),
    "LatentConsistencyModelImg2ImgPipeline": Family(
        _of("LatentConsistencyModelImg2ImgPipeline", _SD, unet=_lcm_unet, scheduler=diffusers.LCMScheduler), (UNET,), None,
        inputs=lambda n: from_picture(n) | {"num_inference_steps": 2}, size=None,
    ),
    "StableDiffusionPAGPipeline": Family(
        _of("StableDiffusionPAGPipeline", _SD), (UNET,), _G | {"pag_scale": 2.0}, _PAG,
        {"guidance_scale": 1.0, "pag_scale": 0.0},
    ),
    "StableDiffusionInstructPix2PixPipeline": Family(
        _of("StableDiffusionInstructPix2PixPipeline", _SD, unet=_pix2pix_unet), (UNET,),
        _G | {"image_guidance_scale": 1.5}, (("cond", "image", "uncond"),), inputs=_control, size=None, oracle=False,
    ),
    # SDXL
    "StableDiffusionXLImg2ImgPipeline": Family(
        _of("StableDiffusionXLImg2ImgPipeline", _XL), (UNET,), _G, inputs=from_picture, size=None
    ),
    "StableDiffusionXLInpaintPipeline": Family(
        _of("StableDiffusionXLInpaintPipeline", _XL), (UNET,), _G, inputs=with_mask
    ),
    "StableDiffusionXLControlNetPipeline": Family(
        _of("StableDiffusionXLControlNetPipeline", _XL, controlnet=_xl_controlnet), (UNET,), _G, inputs=_control
    ),
    "StableDiffusionXLPAGPipeline": Family(
        _of("StableDiffusionXLPAGPipeline", _XL), (UNET,), _G | {"pag_scale": 2.0}, _PAG,
        {"guidance_scale": 1.0, "pag_scale": 0.0},
    ),
    "StableDiffusionXLControlNetImg2ImgPipeline": Family(
        _of("StableDiffusionXLControlNetImg2ImgPipeline", _XL, controlnet=_xl_controlnet), (UNET,), _G,
        inputs=lambda n: from_picture(n) | _both_controls(n),
    ),
    "StableDiffusionXLControlNetInpaintPipeline": Family(
        _of("StableDiffusionXLControlNetInpaintPipeline", _XL, controlnet=_xl_controlnet), (UNET,), _G,
        inputs=lambda n: with_mask(n) | _both_controls(n),
    ),
    # SD3
    "StableDiffusion3Img2ImgPipeline": Family(
        _of("StableDiffusion3Img2ImgPipeline", _SD3), STREAMS, _G, inputs=from_picture
    ),
    "StableDiffusion3InpaintPipeline": Family(_of("StableDiffusion3InpaintPipeline", _sd3_of_16), STREAMS, _G, inputs=with_mask),
    "StableDiffusion3Pipeline": Family(
        _SD3, STREAMS, _G | {"skip_guidance_layers": [1], "skip_layer_guidance_start": -1.0, "skip_layer_guidance_stop": 2.0},
        (("uncond", "cond"), ("skip",)),
    ),
    # FLUX.1
    "FluxImg2ImgPipeline": Family(
        _of("FluxImg2ImgPipeline", _FLUX), STREAMS, {"true_cfg_scale": 2.0}, PASSES, {}, inputs=from_picture
    ),
    "FluxInpaintPipeline": Family(
        _of("FluxInpaintPipeline", _FLUX), STREAMS, {"true_cfg_scale": 2.0}, PASSES, {}, inputs=with_mask
    ),
    "FluxKontextPipeline": Family(
        _of("FluxKontextPipeline", _FLUX), STREAMS, {"true_cfg_scale": 2.0}, PASSES, {},
        inputs=lambda n: {"image": picture(), "_auto_resize": False, "max_area": HEIGHT * WIDTH},
    ),
    "FluxFillPipeline": Family(
        _of("FluxFillPipeline", _FLUX, transformer=_flux_fill), STREAMS, None, plain={}, inputs=with_mask
    ),
    "FluxControlPipeline": Family(
        _of("FluxControlPipeline", _FLUX, transformer=_flux_control), STREAMS, None, plain={},
        inputs=lambda n: {"control_image": [picture(i) for i in range(n)]},
    ),
    "PixArtAlphaPipeline": Family(
        _of("PixArtAlphaPipeline", tiny.tiny_pixart), (BLOCK,), _G | {"use_resolution_binning": False},
        plain={"guidance_scale": 1.0, "use_resolution_binning": False},
    ),
}  # fmt: skip


def _llm_family(
    name: str, make: Callable[[], Any], how: tuple[Any, Any], hooks: tuple[str, ...] = STREAMS, order: Any = PASSES,
    scheduler: Callable[[], Any] = _flow, guided: Any = _G, plain: Any = {"guidance_scale": 1.0}, vae: Any = None,  # noqa: B006
    **more: Any,
) -> tuple[str, Family]:  # fmt: skip
    prompts, negative = how
    build = bare(name, scheduler, vae=vae, transformer=make)
    return name, Family(
        build, hooks, guided, order, plain, prompts=prompts, negative=negative, **more
    )


def _hidream(directory: Any) -> Any:
    pipe = bare(
        "HiDreamImagePipeline", _flow,
        transformer=lambda: diffusers.HiDreamImageTransformer2DModel(
            patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8,
            num_attention_heads=4, caption_channels=[32, 16], text_emb_dim=64, num_routed_experts=4, num_activated_experts=2,
            axes_dims_rope=(4, 2, 2), max_resolution=(32, 32), llama_layers=(0, 1),
        ),
    )(directory)  # fmt: skip
    pipe.default_sample_size = 5  # It draws pictures of about this many latent pixels, squared.
    return pipe


def _hidream_texts(texts: list[str], negative: str = "") -> dict[str, Any]:
    layers = [torch.stack([embedding(f"{text}{i}", 6, 16) for text in texts]) for i in (0, 1)]
    return {
        f"{negative}prompt_embeds_t5": torch.stack([embedding(text, 6, 32) for text in texts]),
        f"{negative}prompt_embeds_llama3": torch.stack(layers),
        f"{negative}pooled_prompt_embeds": torch.stack([embedding(t, 1, 64)[0] for t in texts]),
    }


_VIDEO = {"inputs": lambda n: {"num_frames": 5}}
_JOINT = "transformer.joint_transformer_blocks.0"
_BY_32 = {"size": (32, 64)}
FAMILIES |= dict(
    [
        _llm_family(
            "ChromaPipeline",
            lambda: diffusers.ChromaTransformer2DModel(
                in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
                joint_attention_dim=32, axes_dims_rope=(4, 4, 8), approximator_num_channels=8, approximator_hidden_dim=32,
                approximator_layers=1,
            ),
            embedded(6, 32, "prompt_attention_mask", torch.bool), (*STREAMS, "transformer.single_transformer_blocks.0"),
        ),
        _llm_family(
            "QwenImagePipeline",
            lambda: diffusers.QwenImageTransformer2DModel(
                in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
                joint_attention_dim=16, axes_dims_rope=(8, 4, 4),
            ),
            embedded(6, 16, "prompt_embeds_mask"), guided={"true_cfg_scale": 3.0}, plain={"true_cfg_scale": 1.0},
        ),
        _llm_family(
            "ZImagePipeline",
            lambda: diffusers.ZImageTransformer2DModel(
                in_channels=16, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
                axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
            ),
            listed(16), ("transformer.layers.0",), (("cond", "uncond"),), plain={"guidance_scale": 0.0},
        ),
        _llm_family(
            "SanaPipeline",
            lambda: diffusers.SanaTransformer2DModel(
                in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=4,
                num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=8,
                sample_size=32,
            ),
            embedded(6, 8, "prompt_attention_mask"), (BLOCK,), HALVES,
            guided=_G | {"use_resolution_binning": False, "negative_prompt": None},
            plain={"guidance_scale": 1.0, "use_resolution_binning": False, "negative_prompt": None}, **_BY_32,
        ),
        _llm_family(
            "Lumina2Pipeline",
            lambda: diffusers.Lumina2Transformer2DModel(
                sample_size=4, in_channels=4, hidden_size=24, num_layers=2, num_refiner_layers=1, num_attention_heads=3,
                num_kv_heads=1, multiple_of=2, axes_dim_rope=(4, 2, 2), axes_lens=(128, 32, 32), cap_feat_dim=8,
            ),
            embedded(6, 8, "prompt_attention_mask"), ("transformer.layers.0",),
        ),
        _llm_family(
            "Flux2Pipeline",
            lambda: diffusers.Flux2Transformer2DModel(
                in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
                joint_attention_dim=16, timestep_guidance_channels=256, axes_dims_rope=(4, 4, 4, 4),
            ),
            embedded(6, 16), guided=None, plain={},
        ),
        _llm_family(
            "Flux2KleinPipeline",
            lambda: diffusers.Flux2Transformer2DModel(
                in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
                joint_attention_dim=16, timestep_guidance_channels=256, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
            ),
            embedded(6, 16), vae=_flux2_vae,
        ),
        _llm_family(
            "AuraFlowPipeline",
            lambda: diffusers.AuraFlowTransformer2DModel(
                sample_size=32, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8,
                num_attention_heads=4, joint_attention_dim=32, caption_projection_dim=32, pos_embed_max_size=256,
            ),
            embedded(6, 32, "prompt_attention_mask"), (_JOINT, f"{_JOINT}-encoder"), HALVES,
        ),
        _llm_family(
            "CogView4Pipeline",
            lambda: diffusers.CogView4Transformer2DModel(
                in_channels=4, out_channels=4, num_layers=2, attention_head_dim=4, num_attention_heads=4, text_embed_dim=16,
                time_embed_dim=8, condition_dim=4,
            ),
            embedded(16, 16),
        ),
        _llm_family(
            "WanPipeline",
            lambda: diffusers.WanTransformer3DModel(
                num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16, text_dim=32, freq_dim=256,
                ffn_dim=32, num_layers=2, rope_max_seq_len=32,
            ),
            embedded(6, 32), ("transformer.blocks.0",), **_VIDEO,
        ),
        _llm_family(
            "LTXPipeline",
            lambda: diffusers.LTXVideoTransformer3DModel(
                in_channels=8, out_channels=8, num_attention_heads=4, attention_head_dim=8, cross_attention_dim=32,
                num_layers=1, caption_channels=32,
            ),
            embedded(6, 32, "prompt_attention_mask"), (BLOCK,), HALVES, **_VIDEO, **_BY_32,
        ),
        _llm_family(
            "CogVideoXPipeline",
            lambda: diffusers.CogVideoXTransformer3DModel(
                num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=2,
                text_embed_dim=32, num_layers=1, sample_width=6, sample_height=4, sample_frames=5, patch_size=2,
                max_text_seq_length=6,
            ),
            embedded(6, 32), STREAMS, HALVES, diffusers.CogVideoXDDIMScheduler, **_VIDEO,
        ),
        _llm_family(
            "HunyuanVideoPipeline",
            lambda: diffusers.HunyuanVideoTransformer3DModel(
                in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1,
                num_single_layers=1, num_refiner_layers=1, text_embed_dim=16, pooled_projection_dim=8, rope_axes_dim=(2, 4, 4),
            ),
            embedded(6, 16, "prompt_attention_mask", pooled_prompt_embeds=8), guided={"true_cfg_scale": 2.0}, plain={},
            **_VIDEO,
        ),
    ]
)  # fmt: skip


def _kandinsky5(name: str, visual_cond: bool) -> Callable[[Any], Any]:
    def transformer() -> Any:
        made = diffusers.Kandinsky5Transformer3DModel(
            in_visual_dim=4, out_visual_dim=4, in_text_dim=16, in_text_dim2=8, time_dim=16, model_dim=16, ff_dim=16,
            num_text_blocks=1, num_visual_blocks=2, axes_dims=(4, 2, 2), visual_cond=visual_cond,
        )  # fmt: skip
        for parameter in made.parameters():  # Gates begin as zeros: no text would matter.
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
        return made

    def build(directory: Any) -> Any:
        pipe = bare(f"{name}Pipeline", _flow, transformer=transformer)(directory)
        if hasattr(pipe, "resolutions"):
            pipe.resolutions = [(WIDTH, HEIGHT), (64, 64)]  # Its own have a megapixel.
        return pipe

    return build


def _kandinsky5_texts(texts: list[str], negative: str = "") -> dict[str, Any]:
    return {
        f"{negative}prompt_embeds_qwen": torch.stack([embedding(text, 6, 16) for text in texts]),
        f"{negative}prompt_embeds_clip": torch.stack([embedding(text, 1, 8)[0] for text in texts]),
        f"{negative}prompt_cu_seqlens": 6 * torch.arange(len(texts) + 1, dtype=torch.int32),
    }


def _kandinsky5_family(name: str, inputs: Any = lambda n: {}) -> tuple[str, Family]:
    hooks = ("transformer.visual_transformer_blocks.0", "transformer.text_transformer_blocks.0")
    return f"{name}Pipeline", Family(
        _kandinsky5(name, visual_cond=name == "Kandinsky5T2V"), hooks, _G, PASSES, inputs=inputs, prompts=_kandinsky5_texts,
        negative=lambda n: _kandinsky5_texts(["ugly"] * n, "negative_"),
    )  # fmt: skip


FAMILIES |= dict(
    [
        _kandinsky5_family("Kandinsky5T2I"),
        _kandinsky5_family("Kandinsky5T2V", _VIDEO["inputs"]),
    ]
)


_DOUBLE = "transformer.double_stream_blocks.0.block"
FAMILIES |= {
    "HiDreamImagePipeline": Family(
        _hidream, (_DOUBLE, f"{_DOUBLE}-encoder"), _G, prompts=_hidream_texts,
        negative=lambda n: _hidream_texts(["ugly"] * n, "negative_"),
    ),
}  # fmt: skip
FAMILIES |= dict(
    [
        _llm_family(
            "MochiPipeline",
            lambda: diffusers.MochiTransformer3DModel(
                num_attention_heads=2, attention_head_dim=8, num_layers=2, pooled_projection_dim=16, in_channels=12,
                text_embed_dim=32, time_embed_dim=4, max_sequence_length=6,
            ),
            embedded(6, 32, "prompt_attention_mask", torch.bool), STREAMS, HALVES,
            lambda: _flow(invert_sigmas=True), **_VIDEO,
        ),
        _llm_family(
            "AllegroPipeline",
            lambda: diffusers.AllegroTransformer3DModel(
                num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, num_layers=1,
                cross_attention_dim=24, sample_width=6, sample_height=4, sample_frames=2, caption_channels=32,
            ),
            embedded(6, 32, "prompt_attention_mask"), (BLOCK,), HALVES, diffusers.EulerAncestralDiscreteScheduler,
            guided=_G | {"negative_prompt": None}, plain={"guidance_scale": 1.0, "negative_prompt": None}, **_VIDEO,
        ),
        _llm_family(
            "SanaSprintPipeline",
            lambda: diffusers.SanaTransformer2DModel(
                in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=4,
                num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=8,
                sample_size=32, guidance_embeds=True, qk_norm="rms_norm_across_heads",
            ),
            embedded(6, 8, "prompt_attention_mask"), (BLOCK,), HALVES, diffusers.SCMScheduler, None,
            {"use_resolution_binning": False}, trailing=1, **_BY_32,
        ),
    ]
)  # fmt: skip


def _kandinsky3_unet() -> Any:
    return diffusers.Kandinsky3UNet(
        time_embedding_dim=16, groups=4, attention_head_dim=4, layers_per_block=2, block_out_channels=(8, 16, 16, 32),
        cross_attention_dim=8, encoder_hid_dim=16,
    )  # fmt: skip


_KANDINSKY3 = embedded(6, 16, "attention_mask")
FAMILIES |= {
    "Kandinsky3Pipeline": Family(
        bare("Kandinsky3Pipeline", diffusers.DDPMScheduler, "unet", unet=_kandinsky3_unet), ("unet.down_blocks.1",), _G,
        prompts=_KANDINSKY3[0], negative=_KANDINSKY3[1], size=(64, 128),
    ),
}  # fmt: skip


def _dit() -> Any:
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=16,
        num_embeds_ada_norm=1000, norm_num_groups=1,
    )  # fmt: skip


def _hunyuan_dit() -> Any:
    return diffusers.HunyuanDiT2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, patch_size=2, sample_size=16, hidden_size=16, num_layers=2,
        cross_attention_dim=8, cross_attention_dim_t5=8, pooled_projection_dim=4, text_len=6, text_len_t5=5,
    )  # fmt: skip


def _uncond_unet() -> Any:
    return diffusers.UNet2DModel(
        16, block_out_channels=(8, 16), down_block_types=("DownBlock2D", "AttnDownBlock2D"), layers_per_block=1,
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), norm_num_groups=4,
    )  # fmt: skip


def _of_classes(directory: Any) -> Any:
    torch.manual_seed(0)
    return diffusers.DiTPipeline(_dit(), tiny._vae(), diffusers.DDIMScheduler())


def _labels(texts: list[str]) -> dict[str, Any]:
    return {"class_labels": [zlib.crc32(text.encode()) % 1000 for text in texts]}


def _two_encoders(texts: list[str], negative: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for end, tokens in (("", 6), ("_2", 5)):
        found[f"{negative}prompt_embeds{end}"] = torch.stack(
            [embedding(text + end, tokens, 8) for text in texts]
        )
        found[f"{negative}prompt_attention_mask{end}"] = torch.ones(
            len(texts), tokens, dtype=torch.long
        )
    return found


FAMILIES |= {
    "HunyuanDiTPipeline": Family(
        bare("HunyuanDiTPipeline", diffusers.DDPMScheduler, transformer=_hunyuan_dit), ("transformer.blocks.0",),
        _G | {"use_resolution_binning": False}, plain={"guidance_scale": 1.0, "use_resolution_binning": False},
        prompts=_two_encoders, negative=lambda n: _two_encoders(["ugly"] * n, "negative_"),
    ),
    "DiTPipeline": Family(
        _of_classes, (BLOCK,), _G, (("cond", "uncond"),), prompts=_labels, negative=lambda n: {}, size=None, oracle=False,
        inputs=lambda n: {"output_type": "pt"},
    ),
    "DDPMPipeline": Family(
        bare("DDPMPipeline", diffusers.DDPMScheduler, "unet", unet=_uncond_unet), ("unet.mid_block",), None, plain={},
        prompts=lambda texts: {"batch_size": len(texts)}, size=None, inputs=lambda n: {"output_type": "pt"},
    ),
    "DDIMPipeline": Family(
        bare("DDIMPipeline", diffusers.DDIMScheduler, "unet", unet=_uncond_unet), ("unet.mid_block",), None, plain={},
        prompts=lambda texts: {"batch_size": len(texts)}, size=None, inputs=lambda n: {"output_type": "pt"},
    ),
}  # fmt: skip


_PARTS = {
    HALVES: "one call",
    PASSES: "a call each",
    (("cond", "uncond"),): "one call, `cond` first",
    _PAG: "one call, `perturbed` beside them",
    (("uncond", "cond"), ("skip",)): "one call; `skip` one more",
    (("cond", "image", "uncond"),): "one call, `image` beside them",
}


def table() -> list[str]:
    """The lines of the table in docs/pipelines.md: what the tests of the families hold."""
    lines = ["| pipeline | guidance | hooks that are tested | starts from |", "|---|---|---|---|"]
    for name, family in FAMILIES.items():
        start = [_STARTS[kind] for kind in ARCHITECTURES[name].starts]
        hooks = ", ".join(f"`{hook.partition('.')[2]}`" for hook in family.hooks)
        way = _PARTS[family.order] if family.guided else "none, or told to the denoiser"
        lines.append(f"| `{name}` | {way} | {hooks} | {', '.join(start) or 'noise'} |")
    return lines


_STARTS = {"image": "a picture", "mask": "a mask", "control": "a control picture"}
