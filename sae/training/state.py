"""The state of a training, the step that changes it, and its file: safetensors under ``.work/`` of
the store."""

import json
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from featurestore.errors import SAEError
from featurestore.format import durable
from featurestore.format.canonical import canonical_json
from featurestore.store import Store
from sae.model import SAE, Codes
from sae.training.loss import AUX_ALPHA, Loss, training_loss
from sae.training.processes import Processes
from sae.training.settings import Plan

_HISTORY = 400
_ALONE = Processes()


class State:
    """Weights, optimiser (Adam with ``betas``), and how long ago each latent fired."""

    def __init__(self, sae: SAE, betas: tuple[float, float]) -> None:
        self.sae = sae
        device = sae.b_dec.device
        self.optimizer = torch.optim.Adam(
            sae.parameters(), betas=betas, fused=device.type in ("cpu", "cuda")
        )
        self.positions_since_fired = torch.zeros(
            sae.config.n_latents, dtype=torch.int64, device=device
        )
        self.history: list[tuple[int, float, float, int]] = []
        """at some steps: the step, FVU and L0 of its batch, dead latents"""
        self.step = 0
        for parameter in sae.parameters():
            step = torch.zeros((), device=parameter.device)
            moments = {
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
            self.optimizer.state[parameter] = {"step": step, **moments}

    def count(self, codes: Codes, processes: Processes) -> None:
        """Count a step in which ``codes`` fired, here or in another process."""
        fired = codes.indices[codes.values > 0]
        self.positions_since_fired += codes.values.shape[0] * processes.world_size
        self.positions_since_fired[fired] = 0
        processes.least_(self.positions_since_fired)
        self.step += 1

    def remember(self, fvu: float, l0: float, n_dead: int) -> None:
        """Add the step just taken to the history, which keeps at most ``_HISTORY`` entries, evenly
        spread."""
        self.history.append((self.step, fvu, l0, n_dead))
        if len(self.history) > _HISTORY:
            self.history = self.history[1::2]

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor under a name: the live ones, not copies."""
        found = {"positions_since_fired": self.positions_since_fired}
        for name, parameter in self.sae.named_parameters():
            found[name] = parameter.detach()
            found |= {
                f"{name}.{key}": value for key, value in self.optimizer.state[parameter].items()
            }
        return found


def take_step(
    state: State,
    x: Tensor,
    *,
    lr: float,
    dead_after: int,
    aux_alpha: float = AUX_ALPHA,
    processes: Processes = _ALONE,
) -> Loss:
    """Move the weights once along the gradient of a batch ``x`` ``[batch, d_in]``, scaled as the
    SAE wants it.

    The rows of ``W_dec`` stay unit vectors: the part of the gradient along them is taken out
    before, and the norm is restored after (Gao et al. 2024, section A). ``dead_after`` positions
    without firing make a latent dead. Several processes average their gradients, each taken in the
    unit of its own part's variance. Returns the loss of ``x`` before the step.
    """
    sae = state.sae
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    state.optimizer.zero_grad()
    loss = training_loss(sae, x, state.positions_since_fired > dead_after, aux_alpha)
    loss.total.backward()
    processes.average_(parameter.grad for parameter in sae.parameters())
    sae.remove_parallel_gradient_()
    state.optimizer.step()
    sae.normalize_decoder_()
    sae.variant.after_step(sae, loss.codes.values)
    processes.average_([sae.threshold.data] if sae.variant.has_threshold else [])
    state.count(loss.codes, processes)
    return loss


def state_path(store: Store, name: str) -> Path:
    """Return where the state of the training of an SAE lies."""
    return store.root / ".work" / f"train-{name}" / "state.safetensors"


def save(store: Store, name: str, plan: Plan, state: State) -> None:
    """Write the state, atomically and durably."""
    about = {
        "step": state.step,
        "identity": plan.identity(),
        "settings": plan.described(),
        "data": plan.data,
    }
    about |= {"history": state.history}
    tensors = {key: tensor.cpu().contiguous() for key, tensor in state.tensors().items()}
    durable.write_bytes(
        state_path(store, name), safetensors.torch.save(tensors, {"state": canonical_json(about)})
    )


def restore(store: Store, name: str, plan: Plan, state: State) -> None:
    """Go back to the written state, if there is one.

    Raises:
        SAEError: it belongs to other settings or other data, or cannot be read.
    """
    path = state_path(store, name)
    if not path.is_file():
        return
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["state"])
            _check(path, about, plan)
            for key, tensor in state.tensors().items():
                tensor.copy_(file.get_tensor(key))
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise SAEError(
            f"{path} is no state of a training ({error}): delete it to start anew."
        ) from error
    state.step = about["step"]
    state.history = [tuple(entry) for entry in about["history"]]


def discard(store: Store, name: str) -> None:
    """Delete the written state."""
    durable.remove(state_path(store, name))


def _check(path: Path, about: dict, plan: Plan) -> None:
    if about["identity"] == plan.identity():
        return
    here, there = plan.described(), about["settings"]
    changed = [f"{k}: {there.get(k)} there, {v} here" for k, v in here.items() if there.get(k) != v]
    raise SAEError(
        f"a training of that name stopped at step {about['step']} with other "
        f"{'settings' if changed else 'data'} ({'; '.join(changed) or 'activations were added'}): "
        f"use the same, or another --name, or delete {path}."
    )
