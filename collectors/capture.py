"""Read modules' tensors while a pipeline runs."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from featurestore.errors import HookError
from sae.diffusion.calls import DenoiserCall
from sae.diffusion.hooks import Layout, as_positions, branch_parts, module_input, take, watch
from sae.diffusion.modules import capturable, find_module


class Captured(NamedTuple):
    """What one hook saw in one denoiser call."""

    call: DenoiserCall
    hook: str
    values: Tensor
    """``[batch, positions, d_in]``, on the denoiser's device; the next call may overwrite it"""
    layout: Layout


@contextlib.contextmanager
def capture(
    pipe: Any,
    hooks: Sequence[str],
    sink: Callable[[Captured], object],
    io: str = "output",
    *,
    before: Callable[[DenoiserCall], object] = lambda call: None,
) -> Iterator[None]:
    """Hand each hook's tensor of every denoiser call to ``sink``; ``before`` sees each call first.
    Hooks are removed at the end.

    ``io`` is ``output``, ``input`` or ``difference`` (output − input) of the module.

    Raises:
        HookError: a hook names no module, its module returns no map or token stream, or it does not
            run once in each denoiser call.
    """
    modules = {hook: find_module(pipe, hook) for hook in hooks}
    seen: set[str] = set(hooks)
    whole = True

    def begin(call: DenoiserCall) -> None:
        nonlocal whole
        end_call()
        seen.clear()
        whole = not {"cond", "uncond"}.isdisjoint(
            call.branches
        )  # Skip-layer guidance leaves blocks out on purpose.
        before(call)

    def end_call() -> None:
        for hook in hooks if whole else ():
            if hook not in seen:
                raise HookError(
                    f"module {hook!r} did not run in a denoiser call.{capturable(pipe)}"
                )

    with contextlib.ExitStack() as stack:
        state = stack.enter_context(watch(pipe, begin))

        def attach(hook: str, module: nn.Module) -> None:
            def read(
                module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
            ) -> None:
                if hook in seen:
                    raise HookError(
                        f"module {hook!r} runs more than once in a denoiser call.{capturable(pipe)}"
                    )
                seen.add(hook)
                try:
                    tensor = _io_tensor(args, kwargs, output, hook=hook, io=io, module=module)
                    branch_parts(state.call, tensor, hook)
                except HookError as error:
                    raise HookError(f"{error}{capturable(pipe)}") from None
                values, layout = as_positions(tensor.detach())
                with torch.autocast(
                    values.device.type, enabled=False
                ):  # Codes are taken in full precision.
                    sink(Captured(state.call, hook, values, layout))

            stack.callback(module.register_forward_hook(read, with_kwargs=True).remove)

        for hook, module in modules.items():
            attach(hook, module)
        yield
        end_call()


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
