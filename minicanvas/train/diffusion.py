"""Train the text encoder and the UNet together, in one process or in several that average their
gradients."""

import time
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

from minicanvas.train.state import learning_rate, load_state, save_state
from minicanvas.train.text import HIDDEN, new_text_encoder, new_tokenizer

EMPTY_PROMPT_SHARE = 0.1
SAVE_SECONDS = 120


class Corpus(NamedTuple):
    """Latents as `encode_all` gives them, the row of `token_ids` each belongs to; the last row is
    the empty prompt."""

    latents: Tensor
    prompt_rows: Tensor
    token_ids: Tensor


def new_unet() -> UNet2DConditionModel:
    """Return an untrained UNet, three levels of 16, 8 and 4 positions a side."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128, 128),
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

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder: CLIPTextModel = new_text_encoder(new_tokenizer())
        self.unet: UNet2DConditionModel = new_unet()

    def forward(self, noisy: Tensor, timesteps: Tensor, token_ids: Tensor) -> Tensor:
        """Return the predicted velocity [batch, 4, 16, 16]."""
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
    """Return the velocity error of a random batch; everything random comes from `generator`."""
    device = next(model.parameters()).device
    rows = torch.randint(len(corpus.latents), (batch,), generator=generator)
    mean, deviation = corpus.latents[rows].float().chunk(2, dim=1)
    latents = mean + deviation * torch.randn(mean.shape, generator=generator)
    noise = torch.randn(mean.shape, generator=generator)
    # One timestep from each of `batch` equal intervals: less variance between batches than
    # independent draws.
    strata = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
    timesteps = (strata * scheduler.config.num_train_timesteps).long()
    prompts = corpus.prompt_rows[rows].clone()
    prompts[torch.rand(batch, generator=generator) < EMPTY_PROMPT_SHARE] = len(corpus.token_ids) - 1
    noisy = scheduler.add_noise(latents, noise, timesteps)
    target = scheduler.get_velocity(latents, noise, timesteps)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        predicted = model(
            noisy.to(device), timesteps.to(device), corpus.token_ids[prompts].to(device)
        )
    return F.mse_loss(predicted.float(), target.to(device))


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Replace the gradients by their mean over the processes; nothing to do in a single one."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    total = parameters_to_vector(gradients)
    dist.all_reduce(total)
    vector_to_parameters(total / dist.get_world_size(), gradients)


class Trainer:
    """The denoiser with its optimiser and the running average of its weights; saved and restored
    together."""

    def __init__(self, device: str, lr: float) -> None:
        self.model = Denoiser().to(device).train()
        self.average = {
            key: value.detach().clone() for key, value in self.model.state_dict().items()
        }
        self.parameters = list(self.model.parameters())
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=lr, weight_decay=0.01, betas=(0.9, 0.99), fused=True
        )

    def restore(self, path: Path) -> int:
        """Read a checkpoint if there is one; return the number of steps done."""
        state = load_state(path)
        if state is None:
            return 0
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        for key, value in state["average"].items():
            self.average[key].copy_(value)
        return int(state["step"])

    def save(self, path: Path, step: int) -> None:
        """Write a checkpoint after `step` steps."""
        content = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}
        save_state(path, {**content, "average": self.average, "step": step})

    def update(self, loss: Tensor, lr: float, decay: float) -> None:
        """Go one step down the gradient, averaged over the processes, and follow it with the
        average."""
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.optimiser.zero_grad()
        loss.backward()
        average_gradients(self.parameters)
        clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        with torch.no_grad():
            for key, value in self.model.state_dict().items():
                if value.is_floating_point():
                    self.average[key].lerp_(value, 1 - decay)


def train_denoiser(
    corpus: Corpus,
    out: Path,
    *,
    n_steps: int,
    batch: int = 32,
    lr: float = 1e-3,
    seed: int = 21,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """Train until `n_steps`, resuming from `out`; return the running average of the weights.

    With `torch.distributed` initialised every process takes `batch` pictures per step; the first
    one writes `out`.
    """
    rank = dist.get_rank() if dist.is_initialized() else 0
    torch.manual_seed(seed)
    trainer = Trainer(device, lr)
    start = trainer.restore(out)
    scheduler, saved = new_scheduler(), time.monotonic()
    losses: list[float] = []
    progress = tqdm(
        range(start, n_steps), initial=start, total=n_steps, disable=rank > 0, mininterval=20
    )
    for step in progress:
        generator = torch.Generator().manual_seed((seed * 1_000_000 + step) * 64 + rank)
        loss = loss_of(trainer.model, corpus, scheduler, batch, generator=generator)
        rate = learning_rate(step, n_steps, lr, rise=200, floor=0.01)
        trainer.update(loss, rate, decay=min(0.999, (step + 1) / (step + 10)))
        losses.append(loss.item())
        if rank == 0 and (step + 1) % 100 == 0:
            tqdm.write(
                f"denoiser step {step + 1} loss {sum(losses[-100:]) / len(losses[-100:]):.4f}"
            )
        if rank == 0 and (time.monotonic() - saved > SAVE_SECONDS or step + 1 == n_steps):
            saved = time.monotonic()
            trainer.save(out, step + 1)
    return trainer.average
