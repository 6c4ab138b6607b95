"""Cross-attention maps of words while a pipeline runs, and their table ``attention/<hook>``
(docs/format.md, section 1.2)."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from torch import Tensor

from collectors.keep import kept_steps
from featurestore.errors import HookError
from featurestore.format.schemas import attention_schema
from sae.diffusion.attention import WordMaps
from sae.diffusion.hooks import Layout, as_positions, take, watch
from sae.diffusion.modules import find_module
from sae.diffusion.reading.calls import DenoiserCall


class SeenWords(NamedTuple):
    """How much one hook's positions attend to words, in one denoiser call."""

    call: DenoiserCall
    hook: str
    maps: Tensor
    """``[samples, words, positions]`` float32, of the conditional samples"""
    present: Tensor
    """bool ``[samples, words]``: whether the sample's prompt has the word"""
    layout: Layout


@contextlib.contextmanager
def capture_words(
    pipe: Any, hooks: Sequence[str], words: Sequence[str], sink: Callable[[SeenWords], object]
) -> Iterator[None]:
    """Hand the maps of ``words`` at each hook to ``sink``, after the hook's module in every
    denoiser call that has conditional samples.

    Raises:
        HookError: a hook's module has no attention to the text.
    """
    with contextlib.ExitStack() as stack:
        state = stack.enter_context(watch(pipe))
        for hook in hooks if words else ():
            maps = stack.enter_context(WordMaps(pipe, hook, words).attached(state))
            module = find_module(pipe, hook)
            read = _reader(hook, maps, state, sink)
            stack.callback(module.register_forward_hook(read).remove)
        yield


def _reader(
    hook: str, maps: WordMaps, state: Any, sink: Callable[[SeenWords], object]
) -> Callable[..., None]:
    def read(module: Any, args: tuple[Any, ...], output: Any) -> None:
        call = state.call
        if "cond" in call.branches:
            found, present = maps.of(call)
            _, layout = as_positions(take(output, hook, module))
            if layout.height * layout.width != found.shape[2]:
                raise HookError(
                    f"module {hook!r} returns {layout.height * layout.width} positions, its "
                    f"attention has {found.shape[2]}: name a block of one size."
                )
            sink(SeenWords(call, hook, found, present, layout))

    return read


class WordRows:
    """The rows of ``attention/<hook>`` of a work item."""

    def __init__(
        self, hook: str, words: Sequence[str], sample_ids: Sequence[int], timesteps: str
    ) -> None:
        self.table = f"attention/{hook}"
        self.hook, self.words, self.sample_ids = hook, list(words), list(sample_ids)
        self._timesteps = timesteps
        self._maps: dict[tuple[int, int, int], npt.NDArray[np.float16]] = {}
        self._steps: dict[int, float] = {}
        self._layout: Layout | None = None

    def put(self, seen: SeenWords, start: int) -> None:
        """Keep what is wanted of one call; the batch begins at sample ``start`` of the work
        item."""
        schedule = seen.call.schedule
        self._layout = seen.layout
        if seen.call.step not in kept_steps(self._timesteps, len(schedule)):
            return
        self._steps[seen.call.step] = seen.call.timestep
        maps, present = seen.maps.half().cpu().numpy(), seen.present.tolist()
        for sample, words in enumerate(present):
            for word, has in enumerate(words):
                if has:
                    self._maps[start + sample, seen.call.step, word] = maps[sample, word]

    def rows(self) -> pa.Table:
        """Return the rows by sample, step, word; a word that a prompt has not has none.

        Raises:
            HookError: no layer of the hook ran.
        """
        if self._layout is None:
            raise HookError(f"no attention of {self.hook!r} ran: there are no maps of words.")
        layout, keys = self._layout, sorted(self._maps)
        n = layout.height * layout.width
        metadata = {"hook": self.hook, "height": layout.height, "width": layout.width}
        schema = attention_schema(n).with_metadata(
            {f"featurestore.{key}": str(value) for key, value in metadata.items()}
        )
        values = np.array([self._maps[key] for key in keys], np.float16).reshape(-1)
        columns: Mapping[str, Any] = {
            "sample_id": [self.sample_ids[sample] for sample, _, _ in keys],
            "step": [step for _, step, _ in keys],
            "timestep": [self._steps[step] for _, step, _ in keys],
            "branch": ["cond"] * len(keys),
            "word": [self.words[word] for _, _, word in keys],
        }
        arrays = [pa.array(columns[field.name], field.type) for field in list(schema)[:-1]]
        kind = schema.field("attention").type
        arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(values), type=kind))
        return pa.Table.from_arrays(arrays, schema=schema)
