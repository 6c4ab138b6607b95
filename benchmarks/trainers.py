"""Trainers of TopK SAEs beside each other: ours, as it was in 0.1, and other libraries', each as
its authors run it."""

import importlib
import math
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sae.model import SAEConfig
from sae.training.settings import Plan, TrainSettings, default_dead_after, default_lr
from sae.training.start import start_training
from sae.training.stepping.stepper import stepper

if not torch.cuda.is_available():  # There the kernels of sparsify and SAeUron cannot run.
    os.environ |= {"SPARSIFY_DISABLE_TRITON": "1", "SAE_DISABLE_TRITON": "1"}
ALPHA = 1 / 32


class Data(Protocol):
    """Where batches come from."""

    hook: str
    d_in: int

    def epoch(self, number: int, start: int = 0) -> Any:
        """Yield batches."""


class Task(NamedTuple):
    """What every trainer is given."""

    data: Any
    d_in: int
    n_latents: int
    k: int
    batch_size: int
    steps: int
    seed: int

    @property
    def first(self) -> Tensor:
        """The first batch."""
        first: Tensor = next(self.data.epoch(0))
        return first


class Trainer(NamedTuple):
    """A training that was begun."""

    step: Callable[[Tensor], object]
    codes: Callable[[Tensor], tuple[Tensor, Tensor]]
    """batch → its reconstruction, and the latents that fired"""


def plan_of(task: Task) -> Plan:
    """Return what ``featurestore train`` does by default."""
    settings = TrainSettings(
        k=task.k, n_latents=task.n_latents, batch_size=task.batch_size, seed=task.seed
    )
    config = SAEConfig(task.d_in, task.n_latents, task.k, hook=task.data.hook)
    n_positions = task.steps * task.batch_size
    lr, dead_after = default_lr(task.n_latents, n_positions), default_dead_after(n_positions)
    return Plan(settings, config, task.steps, lr, dead_after, "")


def ours(task: Task) -> Trainer:
    """Return the training of ``featurestore train`` with its defaults."""
    return _ours(task, plan_of(task))


def ours_bfloat16(task: Task) -> Trainer:
    """Return ours with ``--precision bfloat16``."""
    plan = plan_of(task)
    return _ours(task, replace(plan, settings=replace(plan.settings, precision="bfloat16")))


