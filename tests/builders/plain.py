"""What is compared with: plain forward hooks, and the paper's rule written out densely."""

import ast
import contextlib
from pathlib import Path

import torch
from diffusers import models as diffusers_models

from sae.diffusion.modules import find_module
from sae.model import SAE, SAEConfig


def _streams_in_source():
    """What the return statements of diffusers' blocks say: class → the stream that comes first."""
    root, found = Path(diffusers_models.__file__).parent, {}
    for path in (*sorted((root / "transformers").glob("*.py")), root / "attention.py"):
        for cls in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(cls, ast.ClassDef) and cls.name.endswith("Block"):
                forward = [
                    one
                    for one in cls.body
                    if isinstance(one, ast.FunctionDef) and one.name == "forward"
                ]
                returned = {
                    ast.unparse(n.value)
                    for f in forward
                    for n in ast.walk(f)
                    if isinstance(n, ast.Return) and n.value
                }
                both = {
                    "(encoder_hidden_states, hidden_states)",
                    "(hidden_states, encoder_hidden_states)",
                }
                if len(returned) == 1 and returned <= both:
                    found[cls.name] = returned.pop().strip("()").split(", ")[0]
    return found


STREAMS_IN_SOURCE = _streams_in_source()


def own_streams(module, output, hook):
    """The hooked stream of a block's output, written out from the names of its forward's return
    statement."""
    if not isinstance(output, tuple):
        return output
    first = STREAMS_IN_SOURCE.get(type(module).__name__)
    text = hook.endswith("-encoder")
    return output[0 if first is None or (first == "encoder_hidden_states") == text else 1]


@contextlib.contextmanager
def plain_hooks(pipe, hooks):
    seen = {hook: [] for hook in hooks}

    def attach(hook):
        module = find_module(pipe, hook)
        keep = lambda m, args, output: seen[hook].append(own_streams(m, output, hook).clone())  # noqa: E731
        return module.register_forward_hook(keep)

    handles = [attach(hook) for hook in hooks]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def rows(tensor):
    return tensor.permute(0, 2, 3, 1).flatten(1, 2) if tensor.dim() == 4 else tensor


def random_sae(d_in):
    generator = torch.Generator().manual_seed(3)
    sae = SAE(SAEConfig(d_in=d_in, n_latents=64, k=4), generator)
    with torch.no_grad():
        for weight in (sae.W_enc, sae.b_enc, sae.b_dec):
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return sae


def dense(sae, x, features):
    """The paper's rule with μ(i,t,D_c) = 0.3, μ(i,t,D) = 0.01, γ = −5: encode, edit, decode, add
    the error."""
    z = sae.encode_dense(x)
    edited, chosen = z.clone(), z[:, features]
    edited[:, features] = torch.where(chosen > 0.01, -5.0 * 0.3 * chosen, chosen)
    return x + (edited - z) @ sae.W_dec


@contextlib.contextmanager
def plain_hook(pipe, hook):
    """What one module returns, call by call: its tensor, or the first of its tuple."""
    seen = []

    def keep(module, args, output):
        seen.append((output[0] if isinstance(output, tuple) else output).clone())

    handle = find_module(pipe, hook).register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()
