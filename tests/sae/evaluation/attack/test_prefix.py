"""Prefixes: what is read with one, what is left alone, and the arithmetic of tokens on the
simplex."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import ModelError
from sae.diffusion.pipelines import RunSettings, load_model
from sae.evaluation.attack.denoise import conditions
from sae.evaluation.attack.prefix import (
    Encoder,
    SampledOneHot,
    encoders,
    prefixed,
    prefixed_embeddings,
    project,
    text_of,
    typed_ids,
)
from tests.builders.architectures import CASES

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
RUN = RunSettings(n_steps=2, guidance=1.0)


def states(model, prompts, **options):
    with torch.no_grad():
        return conditions(model, RUN, prompts, **options).arguments["encoder_hidden_states"]


@settings(max_examples=50)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 12), scale=st.sampled_from([0.01, 1.0, 30.0]))
def test_projection_gives_the_nearest_point_of_the_simplex(seed, n, scale):
    rng = np.random.default_rng(seed)
    row = torch.from_numpy(rng.standard_normal((1, n)) * scale)
    found = project(row)
    assert found.min() >= 0 and float(found.sum()) == pytest.approx(1)
    others = torch.from_numpy(rng.dirichlet(np.full(n, 0.3), 300))
    corners = torch.eye(n, dtype=torch.float64)
    nearest = (found - row).square().sum()
    assert all(nearest <= (other - row).square().sum() + 1e-9 for other in (*others, *corners))


def test_a_drawn_row_is_one_hot_and_its_gradient_passes_clipped():
    rows = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]], requires_grad=True)
    drawn = SampledOneHot.apply(rows, torch.Generator().manual_seed(0))
    assert drawn[0].tolist() == [0, 1, 0] and drawn[1].sum() == 1 and drawn[1, 1] == 0
    (drawn * torch.tensor([[0.5, -3.0, 2.0]])).sum().backward()
    assert rows.grad.tolist() == [[0.5, -1.0, 1.0]] * 2


@pytest.mark.parametrize("name", list(CASES))
def test_embeddings_of_tokens_are_read_like_the_tokens(architectures, name):
    """Of every architecture and each of its text encoders; and the pipeline is as before
    afterwards."""
    model, prompts = architectures(name), ["a cat", "a tree"]
    known = encoders(model.pipe)
    ids = [torch.tensor([[7, 30, 9], [5, 5, 40]])] * len(known)
    before = states(model, prompts)
    with prefixed(model.pipe, prompts, ids):
        expected = states(model, prompts)
    rows = [encoder.table[one].requires_grad_() for encoder, one in zip(known, ids, strict=True)]
    with prefixed_embeddings(model.pipe, prompts, rows):
        found = conditions(model, RUN, prompts).arguments["encoder_hidden_states"]
    torch.testing.assert_close(found.detach(), expected)
    assert torch.equal(states(model, prompts), before) and not torch.equal(before, expected)
    gradient = torch.autograd.grad(found.square().sum(), rows[-1])[
        0
    ]  # The last encoder's states are all in there.
    assert gradient.abs().sum() > 0


def test_a_prefix_stands_after_the_first_token_and_the_last_tokens_fall_off(model):
    pipe, plain = model.pipe, model.pipe.tokenizer
    options = {
        "padding": "max_length",
        "max_length": 16,
        "truncation": True,
        "return_tensors": "pt",
    }
    ids = plain(["a cat"], **options).input_ids
    with prefixed(pipe, ["a cat"], [torch.tensor([[7, 30, 90]])]):
        longer, other = (
            pipe.tokenizer(text, **options).input_ids for text in (["a cat"], ["a dog"])
        )
        assert pipe.tokenizer.model_max_length == plain.model_max_length
    assert longer[0].tolist() == [int(ids[0, 0]), 7, 30, 90, *ids[0, 1:13].tolist()]
    assert torch.equal(other, plain(["a dog"], **options).input_ids)
    assert pipe.tokenizer is plain


def test_a_tokenizer_that_reads_the_prompts_otherwise_is_refused(model):
    """As those that put an instruction before them: no prefix would ever be read."""
    plain = model.pipe.tokenizer
    message = (
        r"^StableDiffusionPipeline cannot be attacked by text: its tokenizer does not read the"
    )
    with (
        pytest.raises(ModelError, match=message),
        prefixed(model.pipe, ["a cat"], [torch.tensor([[7]])]),
    ):
        model.pipe.tokenizer(["Draw: a cat"], return_tensors="pt")
    assert model.pipe.tokenizer is plain


def test_a_negative_prompt_is_left_alone(model):
    run = RunSettings(n_steps=2, guidance=3.0, negative_prompt="dog")
    with torch.no_grad():
        before = conditions(model, run, ["a cat"], guided=True).arguments["encoder_hidden_states"]
        with prefixed(model.pipe, ["a cat"], [torch.tensor([[7, 30]])]):
            after = conditions(model, run, ["a cat"], guided=True).arguments[
                "encoder_hidden_states"
            ]
    assert torch.equal(before[0], after[0]) and not torch.equal(before[1], after[1])


def test_a_prefix_as_text(model):
    assert text_of(model.pipe, "cat", [model.pipe.tokenizer("a b").input_ids[1:-1]]) == "a b cat"


def test_words_are_read_back_as_the_tokens_that_were_found():
    pipe, prompt = load_model("minicanvas", "cpu").pipe, "An image of cat in neon style."
    (encoder,) = encoders(pipe)
    ids = typed_ids(encoder)
    words = encoder.tokenizer.batch_decode(ids[:, None])
    assert {"house", "style", "a", "!"} <= {word.strip() for word in words}
    assert not {"hou", "<|startoftext|>", "<|endoftext|>"} & {word.strip() for word in words}
    assert 100 < len(ids) < len(encoder.table)
    (asked,) = encoder.tokenizer([prompt], add_special_tokens=False)["input_ids"]
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        drawn = ids[torch.randint(len(ids), (4,), generator=generator)].tolist()
        text = text_of(pipe, prompt, [drawn])
        assert encoder.tokenizer(text, add_special_tokens=False)["input_ids"] == [*drawn, *asked]


class NoWords:
    all_special_ids = ()

    def batch_decode(self, ids):
        return ["" for _ in ids]

    def __call__(self, texts, **options):
        return {"input_ids": [[] for _ in texts]}


def test_a_tokenizer_without_words_is_refused(model):
    with pytest.raises(ModelError, match="NoWords reads no text as one token: there are no words"):
        typed_ids(Encoder("", NoWords(), encoders(model.pipe)[0].module))
