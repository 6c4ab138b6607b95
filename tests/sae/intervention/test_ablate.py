"""Attach and detach: what may be attached, and what is the same before and after."""

import warnings

import pytest
import torch

from featurestore.errors import HookError, SelectionError, UsageError
from featurestore.saes import sae_files_hash
from sae.checkpoint import load_sae, save_sae
from sae.diffusion.pipelines import RunSettings, generate, load_model
from sae.intervention.ablate import ablate, attach
from sae.intervention.settings import Intervention
from tests.builders.edits import EVERY_THIRD, dense, edited_calls, first_call, strong
from tests.builders.selections import (
    N_LATENTS,
    RUN,
    make_sae,
    make_selection,
    timesteps_of,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")


def test_an_empty_selection_changes_nothing_bit_for_bit(model):
    timesteps = timesteps_of(model)
    plain = generate(model, RUN, ["a", "b"], [0, 1], output_type="latent")
    for rows in ([], [(0, 5, 0.3, 1e9)]):
        with ablate(
            model.pipe, make_selection(model, rows, timesteps), strength=-5.0, saes=make_sae()
        ):
            edited = generate(model, RUN, ["a", "b"], [0, 1], output_type="latent")
        assert all(torch.equal(a, b) for a, b in zip(plain, edited, strict=True))


def test_without_guidance_there_is_only_the_conditional_half(model):
    timesteps = timesteps_of(model)
    rows = [(s, f, 1.0, 0.0) for s in range(3) for f in range(N_LATENTS)]
    plain = generate(model, RunSettings(3, 1.0), ["a"], [0], output_type="latent")[0]
    with ablate(model.pipe, make_selection(model, rows, timesteps), strength=-5.0, saes=make_sae()):
        assert not torch.equal(
            generate(model, RunSettings(3, 1.0), ["a"], [0], output_type="latent")[0], plain
        )
    with ablate(
        model.pipe,
        make_selection(model, rows, timesteps, branch="uncond"),
        strength=-5.0,
        saes=make_sae(),
    ):
        assert torch.equal(
            generate(model, RunSettings(3, 1.0), ["a"], [0], output_type="latent")[0], plain
        )


def test_hooks_are_removed_whatever_happens(model):
    plain = generate(model, RUN, ["a"], [0], output_type="latent")[0]
    selection = make_selection(
        model, [(0, f, 1.0, 0.0) for f in range(N_LATENTS)], timesteps_of(model)
    )
    with pytest.raises(KeyError), ablate(model.pipe, selection, strength=-5.0, saes=make_sae()):
        raise KeyError
    assert torch.equal(generate(model, RUN, ["a"], [0], output_type="latent")[0], plain)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_ablation_on_cuda(model_dir, dtype):

    cuda = load_model(str(model_dir), "cuda", dtype)
    selection = make_selection(
        cuda, [(s, f, 0.3, 0.0) for s in range(3) for f in range(N_LATENTS)], timesteps_of(cuda)
    )
    plain = generate(cuda, RUN, ["a"], [0], output_type="latent")[0]
    with ablate(
        cuda.pipe, make_selection(cuda, [], timesteps_of(cuda)), strength=-5.0, saes=make_sae()
    ):
        assert torch.equal(generate(cuda, RUN, ["a"], [0], output_type="latent")[0], plain)
    with ablate(cuda.pipe, selection, strength=-5.0, saes=make_sae()):
        assert not torch.equal(generate(cuda, RUN, ["a"], [0], output_type="latent")[0], plain)


def test_a_model_in_another_precision_is_the_same_model(model, model_dir):

    for dtype in ("float16", "bfloat16"):
        other = load_model(str(model_dir), "cpu", dtype)
        with ablate(
            other.pipe,
            make_selection(model, [], timesteps_of(model)),
            strength=-5.0,
            saes=make_sae(),
        ):
            pass


def test_selections_for_something_else_are_refused(model, tmp_path):
    timesteps = timesteps_of(model)
    cases = [
        ({"model_hash": "f16:123"}, SelectionError, "was made for the weights of model 'tiny'"),
        (
            {"hook": "unet.up_blocks.1.attentions.9"},
            HookError,
            r"no module 'unet\.up_blocks\.1\.attentions\.9'\. Did you mean",
        ),
        ({"d_in": 17}, SelectionError, "d_in 17 and 64 latents, this SAE has 16 and 64"),
    ]
    for changes, error, message in cases:
        with (
            pytest.raises(error, match=message) as caught,
            ablate(
                model.pipe,
                make_selection(model, [], timesteps, **changes),
                strength=-5.0,
                saes=make_sae(),
            ),
        ):
            pass
        assert "\n" not in str(caught.value)
    with (
        pytest.raises(SelectionError, match="where there is no store"),
        ablate(model.pipe, make_selection(model, [], timesteps)),
    ):
        pass
    with pytest.raises(UsageError, match="no selection"), ablate(model.pipe, []):
        pass


def test_several_concepts_saes_and_hooks_at_once_each_with_its_strength(model):
    saes = {"s": make_sae(3), "t": make_sae(5)}
    one = strong(model, features=[0, 3, 6, 9])
    other = strong(model, features=[30, 33, 36], concept="sketch")
    elsewhere = strong(
        model, hook="unet.up_blocks.1.attentions.0", sae="t", sae_hash="2", concept="mosaic"
    )
    together = [
        Intervention(one, strength=-2.0),
        Intervention(other, strength=-9.0),
        Intervention(elsewhere, "zero"),
    ]
    x, found = first_call(model, together[:2], sae=saes)
    expected = dense(saes["s"], x[1], "paper", -2.0, [0, 3, 6, 9])
    expected = expected + dense(saes["s"], x[1], "paper", -9.0, [30, 33, 36]) - x[1]
    torch.testing.assert_close(found[1], expected, atol=2e-5, rtol=1e-5)
    x, found = first_call(model, together, hook="unet.up_blocks.1.attentions.0", sae=saes)
    torch.testing.assert_close(
        found[1], dense(saes["t"], x[1], "zero", 0, EVERY_THIRD), atol=2e-5, rtol=1e-5
    )
    assert edited_calls(model, together, sae=saes) == {0, 1, 2}


def test_attach_stays_until_detached_and_detaching_twice_is_harmless(model):
    plain = generate(model, RUN, ["a"], [0], output_type="latent")[0]
    handle = attach(model.pipe, strong(model), saes=make_sae(3))
    edited = [generate(model, RUN, ["a"], [0], output_type="latent")[0] for _ in range(2)]
    handle.detach()
    handle.detach()
    assert not torch.equal(edited[0], plain) and torch.equal(*edited)
    assert torch.equal(generate(model, RUN, ["a"], [0], output_type="latent")[0], plain)


def test_an_sae_that_is_given_by_hand_and_is_another_is_named(model, tmp_path):
    """Fault C9: it was checked for its shape only."""
    save_sae(make_sae(3), tmp_path / "s")
    digest = sae_files_hash(tmp_path / "s")
    selection = make_selection(model, [], timesteps_of(model), sae_hash=digest)
    loaded = load_sae(tmp_path / "s")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for right in (loaded, make_sae(3), {"s": loaded}, {digest: loaded}):
            with ablate(model.pipe, selection, saes=right):
                pass
    changed = load_sae(tmp_path / "s")
    with torch.no_grad():
        changed.W_dec[0, 0] += 1
    for other in (make_sae(4), {"s": make_sae(4)}, {digest: make_sae(4)}, changed):
        words = (
            r"given for style=neon is not the one that the selection was made with, 's' "
            r"\(.{12}…\), but .{12}…"
        )
        with pytest.warns(UserWarning, match=words), ablate(model.pipe, selection, saes=other):
            pass
