"""Where a diffusion pipeline is read and edited: its denoiser's calls, and the tensors of its
modules.

Nothing here counts calls: the timestep comes from the denoiser's own arguments, so a second
generation, another scheduler or another number of steps are right without being told.
"""

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from featurestore.errors import HookError, ModelError
from sae.diffusion.modules import check_no_cache, denoiser, is_compiled, owns_denoiser, unwrapped
from sae.diffusion.reading.architectures import (
    architecture,
    is_pipeline,
    output_index,
    split_hook,
)
from sae.diffusion.reading.calls import (
    HOW_TO_DECLARE,
    Branches,
    DenoiserCall,
    bound,
    running,
)
from sae.diffusion.reading.direct import direct_call, said_of
from sae.diffusion.reading.grids import CHANNELS_LAST, FRAMES_FIRST
from sae.diffusion.reading.steps import Steps

TIMESTEP = ("timestep", "timesteps", "t")
"""what denoisers of diffusers call it"""


class Layout(NamedTuple):
    """How positions lie in a hooked tensor."""

    height: int
    width: int
    is_map: bool
    """True for ``[B, C, H, W]``, False for ``[B, N, C]`` (height 1, width N)"""
    frames: int = 1
    """of a video, whose maps stand above each other: ``height`` is that of all"""


class Watch:
    """What the denoiser is doing now; see :func:`watch`."""

    def __init__(self) -> None:
        self._call: DenoiserCall | None = None
        self.given: Any = None
        """the timestep as the denoiser was given it, in its own unit; None: by another name"""

    @property
    def call(self) -> DenoiserCall:
        """The call in progress."""
        assert self._call is not None, "read outside of a denoiser call"
        return self._call


@contextlib.contextmanager
def watch(
    pipe: Any, before: Callable[[DenoiserCall], object] = lambda call: None
) -> Iterator[Watch]:
    """Observe the calls of a pipeline's denoiser, whichever pipeline makes them; ``before`` is
    called at the start of each.

    A compiled denoiser keeps the hooks that it was compiled with, so all that is compiled is
    compiled anew: at its next call, and again after this.

    Raises:
        ModelError: the pipeline's class is not known, or one of diffusers' caches is on.
    """
    state, steps, watched = Watch(), Steps(), denoiser(pipe)
    architecture(pipe)
    check_no_cache(watched)

    @torch.compiler.disable
    def observe(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        state._call, arguments = _read(module, args, kwargs, steps)
        state.given = next((arguments[name] for name in TIMESTEP if name in arguments), None)
        if state._call.step == 0:
            check_no_cache(module)
        before(state._call)

    with _recompiled(is_compiled(pipe)):
        handle = watched.register_forward_pre_hook(observe, with_kwargs=True)
        try:
            yield state
        finally:
            handle.remove()


def _read(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], steps: Steps
) -> tuple[DenoiserCall, Mapping[str, Any]]:
    """Return what a denoiser call is, and its arguments by name."""
    call = running(
        module, args, kwargs, lambda owner: is_pipeline(owner) and owns_denoiser(owner, module)
    )
    if call is not None:
        return architecture(call.pipe).read(call, steps), call.arguments
    said = direct_call(module, args, kwargs)
    if said is None:
        raise ModelError(
            f"the denoiser was called by itself, and no pipeline says which samples are "
            f"conditional: call the pipeline, or say it with sae.diffusion.direct_calls; a "
            f"pipeline of your own: {HOW_TO_DECLARE}"
        )
    return said, bound(module, args, kwargs)


def direct_calls(
    pipe: Any, branches: Branches = ("cond",), timestep: float | None = None
) -> contextlib.AbstractContextManager[None]:
    """Say what calls of a denoiser are that no pipeline makes, such as ``pipe.unet(x, t, c)``,
    inside a ``with`` block.

    ``branches``: how their batches are divided, in equal parts. ``timestep``: the scheduler's;
    None: the argument that the denoiser is given is the scheduler's, as in a UNet.
    """
    return said_of(denoiser(pipe), branches, timestep)


@contextlib.contextmanager
def _recompiled(needed: bool) -> Iterator[None]:
    if needed:
        torch.compiler.reset()
    try:
        yield
    finally:
        if needed:
            torch.compiler.reset()


def branch_parts(call: DenoiserCall, tensor: Tensor, hook: str) -> dict[str, slice]:
    """Return which rows of a hooked tensor belong to each branch of the call.

    Raises:
        HookError: the tensor has no row for each sample of the denoiser's batch.
    """
    n = len(tensor)
    if n % len(call.branches) or (call.batch and n != call.batch):
        raise HookError(
            f"module {hook!r} has {n} rows in a call of {call.batch} samples: it is not "
            f"known which are whose."
        )
    size = n // len(call.branches)
    return {branch: slice(i * size, (i + 1) * size) for i, branch in enumerate(call.branches)}


