"""Tokens put before a prompt, in every text encoder that a pipeline has: as ids, or as embeddings
with gradients."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featurestore.errors import ModelError

SUFFIXES = ("", "_2", "_3")
Ids = Sequence[Sequence[int]]
"""a prefix's token ids, a row for each text encoder"""


class Encoder(NamedTuple):
    """A text encoder with its tokenizer."""

    suffix: str
    tokenizer: Any
    module: nn.Module

    @property
    def table(self) -> Tensor:
        """The embeddings of its tokens, ``[vocabulary, width]``."""
        return self.module.get_input_embeddings().weight.detach()  # type: ignore[operator]


def encoders(pipe: Any) -> list[Encoder]:
    """Return a pipeline's text encoders; each reads a prompt of its own (``prompt``, ``prompt_2``,
    …), so a prefix, too.

    Raises:
        ModelError: the pipeline has no text encoder with a tokenizer.
    """
    known = [
        Encoder(suffix, tokenizer, module)
        for suffix in SUFFIXES
        if (tokenizer := getattr(pipe, f"tokenizer{suffix}", None)) is not None
        and (module := getattr(pipe, f"text_encoder{suffix}", None)) is not None
    ]
    if not known:
        raise ModelError(
            f"{type(pipe).__name__} has no text encoder with a tokenizer to attack; use the "
            f"latents attack."
        )
    return known


class _Prefixing:
    """A tokenizer that puts a prefix before each text of one batch, and leaves every other text as
    it is."""

    def __init__(self, inner: Any, prompts: Sequence[str], prefixes: Tensor) -> None:
        self.inner, self.prefixes = inner, prefixes
        self._prompts = [_plain(p) for p in prompts]
        self.made: list[Tensor] = []
        """the ids that were made with prefixes; pipelines tokenise once more to see whether a
        prompt is too long"""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, text: Any, *args: Any, **kwargs: Any) -> Any:
        encoded = self.inner(text, *args, **kwargs)
        texts = [text] if isinstance(text, str) else list(text)
        if [_plain(t) for t in texts] == self._prompts and isinstance(encoded["input_ids"], Tensor):
            encoded["input_ids"] = self._inserted(encoded["input_ids"], self.prefixes)
            self.made.append(encoded["input_ids"])
            if "attention_mask" in encoded:
                ones = torch.ones_like(self.prefixes)
                encoded["attention_mask"] = self._inserted(
                    encoded["attention_mask"], ones, encoded["input_ids"]
                )
        return encoded

    def _inserted(self, ids: Tensor, prefixes: Tensor, of: Tensor | None = None) -> Tensor:
        """Return ids with the prefix after the first special token, as long as before: the last
        ones fall off."""
        at = first_place(self.inner, ids if of is None else of)
        return torch.cat(
            [ids[:, :at], prefixes.to(ids), ids[:, at : ids.shape[1] - prefixes.shape[1]]], 1
        )


def first_place(tokenizer: Any, ids: Tensor) -> int:
    """Return where the words begin: after the token of the beginning, if there is one."""
    begin = getattr(tokenizer, "bos_token_id", None)
    return int(begin is not None and bool((ids[:, 0] == begin).all()))


@contextlib.contextmanager
def prefixed(pipe: Any, prompts: Sequence[str], ids: Sequence[Tensor]) -> Iterator[list[Any]]:
    """Let a pipeline read ``prompts`` with prefixes before them, where it reads this very batch;
    other texts stay.

    ``ids``: for each text encoder ``[prompts, k]``.

    Raises:
        ModelError: the block is over, and a tokenizer did not read this batch as it is: a prefix
            had no effect there.
    """
    known = encoders(pipe)
    wrapped = [_Prefixing(e.tokenizer, prompts, rows) for e, rows in zip(known, ids, strict=True)]
    own = vars(pipe)  # Set past the pipeline's own bookkeeping of its components.
    try:
        own.update({f"tokenizer{e.suffix}": w for e, w in zip(known, wrapped, strict=True)})
        yield wrapped
        for encoder, tokenizer in zip(known, wrapped, strict=True):
            if not tokenizer.made:
                raise ModelError(
                    f"{type(pipe).__name__} cannot be attacked by text: its "
                    f"tokenizer{encoder.suffix} does not read the prompts as they are."
                )
    finally:
        own.update({f"tokenizer{e.suffix}": e.tokenizer for e in known})


