"""Where the words of a prompt are looked at: cross-attention, ``softmax(QKᵀ/√d)``, averaged over
heads and over the layers of a block (Hertz et al. 2022, arXiv 2208.01626; Tang et al. 2022, DAAM,
arXiv 2210.04885).

The attention is taken beside the module's own processor, from the module's inputs and weights:
what the model computes stays as it is, whatever processor it has.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from featurestore.errors import HookError, UsageError
from sae.diffusion.hooks import Watch, branch_parts
from sae.diffusion.modules import find_module, is_encoder_hook
from sae.diffusion.reading.architectures import architecture
from sae.diffusion.reading.calls import DenoiserCall

WORD_SHARE = 0.4
"""of the largest attention to a word in a map, from which on the word is taken to be there; a choice
of this project"""


def looked_at(maps: Tensor) -> Tensor:
    """Return where words look, bool of the maps' shape ``[…, positions]``: where their attention is
    at least :data:`WORD_SHARE` of its largest value in the map."""
    return maps >= WORD_SHARE * maps.amax(-1, keepdim=True)


def word_tokens(pipe: Any, prompt: str, word: str, n_tokens: int) -> list[int]:
    """Return at which of the ``n_tokens`` of a prompt a word stands, all of its occurrences; whole
    words only.

    Raises:
        UsageError: the word has no tokens.
    """
    prepared, tokenizer = architecture(pipe).words, pipe.tokenizer
    assert prepared is not None, "cross_attentions refuses it"
    part = list(tokenizer(prepared(word), add_special_tokens=False)["input_ids"])
    part = [token for token in part if token != tokenizer.eos_token_id]
    if not part:
        raise UsageError(f"the word {word!r} has no tokens.")
    whole = tokenizer(prepared(prompt), truncation=True, max_length=n_tokens)["input_ids"]
    starts = [i for i in range(len(whole) - len(part) + 1) if whole[i : i + len(part)] == part]
    return [start + i for start in starts for i in range(len(part))]


def cross_attentions(pipe: Any, hook: str) -> dict[str, nn.Module]:
    """Return the layers of a hook's module that attend from its positions to the text's tokens, by
    their names in it.

    Raises:
        HookError: there is no such layer.
    """
    from diffusers.models.attention_processor import Attention

    module = find_module(pipe, hook)
    found = {
        name: one
        for name, one in module.named_modules()
        if isinstance(one, Attention) and getattr(one, "is_cross_attention", False)
    }
    if not found or architecture(pipe).words is None or is_encoder_hook(hook):
        raise HookError(
            f"module {hook!r} of {type(pipe).__name__} has no cross-attention to the prompt's own "
            f"tokens: words have maps in the attention layers of Stable Diffusion's and PixArt's "
            f"blocks, and not where text and picture are one stream."
        )
    return found


def attention(attn: Any, hidden: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return how much each position attends to each token, ``[batch, positions, tokens]`` float32,
    averaged over heads; each position's sum over the tokens is 1."""
    if hidden.dim() == 4:
        hidden = hidden.flatten(2).transpose(1, 2)
    if attn.norm_cross:
        text = attn.norm_encoder_hidden_states(text)
    query = _heads(attn, attn.to_q(hidden), attn.norm_q)
    key = _heads(attn, attn.to_k(text), attn.norm_k)
    scores = attn.scale * (query.float() @ key.float().transpose(2, 3))
    if mask is not None:
        batch, tokens = text.shape[:2]
        prepared = attn.prepare_attention_mask(mask, tokens, batch)
        scores = scores + prepared.view(batch, attn.heads, -1, tokens)
    return scores.softmax(3).mean(1)


def _heads(attn: Any, values: Tensor, norm: nn.Module | None) -> Tensor:
    """Return queries or keys as ``[batch, heads, n, width]``, normalised where the layer does
    it."""
    heads = values.unflatten(2, (attn.heads, -1)).transpose(1, 2)
    return heads if norm is None else norm(heads)


class WordMaps:
    """How much the positions of one hook attend to words, in the denoiser call under way."""

    def __init__(self, pipe: Any, hook: str, words: Sequence[str]) -> None:
        self.pipe, self.hook, self.words = pipe, hook, list(words)
        self._layers = cross_attentions(pipe, hook)
        self._call: DenoiserCall | None = None
        self._sum: Tensor | None = None
        self._n = 0
        self._present = torch.zeros(0, 0, dtype=torch.bool)
        self._chosen: dict[tuple[tuple[str, ...], int], tuple[Tensor, Tensor]] = {}

    @contextlib.contextmanager
    def attached(self, watched: Watch) -> Iterator["WordMaps"]:
        """Follow the layers for as long as the block lasts."""

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            self._add(watched.call, module, args, kwargs)

        handles = [
            layer.register_forward_pre_hook(before, with_kwargs=True)
            for layer in self._layers.values()
        ]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def of(self, call: DenoiserCall) -> tuple[Tensor, Tensor]:
        """Return the maps of a call's ``cond`` samples, ``[samples, words, positions]``, and which
        words their prompts have, bool ``[samples, words]``.

        Raises:
            HookError: no layer ran in the call.
        """
        if self._call is not call or self._sum is None:
            raise HookError(f"no cross-attention of {self.hook!r} ran in the denoiser call.")
        return self._sum / self._n, self._present

    def _add(
        self, call: DenoiserCall, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        if "cond" not in call.branches:
            return
        hidden = args[0] if args else kwargs["hidden_states"]
        text = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
        if text is None or kwargs.get("image_rotary_emb") is not None:
            raise HookError(
                f"a layer of {self.hook!r} attends with rotated queries, or to no text: its maps "
                f"cannot be taken."
            )
        part = branch_parts(call, hidden, self.hook)["cond"]
        mask = kwargs.get("attention_mask")
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            found = attention(
                module, hidden[part], text[part], mask[part] if mask is not None else None
            )
            chosen, self._present = self._selection(call, found.shape[2])
            found = chosen.to(found.device) @ found.transpose(1, 2)
        if self._call is not call:
            self._call, self._sum, self._n = call, found, 1
            return
        if self._sum is not None and self._sum.shape != found.shape:
            raise HookError(
                f"the layers of {self.hook!r} have maps of {self._sum.shape[2]} and "
                f"{found.shape[2]} positions: name a block of one size."
            )
        self._sum, self._n = found if self._sum is None else self._sum + found, self._n + 1

    def _selection(self, call: DenoiserCall, n_tokens: int) -> tuple[Tensor, Tensor]:
        """Return the mean over each word's tokens as a matrix, ``[samples, words, tokens]``, and
        which words are there."""
        if not call.prompts:
            raise UsageError(
                f"{type(self.pipe).__name__} was called without prompts (embeddings were given): "
                f"its words cannot be found."
            )
        key = (call.prompts, n_tokens)
        if key not in self._chosen:
            matrix = torch.zeros(len(call.prompts), len(self.words), n_tokens)
            for sample, prompt in enumerate(call.prompts):
                for i, word in enumerate(self.words):
                    tokens = word_tokens(self.pipe, prompt, word, n_tokens)
                    matrix[sample, i, tokens] = 1 / max(1, len(tokens))
            self._chosen = {key: (matrix, matrix.sum(2) > 0)}
        return self._chosen[key]
