"""Where a diffusion pipeline is read and edited: its denoiser's calls, and the tensors of its modules.

Nothing here counts calls: the timestep comes from the denoiser's own arguments, so a second generation, another
scheduler or another number of steps are right without being told.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from featurestore.errors import HookError, ModelError, nearest

Branch = Literal["cond", "uncond"]
_DENOISERS = ("unet", "transformer")


class DenoiserCall(NamedTuple):
    """One call of the denoiser, as it was made."""

    timestep: float
    branches: tuple[Branch, ...]
    """how the batch is divided, in equal parts, from its start"""


class Layout(NamedTuple):
    """How positions lie in a hooked tensor."""

    height: int
    width: int
    is_map: bool
    """True for ``[B, C, H, W]``, False for ``[B, N, C]`` (height 1, width N)"""


def denoiser(pipe: Any) -> nn.Module:
    """Return a pipeline's denoiser: its ``unet`` or its ``transformer``.

    Raises:
        ModelError: it has neither.
    """
    for name in _DENOISERS:
        module = getattr(pipe, name, None)
        if isinstance(module, nn.Module):
            return module
    raise ModelError(
        f"{type(pipe).__name__} has no {' and no '.join(_DENOISERS)}: it is no text-to-image pipeline of diffusers."
    )


def find_module(pipe: Any, hook: str) -> nn.Module:
    """Return the module that a hook path such as ``unet.up_blocks.1.attentions.1`` names.

    Raises:
        HookError: there is none; the nearest paths are offered.
    """
    root, _, path = hook.partition(".")
    module = getattr(pipe, root, None)
    if isinstance(module, nn.Module):
        with contextlib.suppress(AttributeError):
            return module.get_submodule(path)
    parts = [name for name in _DENOISERS if isinstance(getattr(pipe, name, None), nn.Module)]
    known = [f"{part}.{name}" for part in parts for name, _ in getattr(pipe, part).named_modules() if name]
    raise HookError(f"the model has no module {hook!r}.{nearest(hook, known)}")


class Watch:
    """What the denoiser is doing now; see :func:`watch`."""

    def __init__(self) -> None:
        self._call: DenoiserCall | None = None

    @property
    def call(self) -> DenoiserCall:
        """The call in progress."""
        assert self._call is not None, "read outside of a denoiser call"
        return self._call


@contextlib.contextmanager
def watch(pipe: Any, before: Callable[[DenoiserCall], object] = lambda call: None) -> Iterator[Watch]:
    """Observe the denoiser's calls; ``before`` is called at the start of each."""
    state = Watch()

    def observe(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
        state._call = DenoiserCall(_scalar(timestep), _branches(pipe))
        before(state._call)

    handle = denoiser(pipe).register_forward_pre_hook(observe, with_kwargs=True)
    try:
        yield state
    finally:
        handle.remove()


def _scalar(timestep: Any) -> float:
    values = torch.as_tensor(timestep).flatten()
    if not bool((values == values[0]).all()):
        raise ModelError(
            f"one denoiser call has several timesteps ({values.tolist()}): pipelines give all samples the same."
        )
    return float(values[0])


def _branches(pipe: Any) -> tuple[Branch, ...]:
    guided = getattr(pipe, "do_classifier_free_guidance", None)
    if guided is None:
        raise ModelError(f"{type(pipe).__name__} does not tell whether guidance is on: it is not supported yet.")
    return ("uncond", "cond") if guided else ("cond",)


def as_positions(tensor: Tensor) -> tuple[Tensor, Layout]:
    """View a map ``[B, C, H, W]`` or a token stream ``[B, N, C]`` as ``[B, positions, C]``; writes go to ``tensor``.

    Raises:
        HookError: the tensor has another number of dimensions.
    """
    if tensor.dim() == 4:
        height, width = tensor.shape[2:]
        return tensor.permute(0, 2, 3, 1).flatten(1, 2), Layout(height, width, True)
    if tensor.dim() == 3:
        return tensor, Layout(1, tensor.shape[1], False)
    raise HookError(f"a hooked tensor has shape {list(tensor.shape)}: expected a map [B, C, H, W] or tokens [B, N, C].")


def take(output: Any, hook: str) -> Tensor:
    """Return the tensor in a module's output: itself, the first of a tuple, or a dataclass's first field.

    Raises:
        HookError: there is none.
    """
    first = output
    if isinstance(output, (tuple, list)) and output:
        first = output[0]
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        first = getattr(output, dataclasses.fields(output)[0].name)
    if isinstance(first, Tensor) and first.is_floating_point() and first.dim() in (3, 4):
        return first
    what = f"a tensor of shape {list(first.shape)}" if isinstance(first, Tensor) else f"a {type(first).__name__}"
    raise HookError(f"module {hook!r} returns {what}: only a map [B, C, H, W] or tokens [B, N, C] can be captured.")


def put(output: Any, tensor: Tensor) -> Any:
    """Return a module's output with its tensor replaced, in the form that it had."""
    if isinstance(output, Tensor):
        return tensor
    if isinstance(output, (tuple, list)):
        return type(output)([tensor, *output[1:]])
    return dataclasses.replace(output, **{dataclasses.fields(output)[0].name: tensor})


def module_input(args: tuple[Any, ...], kwargs: Mapping[str, Any], hook: str) -> Tensor:
    """Return the tensor that a module was called with: its first argument, or ``hidden_states`` or ``sample``."""
    first = args[0] if args else next((kwargs[k] for k in ("hidden_states", "sample") if k in kwargs), None)
    return take(first, hook)
