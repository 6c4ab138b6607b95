"""Take a concept's features out while pictures are generated (arXiv 2501.18052, section 3;
docs/ablation.md)."""

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from featurestore.errors import SelectionError, UsageError
from featurestore.saes import sae_files_hash
from featurestore.selection import Selection
from featurestore.vocabulary import DEFAULT_STRENGTH, HALVES, MODES, TEXT_ENCODERS
from sae.checkpoint import load_sae, load_selection_sae, sae_identity
from sae.diffusion.attention import word_layers
from sae.diffusion.encoders import watch_encoder
from sae.diffusion.hooks import Watch, watch
from sae.diffusion.loading.weights import in_common, model_hash, same_model
from sae.diffusion.modules import denoiser, encoder_of, is_encoder_hook
from sae.diffusion.reading.architectures import split_hook
from sae.intervention.edit import Editor, Site
from sae.intervention.settings import Intervention
from sae.model import SAE

Saes = SAE | Mapping[str, SAE] | Sequence[Path] | None
"""the SAE of all selections; SAEs by ``Selection.sae_hash`` or ``.sae``; directories of SAEs'
files; None: in the stores"""


class Handle:
    """Attached interventions."""

    def __init__(self, hooks: contextlib.ExitStack) -> None:
        self._hooks = hooks

    def detach(self) -> None:
        """Remove every hook; a second call does nothing."""
        self._hooks.close()


@contextlib.contextmanager
def ablate(
    pipe: Any,
    interventions: Selection | Intervention | Sequence[Selection | Intervention],
    *,
    strength: float = DEFAULT_STRENGTH,
    saes: Saes = None,
    mode: str = "paper",
) -> Iterator[None]:
    """Edit everything that ``pipe`` generates inside the ``with`` block; arguments and errors as
    :func:`attach`."""
    handle = attach(pipe, interventions, strength=strength, saes=saes, mode=mode)
    try:
        yield
    finally:
        handle.detach()


def attach(
    pipe: Any,
    interventions: Selection | Intervention | Sequence[Selection | Intervention],
    *,
    strength: float = DEFAULT_STRENGTH,
    saes: Saes = None,
    mode: str = "paper",
) -> Handle:
    """Edit everything that ``pipe`` generates, until the handle's ``detach``.

    A selection stands for the paper's rule with γ = ``strength``: at every denoiser call and
    position ``f_i ← γ · μ(i,t,D_c) · f_i`` where feature ``i`` is selected at the call's timestep
    and ``f_i > μ(i,t,D)`` (:func:`sae.intervention.rules.paper_rule`). An :class:`Intervention`
    says otherwise, its own strength included. The reconstruction error is kept, so the hooked
    tensor becomes ``x + Σ (f_i' − f_i) · W_dec[i]``; positions that no edit reaches, and everything
    when nothing is selected, stay the same bit for bit. The features of the nearest recorded
    timestep are used. Differentiable where gradients are on.

    Several interventions may share a hook: where two edit one feature at one position, the larger
    edit holds; steering adds up; a replaced position is edited by nothing else; another SAE on the
    same hook sees what the first has left.

    ``saes`` are by default loaded from the stores that the selections name. ``mode``: ``paper``;
    ``beyond-k``, the same, and features count that are not among the k largest; ``no-error``, the
    reconstruction in place of the tensor; or ``saeuron``, for comparison only.

    Raises:
        SelectionError: a selection was made for another model, SAE or hook; nothing was hooked.
        UsageError: there is no selection, or no such mode.
        SAEError: mode ``beyond-k``, and an SAE is not TopK.
    """
    given = (
        [interventions]
        if isinstance(interventions, (Selection, Intervention))
        else list(interventions)
    )
    if not given:
        raise UsageError("no selection to ablate.")
    if mode not in MODES:
        raise UsageError(f"mode {mode!r}: expected one of {', '.join(MODES)}.")
    sites: dict[Site, list[Intervention]] = {}
    for one in given:
        intervention = Intervention(one, strength=strength) if isinstance(one, Selection) else one
        _check(pipe, intervention, mode)
        for branch in HALVES if mode == "saeuron" else intervention.branches:
            chosen = intervention.selection
            sites.setdefault(Site(chosen.hook, chosen.io, chosen.sae_hash, branch), []).append(
                intervention
            )
    found = find_saes((own[0].selection for own in sites.values()), saes)
    if mode == "beyond-k":
        found = {sae_hash: sae.beyond_k() for sae_hash, sae in found.items()}
    editors = [
        Editor(pipe, site, own, sae=found[site.sae_hash], mode=mode) for site, own in sites.items()
    ]
    with contextlib.ExitStack() as stack:
        watched: dict[str, Watch] = {}
        for editor in editors:
            hook = editor.site.hook
            part = hook.partition(".")[0] if is_encoder_hook(hook) else ""
            if part not in watched:
                observed = watch_encoder(pipe, part) if part else watch(pipe)
                watched[part] = stack.enter_context(observed)
            if editor.words is not None:
                stack.enter_context(editor.words.attached(watched[part]))
            stack.callback(editor.attach(watched[part]).remove)
        return Handle(stack.pop_all())