def as_positions(tensor: Tensor) -> tuple[Tensor, Layout]:
    """View a map ``[B, C, H, W]``, maps of frames ``[B, C, F, H, W]`` or a token stream
    ``[B, N, C]`` as ``[B, positions, C]``; writes go to ``tensor``.

    Raises:
        HookError: the tensor has another number of dimensions.
    """
    if tensor.dim() == 4:
        height, width = tensor.shape[2:]
        return tensor.permute(0, 2, 3, 1).flatten(1, 2), Layout(height, width, True)
    if tensor.dim() == 5:
        frames, height, width = tensor.shape[2:]
        positions = tensor.permute(0, 2, 3, 4, 1).flatten(1, 3)
        return positions, Layout(frames * height, width, True, frames)
    if tensor.dim() == 3:
        return tensor, Layout(1, tensor.shape[1], False)
    raise HookError(
        f"a hooked tensor has shape {list(tensor.shape)}: expected a map [B, C, H, W], maps of "
        f"frames [B, C, F, H, W] or tokens [B, N, C]."
    )


def take(output: Any, hook: str, module: nn.Module) -> Tensor:
    """Return the hook's tensor in its module's output: itself, its stream in a tuple, or a
    dataclass's first field.

    Raises:
        HookError: the output holds no tensor that is a map or tokens.
    """
    first = output
    if isinstance(output, (tuple, list)) and output:
        first = output[output_index(module, hook)]
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        first = getattr(output, dataclasses.fields(output)[0].name)
    return _checked(first, hook, module, "returns")


def put(output: Any, tensor: Tensor, hook: str, module: nn.Module) -> Any:
    """Return a module's output with the hook's tensor replaced, in the form that it had."""
    if isinstance(output, Tensor):
        return tensor
    if isinstance(output, (tuple, list)):
        index = output_index(module, hook)
        return type(output)([*output[:index], tensor, *output[index + 1 :]])
    return dataclasses.replace(output, **{dataclasses.fields(output)[0].name: tensor})


def module_input(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], hook: str
) -> Tensor:
    """Return the tensor that a module was called with: its first argument, or ``hidden_states`` or
    ``sample``.

    For an ``-encoder`` hook: ``encoder_hidden_states``.
    """
    where = _input_key(module, args, kwargs, hook)
    entering = args[where] if isinstance(where, int) else kwargs.get(where)
    return _checked(entering, hook, module, "is called with")


def with_input(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, tensor: Tensor, hook: str
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a module's arguments with the tensor of :func:`module_input` replaced."""
    where = _input_key(module, args, kwargs, hook)
    if isinstance(where, int):
        return (*args[:where], tensor, *args[where + 1 :]), kwargs
    return args, {**kwargs, where: tensor}


def _input_key(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], hook: str
) -> int | str:
    if not split_hook(hook)[1]:
        return 0 if args else "sample" if "sample" in kwargs else "hidden_states"
    name = "encoder_hidden_states"
    places = list(inspect.signature(type(module).forward).parameters)[1 : 1 + len(args)]
    return places.index(name) if name in places else name


def before_recorders(module: nn.Module) -> None:
    """Have transformers' own recording of a module's output see what other hooks make of it.

    Text encoders record their layers' hidden states, of which many pipelines take an inner one, by
    hooks that stay from the first call on: an edit behind them would not reach the pipeline.
    """
    hooks = module._forward_hooks
    for key, hook in list(hooks.items()):
        if getattr(hook, "__module__", "") == "transformers.utils.output_capturing":
            hooks[key] = hooks.pop(key)  # to their end


_OTHER_ORDER = (
    FRAMES_FIRST
    | CHANNELS_LAST
    | {"Kandinsky5VisualEmbeddings", "Kandinsky5OutLayer", "LayerNorm", "Linear"}
)
"""classes whose maps of frames are not ``[B, C, F, H, W]``"""


def _checked(value: Any, hook: str, module: nn.Module, verb: str) -> Tensor:
    if (
        isinstance(value, Tensor)
        and value.dim() == 5
        and type(unwrapped(module)).__name__ in _OTHER_ORDER
    ):
        raise HookError(
            f"module {hook!r} {verb} maps of frames in an order of its own, {list(value.shape)}: "
            f"hook a block of the denoiser."
        )
    if isinstance(value, Tensor) and value.is_floating_point() and value.dim() in (3, 4, 5):
        return value
    what = (
        f"a tensor of shape {list(value.shape)}"
        if isinstance(value, Tensor)
        else f"a {type(value).__name__}"
    )
    raise HookError(
        f"module {hook!r} {verb} {what}: only a map [B, C, H, W], maps of frames [B, C, F, H, W] "
        f"or tokens [B, N, C] can be captured."
    )
