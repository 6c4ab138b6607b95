"""Text encoders of a pipeline: whose text a call encodes, and which of its tokens are padding.

A prompt is encoded once, before the first step, so its one call counts as one step, at timestep 0.
Every pipeline of diffusers encodes the prompts first, then the negative prompts: an encoder's first
call in a pipeline call is ``cond``, its second ``uncond``. What can be checked of that is checked.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from featurestore.errors import ModelError
from sae.diffusion.hooks import Watch
from sae.diffusion.modules import encoder_of, unwrapped
from sae.diffusion.reading.architectures import architecture, is_pipeline
from sae.diffusion.reading.calls import DenoiserCall, Running, running

ENCODED = 0.0
"""timestep of what is encoded"""


class TextWatch(Watch):
    """What a text encoder is doing now."""

    real: Tensor | None = None
    """bool ``[batch, tokens]``: which tokens are the text's, and not padding; None: not known"""


class _Order:
    """Which text is encoded, by the order of an encoder's calls in one pipeline call."""

    def __init__(self) -> None:
        self._frame: FrameType | None = None
        self._n: Counter[str] = Counter()

    def branch(self, call: Running, name: str) -> str:
        if call.frame is not self._frame:
            self._frame, self._n = call.frame, Counter()
        self._n[name] += 1
        if self._n[name] > 2:
            raise ModelError(
                f"{type(call.pipe).__name__} called its {name} more than twice for one batch: "
                f"only a call for the prompts, and one for the negative prompts, can be told apart."
            )
        if self._n[name] == 1:
            _check_first(call, name)
        return ("cond", "uncond")[self._n[name] - 1]

    def forget(self) -> None:
        self._frame = None


def _check_first(call: Running, name: str) -> None:
    """Refuse a first call whose rows are all alike though the prompts differ: it would be that of
    the negative prompt.

    Raises:
        ModelError: so it is, or there is no row for each prompt.
    """
    prompts, ids = call.prompts, next(iter(call.arguments.values()))
    if not prompts or not isinstance(ids, Tensor):
        return
    if len(ids) != len(prompts):
        raise ModelError(
            f"{type(call.pipe).__name__} called its {name} with {len(ids)} texts for "
            f"{len(prompts)} prompts: it is not known which are whose."
        )
    if len(set(prompts)) > 1 and bool((ids == ids[:1]).all()):
        raise ModelError(
            f"{type(call.pipe).__name__} called its {name} with {len(prompts)} equal texts for "
            f"prompts that differ: it does not encode the prompts first."
        )


@contextlib.contextmanager
def watch_encoder(
    pipe: Any, name: str, before: Callable[[DenoiserCall], object] = lambda call: None
) -> Iterator[TextWatch]:
    """Observe the calls of a pipeline's text encoder such as ``text_encoder_2``; ``before`` is
    called at the start of each.

    Raises:
        ModelError: the pipeline's class is not known.
    """
    state, order, module = TextWatch(), _Order(), encoder_of(pipe, name)
    architecture(pipe)

    def owns(owner: Any) -> bool:
        return is_pipeline(owner) and unwrapped(getattr(owner, name, None)) is module

    def observe(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        call = running(module, args, kwargs, owns)
        if call is None:
            raise ModelError(f"the {name} was called by itself, and no pipeline says whose text.")
        branch = order.branch(call, name)
        state._call = DenoiserCall(ENCODED, (branch,), 0, (ENCODED,), call.batch)
        state.real = real_tokens(call.pipe, name, call.arguments)
        before(state._call)

    handle = module.register_forward_pre_hook(observe, with_kwargs=True)
    try:
        yield state
    finally:
        handle.remove()
        order.forget()


def real_tokens(pipe: Any, name: str, arguments: Mapping[str, Any]) -> Tensor | None:
    """Return which tokens of an encoder's call are the text's, bool ``[batch, tokens]``; None where
    nothing says it.

    Those of its ``attention_mask``; without one, all but the tokenizer's padding at the right, of
    which the first is the end of the text where both are the same token (CLIP).
    """
    mask, ids = arguments.get("attention_mask"), arguments.get("input_ids")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return mask.bool()
    tokenizer: Any = getattr(pipe, name.replace("text_encoder", "tokenizer"), None)
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor (Kandinsky 5)
    pad = getattr(tokenizer, "pad_token_id", None)
    if not isinstance(ids, Tensor) or pad is None or tokenizer.padding_side != "right":
        return None
    trailing = (ids == pad).int().flip(1).cumprod(1).flip(1).bool()
    real = ~trailing
    if pad == getattr(tokenizer, "eos_token_id", None):
        ends = torch.nn.functional.pad(real, (1, 0))[:, :-1] & trailing
        real = real | ends
    return real