def version_0_1(task: Task) -> Trainer:
    """Return the training of version 0.1 with its defaults."""
    plan = plan_of(task)
    dead_after = min(10**7, task.steps * task.batch_size // 3)
    plan = replace(plan, lr=_lr_0_1(task), dead_after=dead_after, betas=(0.9, 0.999), warmup=0.05)
    return _ours(task, plan, scale=plan.haste)


def _lr_0_1(task: Task) -> float:
    return 4e-4 * math.sqrt(20480 / task.n_latents)


def unhurried(task: Task) -> Trainer:
    """Return ours as a long training begins, however short this one is."""
    plan = plan_of(task)
    return _ours(task, replace(plan, lr=plan.lr / plan.haste), scale=plan.haste)


def _ours(task: Task, plan: Plan, scale: float = 1.0) -> Trainer:
    state, _ = start_training(plan, task.data, task.first.device)
    with torch.no_grad():
        state.sae.W_enc.mul_(scale)

    def codes(x: Tensor) -> tuple[Tensor, Tensor]:
        found = state.sae.encode(x)
        return state.sae.decode(found), found.indices[found.values > 0]

    return Trainer(stepper(state, plan), codes)


def sparsify(task: Task) -> Trainer:
    """Return EleutherAI's ``sparsify.Trainer.fit`` with the defaults of its configuration: signum,
    free of a schedule."""
    from schedulefree import ScheduleFreeWrapper
    from sparsify.sign_sgd import SignSGD

    coder = _sparsify_coder(task)
    lr = 5e-3 / math.sqrt(task.n_latents / 2**14)
    optimizer = ScheduleFreeWrapper(
        SignSGD([{"params": list(coder.parameters()), "lr": lr}]), momentum=0.95
    )
    optimizer.train()

    def codes(x: Tensor) -> tuple[Tensor, Tensor]:
        optimizer.eval()
        out = coder(x)
        optimizer.train()
        return out.sae_out, out.latent_indices[out.latent_acts > 0]

    return Trainer(_coder_step(coder, optimizer), codes)


def sparsify_adam(task: Task) -> Trainer:
    """Return sparsify's coder from its own initial weights, trained by Adam as version 0.1 of this
    project did."""
    coder, plan = _sparsify_coder(task), replace(plan_of(task), lr=_lr_0_1(task), warmup=0.05)
    optimizer = torch.optim.Adam(coder.parameters())
    step, n_done = _coder_step(coder, optimizer), 0

    def scheduled(x: Tensor) -> None:
        nonlocal n_done
        optimizer.param_groups[0]["lr"] = plan.lr_at(n_done)
        step(x)
        n_done += 1

    def codes(x: Tensor) -> tuple[Tensor, Tensor]:
        out = coder(x)
        return out.sae_out, out.latent_indices[out.latent_acts > 0]

    return Trainer(scheduled, codes)


def _sparsify_coder(task: Task) -> Any:
    from sparsify import SparseCoder, SparseCoderConfig

    torch.manual_seed(task.seed)
    coder = SparseCoder(
        task.d_in, SparseCoderConfig(num_latents=task.n_latents, k=task.k), task.first.device
    )
    coder.b_dec.data = task.first.mean(0)
    return coder


def _coder_step(
    coder: Any, optimizer: Any, shape: Callable[[Tensor], Tensor] = lambda x: x
) -> Callable[[Tensor], None]:
    since = torch.zeros(len(coder.W_dec), dtype=torch.long, device=coder.W_dec.device)

    def step(x: Tensor) -> None:
        coder.set_decoder_norm_to_unit_norm()
        out = coder(shape(x), dead_mask=None)
        out.fvu.backward()
        fired = torch.zeros_like(since, dtype=torch.bool)
        fired[out.latent_indices.flatten()] = True
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        since.add_(len(x))
        since[fired] = 0

    return step


def saeuron(task: Task) -> Trainer:
    """Return SAeUron's ``SAE.trainer``: Adam at 4e-4; its batches have the shape [pictures,
    positions, d_in]."""
    module, config = importlib.import_module("SAE.sae"), importlib.import_module("SAE.config")
    coder = module.Sae(
        task.d_in, config.SaeConfig(num_latents=task.n_latents, k=task.k), task.first.device
    )
    coder.b_dec.data = task.first.mean(0)
    step = _coder_step(
        coder, torch.optim.Adam(coder.parameters(), lr=4e-4), lambda x: x.view(4, -1, x.shape[1])
    )

    def codes(x: Tensor) -> tuple[Tensor, Tensor]:
        out = coder(x.view(4, -1, x.shape[1]))
        return out.sae_out.view(x.shape), out.latent_indices[out.latent_acts > 0]

    return Trainer(step, codes)


def saelens(task: Task) -> Trainer:
    """Return SAELens's ``SAETrainer.step`` with the defaults of its configurations."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    device = str(task.first.device)
    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(d_in=task.d_in, d_sae=task.n_latents, k=task.k, device=device)
    )
    settings = SAETrainerConfig(
        total_training_samples=task.steps * task.batch_size,
        train_batch_size_samples=task.batch_size,
        device=device,
    )
    settings.lr_end = settings.lr / 10  # As its runners do.
    trainer = SAETrainer(cfg=settings, sae=sae, data_provider=iter([]))

    def step(x: Tensor) -> None:
        trainer.step(x)
        trainer.n_training_steps += 1

    def codes(x: Tensor) -> tuple[Tensor, Tensor]:
        active = sae.encode(x)
        return sae.decode(active), active.nonzero()[:, 1]

    return Trainer(step, codes)


def overcomplete(task: Task) -> Trainer:
    """Return overcomplete's ``train_sae`` on one batch at a time, as its page shows it: Adam at
    5e-4."""
    from overcomplete.sae import TopKSAE
    from overcomplete.sae.train import train_sae

    device = str(task.first.device)
    sae = TopKSAE(task.d_in, nb_concepts=task.n_latents, top_k=task.k, device=device)
    optimizer = torch.optim.Adam(sae.parameters(), lr=5e-4)

    def criterion(  # noqa: PLR0917 - overcomplete calls it so
        x: Tensor, x_hat: Tensor, pre_codes: Tensor, codes: Tensor, dictionary: Tensor
    ) -> Tensor:
        return (x - x_hat).square().mean()

    def step(x: Tensor) -> None:
        train_sae(sae, [x], criterion, optimizer, nb_epochs=1, monitoring=0, device=device)

    def codes(x: Tensor) -> tuple[Tensor, Tensor]:
        _, active, made = sae(x)
        return made, active.nonzero()[:, 1]

    return Trainer(step, codes)


@torch.no_grad()
def held_out(trainer: Trainer, x: Tensor, n_latents: int) -> tuple[float, int]:
    """Return the FVU of positions that were not trained on, and how many latents fire at none of
    them."""
    error, fired = 0.0, torch.zeros(n_latents, dtype=torch.bool, device=x.device)
    for part in x.split(2048):
        made, indices = trainer.codes(part)
        error += float((part - made).double().square().sum())
        fired[indices.flatten()] = True
    return error / float((x - x.mean(0)).double().square().sum()), int((~fired).sum())
