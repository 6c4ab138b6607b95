"""What the methods share: embeddings, predictions, sampling, and weights put in for a while."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def embed(pipe: Any, texts: Sequence[str]) -> Tensor:
    """Return the text encoder's states, ``[texts, tokens, width]``."""
    ids = tokens(pipe, texts)
    return pipe.text_encoder(ids)[0]


def tokens(pipe: Any, texts: Sequence[str]) -> Tensor:
    """Return token ids padded to the encoder's length, ``[texts, tokens]``."""
    length = pipe.tokenizer.model_max_length
    batch = pipe.tokenizer(
        list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    return batch.input_ids.to(pipe.device)


def predicted(unet: nn.Module, x: Tensor, timesteps: Tensor, embedding: Tensor) -> Tensor:
    """Return what a UNet predicts of ``x [batch, C, H, W]`` at ``timesteps [batch]``: noise, or a
    velocity.

    The methods' losses are differences of predictions, published for models that predict noise. Of
    a velocity ``v = √ᾱ ε − √(1−ᾱ) x₀`` (Salimans & Ho 2022, arXiv 2202.00512) the difference in
    noise is √ᾱ times as large, so nothing where a picture begins: a loss in noise would hardly
    train these steps. It is taken in what the model predicts.
    """
    same = bool((timesteps == timesteps[0]).all())
    return unet(x, timesteps[0] if same else timesteps, embedding, return_dict=False)[0]


def training_target(pipe: Any, x0: Tensor, epsilon: Tensor, timesteps: Tensor) -> Tensor:
    """Return what a model is trained to predict of ``√ᾱ x₀ + √(1−ᾱ) ε``."""
    kind = pipe.scheduler.config.prediction_type
    if kind == "epsilon":
        return epsilon
    assert kind == "v_prediction", kind
    signal, rest = levels(pipe, timesteps)
    return signal * epsilon - rest * x0


def levels(pipe: Any, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Return √ᾱ and √(1−ᾱ), ``[batch, 1, 1, 1]``."""
    kept = pipe.scheduler.alphas_cumprod.to(timesteps.device)[timesteps.long()].view(-1, 1, 1, 1)
    return kept.sqrt(), (1 - kept).sqrt()


def noised(pipe: Any, x0: Tensor, epsilon: Tensor, timesteps: Tensor) -> Tensor:
    """Return ``√ᾱ x₀ + √(1−ᾱ) ε``."""
    signal, rest = levels(pipe, timesteps)
    return signal * x0 + rest * epsilon


@torch.no_grad()
def sampled_until(
    pipe: Any,
    unet: nn.Module,
    embedding: Tensor,
    empty: Tensor,
    guidance: float,
    n_steps: int,
    stop: int,
    start: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return what ``stop`` of ``n_steps`` steps of guided sampling make of the noise ``start``, and
    the timestep they reach."""
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.set_timesteps(n_steps, device=start.device)
    x = start * scheduler.init_noise_sigma
    both = torch.cat([empty.expand_as(embedding), embedding])
    for timestep in scheduler.timesteps[:stop]:
        scaled = scheduler.scale_model_input(torch.cat([x, x]), timestep)
        without, wanted = unet(scaled, timestep, both, return_dict=False)[0].chunk(2)
        x = scheduler.step(without + guidance * (wanted - without), timestep, x).prev_sample
    return x, scheduler.timesteps[stop : stop + 1]


def latent_shape(pipe: Any) -> tuple[int, int, int]:
    """Return the channels, height and width of the model's own latents."""
    config = pipe.unet.config
    return config.in_channels, config.sample_size, config.sample_size


@contextlib.contextmanager
def with_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Put weights in the place of a module's, and its own back whatever happens."""
    state = module.state_dict()
    before = {name: state[name].clone() for name in weights}
    try:
        module.load_state_dict({**state, **weights})
        yield
    finally:
        module.load_state_dict({**module.state_dict(), **before})
