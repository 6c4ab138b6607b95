"""Edits of a denoiser that is recorded in a CUDA graph: the step is looked up on the device."""

import pytest
import torch

from featurestore.errors import ModelError
from sae.diffusion.hooks import Layout
from sae.diffusion.pipelines import generate
from sae.diffusion.reading.calls import DenoiserCall
from sae.intervention import edit as editing
from sae.intervention.ablate import ablate
from sae.intervention.schedules import Schedules
from sae.intervention.settings import Intervention, Window
from tests.builders.edits import EVERY_THIRD, strong
from tests.builders.selections import RUN, make_sae

LAYOUT = Layout(2, 2, True)
SCHEDULE = (900.0, 500.0, 100.0)


def call(step, schedule=SCHEDULE, branches=("uncond", "cond")):
    return DenoiserCall(schedule[step] if schedule else 7.0, branches, step, schedule)


@pytest.mark.triton
def test_a_recorded_denoiser_edits_as_one_that_is_not(model, monkeypatch):
    """Each step by its own rules, and one without any."""
    pytest.importorskip("triton")
    from sae.intervention import fused as kernels

    edits = [
        Intervention(
            strong(model, features=EVERY_THIRD[:5]), "paper", -2.0, window=Window(0, 0.4, True)
        ),
        Intervention(strong(model, features=EVERY_THIRD[3:7]), "zero", window=Window(0, 0.6, True)),
    ]
    lookups, apply_ = [], kernels.apply_
    monkeypatch.setattr(editing, "kernels_for", lambda device: kernels)
    with ablate(model.pipe, edits, saes=make_sae(3)):
        expected = generate(model, RUN, ["a"], [0], output_type="latent")
        monkeypatch.setattr(
            kernels,
            "apply_",
            lambda *a, lookup: lookups.append(lookup) or apply_(*a, lookup=lookup),
        )
        monkeypatch.setattr(editing, "is_recorded", lambda device: True)
        found = generate(model, RUN, ["a"], [0], output_type="latent")
    plain = generate(model, RUN, ["a"], [0], output_type="latent")
    assert all(map(torch.equal, found, expected)) and not torch.equal(found[0], plain[0])
    assert [float(given) for _, given in lookups] == lookups[0][0].tolist()


@pytest.mark.parametrize(
    "step, schedule, met, reason",
    [
        (0, (), {}, "no pipeline says which timesteps will come"),
        (0, (900.0, 900.0), {}, "its schedule has a timestep twice"),
        (1, SCHEDULE, {0: {}}, "1 of the schedule's 3 steps have been met; generate once"),
        (
            0,
            SCHEDULE,
            {0: {}, 1: {"branches": ("cond",)}, 2: {}},
            "the halves of guidance are calls",
        ),
        (0, SCHEDULE, {0: {}, 1: {"given": 500.0}, 2: {}}, "is given its timestep as a number"),
        (
            0,
            SCHEDULE,
            {0: {}, 1: {}, 2: {"fused": None}},
            "only rules of at most 64 features per step",
        ),
        (0, SCHEDULE, {0: {}, 1: {}, 2: {}}, "that takes Triton, and is without gradients"),
    ],
)
def test_what_cannot_be_recorded_says_why(step, schedule, met, reason):
    schedules = Schedules("unet.mid_block")
    for number, changes in met.items():
        said = {
            "branches": ("uncond", "cond"),
            "given": torch.tensor(5),
            "fused": "rules",
        } | changes
        schedules.meet(
            call(number, schedule, said["branches"]), LAYOUT, said["fused"], said["given"]
        )
    expected = f"the edit at 'unet.mid_block' cannot be recorded in a CUDA graph: .*{reason}"
    with pytest.raises(ModelError, match=expected):
        schedules.laid_out(None, call(step, schedule), LAYOUT)


@pytest.mark.gpu
def test_pictures_of_a_recorded_denoiser_are_those_of_a_plain_one(model, monkeypatch):
    edits = [Intervention(strong(model, features=EVERY_THIRD[:5]), "paper", -2.0)]
    pipe = model.pipe.to("cuda")
    with ablate(pipe, edits, saes=make_sae(3)):
        expected = generate(model, RUN, ["a"], [0], output_type="latent")
        record_from_the_second_call(pipe.unet, monkeypatch)
        found = generate(model, RUN, ["a"], [0], output_type="latent")
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def record_from_the_second_call(unet, monkeypatch):
    """Have a denoiser recorded at the second call from now, and played from then on."""
    graph, fixed, n_calls = torch.cuda.CUDAGraph(), {}, 0
    plain = type(unet)

    class Recorded(plain):
        def __call__(self, sample, timestep, encoder_hidden_states, **kwargs):
            nonlocal n_calls
            n_calls += 1
            given = {"sample": sample, "timestep": timestep, "text": encoder_hidden_states}
            if n_calls == 1:
                return super().__call__(sample, timestep, encoder_hidden_states, **kwargs)
            if n_calls == 2:
                fixed.update({name: tensor.clone() for name, tensor in given.items()})
                with torch.cuda.graph(graph):
                    out = super().__call__(*fixed.values(), **kwargs)
                fixed["out"] = out
            for name, tensor in given.items():
                fixed[name].copy_(tensor)
            graph.replay()
            return tuple(tensor.clone() for tensor in fixed["out"])

    monkeypatch.setattr(unet, "__class__", Recorded)
