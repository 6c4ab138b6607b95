"""Read modules' tensors while a pipeline runs."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from featurestore.errors import HookError
from sae.diffusion.encoders import watch_encoder
from sae.diffusion.hooks import Layout, Watch, as_positions, branch_parts, module_input, take, watch
from sae.diffusion.modules import capturable, find_module, is_encoder_hook
from sae.diffusion.reading.calls import DenoiserCall


class Captured(NamedTuple):
    """What one hook saw in one denoiser call, or in one call of a text encoder."""

    call: DenoiserCall
    hook: str
    values: Tensor
    """``[batch, positions, d_in]``, on the denoiser's device; the next call may overwrite it"""
    layout: Layout
    real: Tensor | None = None
    """bool ``[batch, positions]``, of a text encoder: which tokens are not padding"""


Sink = Callable[[Captured], object]


@contextlib.contextmanager
def capture(
    pipe: Any,
    hooks: Sequence[str],
    sink: Sink,
    io: str = "output",
    *,
    before: Callable[[DenoiserCall], object] = lambda call: None,
) -> Iterator[None]:
    """Hand each hook's tensor of every denoiser call, and of every call of a text encoder, to
    ``sink``; ``before`` sees each denoiser call first. Hooks are removed at the end.

    ``io`` is ``output``, ``input`` or ``difference`` (output − input) of the module.

    Raises:
        HookError: a hook names no module, its module returns no map or token stream, or it does not
            run once in each call.
    """
    named: dict[str, list[str]] = {}
    for hook in hooks:
        find_module(pipe, hook)
        part = hook.partition(".")[0] if is_encoder_hook(hook) else ""
        named.setdefault(part, []).append(hook)
    calls = []
    with contextlib.ExitStack() as stack:
        for part in sorted({"", *named}):
            seen = _Seen(pipe, named.get(part, []), before if not part else lambda call: None)
            watched = watch_encoder(pipe, part, seen.begin) if part else watch(pipe, seen.begin)
            state = stack.enter_context(watched)
            for hook in seen.hooks:
                read = _reader(pipe, hook, state, seen, sink=sink, io=io)
                module = find_module(pipe, hook)
                stack.callback(module.register_forward_hook(read, with_kwargs=True).remove)
            calls.append(seen)
        yield
        for seen in calls:
            seen.end()


class _Seen:
    """Which hooks ran in the call of their part that is under way."""

    def __init__(
        self, pipe: Any, hooks: Sequence[str], before: Callable[[DenoiserCall], object]
    ) -> None:
        self.pipe, self.hooks, self.before = pipe, list(hooks), before
        self.ran: set[str] = set()
        self.called = False
        self._whole = True

    def begin(self, call: DenoiserCall) -> None:
        self.end()
        self.ran.clear()
        self.called = True
        # Skip-layer guidance leaves blocks out on purpose.
        self._whole = not {"cond", "uncond"}.isdisjoint(call.branches)
        self.before(call)

    def end(self) -> None:
        for hook in self.hooks if self.called and self._whole else ():
            if hook not in self.ran:
                raise HookError(
                    f"module {hook!r} did not run in a {_place(hook)}.{capturable(self.pipe)}"
                )

    def add(self, hook: str) -> None:
        if hook in self.ran:
            raise HookError(
                f"module {hook!r} runs more than once in a {_place(hook)}.{capturable(self.pipe)}"
            )
        self.ran.add(hook)


def _place(hook: str) -> str:
    return "call of its text encoder" if is_encoder_hook(hook) else "denoiser call"


def _reader(
    pipe: Any, hook: str, state: Watch, seen: _Seen, *, sink: Sink, io: str
) -> Callable[..., None]:
    def read(
        module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> None:
        seen.add(hook)
        try:
            tensor = _io_tensor(args, kwargs, output, hook=hook, io=io, module=module)
            branch_parts(state.call, tensor, hook)
        except HookError as error:
            raise HookError(f"{error}{capturable(pipe)}") from None
        values, layout = as_positions(tensor.detach())
        # Codes are taken in full precision.
        with torch.autocast(values.device.type, enabled=False):
            sink(Captured(state.call, hook, values, layout, getattr(state, "real", None)))

    return read


def _io_tensor(
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    output: Any,
    *,
    hook: str,
    io: str,
    module: nn.Module,
) -> Tensor:
    if io == "output":
        return take(output, hook, module)
    entering = module_input(module, args, kwargs, hook)
    if io == "input":
        return entering
    leaving = take(output, hook, module)
    if leaving.shape != entering.shape:
        raise HookError(
            f"module {hook!r} turns {list(entering.shape)} into {list(leaving.shape)}: there is "
            f"no difference of the two."
        )
    return leaving - entering
