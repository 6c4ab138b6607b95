"""Train the text encoder and the UNet together, in one process or in several that average their
gradients."""

import time
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_, parameters_to_vector, vector_to_parameters
from tqdm import tqdm
from transformers import CLIPTextModel

from minicanvas.train.plans import SMALL_PLAN, Plan
from minicanvas.train.state import Stateful, learning_rate, resumed_steps, set_rate
from minicanvas.train.text import HIDDEN, new_text_encoder, new_tokenizer

EMPTY_PROMPT_SHARE = 0.1
TRIAL_STEPS = 10


class Corpus(NamedTuple):
    """Latents [n, channels, 16, 16], the row of `token_ids` each belongs to; the last row is the
    empty prompt."""

    latents: Tensor
    prompt_rows: Tensor
    token_ids: Tensor

    def to(self, device: str) -> "Corpus":
        """Return the same on a device."""
        return Corpus(*(tensor.to(device) for tensor in self))


def new_unet(plan: Plan = SMALL_PLAN) -> UNet2DConditionModel:
    """Return an untrained UNet, three levels of 16, 8 and 4 positions a side."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=plan.latent_channels,
        out_channels=plan.latent_channels,
        block_out_channels=plan.denoiser_channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=HIDDEN,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def new_scheduler() -> DDIMScheduler:
    """Return the noise schedule of training and, saved with the weights, of sampling."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


class Denoiser(nn.Module):
    """What is trained: the text encoder and the UNet that it conditions."""

    def __init__(self, plan: Plan = SMALL_PLAN) -> None:
        super().__init__()
        self.text_encoder: CLIPTextModel = new_text_encoder(new_tokenizer(plan.canvas))
        self.unet: UNet2DConditionModel = new_unet(plan)

    def forward(self, noisy: Tensor, timesteps: Tensor, token_ids: Tensor) -> Tensor:
        """Return the predicted velocity [batch, channels, 16, 16]."""
        states = self.text_encoder(token_ids)[0]
        return self.unet(noisy, timesteps, encoder_hidden_states=states).sample


def loss_of(
    model: Denoiser,
    corpus: Corpus,
    scheduler: DDIMScheduler,
    batch: int,
    *,
    generator: torch.Generator,
) -> Tensor:
    """Return the velocity error of a random batch; everything random comes from `generator`, which
    is where the corpus and the model are."""

    def uniform(n: int) -> Tensor:
        return torch.rand(n, generator=generator, device=device)

    device = generator.device
    rows = torch.randint(len(corpus.latents), (batch,), generator=generator, device=device)
    latents = corpus.latents[rows].float()
    noise = torch.randn(latents.shape, generator=generator, device=device)
    # One timestep from each of `batch` equal intervals: less variance between batches than
    # independent draws.
    strata = (torch.arange(batch, device=device) + uniform(batch)) / batch
    timesteps = (strata * scheduler.config.num_train_timesteps).long()
    empty = uniform(batch) < EMPTY_PROMPT_SHARE
    prompts = corpus.prompt_rows[rows].masked_fill(empty, len(corpus.token_ids) - 1)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    target = scheduler.get_velocity(latents, noise, timesteps)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        predicted = model(noisy, timesteps, corpus.token_ids[prompts])
    return F.mse_loss(predicted.float(), target)


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Replace the gradients by their mean over the processes; nothing to do in a single one."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    total = parameters_to_vector(gradients)
    dist.all_reduce(total)
    vector_to_parameters(total / dist.get_world_size(), gradients)


class Trainer:
    """The denoiser with its optimiser and the running average of its weights."""

    def __init__(self, plan: Plan, device: str, lr: float) -> None:
        self.model = Denoiser(plan).to(device).train()
        self.average = deepcopy(self.model).requires_grad_(False)
        self.parameters = list(self.model.parameters())
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=lr, weight_decay=0.01, betas=(0.9, 0.99), fused=True
        )

    def update(self, loss: Tensor, rate: float, decay: float) -> None:
        """Go one step down the gradient, averaged over the processes, and follow it with the
        average."""
        set_rate(self.optimiser, rate)
        self.optimiser.zero_grad()
        loss.backward()
        average_gradients(self.parameters)
        clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        with torch.no_grad():
            for kept, new in zip(self.average.parameters(), self.parameters, strict=True):
                kept.lerp_(new, 1 - decay)


def train_denoiser(
    corpus: Corpus,
    out: Path,
    plan: Plan,
    *,
    batch: int,
    n_steps: int | None = None,
    lr: float = 1e-3,
    seed: int = 21,
    device: str = "cpu",
) -> Denoiser:
    """Train for as many steps as the plan has, or until `n_steps`, resuming from `out`; return the
    running average of the weights.

    With `torch.distributed` initialised every process takes `batch` pictures per step; the first
    one writes `out`.
    """
    rank = dist.get_rank() if dist.is_initialized() else 0
    n_steps = plan.denoiser_steps if n_steps is None else n_steps
    torch.manual_seed(seed)
    trainer, corpus, scheduler = Trainer(plan, device, lr), corpus.to(device), new_scheduler()
    parts: dict[str, Stateful] = {
        "model": trainer.model,
        "optimiser": trainer.optimiser,
        "average": trainer.average,
    }
    losses: list[Tensor] = []
    for step in resumed_steps(out, n_steps, parts, title="denoiser", writes=rank == 0):
        generator = torch.Generator(device).manual_seed((seed * 1_000_000 + step) * 64 + rank)
        loss = loss_of(trainer.model, corpus, scheduler, batch, generator=generator)
        rate = learning_rate(step, n_steps, lr, rise=200, floor=0.01)
        trainer.update(loss, rate, decay=min(0.999, (step + 1) / (step + 10)))
        losses = [*losses[-99:], loss.detach()]
        if rank == 0 and (step + 1) % 100 == 0:
            tqdm.write(f"denoiser step {step + 1} loss {torch.stack(losses).mean().item():.4f}")
    return trainer.average


def seconds_per_step(corpus: Corpus, plan: Plan, *, batch: int, device: str) -> float:
    """Return how long a step takes here, tried on weights that are thrown away."""
    trainer, corpus, scheduler = Trainer(plan, device, 0.0), corpus.to(device), new_scheduler()
    generator = torch.Generator(device).manual_seed(0)
    start = 0.0
    for step in range(2 * TRIAL_STEPS):
        if step == TRIAL_STEPS:
            trainer.parameters[0].sum().item()  # waits for what a GPU has not done yet
            start = time.perf_counter()
        loss = loss_of(trainer.model, corpus, scheduler, batch, generator=generator)
        trainer.update(loss, 0.0, 0.0)
    trainer.parameters[0].sum().item()
    return (time.perf_counter() - start) / TRIAL_STEPS
