"""The tokenizer, its vocabulary learnt from the prompts, and the untrained text encoder."""

import re
from collections import Counter
from itertools import pairwise

import torch
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from minicanvas.canvases import SMALL, Canvas

N_POSITIONS = 16
HIDDEN = 64
START, END = "<|startoftext|>", "<|endoftext|>"


def learn_merges(texts: list[str]) -> list[tuple[str, str]]:
    """Return the byte-pair merges of lower-case texts in the order learnt, words ending in `</w>`
    as CLIP's do.

    The commonest pair is merged first and, of equally common ones, the first in alphabetical order,
    until every word is one token. Only so is the vocabulary, and with it the meaning of the text
    encoder's weights, the same in every process: trainers that break ties by hash order are not.
    """
    counts = Counter(word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower()))
    words = {word: [*word[:-1], f"{word[-1]}</w>"] for word in counts}
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, pieces in words.items():
            for pair in pairwise(pieces):
                pairs[pair] += counts[word]
        if not pairs:
            return merges
        merges.append(min(pairs, key=lambda pair: (-pairs[pair], pair)))
        words = {word: merge(pieces, merges[-1]) for word, pieces in words.items()}


def merge(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """Return the pieces of a word with every occurrence of a pair joined, from the left."""
    joined: list[str] = []
    rest = iter(zip(pieces, [*pieces[1:], ""], strict=True))
    for both in rest:
        joined.append("".join(both) if both == pair else both[0])
        if both == pair:
            next(rest)
    return joined


def new_tokenizer(canvas: Canvas = SMALL) -> CLIPTokenizer:
    """Return a CLIP tokenizer for which every word of a benchmark's prompts is one token and every
    byte is known."""
    asked = canvas.all_prompts(include_plain=True)
    merges = learn_merges([labelled["prompt"] for labelled in asked])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [
        *alphabet,
        *(f"{byte}</w>" for byte in alphabet),
        *("".join(pair) for pair in merges),
        START,
        END,
    ]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=N_POSITIONS)


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return an untrained CLIP text encoder for a tokenizer."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        projection_dim=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=N_POSITIONS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Return token ids int64 [n, N_POSITIONS], padded as the pipeline pads them."""
    encoded = tokenizer(
        texts, padding="max_length", truncation=True, max_length=N_POSITIONS, return_tensors="pt"
    )
    return torch.as_tensor(encoded["input_ids"])
