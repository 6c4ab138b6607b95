"""Small random-weight language models of the classes that pipelines encode their texts with, and
tokenizers of single letters."""

from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    GlmConfig,
    GlmModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    LlamaTokenizer,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.content is string %}{{ m.content }}{% else %}{{ m.content[0].text }}{% endif %}{% endfor %}"
)
"""of a chat, as the released tokenizers have one"""
_LETTERS = [chr(c) for c in range(33, 127)]
_SMALL = {
    "vocab_size": 128, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 8, "max_position_embeddings": 4096, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def _vocabulary(special: list[str], space: str, more: str = "") -> dict[str, int]:
    return {token: i for i, token in enumerate([*special, space, *_LETTERS, *more])}


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Its padding is its end of text; at the right, as Qwen-Image and Z-Image have it."""
    vocabulary = _vocabulary(["<|endoftext|>"], "\u0120", "\u010a")
    return Qwen2Tokenizer(vocab=vocabulary, merges=[], chat_template=TEMPLATE, padding_side="right")


class Processor:
    """What Qwen2.5-VL's processor is to texts without pictures: a tokenizer whose padding is not
    its end of text."""

    def __init__(self) -> None:
        self.tokenizer = qwen_tokenizer()
        self.tokenizer.eos_token = "~"
        self.batch_decode = self.tokenizer.batch_decode

    def __call__(
        self, text: list[str], images: None = None, videos: None = None, **how: Any
    ) -> Any:
        return self.tokenizer(text, **how)


def gemma_tokenizer() -> GemmaTokenizer:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    return GemmaTokenizer(
        vocab=_vocabulary(special, "\u2581", "\n"), merges=[], padding_side="right"
    )


def llama_tokenizer() -> LlamaTokenizer:
    vocabulary = _vocabulary(["<unk>", "<s>", "</s>"], "\u2581", "\n")
    return LlamaTokenizer(vocab=vocabulary, merges=[], pad_token="<unk>", padding_side="right")


def glm_tokenizer() -> Qwen2Tokenizer:
    """As CogView4 has it: padding comes first."""
    tokenizer = qwen_tokenizer()
    tokenizer.padding_side = "left"
    return tokenizer


def _made(cls: type, config: object) -> torch.nn.Module:
    torch.manual_seed(7)
    model = cls(config)
    for parameter in model.parameters():  # The default spread of 0.02 leaves nothing to see.
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def gemma(width: int) -> torch.nn.Module:
    return _made(Gemma2Model, Gemma2Config(hidden_size=width, query_pre_attn_scalar=8, **_SMALL))


def llama(width: int) -> torch.nn.Module:
    """Of three layers: HunyuanVideo leaves out the last two."""
    return _made(LlamaModel, LlamaConfig(hidden_size=width, **_SMALL | {"num_hidden_layers": 3}))


def llama_head(width: int) -> torch.nn.Module:
    config = LlamaConfig(hidden_size=width, attn_implementation="eager", **_SMALL)
    return _made(LlamaForCausalLM, config)


def qwen3(width: int) -> torch.nn.Module:
    return _made(Qwen3Model, Qwen3Config(hidden_size=width, **_SMALL))


def qwen3_head(width: int) -> torch.nn.Module:
    return _made(Qwen3ForCausalLM, Qwen3Config(hidden_size=width, **_SMALL))


def glm(width: int) -> torch.nn.Module:
    return _made(GlmModel, GlmConfig(hidden_size=width, **_SMALL))


def qwen_vl(width: int) -> torch.nn.Module:
    rope = {
        "type": "default",
        "rope_type": "default",
        "mrope_section": [1, 1, 2],
        "rope_theta": 1e4,
    }
    text = {"hidden_size": width, "rope_scaling": rope, **_SMALL}
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "num_heads": 2,
        "intermediate_size": 16,
        "out_hidden_size": width,
    }
    return _made(
        Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    )


def mistral(width: int) -> torch.nn.Module:
    text = {"model_type": "mistral", "hidden_size": width, **_SMALL}
    vision = {
        "model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "head_dim": 8, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    return _made(
        Mistral3ForConditionalGeneration, Mistral3Config(text_config=text, vision_config=vision)
    )