def _check(pipe: Any, intervention: Intervention, mode: str) -> None:
    selection = intervention.selection
    found = model_hash(denoiser(pipe))
    if not same_model(found, selection.model_hash):
        raise SelectionError(
            f"the selection {selection.family}={selection.concept} was made for the weights of "
            f"model {selection.model!r} ({selection.model_hash[:16]}…), this pipeline has others "
            f"({found[:16]}…){in_common(found, selection.model_hash)}."
        )
    if is_encoder_hook(selection.hook):
        _check_encoder(pipe, selection)
    if intervention.mask is not None and split_hook(selection.hook)[1]:
        raise UsageError(f"a mask is spatial: the tokens of {selection.hook!r} are words.")
    if intervention.mask_from:
        word_layers(pipe, selection.hook)
        if selection.io == "input":
            raise UsageError(
                f"a mask from the word {intervention.mask_from!r}: the words' attention is known "
                f"when {selection.hook!r} has run, its input is edited before."
            )
    if mode == "saeuron" and intervention.kind != "paper":
        raise UsageError(f"mode saeuron has the paper's rule only, found {intervention.kind!r}.")
    if mode == "saeuron" and intervention.toward is not None:
        raise UsageError("mode saeuron has the paper's rule only: nothing is edited towards.")


def _check_encoder(pipe: Any, selection: Selection) -> None:
    """Refuse another text encoder than the selection's store had, if that says which it was."""
    name = selection.hook.partition(".")[0]
    recorded = selection.run.get(TEXT_ENCODERS)
    wanted = recorded.get(name) if isinstance(recorded, Mapping) else None
    if wanted is None:
        return
    found = model_hash(encoder_of(pipe, name))
    if not same_model(found, str(wanted)):
        raise SelectionError(
            f"the selection {selection.family}={selection.concept} was made for the {name} "
            f"{str(wanted)[:16]}…, this pipeline has another "
            f"({found[:16]}…){in_common(found, str(wanted))}."
        )


def find_saes(selections: Iterable[Selection], given: Saes = None) -> dict[str, SAE]:
    """Return the SAEs of selections by their hashes, each loaded once, without gradients.

    A selection's SAE is the one that is given; if it is not among several, that of the store which
    the selection names. Of several directories, each has its SAE's name. An SAE in memory that is
    another than the selection's is named in a warning.

    Raises:
        SelectionError: an SAE is not the one that a selection was made with, or nowhere.
    """
    found: dict[str, SAE] = {}
    for selection in selections:
        if selection.sae_hash not in found:
            found[selection.sae_hash] = _find_sae(selection, given).requires_grad_(False)
    return found


def _find_sae(selection: Selection, given: Saes) -> SAE:
    if isinstance(given, SAE):
        found: SAE | None = given
    elif isinstance(given, Mapping):
        found = given.get(selection.sae_hash, given.get(selection.sae))
    else:
        found = _from_directory(selection, given or ())
    by_hand = found is not None and (isinstance(given, (SAE, Mapping)))
    if found is None:
        found = load_selection_sae(selection)
    if (found.config.d_in, found.config.n_latents) != (selection.d_in, selection.n_latents):
        raise SelectionError(
            f"the selection {selection.family}={selection.concept} was made for SAE "
            f"{selection.sae!r} with d_in {selection.d_in} and {selection.n_latents} latents, this "
            f"SAE has {found.config.d_in} and {found.config.n_latents}."
        )
    if by_hand and (identity := sae_identity(found)) != selection.sae_hash:
        warnings.warn(
            f"the SAE given for {selection.family}={selection.concept} is not the one that the "
            f"selection was made with, {selection.sae!r} ({selection.sae_hash[:12]}…), but "
            f"{identity[:12]}…: its features are others.",
            stacklevel=3,
        )
    return found


def _from_directory(selection: Selection, directories: Sequence[Path]) -> SAE | None:
    named = {path.resolve().name: path for path in directories}
    path = directories[0] if len(directories) == 1 else named.get(selection.sae)
    if path is None:
        return None
    digest = sae_files_hash(path)
    if digest != selection.sae_hash:
        raise SelectionError(
            f"the selection {selection.family}={selection.concept} was made with SAE "
            f"{selection.sae!r} ({selection.sae_hash[:12]}…), {path} is another ({digest[:12]}…)."
        )
    return load_sae(path)
