"""A picture under attack: what is searched for it, kept after every round so that an interrupted
attack goes on."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from featurestore.format import durable
from featurestore.format.canonical import canonical_json
from featurestore.prompts import Prompt

BETAS, EPSILON = (0.9, 0.999), 1e-8
"""of Adam"""


class Case(NamedTuple):
    """A picture that is to show a removed concept again."""

    prompt: Prompt
    family: str
    concept: str


@dataclass
class Victim:
    """A case, and how far the attack on it is."""

    case: Case
    target: Tensor
    """latents of the untouched model's picture, without a batch, as the denoiser takes them"""
    generator: torch.Generator
    variables: list[Tensor] = field(default_factory=list)
    moments: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    n_steps: int = 0
    """of Adam so far"""
    round: int = 0
    """the next one"""
    losses: list[float] = field(default_factory=list)

    def begin(self, variables: list[Tensor]) -> None:
        """Take what is searched, at its start."""
        self.variables = [v.detach().clone() for v in variables]
        self.moments = [(torch.zeros_like(v), torch.zeros_like(v)) for v in self.variables]
        self.n_steps = 0

    def step(self, gradients: list[Tensor], rate: float, weight_decay: float = 0.0) -> None:
        """Take one step of Adam (Kingma & Ba 2015) with L2 regularisation."""
        self.n_steps += 1
        for variable, gradient, (mean, square) in zip(
            self.variables, gradients, self.moments, strict=True
        ):
            total = gradient + weight_decay * variable
            mean.mul_(BETAS[0]).add_(total, alpha=1 - BETAS[0])
            square.mul_(BETAS[1]).addcmul_(total, total, value=1 - BETAS[1])
            unbiased = [
                m / (1 - beta**self.n_steps) for m, beta in zip((mean, square), BETAS, strict=True)
            ]
            variable.sub_(rate * unbiased[0] / (unbiased[1].sqrt() + EPSILON))

    def save(self, path: Path) -> None:
        """Keep what the next round begins with."""
        tensors = {"generator": self.generator.get_state()}
        for i, (variable, (mean, square)) in enumerate(
            zip(self.variables, self.moments, strict=True)
        ):
            tensors |= {f"variable{i}": variable, f"mean{i}": mean, f"square{i}": square}
        told = {"round": self.round, "n_steps": self.n_steps, "losses": self.losses}
        data = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        durable.write_bytes(path, safetensors.torch.save(data, {"attack": json.dumps(told)}))

    def load(self, path: Path) -> None:
        """Go on from what :meth:`save` kept."""
        device = self.target.device
        with safetensors.safe_open(path, "pt") as file:
            told = json.loads(file.metadata()["attack"])
            n = sum(name.startswith("variable") for name in file.keys())  # noqa: SIM118
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.generator.set_state(tensors["generator"])
        self.variables = [tensors[f"variable{i}"].to(device) for i in range(n)]
        self.moments = [
            (tensors[f"mean{i}"].to(device), tensors[f"square{i}"].to(device)) for i in range(n)
        ]
        self.round, self.n_steps, self.losses = told["round"], told["n_steps"], told["losses"]


def generator_of(case: Case, seed: int) -> torch.Generator:
    """Return a case's own random numbers: the same whatever else is attacked beside it."""
    return torch.Generator().manual_seed(
        number_of([seed, case.prompt.prompt, case.prompt.seed, case.concept])
    )


def number_of(what: Any) -> int:
    """Return 63 bits that are the same for the same JSON."""
    digest = hashlib.sha256(canonical_json(what).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