@contextlib.contextmanager
def prefixed_embeddings(
    pipe: Any, prompts: Sequence[str], embeddings: Sequence[Tensor]
) -> Iterator[None]:
    """The same with embeddings, for each text encoder ``[prompts, k, width]``; gradients flow to
    them."""
    known = encoders(pipe)
    placeholders = [torch.zeros(rows.shape[:2], dtype=torch.int64) for rows in embeddings]
    with prefixed(pipe, prompts, placeholders) as wrapped, contextlib.ExitStack() as stack:
        for encoder, tokenizer, rows in zip(known, wrapped, embeddings, strict=True):
            for table in _tables(encoder.module):
                stack.callback(table.register_forward_hook(_replacing(tokenizer, rows)).remove)
        yield


def _replacing(tokenizer: _Prefixing, rows: Tensor) -> Callable[..., Tensor | None]:
    def replace(module: Any, args: Any, output: Tensor) -> Tensor | None:
        ids = args[0].cpu()
        if not any(
            ids.shape == made.shape and torch.equal(ids, made.cpu()) for made in tokenizer.made
        ):
            return None
        at = first_place(tokenizer, ids)
        return torch.cat([output[:, :at], rows.to(output), output[:, at + rows.shape[1] :]], 1)

    return replace


def _tables(module: nn.Module) -> list[nn.Module]:
    """Return the modules that look tokens up: T5 has one table as two modules."""
    weight = module.get_input_embeddings().weight  # type: ignore[operator]
    return [
        m
        for m in module.modules()
        if isinstance(m, nn.Embedding) and m.weight.data_ptr() == weight.data_ptr()
    ]


def text_of(pipe: Any, prompt: str, ids: Ids) -> str:
    """Return a prefix and its prompt as text, of the first text encoder; its tokenizer need not
    read it back the same."""
    words = encoders(pipe)[0].tokenizer.decode(list(ids[0]))
    return " ".join(f"{words} {prompt}".split())


def typed_ids(encoder: Encoder) -> Tensor:
    """Return the ids of the tokens that anybody can type before a prompt: the tokenizer reads the
    token's text, alone and twice, as this token.

    Raises:
        ModelError: the tokenizer reads no text as a single token.
    """
    tokenizer, special = encoder.tokenizer, set(encoder.tokenizer.all_special_ids)
    ids = [i for i in range(len(encoder.table)) if i not in special]
    texts = tokenizer.batch_decode([[i] for i in ids])
    texts = [" ".join(text.split()) for text in texts]
    alone = tokenizer(texts, add_special_tokens=False)["input_ids"]
    twice = tokenizer([f"{text} {text}" for text in texts], add_special_tokens=False)["input_ids"]
    found = [
        i for i, one, two in zip(ids, alone, twice, strict=True) if (one, two) == ([i], [i, i])
    ]
    if not found:
        raise ModelError(
            f"{type(tokenizer).__name__} reads no text as one token: there are no words to search; "
            f"use the tokens attack."
        )
    return torch.tensor(found)


def _plain(text: str) -> str:
    return text.lower().strip()  # As PixArt hands prompts on.


class SampledOneHot(torch.autograd.Function):
    """A one-hot row drawn from each row of the simplex; its gradient is passed on, clipped to [−1,
    1]."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Return a drawn row for each of ``rows`` ``[n, vocabulary]``."""
        drawn = torch.multinomial(rows.cpu(), 1, generator=generator).flatten()
        return F.one_hot(drawn, rows.shape[1]).to(rows)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        """Return the rows' gradient."""
        return F.hardtanh(grads[0]), None


def project(rows: Tensor) -> Tensor:
    """Return the nearest point of the simplex for each row (Duchi et al. 2008, figure 1)."""
    ordered = rows.sort(dim=1, descending=True).values
    excess = ordered.cumsum(1) - 1
    places = torch.arange(1, rows.shape[1] + 1, device=rows.device)
    n_positive = (ordered - excess / places > 0).sum(1, keepdim=True)
    return (rows - excess.gather(1, n_positive - 1) / n_positive).clamp_min(0)
