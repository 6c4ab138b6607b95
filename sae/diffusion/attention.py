"""Where the words of a prompt are looked at: attention, ``softmax(QKᵀ/√d)``, averaged over
heads and over the layers of a block (Hertz et al. 2022, arXiv 2208.01626; Tang et al. 2022, DAAM,
arXiv 2210.04885).

The attention is taken beside the module's own processor, from the module's inputs and weights:
what the model computes stays as it is, whatever processor it has.
"""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from featurestore.errors import HookError, UsageError
from sae.diffusion.hooks import Watch, branch_parts
from sae.diffusion.modules import find_module, is_encoder_hook
from sae.diffusion.reading.architectures import architecture, split_hook
from sae.diffusion.reading.calls import DenoiserCall, bound

WORD_SHARE = 0.4
"""of the largest attention to a word in a map, from which on the word is taken to be there; a
choice of this project"""


def looked_at(maps: Tensor) -> Tensor:
    """Return where words look, bool of the maps' shape ``[…, positions]``: where their attention is
    at least :data:`WORD_SHARE` of its largest value in the map."""
    return maps >= WORD_SHARE * maps.amax(-1, keepdim=True)


def word_tokens(pipe: Any, prompt: str, word: str, n_tokens: int) -> list[int]:
    """Return at which of the ``n_tokens`` of a prompt's text a word stands, all of its occurrences;
    whole words only.

    A text may be those of several tokenizers, one after another (SD3: CLIP's, then T5's).

    Raises:
        UsageError: the word has no tokens.
    """
    found, first = [], 0
    names = architecture(pipe).tokenizers
    for name in names:
        tokenizer = getattr(pipe, name)
        n = n_tokens - first if name == names[-1] else tokenizer.model_max_length
        if tokenizer is not None:
            found += [first + i for i in _places(pipe, tokenizer, prompt, word=word, n=n)]
        first += n
    return found


def _places(pipe: Any, tokenizer: Any, prompt: str, *, word: str, n: int) -> list[int]:
    prepared = architecture(pipe).words
    assert prepared is not None, "word_layers refuses it"
    part = list(tokenizer(prepared(word), add_special_tokens=False)["input_ids"])
    part = [token for token in part if token != tokenizer.eos_token_id]
    if not part:
        raise UsageError(f"the word {word!r} has no tokens.")
    whole = tokenizer(prepared(prompt), truncation=True, max_length=n)["input_ids"]
    starts = [i for i in range(len(whole) - len(part) + 1) if whole[i : i + len(part)] == part]
    return [start + i for start in starts for i in range(len(part))]


class Layer(NamedTuple):
    """A layer that attends to a text's tokens."""

    attn: nn.Module
    joint: bool
    """whether it attends to the picture's positions as well"""
    block: nn.Module | None = None
    """that puts the text's tokens before the positions; None: the layer is given both"""


def word_layers(pipe: Any, hook: str) -> list[Layer]:
    """Return the layers of a hook's module that attend from its positions to the text's tokens.

    Raises:
        HookError: there is no such layer.
    """
    module = find_module(pipe, hook)
    known = architecture(pipe).words is not None and not is_encoder_hook(hook)
    found = [layer for one in module.modules() if (layer := _layer(one))] if known else []
    if not found or split_hook(hook)[1]:
        raise HookError(
            f"module {hook!r} of {type(pipe).__name__} has no attention from positions of the "
            f"picture to the prompt's own tokens: words have maps in the attention layers of "
            f"Stable Diffusion's (1, 2, XL, 3), FLUX.1's and PixArt's blocks."
        )
    return found


def _layer(module: nn.Module) -> Layer | None:
    from diffusers.models.attention_processor import Attention
    from diffusers.models.transformers import transformer_flux as flux

    one: Any = module
    if isinstance(one, (Attention, flux.FluxAttention)):
        joint = one.added_kv_proj_dim is not None
        return Layer(one, joint) if joint or getattr(one, "is_cross_attention", False) else None
    if isinstance(one, flux.FluxSingleTransformerBlock):
        return Layer(one.attn, True, one)
    return None


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


_QUERIES = 1024
"""whose attention to everything is held at once"""


def joint_attention(
    attn: Any, hidden: Tensor, text: Tensor | None, *, n_text: int, rotary: Any = None
) -> Tensor:
    """Return as :func:`attention` where text and picture are attended to together: each position's
    sum over the tokens is what is not attended to in the picture.

    ``text``: None where the tokens are the first ``n_text`` of ``hidden``.
    """
    if text is None:
        keys = _heads(attn, attn.to_k(hidden), attn.norm_k)
        hidden = hidden[:, n_text:]
    else:
        own = _heads(attn, attn.to_k(hidden), attn.norm_k)
        keys = torch.cat([_heads(attn, attn.add_k_proj(text), attn.norm_added_k), own], 2)
    query = _heads(attn, attn.to_q(hidden), attn.norm_q)
    if rotary is not None:
        from diffusers.models.embeddings import apply_rotary_emb

        keys = apply_rotary_emb(keys, rotary)
        query = apply_rotary_emb(query, tuple(part[n_text:] for part in rotary))
    scale = query.shape[3] ** -0.5
    parts = [
        (scale * (some.float() @ keys.float().transpose(2, 3))).softmax(3)[..., :n_text].mean(1)
        for some in query.split(_QUERIES, 2)
    ]
    return torch.cat(parts, 1)


def _heads(attn: Any, values: Tensor, norm: nn.Module | None) -> Tensor:
    """Return queries or keys as ``[batch, heads, n, width]``, normalised where the layer does
    it."""
    heads = values.unflatten(2, (attn.heads, -1)).transpose(1, 2)
    return heads if norm is None else norm(heads)


class WordMaps:
    """How much the positions of one hook attend to words, in the denoiser call under way."""

    def __init__(self, pipe: Any, hook: str, words: Sequence[str]) -> None:
        self.pipe, self.hook, self.words = pipe, hook, list(words)
        self._layers = word_layers(pipe, hook)
        self._n_text = 0
        self._call: DenoiserCall | None = None
        self._sum: Tensor | None = None
        self._n = 0
        self._present = torch.zeros(0, 0, dtype=torch.bool)
        self._chosen: dict[tuple[tuple[str, ...], int], tuple[Tensor, Tensor]] = {}

    @contextlib.contextmanager
    def attached(self, watched: Watch) -> Iterator["WordMaps"]:
        """Follow the layers for as long as the block lasts."""

        handles = []
        for layer in self._layers:
            if layer.block is not None:
                count = layer.block.register_forward_pre_hook(self._count, with_kwargs=True)
                handles.append(count)
            add = functools.partial(self._add, watched=watched, layer=layer)
            handles.append(layer.attn.register_forward_pre_hook(add, with_kwargs=True))
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def of(self, call: DenoiserCall) -> tuple[Tensor, Tensor]:
        """Return the maps of a call's ``cond`` samples, ``[samples, words, positions]``, and which
        words their prompts have, bool ``[samples, words]``; of a call without such samples, those
        of the call before it in the same step.

        Raises:
            HookError: no layer ran in the call.
        """
        last = self._call
        same = last is call or (
            last is not None and "cond" not in call.branches and last.step == call.step
        )
        if not same or self._sum is None:
            raise HookError(f"no attention of {self.hook!r} ran in the denoiser call.")
        return self._sum / self._n, self._present

    def _count(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._n_text = bound(module, args, kwargs)["encoder_hidden_states"].shape[1]

    def _add(
        self,
        module: nn.Module,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        watched: Watch,
        layer: Layer,
    ) -> None:
        call, given = watched.call, bound(module, args, kwargs)
        if "cond" not in call.branches:
            return
        hidden = given["hidden_states"]
        part = branch_parts(call, hidden, self.hook)["cond"]
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            found = self._attention(layer, given, part)
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

    def _attention(self, layer: Layer, given: Mapping[str, Any], part: slice) -> Tensor:
        others = {**given, **given.get("cross_attention_kwargs", {}), **given.get("kwargs", {})}
        text, mask, rotary = (
            others.get(name)
            for name in ("encoder_hidden_states", "attention_mask", "image_rotary_emb")
        )
        hidden, text = given["hidden_states"][part], None if text is None else text[part]
        if layer.joint and mask is None:
            n_text = self._n_text if text is None else text.shape[1]
            return joint_attention(layer.attn, hidden, text, n_text=n_text, rotary=rotary)
        if layer.joint or text is None or rotary is not None:
            raise HookError(
                f"a layer of {self.hook!r} attends in a way that is not known here (a mask over "
                f"text and picture, rotated queries, or no text): its maps cannot be taken."
            )
        return attention(layer.attn, hidden, text, mask[part] if mask is not None else None)

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
